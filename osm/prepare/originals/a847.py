"""A-847 from the full ADE20K release of 2021: its `_seg.png` files to 16-bit training ids."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from osm.errors import OsmError
from osm.forms.set_files import naming_file, read_file
from osm.io.images import read_rgb
from osm.prepare.originals.work import found, give, lookup, run, write_train_ids

WHAT = "A-847, from ADE20K_2021_17_01"
_SPLITS = ("training", "validation")
_ENDING = "_seg.png"
_CODES = 26 * 256  # of R / 10 * 256 + G


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", required=True, help="ADE20K_2021_17_01: it holds images/ADE/, takes the rest")
    parser.add_argument("--splits", nargs="+", choices=_SPLITS, default=list(_SPLITS), help="default both")


def make(args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
    """Fills `images_detectron2` and `annotations_detectron2`; returns how many pairs there are."""
    root, total = Path(args.data_dir), 0
    for split in args.splits:
        maps = found("data_dir", root, f"images/ADE/{split}/**/*{_ENDING}")
        twice = [name for name, count in Counter(path.name for path in maps).items() if count > 1]
        if twice:
            raise OsmError(f"--data_dir {root}: {twice[0]} lies in two folders of images/ADE/{split}; remove one")
        for folder in ("images_detectron2", "annotations_detectron2"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        total += len(run(_make_one, [(path, root, split) for path in maps], workers, faults))
    return total


@cache
def _train_ids() -> np.ndarray:
    """The training id of each class index of the release (from 1; 0: nothing)."""
    table = resources.files("osm.datasets") / "labels" / "a847.json"
    rows = json.loads(table.read_text(encoding="utf-8"))["categories"]
    return lookup({row["ade_id"]: row["id"] for row in rows}, _CODES)


def _make_one(job: tuple[Path, Path, str]) -> bool:
    path, root, split = job
    stem = path.name.removesuffix(_ENDING)
    give(path.with_name(f"{stem}.jpg"), root / "images_detectron2" / split / f"{stem}.jpg")
    target = root / "annotations_detectron2" / split / f"{stem}.tif"
    if not target.exists():  # files are written whole: what is there is done
        with naming_file(path, "mask"):
            rgb = np.asarray(read_rgb(read_file(path))).astype(np.int32)
        write_train_ids(target, _train_ids()[rgb[..., 0] // 10 * 256 + rgb[..., 1]])
    return True
