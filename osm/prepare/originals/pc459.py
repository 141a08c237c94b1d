"""PC-459 from Pascal Context's `trainval/*.mat` (`LabelMap`) and VOC2010's images and lists."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import numpy as np

from osm.datasets.labels import LabelSet, load_labels
from osm.errors import OsmError, SampleError
from osm.files import read_text
from osm.forms.files import about, check_folder, read
from osm.forms.maps import IGNORED
from osm.io.mat import read_mat
from osm.io.paths import safe_join
from osm.prepare.originals.work import give, run, write_train_ids
from osm.storage.output import check_here
from osm.terminal import message_logger

logger = message_logger(__name__)

WHAT = "PC-459, from Pascal Context's .mat files"
_SPLITS = {"training": "train", "validation": "val"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mat_dir", required=True, help="Pascal Context's folder trainval")
    parser.add_argument("--voc_dir", required=True, help="VOCdevkit/VOC2010: JPEGImages and ImageSets/Main")
    parser.add_argument("--output_dir", required=True, help="pascal_ctx_d2: takes images/ and annotations_ctx459/")
    parser.add_argument("--splits", nargs="+", choices=list(_SPLITS), default=list(_SPLITS), help="default both")
    parser.add_argument("--labels_txt", help="Pascal Context's labels.txt, to be compared with the project's table")


def make(args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
    """Fills `images` and `annotations_ctx459`; returns how many pairs there are."""
    check_here(args.output_dir, "--output_dir")
    mats, voc, out = check_folder("mat_dir", args.mat_dir), check_folder("voc_dir", args.voc_dir), Path(args.output_dir)
    if args.labels_txt is not None:
        _compare(Path(args.labels_txt), load_labels("pc459"))
    total = 0
    for split in args.splits:
        listing = voc / "ImageSets" / "Main" / f"{_SPLITS[split]}.txt"
        text = read_text(listing, f"--voc_dir {voc}:")
        names = [line.split()[0] for line in text.splitlines() if line.strip()]
        pictures, maps = out / "images" / split, out / "annotations_ctx459" / split
        for folder in (pictures, maps):
            folder.mkdir(parents=True, exist_ok=True)
        jobs = [
            (safe_join(voc / "JPEGImages", f"{n}.jpg"), safe_join(mats, f"{n}.mat"), pictures / f"{n}.jpg", maps)
            for n in names
        ]
        total += len(run(_make_one, jobs, workers, faults))
    return total


def _make_one(job: tuple[Path, Path, Path, Path]) -> bool:
    """The file's classes count from 1, in the order of labels.txt; the training ids from 0 in the same order."""
    image, mat, picture, maps = job
    target = maps / f"{picture.stem}.tif"
    if not target.exists():  # files are written whole: what is there is done
        with about(mat, "mask"):
            found = read_mat(read(mat), "LabelMap")
            if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "uif":
                raise SampleError("annotation_malformed", "LabelMap is no picture of numbers")
            classes, last = found.astype(np.int64), max(load_labels("pc459").classes) + 1
            if classes.size and not 0 <= classes.min() <= classes.max() <= last:
                raise SampleError("class_unknown", f"LabelMap has the class {classes.max()}, there are {last}")
            ids = np.where(classes == 0, IGNORED, classes - 1)
        give(image, picture)
        write_train_ids(target, ids)
    return True


def _compare(path: Path, labels: LabelSet) -> None:
    """Raises OsmError where a labels.txt ("1: accordion") is not the list that the table was made from."""
    text = read_text(path, "--labels_txt")
    listed = {int(number) - 1: name for number, name in re.findall(r"^\s*(\d+)\s*:\s*(.+?)\s*$", text, re.MULTILINE)}
    if listed.keys() != labels.classes.keys():
        raise OsmError(
            f"--labels_txt {path}: {len(listed)} classes, lines '1: accordion' to {len(labels.classes)} needed"
        )

    def plain(name: str) -> str:
        return re.sub("[^a-z]", "", name.lower())

    other = [n for n, name in listed.items() if plain(name) not in {plain(own) for own in labels[n].names}]
    if 2 * len(other) > len(listed):
        raise OsmError(f"--labels_txt {path}: {len(other)} of {len(listed)} names differ: this is another list")
    for number in other:
        logger.info(f"labels.txt: {number + 1}: {listed[number]!r} is {labels[number].target!r} in the table")
