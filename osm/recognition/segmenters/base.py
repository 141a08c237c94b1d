"""Base class for segmenters, and functions that check point and box prompts.

Shapes: (H, W) are the height and width of the image passed to `set_image`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from osm.errors import OsmError, shown

if TYPE_CHECKING:
    from osm.recognition.recognizer import Recognizer

Size = tuple[int, int]


@dataclass(frozen=True)
class ScoredMask:
    """A mask with the segmenter's confidence score.

    Attributes:
        mask: bool (H, W), with the height and width of the image.
        score: the confidence, 0 to 1.
    """

    mask: np.ndarray
    score: float = 1.0

    @property
    def area(self) -> int:
        """The number of pixels in the mask."""
        return int(self.mask.sum())

    @classmethod
    def predicted(cls, mask: Any, iou: Any) -> ScoredMask:
        """Return a mask whose score is the predicted IoU, clipped to the range from 0 to 1."""
        return cls(np.asarray(mask, bool), float(np.clip(float(iou), 0.0, 1.0)))


class Segmenter(ABC):
    """Base class for segmenters, which generate masks for one image at a time.

    Call `set_image` once per image, then `everything`, `at_points` and `in_box` in any order. `everything`, `at_points`
    and `in_box` raise OsmError if no image is set, or if a box or point is outside the image.

    Attributes:
        name: the segmenter's name in messages and in output files.
        checkpoint_example: an example value for `--sam_checkpoint`; empty if the segmenter does not use a checkpoint.
    """

    name: ClassVar[str]
    checkpoint_example: ClassVar[str] = ""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: str | Path | None, recognizer: Recognizer | None, device: str, **options: Any) -> Any:
        """Build the segmenter.

        Args:
            checkpoint: a file, a folder or a hub id, as given to `--sam_checkpoint`. `load_segmenter` guarantees that
                a checkpoint is given if the segmenter has a `checkpoint_example`, and is None otherwise.
            recognizer: the model that will name the masks. A segmenter may use the recognizer's vision tower.
            device: "auto", "cpu", "cuda" or any other torch device.
            options: options specific to this segmenter.

        Raises:
            OsmError: A required package or the recognizer is missing, or the checkpoint cannot be used.
        """

    @abstractmethod
    def set_image(self, image: Image.Image) -> None:
        """Set the RGB image to segment, replacing the previous image."""

    @abstractmethod
    def everything(self) -> list[ScoredMask]:
        """Return all segments of the image in descending order of area. Segments may overlap."""

    def largest(self, count: int) -> tuple[Iterator[ScoredMask], int]:
        """Return an iterator over the `count` largest segments, and the total number of segments.

        A segmenter may override this to draw only the masks that are wanted, because those of a large image take much
        memory.
        """
        found = self.everything()
        return iter(found[:count]), len(found)

    @abstractmethod
    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> ScoredMask:
        """Return the image segment selected by the point prompts.

        Args:
            points: (x, y) in pixels.
            inside: for each point, whether the segment must contain the point (True) or must not contain the point
                (False). None: the segment must contain all points.
        """

    @abstractmethod
    def in_box(self, box: Sequence[float]) -> ScoredMask:
        """Return the image segment selected by a box prompt (x, y, width, height) in pixels."""

    def state(self) -> Any:
        """Return what `set_image` has computed, so that `restore` can return to the image.

        None means that the segmenter cannot return to an earlier image without `set_image`.
        """
        return None

    def restore(self, state: Any) -> None:
        """Return to an earlier image, by the result of `state`."""
        raise NotImplementedError(f"the segmenter {self.name} has no state")


def by_area(segments: Sequence[ScoredMask]) -> list[ScoredMask]:
    """Return the segments in descending order of area. Segments of equal area keep their order."""
    return sorted(segments, key=lambda segment: -segment.area)


def check_set(size: Size | None) -> Size:
    """Check that an image has been set, and return its size (width, height).

    Raises:
        OsmError: No image is set.
    """
    if size is None:
        raise OsmError("no image is set: call set_image before everything, at_points or in_box")
    return size


def checked_points(
    size: Size, points: Sequence[Sequence[float]], inside: Sequence[bool] | None
) -> tuple[list[tuple[float, float]], list[bool]]:
    """Check point prompts. Return the points (x, y) and, for each point, whether the segment must contain it.

    Args:
        size: (width, height) of the image.
        points, inside: see `Segmenter.at_points`.

    Raises:
        OsmError: A point is outside the image, or there is no point that the segment must contain.
    """
    marks = [True] * len(points) if inside is None else [bool(mark) for mark in inside]
    if len(marks) != len(points):
        raise OsmError(f"{len(points)} points, but `inside` has {len(marks)} values")
    if not any(marks):
        raise OsmError("give at least one point that the segment must contain")
    found = []
    for k, point in enumerate(points):
        x, y = _numbers(point, 2, f"point {k}", "[x, y]")
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise OsmError(
                f"point {k}: {shown(list(point))} is outside of the image, which is {size[0]} x {size[1]} pixels"
            )
        found.append((x, y))
    return found, marks


def checked_box(size: Size, box: Sequence[float]) -> tuple[int, int, int, int]:
    """Check a box prompt. Return the box as (left, top, right, bottom), rounded outward and clipped to the image.

    Args:
        size: (width, height) of the image.
        box: (x, y, width, height) in pixels.

    Raises:
        OsmError: The box contains no pixel of the image.
    """
    x, y, width, height = _numbers(box, 4, "box", "[x, y, width, height]")
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(size[0], math.ceil(x + width)), min(size[1], math.ceil(y + height))
    if width <= 0 or height <= 0 or left >= right or top >= bottom:
        raise OsmError(f"box: {shown(list(box))} does not overlap the image, which is {size[0]} x {size[1]} pixels")
    return left, top, right, bottom


def _numbers(values: Sequence[float], count: int, where: str, what: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise OsmError(f"{where}: {shown(values)} is not {what}")
    return numbers
