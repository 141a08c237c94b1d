"""Creates 16-bit maps of training ids from the original releases of the semantic datasets A-847 and PC-459."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np

from osm.datasets.labels import LabelSet, load_labels
from osm.errors import OsmError, SampleError
from osm.files import read_text
from osm.forms.maps import IGNORED_ID
from osm.forms.set_files import check_folder, naming_file, read_file
from osm.io.images import read_rgb
from osm.io.mat import read_mat
from osm.io.paths import safe_join
from osm.prepare.originals.original_release import (
    OriginalRelease,
    files_matching,
    link_or_copy,
    lookup_table,
    run_jobs,
    write_train_ids,
)
from osm.storage.output import check_here
from osm.terminal import message_logger

logger = message_logger(__name__)

_A847_SPLITS = ("training", "validation")
_A847_SUFFIX = "_seg.png"
_A847_CODES = 26 * 256  # the number of possible values of R // 10 * 256 + G
_PC459_SPLITS = {"training": "train", "validation": "val"}


# -- A-847 -------------------------------------------------------------------------------------------------------------


class A847Release(OriginalRelease):
    """The release for A-847: the full 2021 ADE20K, whose `_seg.png` files become 16-bit maps of training ids."""

    what: ClassVar[str] = "A-847, from ADE20K_2021_17_01"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--data_dir", required=True, help="folder ADE20K_2021_17_01: images/ADE/ is read, the new folders are added"
        )
        parser.add_argument(
            "--splits", nargs="+", choices=_A847_SPLITS, default=list(_A847_SPLITS), help="default: both"
        )

    @classmethod
    def make(cls, args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
        """Write `images_detectron2` and `annotations_detectron2`, and return the number of (image, map) pairs."""
        root, total = Path(args.data_dir), 0
        for split in args.splits:
            maps = files_matching("data_dir", root, f"images/ADE/{split}/**/*{_A847_SUFFIX}")
            twice = [name for name, count in Counter(path.name for path in maps).items() if count > 1]
            if twice:
                raise OsmError(
                    f"--data_dir {root}: {twice[0]} is in two folders inside images/ADE/{split}; remove one of the "
                    "two files"
                )
            for folder in ("images_detectron2", "annotations_detectron2"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            total += len(run_jobs(_make_a847, [(path, root, split) for path in maps], workers, faults))
        return total


@cache
def _a847_train_ids() -> np.ndarray:
    """Return the training id for each class index in the A-847 release. Index 0 is background; classes start at 1."""
    table = resources.files("osm.datasets") / "labels" / "a847.json"
    rows = json.loads(table.read_text(encoding="utf-8"))["categories"]
    return lookup_table({row["ade_id"]: row["id"] for row in rows}, _A847_CODES)


def _make_a847(job: tuple[Path, Path, str]) -> bool:
    """Link an image and write its map of training ids.

    The argument `job` is the tuple (segmentation PNG, root folder, split).
    """
    path, root, split = job
    stem = path.name.removesuffix(_A847_SUFFIX)
    link_or_copy(path.with_name(f"{stem}.jpg"), root / "images_detectron2" / split / f"{stem}.jpg")
    target = root / "annotations_detectron2" / split / f"{stem}.tif"
    if not target.exists():  # files are written atomically, so an existing file is complete
        with naming_file(path, "mask"):
            rgb = np.asarray(read_rgb(read_file(path))).astype(np.int32)
        write_train_ids(target, _a847_train_ids()[rgb[..., 0] // 10 * 256 + rgb[..., 1]])
    return True


# -- PC-459 ------------------------------------------------------------------------------------------------------------


class Pc459Release(OriginalRelease):
    """The release for PC-459: the `.mat` files of Pascal Context, and the images and split lists of VOC2010."""

    what: ClassVar[str] = "PC-459, from Pascal Context's .mat files"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--mat_dir", required=True, help="folder trainval of Pascal Context")
        parser.add_argument(
            "--voc_dir", required=True, help="folder VOCdevkit/VOC2010, with JPEGImages and ImageSets/Main"
        )
        parser.add_argument(
            "--output_dir",
            required=True,
            help="folder pascal_ctx_d2: images/ and annotations_ctx459/ are written here",
        )
        parser.add_argument(
            "--splits", nargs="+", choices=list(_PC459_SPLITS), default=list(_PC459_SPLITS), help="default: both"
        )
        parser.add_argument("--labels_txt", help="labels.txt of Pascal Context, to be compared with the label table")

    @classmethod
    def make(cls, args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
        """Write the folders `images` and `annotations_ctx459`, and return the number of (image, map) pairs."""
        check_here(args.output_dir, "--output_dir")
        mats, voc = check_folder("mat_dir", args.mat_dir), check_folder("voc_dir", args.voc_dir)
        out = Path(args.output_dir)
        if args.labels_txt is not None:
            _compare_labels_txt(Path(args.labels_txt), load_labels("pc459"))
        total = 0
        for split in args.splits:
            listing = voc / "ImageSets" / "Main" / f"{_PC459_SPLITS[split]}.txt"
            text = read_text(listing, f"--voc_dir {voc}:")
            names = [line.split()[0] for line in text.splitlines() if line.strip()]
            images, maps = out / "images" / split, out / "annotations_ctx459" / split
            for folder in (images, maps):
                folder.mkdir(parents=True, exist_ok=True)
            jobs = [
                (safe_join(voc / "JPEGImages", f"{n}.jpg"), safe_join(mats, f"{n}.mat"), images / f"{n}.jpg", maps)
                for n in names
            ]
            total += len(run_jobs(_make_pc459, jobs, workers, faults))
        return total


def _make_pc459(job: tuple[Path, Path, Path, Path]) -> bool:
    """Link an image and write its map of training ids.

    The argument `job` is the tuple (image, .mat file, linked image, map folder).

    The label map is the variable `LabelMap` in the .mat file. The class indices in `LabelMap` start at 1, in the order
    of labels.txt. The training id of a class is its class index minus 1.
    """
    image, mat, linked_image, maps = job
    target = maps / f"{linked_image.stem}.tif"
    if not target.exists():  # files are written atomically, so an existing file is complete
        with naming_file(mat, "mask"):
            found = read_mat(read_file(mat), "LabelMap")
            if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "uif":
                raise SampleError("annotation_malformed", "LabelMap is not a 2-D array of numbers")
            classes, last = found.astype(np.int64), max(load_labels("pc459").classes) + 1
            if classes.size and not 0 <= classes.min() <= classes.max() <= last:
                raise SampleError("class_unknown", f"LabelMap contains the class {classes.max()}; expected 0 to {last}")
            ids = np.where(classes == 0, IGNORED_ID, classes - 1)
        link_or_copy(image, linked_image)
        write_train_ids(target, ids)
    return True


def _compare_labels_txt(path: Path, labels: LabelSet) -> None:
    """Compare a labels.txt file (lines like "1: accordion") with a label table, and log the names that differ.

    Raises:
        OsmError: the class numbers in the file differ from the table, or more than half of the names differ.
    """
    text = read_text(path, "--labels_txt")
    listed = {int(number) - 1: name for number, name in re.findall(r"^\s*(\d+)\s*:\s*(.+?)\s*$", text, re.MULTILINE)}
    if listed.keys() != labels.classes.keys():
        raise OsmError(
            f"--labels_txt {path}: found {len(listed)} classes; expected {len(labels.classes)} lines such as "
            "'1: accordion'"
        )

    def plain(name: str) -> str:
        return re.sub("[^a-z]", "", name.lower())

    other = [n for n, name in listed.items() if plain(name) not in {plain(own) for own in labels[n].names}]
    if 2 * len(other) > len(listed):
        raise OsmError(
            f"--labels_txt {path}: {len(other)} of {len(listed)} class names differ; expected the class list of PC-459"
        )
    for number in other:
        logger.info(f"labels.txt: {number + 1}: {listed[number]!r} is {labels[number].target!r} in the table")
