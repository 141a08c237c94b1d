"""What the helpers have in common: files written whole, panoptic PNGs and jsons, a count of what could not be made."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from osm.datasets.labels import load_labels
from osm.errors import OsmError, SampleError
from osm.forms.files import about, read
from osm.forms.maps import IGNORED, categories
from osm.io.images import panoptic_pixels, read_ids
from osm.io.pool import in_order
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

_SHOWN = 5  # messages of each reason
T = TypeVar("T")
R = TypeVar("R")


def run(function: Callable[[T], R], jobs: Sequence[T], workers: int, faults: Counter[str]) -> list[R]:
    """The results of the jobs that went well, in order; the others are told of and counted in `faults`."""
    results = []
    with ProgressBar("making", len(jobs), "files") as progress:
        for result, reason, message in in_order(partial(_try, function), jobs, workers):
            if result is not None:
                results.append(result)
            else:
                faults[reason] += 1
                if faults[reason] <= _SHOWN:
                    logger.info(f"left out ({reason}): {message}", fields={"reason": reason})
            progress.step()
    return results


def _try(function: Callable[[T], R], job: T) -> tuple[R | None, str, str]:
    try:
        return function(job), "", ""
    except SampleError as error:
        return None, error.reason, str(error)


def found(flag: str, folder: Path, pattern: str) -> list[Path]:
    """The files below a folder, in a fixed order.

    Raises:
        OsmError: there is none.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise OsmError(f"--{flag}: there is no {pattern} in {folder}")
    return files


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is at no time half there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def give(image: Path, to: Path) -> None:
    """Links an image, or copies it where the file system cannot: its bytes are not touched."""
    if to.exists():
        return
    with about(image, "image"):
        if not image.is_file():
            raise SampleError("image_missing", "there is no such file")
    try:
        os.link(image.resolve(), to)
    except OSError:
        temporary = to.with_name(f"{to.name}.{os.getpid()}.tmp")
        shutil.copyfile(image, temporary)
        os.replace(temporary, to)


def ids_of(path: Path) -> np.ndarray:
    """A label map of one channel as int32."""
    with about(path, "mask"):
        return read_ids(read(path)).astype(np.int32)


def write_train_ids(path: Path, train_ids: np.ndarray) -> None:
    """A 16-bit TIFF, compressed without loss: a set of these is ten times the size of its images otherwise."""
    data = io.BytesIO()
    Image.fromarray(train_ids.astype(np.uint16)).save(data, "TIFF", compression="tiff_adobe_deflate")
    write_whole(path, data.getvalue())


def lookup(table: dict[int, int], size: int) -> np.ndarray:
    """An array that gives each id of 0 to `size` - 1 its training id, or the ignored one."""
    train_ids = np.full(size, IGNORED, np.int32)
    for one, train_id in table.items():
        train_ids[one] = train_id
    return train_ids


class Panoptic:
    """The panoptic PNG of one image, segment by segment."""

    def __init__(self, height: int, width: int) -> None:
        self.ids = np.zeros((height, width), np.int32)
        self.segments: list[dict[str, Any]] = []

    def add(self, segment: int, category: int, mask: np.ndarray, iscrowd: int = 0) -> None:
        """Draws a segment; its entry says where it was drawn, before later ones cover it."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y, x = int(rows[0]), int(columns[0])
        box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        self.ids[mask] = segment
        area = int(np.count_nonzero(mask))
        self.segments.append(
            {"id": segment, "category_id": category, "area": area, "bbox": box, "iscrowd": iscrowd},
        )

    def write(self, path: Path) -> None:
        data = io.BytesIO()
        Image.fromarray(panoptic_pixels(self.ids)).save(data, "PNG")
        write_whole(path, data.getvalue())


def write_panoptic_json(path: Path, made: Sequence[tuple[dict[str, Any], dict[str, Any]]], labels: str) -> None:
    """The json of (image, annotation) pairs, with the names of a table of the project."""
    images, annotations = [image for image, _ in made], [annotation for _, annotation in made]
    names = categories(load_labels(labels))
    document = {"images": images, "annotations": annotations, "categories": names}
    write_whole(path, json.dumps(document, separators=(",", ":")).encode())
