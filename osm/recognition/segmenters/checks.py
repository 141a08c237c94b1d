"""What every segmenter checks before it works: an image is set, and prompts lie in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from osm.errors import OsmError, shown

Size = tuple[int, int]


def check_set(size: Size | None) -> Size:
    """The size (width, height) of the image that is set. Raises OsmError where there is none."""
    if size is None:
        raise OsmError("no image is set: set_image comes before everything, at_points and in_box")
    return size


def checked_points(
    size: Size, points: Sequence[Sequence[float]], inside: Sequence[bool] | None
) -> tuple[list[tuple[float, float]], list[bool]]:
    """Points (x, y) and whether the segment has each. Raises OsmError for one outside of the image, or none inside."""
    marks = [True] * len(points) if inside is None else [bool(mark) for mark in inside]
    if len(marks) != len(points):
        raise OsmError(f"{len(points)} points, but `inside` tells of {len(marks)}")
    if not any(marks):
        raise OsmError("no point that the segment must have: give one or more")
    found = []
    for k, point in enumerate(points):
        x, y = _numbers(point, 2, f"point {k}", "[x, y]")
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise OsmError(f"point {k}: {shown(list(point))} is outside of the image, which is {size[0]} x {size[1]}")
        found.append((x, y))
    return found, marks


def checked_box(size: Size, box: Sequence[float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, rounded outwards and cut at the border. Raises OsmError where nothing is left."""
    x, y, width, height = _numbers(box, 4, "box", "[x, y, width, height]")
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(size[0], math.ceil(x + width)), min(size[1], math.ceil(y + height))
    if width <= 0 or height <= 0 or left >= right or top >= bottom:
        raise OsmError(f"box: {shown(list(box))} has nothing of the image, which is {size[0]} x {size[1]}")
    return left, top, right, bottom


def _numbers(values: Sequence[float], count: int, where: str, what: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise OsmError(f"{where}: {shown(values)} is not {what}")
    return numbers
