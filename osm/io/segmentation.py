"""COCO's `segmentation` field to masks: polygons, uncompressed and compressed RLE, from files nobody has checked.

Tools spell the field in many ways. `read_segmentation` takes all of them and returns the standard one; `check_fit`
compares that with an image's size; `decode_segmentation` draws it. Every fault is a `SampleError` whose reason is a key
to count it by.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from osm.documents import parse_json
from osm.errors import SampleError, shown
from osm.io.values import finite, whole

# A polygon may stick out of its image, but pycocotools allocates in proportion to its outline.
_MAX_OUTSIDE = 10
# 80 bytes a pixel of the outlines, all told. (Around an image of 10,000 x 10,000 there are 40,000.)
_MAX_OUTLINE = 4_000_000
_MAX_RUNS, _CHARACTERS = 5_000_000, 7  # of a mask, and of a run in COCO's form
_MERGED = 16  # polygons merged at once: one after the other, each would go over all that is there


@dataclass(frozen=True)
class Segmentation:
    """A segmentation field that was read.

    Attributes:
        value: a list of polygons [x, y, x, y, ...], or an RLE {size: [height, width], counts: a text or integers}. The
            very object of the file, where that was in this form.
        unusable: (reason, message) of the polygons that were left out because the others are usable.
    """

    value: Any
    unusable: tuple[tuple[str, str], ...] = ()


def read_segmentation(value: Any, size: tuple[int, int], where: str) -> Segmentation:
    """Reads a segmentation in any spelling, for an image of this height and width.

    Polygons: a list of them, one flat list of coordinates, or lists of points; coordinates may be texts. RLE: `counts`
    as a text, bytes, the text of a bytes literal (`b'...'`), or a list or array of integers, which may be texts; the
    last run of zeros may be absent; the RLE may stand in a list.

    Raises:
        SampleError: `annotation_without_mask` (nothing there), `polygon_too_short`, `polygon_not_numbers`,
            `polygon_outside`, `polygon_outline`, `rle_malformed`, `rle_size` or `segmentation_malformed`.
    """
    if value is None or (isinstance(value, (list, tuple, Mapping)) and not value):
        raise SampleError("annotation_without_mask", f"{where}: has no mask: its segmentation is {shown(value)}")
    if isinstance(value, Mapping):
        return Segmentation(_read_rle(value, size, where))
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # json within json, as data frames write it
        try:
            inner = parse_json(value)
        except ValueError:
            raise SampleError("segmentation_malformed", f"{where}: segmentation {shown(value)} is no json") from None
        return read_segmentation(inner, size, where)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise SampleError(
            "segmentation_malformed", f"{where}: segmentation {shown(value)} is neither polygons nor an RLE"
        )
    if all(isinstance(part, Mapping) and {"x", "y"} <= part.keys() for part in value):
        value = [[part["x"], part["y"]] for part in value]
    if any(isinstance(part, Mapping) for part in value):
        return _read_parts(value, size, where)
    return _read_polygons(value, size, where)


def decode_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The bool mask (H, W) of a segmentation in any spelling, for an image of that height and width.

    Raises:
        SampleError: as `read_segmentation` does.
    """
    return draw_segmentation(read_segmentation(segmentation, size, where).value, size)


def draw_segmentation(value: Any, size: tuple[int, int]) -> np.ndarray:
    """The bool mask (H, W) of the `value` of a `Segmentation` that was read for this size."""
    if isinstance(value, Mapping):
        counts = value["counts"]
        return _draw_runs(_parse_counts(counts, "") if isinstance(counts, str) else counts, size)
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    polygons = [[float(number) for number in polygon] for polygon in value]
    rles = coco_mask.frPyObjects(polygons, *size)
    while len(rles) > 1:
        rles = [coco_mask.merge(rles[start : start + _MERGED]) for start in range(0, len(rles), _MERGED)]
    return _draw_runs(_parse_counts(rles[0]["counts"].decode("ascii"), ""), size)


def _draw_runs(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """Runs of 0 and 1 in turn, column by column.

    Not pycocotools' decoder: it trusts a string's end and its sum.
    """
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def _read_parts(parts: Any, size: tuple[int, int], where: str) -> Segmentation:
    """A list with an RLE in it; several parts are united."""
    if len(parts) == 1:
        return Segmentation(_read_rle(parts[0], size, where))
    mask = np.zeros(size, bool)
    unusable: tuple[tuple[str, str], ...] = ()
    faults: list[SampleError] = []
    for part in parts:
        try:
            read = read_segmentation(part if isinstance(part, Mapping) else [part], size, where)
        except SampleError as error:
            faults.append(error)
            continue
        mask |= draw_segmentation(read.value, size)
        unusable += read.unusable
    if len(faults) == len(parts):
        raise faults[0]
    unusable += tuple((fault.reason, str(fault)) for fault in faults)
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0)).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    return Segmentation({"size": list(size), "counts": counts}, unusable)


# Polygons.


def _read_polygons(value: Any, size: tuple[int, int], where: str) -> Segmentation:
    limit = _MAX_OUTSIDE * max(size)
    if isinstance(value, list) and all(_is_plain(polygon, limit) for polygon in value):  # nearly all there are
        _check_outline(value, limit, where)
        return Segmentation(value)
    usable, unusable = [], []
    for given in _as_polygons(value):
        polygon = _coordinates(given)
        fault = _fault(polygon, limit, size)
        if fault is None:
            usable.append(polygon)
        else:
            unusable.append((fault[0], f"{where}: polygon {shown(given)} {fault[1]}"))
    if not usable:
        if all(isinstance(polygon, (list, tuple)) and not polygon for polygon in value):
            raise SampleError("annotation_without_mask", f"{where}: has no mask: its segmentation is {shown(value)}")
        raise SampleError(*unusable[0])
    _check_outline(usable, limit, where)
    return Segmentation(usable, tuple(unusable))


def _is_plain(polygon: Any, limit: float) -> bool:
    """Whether it is a polygon in the standard form that nothing is wrong with."""
    return (
        type(polygon) is list
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and {int, float}.issuperset(map(type, polygon))
        and all(abs(number) <= limit for number in polygon)  # false for nan, too
    )


def _check_outline(polygons: list[Any], limit: float, where: str) -> None:
    if sum(map(len, polygons)) * limit > _MAX_OUTLINE:  # it cannot be that long otherwise
        outline = sum(map(_outline, polygons))
        if outline > _MAX_OUTLINE:
            message = f"{where}: {len(polygons)} polygons with an outline of {outline} pixels are too much"
            raise SampleError("polygon_outline", message)


def _is(one: Any, other: Any) -> bool:
    return one is other


def _as_polygons(value: Any) -> Any:
    """The polygons of a list that may itself be one: of coordinates, or of points."""
    if all(not isinstance(part, (list, tuple)) for part in value):
        return [value]
    if len(value) >= 3 and all(_is_point(part) for part in value):
        return [value]
    return value


def _is_point(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and not any(isinstance(v, (list, tuple)) for v in value)


def _coordinates(polygon: Any) -> list[int | float | None]:
    """x, y, x, y, ...; None for what is no finite number."""
    if not isinstance(polygon, (list, tuple)):
        return [None]
    if len(polygon) == 1 and isinstance(polygon[0], (list, tuple)):  # one list too many
        polygon = polygon[0]
    if polygon and all(_is_point(part) for part in polygon):
        polygon = [value for point in polygon for value in point]
    return [finite(value) for value in polygon]


def _fault(polygon: list[Any], limit: float, size: tuple[int, int]) -> tuple[str, str] | None:
    """Why a polygon cannot be drawn: reason, and the end of a sentence. (pycocotools takes two points for a box.)"""
    if None in polygon:
        return "polygon_not_numbers", "has a coordinate that is not a finite number"
    if len(polygon) < 6 or len(polygon) % 2:
        return "polygon_too_short", "is not [x, y, x, y, ...] with three points or more"
    if not all(abs(number) <= limit for number in polygon):
        return "polygon_outside", f"is far outside of its image, {size[1]} x {size[0]}"
    return None


def _outline(polygon: list[float]) -> int:
    """The pixels that a polygon's outline is drawn in, and a few more."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return int(np.abs(np.roll(points, -1, 0) - points).max(1).sum()) + len(points)


# RLE.


def _read_rle(rle: Mapping[str, Any], size: tuple[int, int], where: str) -> Mapping[str, Any]:
    """The RLE in the standard form, known to fill the image."""
    height, width = size
    _check_rle_size(rle.get("size"), size, where)
    counts = _counts(rle.get("counts"), where)
    if not counts:
        raise SampleError("annotation_without_mask", f"{where}: has no mask: its RLE has no counts")
    most = min(_MAX_RUNS, height * width + 1)
    if len(counts) > (_CHARACTERS * most if isinstance(counts, str) else most):
        message = f"{where}: RLE counts of length {len(counts)} are too many for {height} x {width} pixels"
        raise SampleError("rle_malformed", message)
    numbers = _parse_counts(counts, where) if isinstance(counts, str) else counts
    total = sum(numbers)
    # Writers that stop at the last pixel of the mask leave out the run of zeros that follows it.
    tail = height * width - total if len(numbers) % 2 == 0 else 0
    if any(count < 0 for count in numbers) or tail < 0 or total + tail != height * width:
        raise SampleError("rle_malformed", f"{where}: RLE counts do not add up to {height} x {width} pixels")
    if tail:
        return {"size": [height, width], "counts": [*numbers, tail]}
    if type(rle) is dict and type(rle["size"]) is list and rle["size"] == [height, width] and counts is rle["counts"]:
        return rle
    return {"size": [height, width], "counts": counts}


def _check_rle_size(given: Any, size: tuple[int, int], where: str) -> None:
    sides = given.tolist() if isinstance(given, np.ndarray) else given
    numbers = [whole(side) for side in sides] if isinstance(sides, (list, tuple)) else []
    if len(numbers) != 2 or None in numbers:
        raise SampleError("rle_malformed", f"{where}: RLE size {shown(given)} is not [height, width]")
    if numbers != list(size):
        swapped = "; is it [width, height]?" if numbers == list(size)[::-1] else ""
        message = f"{where}: RLE size {shown(given)} (height, width), but the image's is {list(size)}{swapped}"
        raise SampleError("rle_size", message)


def _counts(given: Any, where: str) -> Any:
    """Counts as a text, or a list of integers: the very object of the file, where it is one of these."""
    if isinstance(given, (bytes, bytearray)):
        return bytes(given).decode("ascii", "replace")
    if isinstance(given, str):
        if len(given) > 2 and given[0] == "b" and given[1] == given[-1] and given[1] in "'\"":
            try:
                literal = ast.literal_eval(given)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                literal = None
            if isinstance(literal, bytes):  # a bytes object that was written with str()
                return literal.decode("ascii", "replace")
        return given.strip() if given[-1:].isspace() else given
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, (list, tuple)):
        numbers = [whole(count) for count in given]
        if None not in numbers:
            return given if isinstance(given, list) and all(map(_is, numbers, given)) else numbers
    raise SampleError("rle_malformed", f"{where}: RLE counts are neither a string nor a list of integers")


def _parse_counts(text: str, where: str) -> list[int]:
    """COCO's string form: 5 bits a character from '0' on, bit 6 = more follow, from the 4th on relative to 2 before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            message = f"{where}: RLE counts {text[:40]!r} are not in COCO's compressed form"
            raise SampleError("rle_malformed", message)
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise SampleError("rle_malformed", f"{where}: RLE counts {text[:40]!r} end in the middle of a number")
    return counts
