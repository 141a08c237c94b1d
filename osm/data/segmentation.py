"""COCO's `segmentation` field to masks: polygons, uncompressed and compressed RLE, from files nobody has checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from osm.errors import OsmError, shown

# A polygon may stick out of its image, but pycocotools allocates in proportion to its outline.
_MAX_OUTSIDE = 10
# 80 bytes a pixel of the outlines, all told. (Around an image of 10,000 x 10,000 there are 40,000.)
_MAX_OUTLINE = 4_000_000
_MAX_RUNS, _CHARACTERS = 5_000_000, 7  # of a mask, and of a run in COCO's form
_MERGED = 16  # polygons merged at once: one after the other, each would go over all that is there


def check_segmentation(segmentation: Any, where: str) -> None:
    """Checks the shape of the field, whatever the image's size is.

    Raises:
        OsmError: neither a list of polygons nor an RLE.
    """
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)):
            raise OsmError(f"{where}: RLE size {shown(size)} is not [height, width]")
        if not isinstance(counts, str) and not _are_numbers(counts, int):
            raise OsmError(f"{where}: RLE counts are neither a string nor a list of integers")
        return
    if not isinstance(segmentation, list):
        raise OsmError(f"{where}: segmentation {shown(segmentation)} is neither polygons nor an RLE")
    for polygon in segmentation:
        if not _are_numbers(polygon, (int, float)) or len(polygon) < 6 or len(polygon) % 2:
            raise OsmError(f"{where}: polygon {shown(polygon)} is not [x, y, x, y, ...] with three points or more")


def decode_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The bool mask (H, W) of a checked field, for an image of that height and width.

    Raises:
        OsmError: an RLE of another size, counts that do not fill it, a polygon far outside, or too many of anything.
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
            raise OsmError(f"{where}: polygon {shown(polygon)} is far outside of its image, {width} x {height}")
    if sum(map(len, segmentation)) * limit > _MAX_OUTLINE:  # it cannot be that long otherwise
        outline = sum(map(_outline, segmentation))
        if outline > _MAX_OUTLINE:
            raise OsmError(f"{where}: {len(segmentation)} polygons with an outline of {outline} pixels are too much")
    polygons = [[float(value) for value in polygon] for polygon in segmentation]
    rles = coco_mask.frPyObjects(polygons, height, width)
    while len(rles) > 1:
        rles = [coco_mask.merge(rles[start : start + _MERGED]) for start in range(0, len(rles), _MERGED)]
    return _decode_rle({"size": rles[0]["size"], "counts": rles[0]["counts"].decode("ascii")}, size, where)


def _outline(polygon: list[float]) -> int:
    """The pixels that a polygon's outline is drawn in, and a few more."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return int(np.abs(np.roll(points, -1, 0) - points).max(1).sum()) + len(points)


def _decode_rle(rle: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """Runs of 0 and 1 in turn, column by column.

    Not pycocotools' decoder: it trusts a string's end and its sum.
    """
    height, width = size
    if rle["size"] != [height, width]:
        raise OsmError(f"{where}: RLE size {shown(rle['size'])} (height, width), but the image's is {[height, width]}")
    counts = rle["counts"]
    most = min(_MAX_RUNS, height * width + 1)
    if len(counts) > (_CHARACTERS * most if isinstance(counts, str) else most):
        raise OsmError(f"{where}: RLE counts of length {len(counts)} are too many for {height} x {width} pixels")
    if isinstance(counts, str):
        counts = _parse_counts(counts, where)
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
