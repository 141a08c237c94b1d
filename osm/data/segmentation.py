"""COCO's `segmentation` field to masks: polygons, uncompressed and compressed RLE, from files nobody has checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from osm.errors import OsmError

# A polygon may stick out of its image, but pycocotools allocates in proportion to its outline.
_MAX_OUTSIDE = 10


def check_segmentation(segmentation: Any, where: str) -> None:
    """Checks the shape of the field, whatever the image's size is.

    Raises:
        OsmError: neither a list of polygons nor an RLE.
    """
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)):
            raise OsmError(f"{where}: RLE size {str(size)[:60]} is not [height, width]")
        if not isinstance(counts, str) and not _are_numbers(counts, int):
            raise OsmError(f"{where}: RLE counts are neither a string nor a list of integers")
        return
    if not isinstance(segmentation, list):
        raise OsmError(f"{where}: segmentation {str(segmentation)[:60]} is neither polygons nor an RLE")
    for polygon in segmentation:
        if not _are_numbers(polygon, (int, float)) or len(polygon) < 6 or len(polygon) % 2:
            raise OsmError(f"{where}: polygon {str(polygon)[:60]} is not [x, y, x, y, ...] with three points or more")


def decode_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The bool mask (H, W) of a checked field, for an image of that height and width.

    Raises:
        OsmError: an RLE of another size, counts that do not fill it, or a polygon far outside.
    """
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation, size, where)
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    height, width = size
    if not segmentation:
        return np.zeros(size, dtype=bool)
    limit = _MAX_OUTSIDE * max(size)
    for polygon in segmentation:
        if not all(abs(value) <= limit for value in polygon):  # false for nan, too
            raise OsmError(f"{where}: polygon {str(polygon)[:60]} is far outside of its image, {width} x {height}")
    polygons = [[float(value) for value in polygon] for polygon in segmentation]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return _decode_rle({"size": rle["size"], "counts": rle["counts"].decode("ascii")}, size, where)


def _decode_rle(rle: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """Runs of 0 and 1 in turn, column by column.

    Not pycocotools' decoder: it trusts a string's end and its sum.
    """
    height, width = size
    if rle["size"] != [height, width]:
        raise OsmError(f"{where}: RLE size {rle['size']} (height, width), but the image's is {[height, width]}")
    counts = _parse_counts(rle["counts"], where) if isinstance(rle["counts"], str) else rle["counts"]
    if any(count < 0 for count in counts) or sum(counts) != height * width:
        raise OsmError(f"{where}: RLE counts do not add up to {height} x {width} pixels")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _parse_counts(text: str, where: str) -> list[int]:
    """COCO's string form: 5 bits a character from '0' on, bit 6 = more follow, from the 4th on relative to 2 before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise OsmError(f"{where}: RLE counts {text[:40]!r} are not in COCO's compressed form")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if shift:
        raise OsmError(f"{where}: RLE counts {text[:40]!r} end in the middle of a number")
    return counts


def _are_numbers(values: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
