"""What is to be named, in any form: masks, RLEs, boxes, points. All become masks at the image's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from osm.data.segmentation import draw_segmentation, read_segmentation
from osm.errors import OsmError, shown

POINT_RADIUS = 0.02  # of the image's longer side: what a point alone stands for


@dataclass(frozen=True)
class Region:
    """A mask, made when it is needed (500 masks of a large picture are not in memory together), and whether it is asked
    about as a box."""

    draw: Callable[[], np.ndarray]
    boxed: bool = False

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)."""
        return self.draw()


def regions_of(
    size: tuple[int, int],
    masks: Any = None,
    boxes: Sequence[Sequence[float]] | None = None,
    points: Sequence[Sequence[float]] | None = None,
) -> list[Region]:
    """Masks first, then boxes, then points.

    Args:
        size: (width, height) of the image.
        masks: an array (K, H, W), or a list of arrays (H, W) and COCO RLEs ({"size": [H, W], "counts": ...}).
        boxes: (x, y, width, height) in pixels. points: (x, y) in pixels; a point is a small disc around it.

    Raises:
        OsmError: names the region and what is wrong with it.
    """
    found = [Region(_mask(mask, size, f"mask {k}")) for k, mask in enumerate([] if masks is None else masks)]
    found += [Region(_box(box, size, f"box {k}"), True) for k, box in enumerate(boxes or ())]
    found += [Region(_disc(point, size, f"point {k}")) for k, point in enumerate(points or ())]
    return found


def _mask(mask: Any, size: tuple[int, int], where: str) -> Callable[[], np.ndarray]:
    width, height = size
    if isinstance(mask, Mapping):
        return partial(draw_segmentation, read_segmentation(mask, (height, width), where).value, (height, width))
    array = np.asarray(mask)
    if array.shape != (height, width) or array.dtype.kind not in "buif":
        raise OsmError(f"{where} has shape {array.shape} and type {array.dtype}: ({height}, {width}) of 0 and 1 needed")
    return partial(array.astype, bool)


def _numbers(values: Any, count: int, where: str, what: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise OsmError(f"{where}: {shown(values)} is not {what}")
    return numbers


def _box(box: Any, size: tuple[int, int], where: str) -> Callable[[], np.ndarray]:
    x, y, width, height = _numbers(box, 4, where, "[x, y, width, height]")
    # Rounded outwards and cut at the image's border, as in training.
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(size[0], math.ceil(x + width)), min(size[1], math.ceil(y + height))
    if width <= 0 or height <= 0 or left >= right or top >= bottom:
        raise OsmError(f"{where}: {shown(list(box))} has nothing of the image, which is {size[0]} x {size[1]}")

    def draw() -> np.ndarray:
        mask = np.zeros(size[::-1], bool)
        mask[top:bottom, left:right] = True
        return mask

    return draw


def _disc(point: Any, size: tuple[int, int], where: str) -> Callable[[], np.ndarray]:
    x, y = _numbers(point, 2, where, "[x, y]")
    if not (0 <= x < size[0] and 0 <= y < size[1]):
        raise OsmError(f"{where}: {shown(list(point))} is outside of the image, which is {size[0]} x {size[1]}")
    radius = max(1.0, POINT_RADIUS * max(size))

    def draw() -> np.ndarray:
        ys, xs = np.ogrid[: size[1], : size[0]]
        return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2

    return draw
