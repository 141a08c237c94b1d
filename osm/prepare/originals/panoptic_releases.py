"""Creates panoptic PNGs and JSON files from the original releases of ADE20K and Cityscapes."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.datasets.labels import load_labels
from osm.errors import OsmError, SampleError
from osm.files import read_text
from osm.forms.set_files import naming_file, read_file
from osm.io.images import open_image, read_panoptic
from osm.prepare.originals.original_release import (
    OriginalRelease,
    PanopticWriter,
    files_matching,
    read_id_map,
    run_jobs,
    write_panoptic_json,
)
from osm.terminal import message_logger

logger = message_logger(__name__)
_ADE20K_SPLITS = {"training": "train", "validation": "val"}
_MIN_CHECKED_INSTANCES = 20  # if there are fewer instances, their agreement with the class maps is not checked
_CITYSCAPES_SUFFIX = "_instanceIds.png"


# -- ADE20K ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ade20kJob:
    """The files of one ADE20K image.

    `thing_ids` maps class indices in the instance release (1..100) to class ids in the label table.
    """

    classes: Path
    instances: Path | None
    panoptic: Path
    thing_ids: dict[int, int]


class Ade20kRelease(OriginalRelease):
    """The release for panoptic ADE20K: class PNGs (150 classes) in ADEChallengeData2016, and separate instance PNGs."""

    what: ClassVar[str] = "ADE20K panoptic, from ADEChallengeData2016 and its instance annotations"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--data_dir",
            required=True,
            help="folder ADEChallengeData2016: annotations/ is read, the new files are added",
        )
        parser.add_argument(
            "--splits", nargs="+", choices=list(_ADE20K_SPLITS), default=list(_ADE20K_SPLITS), help="default: both"
        )
        parser.add_argument(
            "--category_mapping",
            help="categoryMapping.txt of the instance release (default: its classes are the 100 things in class order)",
        )

    @classmethod
    def make(cls, args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
        """Write `ade20k_panoptic_{train,val}` and JSON files next to `annotations`, and return the number of PNGs."""
        root, total = Path(args.data_dir), 0
        thing_ids = _thing_ids(args.category_mapping)
        for split in args.splits:
            maps = files_matching("data_dir", root, f"annotations/{split}/*.png")
            instances = root / "annotations_instance" / split
            if not instances.is_dir():
                logger.warning(f"there is no {instances}: all things of one class become one segment")
            target = root / f"ade20k_panoptic_{_ADE20K_SPLITS[split]}"
            target.mkdir(exist_ok=True)
            jobs = [
                _Ade20kJob(path, instances / path.name if instances.is_dir() else None, target / path.name, thing_ids)
                for path in maps
            ]
            made = run_jobs(_make_ade20k, jobs, workers, faults)
            agreeing, total_instances = sum(one[2] for one in made), sum(one[3] for one in made)
            if total_instances >= _MIN_CHECKED_INSTANCES and 2 * agreeing < total_instances:
                raise OsmError(
                    f"{instances}: only {agreeing} of {total_instances} instances lie on pixels of their class in "
                    f"{root / 'annotations'}; set --category_mapping to the categoryMapping.txt of the instance release"
                )
            write_panoptic_json(root / f"{target.name}.json", [one[:2] for one in made], "ade20k")
            total += len(made)
        return total


def _thing_ids(mapping: str | None) -> dict[int, int]:
    """Return the mapping from ADE20K's instance class indices to the class ids in the label table (0..149)."""
    if mapping is None:
        things = sorted(one.id for one in load_labels("ade20k").classes.values() if one.isthing)
        return dict(enumerate(things, 1))
    rows = [line.split()[:2] for line in read_text(mapping, "--category_mapping").splitlines()]
    pairs = [(int(row[0]), int(row[1]) - 1) for row in rows if len(row) == 2 and all(cell.isdigit() for cell in row)]
    known = load_labels("ade20k").classes
    if not pairs or any(of_class not in known for _, of_class in pairs):
        raise OsmError(f"--category_mapping {mapping}: expected rows 'INSTANCE_CLASS SCENE_CLASS ...' (1..100, 1..150)")
    return dict(pairs)


def _make_ade20k(job: _Ade20kJob) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    """Write the panoptic PNG for one image.

    Returns:
        the JSON entry of the image, the JSON entry of the annotation, the number of agreeing instances (more than half
        of the pixels have the instance's class in the class PNG), and the number of all instances.
    """
    labels = load_labels("ade20k").classes
    classes = read_id_map(job.classes) - 1  # 0 in the file means no class
    panoptic = PanopticWriter(*classes.shape)
    number = agree = instances = 0
    for category in np.unique(classes).tolist():
        if category in labels and (job.instances is None or not labels[category].isthing):
            number += 1
            panoptic.add(number, category, classes == category)
    if job.instances is not None:
        for index, mask in _instances(job.instances, classes.shape):
            if index not in job.thing_ids:
                raise SampleError("class_unknown", f"mask {job.instances}: there is no instance class {index}")
            category = job.thing_ids[index]
            number += 1
            instances += 1
            agree += bool(2 * np.count_nonzero(classes[mask] == category) > np.count_nonzero(mask))
            panoptic.add(number, category, mask)
    panoptic.write(job.panoptic)
    stem, (height, width) = job.classes.stem, classes.shape
    image = {"id": stem, "file_name": f"{stem}.jpg", "width": width, "height": height}
    annotation = {"image_id": stem, "file_name": f"{stem}.png", "segments_info": panoptic.segments}
    return image, annotation, agree, instances


def _instances(path: Path, shape: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
    """Return a (class index, mask) pair for each instance in an instance PNG.

    The red channel is the class index (0 means no instance), and the green channel is the instance number.
    """
    with naming_file(path, "mask"):
        data = read_file(path)
        size = open_image(data).size
        if size != (shape[1], shape[0]):
            raise SampleError("size_mismatch", f"is {size[0]} x {size[1]}, but its class PNG {shape[1]} x {shape[0]}")
        codes = read_panoptic(data) % 65536
    return [(code % 256, codes == code) for code in np.unique(codes).tolist() if code % 256]


# -- Cityscapes --------------------------------------------------------------------------------------------------------


class CityscapesRelease(OriginalRelease):
    """The release for panoptic Cityscapes, which is created from the instance PNGs in gtFine.

    The result is identical to the output of createPanopticImgs in cityscapesscripts.
    """

    what: ClassVar[str] = "Cityscapes panoptic, from gtFine"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data_dir", required=True, help="the folder that holds gtFine/")
        parser.add_argument(
            "--splits", nargs="+", choices=("train", "val"), default=["train", "val"], help="default: both"
        )

    @classmethod
    def make(cls, args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
        """Write `gtFine/cityscapes_panoptic_<split>` and a JSON file for each split, and return the number of PNGs."""
        root, total = Path(args.data_dir) / "gtFine", 0
        for split in args.splits:
            maps = files_matching("data_dir", root, f"{split}/*/*{_CITYSCAPES_SUFFIX}")
            target = root / f"cityscapes_panoptic_{split}"
            target.mkdir(exist_ok=True)
            made = run_jobs(_make_cityscapes, [(path, target) for path in maps], workers, faults)
            write_panoptic_json(root / f"{target.name}.json", made, "cityscapes")
            total += len(made)
        return total


def _make_cityscapes(job: tuple[Path, Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the panoptic PNG for one image, and return the JSON entries for the image and its annotation.

    In gtFine, ids of 1000 and above have the form class * 1000 + instance. Ids below 1000 are class ids without an
    instance number.
    """
    path, target = job
    labels = load_labels("cityscapes").classes
    ids = read_id_map(path)
    panoptic = PanopticWriter(*ids.shape)
    for one in np.unique(ids).tolist():
        category = one if one < 1000 else one // 1000
        if category in labels:
            # If instances of a thing class were not separated, their pixels only have the class id and form one crowd.
            panoptic.add(one, category, ids == one, int(one < 1000 and labels[category].isthing))
    stem = path.name.removesuffix(_CITYSCAPES_SUFFIX)
    panoptic.write(target / f"{stem}_panoptic.png")
    frame, (height, width) = stem.removesuffix("_gtFine"), ids.shape
    image = {"id": frame, "width": width, "height": height, "file_name": f"{stem}_leftImg8bit.png"}
    return image, {"image_id": frame, "file_name": f"{stem}_panoptic.png", "segments_info": panoptic.segments}
