"""Convert COCO's `segmentation` field (polygons, or compressed or uncompressed RLE) from untrusted files to masks.

The format of the `segmentation` field varies between annotation tools. `read_segmentation` accepts many variants of the
field, checks it against the image size, and converts it to a standard form. `draw_segmentation` draws a mask from the
standard form. `decode_segmentation` converts the field and draws the mask. Every error is a `SampleError` with a
reason, so that callers can count the errors by reason.
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

# A polygon's coordinates may be at most _MAX_OUTSIDE times the image's longer side.
# Without this limit, a long outline could make pycocotools allocate a huge amount of memory.
_MAX_OUTSIDE = 10
# The maximum length of a polygon outline in pixels. pycocotools allocates 80 bytes per pixel of the outline.
# For comparison, the outline of a 10,000 x 10,000 image has 40,000 pixels.
_MAX_OUTLINE = 4_000_000
_MAX_RUNS, _CHARACTERS = 5_000_000, 7  # The maximum number of runs per mask, and of characters per compressed run.
_MERGED = 16  # The number of polygons merged per call. Merging polygons one by one would take quadratic time.


@dataclass(frozen=True)
class Segmentation:
    """The standard form of a segmentation field: polygons or an RLE.

    Attributes:
        value: a list of polygons [x, y, x, y, ...], or an RLE {size: [height, width], counts: a text or integers}. If
            the file already has the standard form, the value is the unchanged object of the file.
        unusable: the (reason, message) of each polygon that was skipped, if at least one polygon is usable.
    """

    value: Any
    unusable: tuple[tuple[str, str], ...] = ()


def read_segmentation(value: Any, size: tuple[int, int], where: str) -> Segmentation:
    """Convert a segmentation field in any supported variant to the standard form.

    Polygons may be given as a list of polygons, one flat list of coordinates, or lists of points. Coordinates may be
    strings. An RLE may be in a list. The `counts` of an RLE may be a string, bytes, a string with a bytes literal
    (`b'...'`), or a list or array of integers or strings. The last run of an RLE may be omitted if it is a run of
    zeros.

    Args:
        value: the value of the `segmentation` field.
        size: the (height, width) of the image.
        where: the beginning of error messages.

    Raises:
        SampleError: the reason is `annotation_without_mask` (the field is empty), `polygon_too_short`,
            `polygon_not_numbers`, `polygon_outside`, `polygon_outline`, `rle_malformed`, `rle_size` or
            `segmentation_malformed`.
    """
    if value is None or (isinstance(value, (list, tuple, Mapping)) and not value):
        raise SampleError("annotation_without_mask", f"{where}: has no mask because its segmentation is {shown(value)}")
    if isinstance(value, Mapping):
        return Segmentation(_read_rle(value, size, where))
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # JSON strings, as stored in data frames
        try:
            inner = parse_json(value)
        except ValueError:
            raise SampleError(
                "segmentation_malformed", f"{where}: segmentation {shown(value)} is not valid JSON"
            ) from None
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
    """Convert a segmentation field in any supported variant to a bool mask (H, W), where (H, W) is the image size.

    Raises:
        SampleError: the field is invalid. See `read_segmentation` for the reasons.
    """
    return draw_segmentation(read_segmentation(segmentation, size, where).value, size)


def draw_segmentation(value: Any, size: tuple[int, int]) -> np.ndarray:
    """Draw the `value` of a `Segmentation` as a bool mask (H, W), where (H, W) is the image size."""
    if isinstance(value, Mapping):
        counts = value["counts"]
        return _draw_runs(_parse_counts(counts, "") if isinstance(counts, str) else counts, size)
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    polygons = [[float(number) for number in polygon] for polygon in value]
    rles = coco_mask.frPyObjects(polygons, *size)
    while len(rles) > 1:
        rles = [coco_mask.merge(rles[start : start + _MERGED]) for start in range(0, len(rles), _MERGED)]
    return _draw_runs(_parse_counts(rles[0]["counts"].decode("ascii"), ""), size)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a bool mask (H, W) as a compressed COCO RLE, whose `counts` field is a string."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def rle_box(rle: Mapping[str, Any]) -> list[float]:
    """Return an RLE's bounding box [x, y, width, height] in pixels."""
    from pycocotools import mask as coco_mask

    return [float(value) for value in coco_mask.toBbox(dict(rle))]


def rle_area(rle: Mapping[str, Any]) -> int:
    """Return the area of a compressed RLE in pixels."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(dict(rle)))


def _draw_runs(counts: Any, size: tuple[int, int]) -> np.ndarray:
    """Draw a mask (H, W) from alternating runs of 0 and 1 in column-major order.

    The decoder in pycocotools is not used, because it checks neither the end of the string nor the sum of the runs.
    """
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[1], size[0]).T


def _read_parts(parts: Any, size: tuple[int, int], where: str) -> Segmentation:
    """Convert a list that contains an RLE to the standard form by merging all masks in the list."""
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
    if isinstance(value, list) and all(_is_plain(polygon, limit) for polygon in value):  # the usual case
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
            raise SampleError(
                "annotation_without_mask", f"{where}: has no mask because its segmentation is {shown(value)}"
            )
        raise SampleError(*unusable[0])
    _check_outline(usable, limit, where)
    return Segmentation(usable, tuple(unusable))


def _is_plain(polygon: Any, limit: float) -> bool:
    """Return whether a polygon is in the standard form and can be drawn."""
    return (
        type(polygon) is list
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and {int, float}.issuperset(map(type, polygon))
        and all(abs(number) <= limit for number in polygon)  # This comparison is also false for NaN.
    )


def _check_outline(polygons: list[Any], limit: float, where: str) -> None:
    if sum(map(len, polygons)) * limit > _MAX_OUTLINE:  # With fewer points, the outline cannot be too long.
        outline = sum(map(_outline, polygons))
        if outline > _MAX_OUTLINE:
            message = (
                f"{where}: {len(polygons)} polygons have a total outline of {outline} pixels, which exceeds the "
                f"maximum of {_MAX_OUTLINE}"
            )
            raise SampleError("polygon_outline", message)


def _is(one: Any, other: Any) -> bool:
    return one is other


def _as_polygons(value: Any) -> Any:
    """Return a list of polygons. The argument may also be a single polygon of coordinates or points."""
    if all(not isinstance(part, (list, tuple)) for part in value):
        return [value]
    if len(value) >= 3 and all(_is_point(part) for part in value):
        return [value]
    return value


def _is_point(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and not any(isinstance(v, (list, tuple)) for v in value)


def _coordinates(polygon: Any) -> list[int | float | None]:
    """Return a polygon's coordinates [x, y, x, y, ...], with None in place of values that are not finite numbers."""
    if not isinstance(polygon, (list, tuple)):
        return [None]
    if len(polygon) == 1 and isinstance(polygon[0], (list, tuple)):  # A polygon may be nested in an additional list.
        polygon = polygon[0]
    if polygon and all(_is_point(part) for part in polygon):
        polygon = [value for point in polygon for value in point]
    return [finite(value) for value in polygon]


def _fault(polygon: list[Any], limit: float, size: tuple[int, int]) -> tuple[str, str] | None:
    """Return (reason, end of the error message) if a polygon cannot be drawn, or None if it can.

    Polygons with only two points are rejected, because pycocotools interprets two points as a box.
    """
    if None in polygon:
        return "polygon_not_numbers", "has a coordinate that is not a finite number"
    if len(polygon) < 6 or len(polygon) % 2:
        return "polygon_too_short", "is not [x, y, x, y, ...] with three points or more"
    if not all(abs(number) <= limit for number in polygon):
        return "polygon_outside", f"lies far outside its image, which is {size[1]} x {size[0]} pixels"
    return None


def _outline(polygon: list[float]) -> int:
    """Return an upper bound on the number of pixels in a polygon's outline."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return int(np.abs(np.roll(points, -1, 0) - points).max(1).sum()) + len(points)


# RLE.


def _read_rle(rle: Mapping[str, Any], size: tuple[int, int], where: str) -> Mapping[str, Any]:
    """Convert an RLE to the standard form, in which the runs add up to the number of pixels in the image."""
    height, width = size
    _check_rle_size(rle.get("size"), size, where)
    counts = _counts(rle.get("counts"), where)
    if not counts:
        raise SampleError("annotation_without_mask", f"{where}: has no mask because its RLE has no counts")
    most = min(_MAX_RUNS, height * width + 1)
    if len(counts) > (_CHARACTERS * most if isinstance(counts, str) else most):
        message = f"{where}: RLE counts of length {len(counts)} are too long for {height} x {width} pixels"
        raise SampleError("rle_malformed", message)
    numbers = _parse_counts(counts, where, most) if isinstance(counts, str) else counts
    total = sum(numbers)
    # Some programs omit the run of zeros that follows the last pixel of the mask.
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
    """Return the counts of an RLE as a string or a list of integers.

    A list of integers is returned unchanged.
    """
    if isinstance(given, (bytes, bytearray)):
        return bytes(given).decode("ascii", "replace")
    if isinstance(given, str):
        if len(given) > 2 and given[0] == "b" and given[1] == given[-1] and given[1] in "'\"":
            try:
                literal = ast.literal_eval(given)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                literal = None
            if isinstance(literal, bytes):  # The file was written by a program that called str() on bytes.
                return literal.decode("ascii", "replace")
        return given.strip() if given[-1:].isspace() else given
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, (list, tuple)):
        numbers = [whole(count) for count in given]
        if None not in numbers:
            return given if isinstance(given, list) and all(map(_is, numbers, given)) else numbers
    raise SampleError("rle_malformed", f"{where}: RLE counts are neither a string nor a list of integers")


def _parse_counts(text: str, where: str, most: int = _MAX_RUNS) -> list[int]:
    """Decode the `counts` of a compressed COCO RLE.

    In a compressed RLE, each character's code minus the code of '0' is a six-bit value. Five of the bits encode part of
    a number, and the sixth indicates whether the number continues in the next character. Starting with the fourth
    number, each number is stored as its difference from the number two positions earlier.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            message = f"{where}: RLE counts {text[:40]!r} are not valid compressed counts"
            raise SampleError("rle_malformed", message)
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            if len(counts) > most:
                raise SampleError("rle_malformed", f"{where}: RLE counts have more than {most} runs")
            value = shift = 0
    if shift:
        raise SampleError("rle_malformed", f"{where}: RLE counts {text[:40]!r} end in the middle of a number")
    return counts
