"""Cityscapes panoptic from gtFine's instance PNGs: what cityscapesscripts' createPanopticImgs makes of them."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.labels import load_labels
from osm.prepare.originals.work import Panoptic, found, ids_of, run, write_panoptic_json

WHAT = "Cityscapes panoptic, from gtFine"
_ENDING = "_instanceIds.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", required=True, help="the folder that holds gtFine/")
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=["train", "val"], help="default both")


def make(args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
    """Writes `gtFine/cityscapes_panoptic_<split>` and its json; returns how many PNGs."""
    root, total = Path(args.data_dir) / "gtFine", 0
    for split in args.splits:
        maps = found("data_dir", root, f"{split}/*/*{_ENDING}")
        target = root / f"cityscapes_panoptic_{split}"
        target.mkdir(exist_ok=True)
        made = run(_make_one, [(path, target) for path in maps], workers, faults)
        write_panoptic_json(root / f"{target.name}.json", made, "cityscapes")
        total += len(made)
    return total


def _make_one(job: tuple[Path, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(image, annotation). An id of 1000 or more is class * 1000 + instance; less, a class as a whole."""
    path, target = job
    labels = load_labels("cityscapes").classes
    ids = ids_of(path)
    picture = Panoptic(*ids.shape)
    for one in np.unique(ids).tolist():
        category = one if one < 1000 else one // 1000
        if category in labels:
            # Things that could not be told apart bear the class alone.
            picture.add(one, category, ids == one, int(one < 1000 and labels[category].isthing))
    stem = path.name.removesuffix(_ENDING)
    picture.write(target / f"{stem}_panoptic.png")
    frame, (height, width) = stem.removesuffix("_gtFine"), ids.shape
    image = {"id": frame, "width": width, "height": height, "file_name": f"{stem}_leftImg8bit.png"}
    return image, {"image_id": frame, "file_name": f"{stem}_panoptic.png", "segments_info": picture.segments}
