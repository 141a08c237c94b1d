"""The interface for converting original dataset releases, with shared steps such as writing panoptic PNGs."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from PIL import Image

from osm.datasets.labels import load_labels
from osm.errors import OsmError, SampleError
from osm.forms.maps import IGNORED_ID, categories
from osm.forms.set_files import naming_file, read_file
from osm.io.images import panoptic_pixels, read_ids
from osm.io.pool import in_order
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

_SHOWN = 5  # the largest number of messages that are printed for each reason
T = TypeVar("T")
R = TypeVar("R")


class OriginalRelease(ABC):
    """The original release of a dataset. The `make` method converts the release to files that `osm prepare` can read.

    Attributes:
        what: the dataset and its source, for the help text.
    """

    what: ClassVar[str]

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the release's command-line arguments to a parser."""

    @classmethod
    @abstractmethod
    def make(cls, args: argparse.Namespace, workers: int, faults: Counter[str]) -> int:
        """Create the files that `osm prepare` reads, and return how many were created.

        Args:
            args: the parsed command-line arguments.
            workers: the number of processes.
            faults: counts the files that could not be made, by reason.

        Raises:
            OsmError: an argument is invalid, or the release lacks a folder or file.
        """


def run_jobs(function: Callable[[T], R], jobs: Sequence[T], workers: int, faults: Counter[str]) -> list[R]:
    """Run jobs in worker processes, and return the results of the successful jobs in job order.

    Failed jobs are logged and counted in `faults` by reason.
    """
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


def files_matching(flag: str, folder: Path, pattern: str) -> list[Path]:
    """Return a sorted list of a folder's files that match a glob pattern.

    Raises:
        OsmError: no file matches the pattern.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise OsmError(f"--{flag}: there is no {pattern} in {folder}")
    return files


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically, so that the path never holds an incomplete file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def link_or_copy(image: Path, to: Path) -> None:
    """Create a hard link to an image, or copy the image if the file system does not support links.

    Raises:
        SampleError: the image does not exist.
    """
    if to.exists():
        return
    with naming_file(image, "image"):
        if not image.is_file():
            raise SampleError("image_missing", "there is no such file")
    try:
        os.link(image.resolve(), to)
    except OSError:
        temporary = to.with_name(f"{to.name}.{os.getpid()}.tmp")
        shutil.copyfile(image, temporary)
        os.replace(temporary, to)


def read_id_map(path: Path) -> np.ndarray:
    """Read a single-channel label map as an int32 array (H, W)."""
    with naming_file(path, "mask"):
        return read_ids(read_file(path)).astype(np.int32)


def write_train_ids(path: Path, train_ids: np.ndarray) -> None:
    """Write a map of training ids as a 16-bit TIFF with lossless compression.

    Without compression, a dataset's label maps would take ten times as much disk space as its images.
    """
    data = io.BytesIO()
    Image.fromarray(train_ids.astype(np.uint16)).save(data, "TIFF", compression="tiff_adobe_deflate")
    write_whole(path, data.getvalue())


def lookup_table(table: dict[int, int], size: int) -> np.ndarray:
    """Return an array that maps each id from 0 to `size` - 1 to its training id, or to `IGNORED_ID`."""
    train_ids = np.full(size, IGNORED_ID, np.int32)
    for one, train_id in table.items():
        train_ids[one] = train_id
    return train_ids


class PanopticWriter:
    """Draws the panoptic PNG of an image. Where segments overlap, the later segment covers the earlier one.

    Attributes:
        ids: the segment ids, int32 (H, W).
        segments: the entries of `segments_info`.
    """

    def __init__(self, height: int, width: int) -> None:
        self.ids = np.zeros((height, width), np.int32)
        self.segments: list[dict[str, Any]] = []

    def add(self, segment: int, category: int, mask: np.ndarray, iscrowd: int = 0) -> None:
        """Draw a segment and add its entry.

        The entry's area and box describe the whole segment, even if later segments cover some of its pixels.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y, x = int(rows[0]), int(columns[0])
        box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        self.ids[mask] = segment
        area = int(np.count_nonzero(mask))
        self.segments.append(
            {"id": segment, "category_id": category, "area": area, "bbox": box, "iscrowd": iscrowd},
        )

    def write(self, path: Path) -> None:
        """Write the PNG atomically."""
        data = io.BytesIO()
        Image.fromarray(panoptic_pixels(self.ids)).save(data, "PNG")
        write_whole(path, data.getvalue())


def write_panoptic_json(path: Path, made: Sequence[tuple[dict[str, Any], dict[str, Any]]], labels: str) -> None:
    """Write (image, annotation) pairs to a panoptic JSON file, with category names from the label table `labels`."""
    images, annotations = [image for image, _ in made], [annotation for _, annotation in made]
    names = categories(load_labels(labels))
    document = {"images": images, "annotations": annotations, "categories": names}
    write_whole(path, json.dumps(document, separators=(",", ":")).encode())
