"""ADE20K panoptic from ADEChallengeData2016: its class PNGs (150) and, of the instance release, its instance PNGs."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.labels import load_labels
from osm.errors import OsmError, SampleError
from osm.files import read_text
from osm.forms.files import about, read
from osm.io.images import open_image, read_panoptic
from osm.prepare.originals.work import Panoptic, found, ids_of, run, write_panoptic_json
from osm.terminal import message_logger

logger = message_logger(__name__)

WHAT = "ADE20K panoptic, from ADEChallengeData2016 and its instance annotations"
_SPLITS = {"training": "train", "validation": "val"}
_ENOUGH = 20  # instances that can tell whether the instance classes are what they are taken for


@dataclass(frozen=True)
class _Job:
    classes: Path
    instances: Path | None
    panoptic: Path
    thing_ids: dict[int, int]  # by the instance release's class index (1..100): the table's id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_dir", required=True, help="ADEChallengeData2016: it holds annotations/, takes the rest")
    parser.add_argument("--splits", nargs="+", choices=list(_SPLITS), default=list(_SPLITS), help="default both")
    parser.add_argument(
        "--category_mapping",
        help="the instance release's categoryMapping.txt (default: its classes are the 100 things, in order of class)",
    )


def make(args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
    """Writes `ade20k_panoptic_{train,val}` and their jsons beside `annotations`; returns how many PNGs."""
    root, total = Path(args.data_dir), 0
    thing_ids = _thing_ids(args.category_mapping)
    for split in args.splits:
        maps = found("data_dir", root, f"annotations/{split}/*.png")
        instances = root / "annotations_instance" / split
        if not instances.is_dir():
            logger.warning(f"there is no {instances}: all things of one class become one segment")
        target = root / f"ade20k_panoptic_{_SPLITS[split]}"
        target.mkdir(exist_ok=True)
        jobs = [
            _Job(path, instances / path.name if instances.is_dir() else None, target / path.name, thing_ids)
            for path in maps
        ]
        made = run(_make_one, jobs, workers, faults)
        agree, of = sum(one[2] for one in made), sum(one[3] for one in made)
        if of >= _ENOUGH and 2 * agree < of:
            raise OsmError(
                f"{instances}: of {of} instances only {agree} lie on pixels of their class in {root / 'annotations'}: "
                "give --category_mapping, the categoryMapping.txt of the instance release"
            )
        write_panoptic_json(root / f"{target.name}.json", [one[:2] for one in made], "ade20k")
        total += len(made)
    return total


def _thing_ids(mapping: str | None) -> dict[int, int]:
    """The table's id (0..149) of each class index of the instance release."""
    if mapping is None:
        things = sorted(one.id for one in load_labels("ade20k").classes.values() if one.isthing)
        return dict(enumerate(things, 1))
    rows = [line.split()[:2] for line in read_text(mapping, "--category_mapping").splitlines()]
    pairs = [(int(row[0]), int(row[1]) - 1) for row in rows if len(row) == 2 and all(cell.isdigit() for cell in row)]
    known = load_labels("ade20k").classes
    if not pairs or any(of_class not in known for _, of_class in pairs):
        raise OsmError(
            f"--category_mapping {mapping}: rows 'INSTANCE_CLASS SCENE_CLASS ...' (1..100, 1..150) are needed"
        )
    return dict(pairs)


def _make_one(job: _Job) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    """(image, annotation, instances on pixels of their class, instances)."""
    labels = load_labels("ade20k").classes
    classes = ids_of(job.classes) - 1  # 0 in the file: no class
    picture = Panoptic(*classes.shape)
    number = agree = instances = 0
    for category in np.unique(classes).tolist():
        if category in labels and (job.instances is None or not labels[category].isthing):
            number += 1
            picture.add(number, category, classes == category)
    if job.instances is not None:
        for index, mask in _instances(job.instances, classes.shape):
            if index not in job.thing_ids:
                raise SampleError("class_unknown", f"mask {job.instances}: there is no instance class {index}")
            category = job.thing_ids[index]
            number += 1
            instances += 1
            agree += bool(2 * np.count_nonzero(classes[mask] == category) > np.count_nonzero(mask))
            picture.add(number, category, mask)
    picture.write(job.panoptic)
    stem, (height, width) = job.classes.stem, classes.shape
    image = {"id": stem, "file_name": f"{stem}.jpg", "width": width, "height": height}
    annotation = {"image_id": stem, "file_name": f"{stem}.png", "segments_info": picture.segments}
    return image, annotation, agree, instances


def _instances(path: Path, shape: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
    """(class index, mask) of each instance: R is the class, G the instance, 0 none."""
    with about(path, "mask"):
        data = read(path)
        size = open_image(data).size
        if size != (shape[1], shape[0]):
            raise SampleError("size_mismatch", f"is {size[0]} x {size[1]}, its class PNG {shape[1]} x {shape[0]}")
        codes = read_panoptic(data) % 65536
    return [(code % 256, codes == code) for code in np.unique(codes).tolist() if code % 256]
