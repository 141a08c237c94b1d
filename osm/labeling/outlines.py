"""Traces the outlines of masks, and draws polygons as the annotation tools do.

Tools disagree about what a polygon's coordinates mean. For pycocotools, the polygon of a single pixel encloses a square
from (x, y) to (x + 1, y + 1): its vertices are corners of pixels. For tools that draw polygons with Pillow or OpenCV
(LabelMe, YOLO), a vertex is the center of a pixel, and the pixels of the outline belong to the mask. `corner_polygons`
and `center_polygons` return the vertices that make each kind of tool draw the original mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Points = list[tuple[int, int]]


@dataclass(frozen=True)
class Outline:
    """One closed outline of a mask.

    Attributes:
        corners: the vertices (x, y) at corners of pixels, clockwise on the screen around a part of the mask, and
            counterclockwise around a hole.
        centers: the vertices (x, y) as indices of the outermost pixels inside the mask.
        hole: whether the outline surrounds a hole of the mask.
    """

    corners: Points
    centers: Points
    hole: bool


def outlines(mask: np.ndarray) -> list[Outline]:
    """Trace all outlines of a bool mask (H, W), in the order of their topmost, leftmost corners.

    Pixels belong to the same part if they share an edge. Pixels outside the mask belong to the same hole if they share
    an edge or a corner.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    offset = np.array([columns[0], rows[0]])
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    starts, ends, pixels = _edges(part)
    following = _following(starts, ends, pixels).tolist()
    done = bytearray(len(starts))
    width = part.shape[1]
    found = []
    for first in range(len(starts)):
        if done[first]:
            continue
        chain, number = [], first
        while not done[number]:
            done[number] = 1
            chain.append(number)
            number = following[number]
        corners = np.stack([starts[chain] % (width + 1), starts[chain] // (width + 1)], 1)
        centers = np.stack([pixels[chain] % width, pixels[chain] // width], 1)
        hole = _area(corners) < 0
        corners, centers = _straightened(corners) + offset, _straightened(_without_repeats(centers)) + offset
        found.append(Outline(_listed(corners), _listed(centers), hole))
    return found


def _listed(points: np.ndarray) -> Points:
    return [(x, y) for x, y in points.tolist()]


def _following(starts: np.ndarray, ends: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the next edge of each edge. The edges are sorted by their starts.

    Where two mask pixels touch only at a corner, two edges start there. The outline continues along the edge of the
    pixel that it has been following.
    """
    found = np.searchsorted(starts, ends)
    other = np.minimum(found + 1, len(starts) - 1)
    return np.where((starts[other] == ends) & (pixels[found] != pixels) & (pixels[other] == pixels), other, found)


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges between pixels inside and outside a mask.

    Returns:
        for each edge, the index of the corner at its start, the corner at its end, and the pixel inside the mask. The
        pixel is to the right of the edge, seen in the direction of the edge. The edges are sorted by their starts.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # the neighbor that is outside, and the offsets (x, y) of the edge's start and end
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    starts, ends, pixels = [], [], []
    for neighbor, start, end in sides:
        y, x = np.nonzero(inside & ~neighbor)
        starts.append((y + start[1]) * (width + 1) + x + start[0])
        ends.append((y + end[1]) * (width + 1) + x + end[0])
        pixels.append(y * width + x)
    order = np.argsort(np.concatenate(starts), kind="stable")
    found = (np.concatenate(part)[order] for part in (starts, ends, pixels))
    return tuple(found)  # type: ignore[return-value]


def _without_repeats(points: np.ndarray) -> np.ndarray:
    """Remove the points (N, 2) that are equal to the one before."""
    kept = points[(points != np.roll(points, 1, 0)).any(1)]
    return kept if len(kept) else points[:1]


def _straightened(points: np.ndarray) -> np.ndarray:
    """Remove the vertices (N, 2) between two edges of the same direction."""
    if len(points) < 3:
        return points
    one, other = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = one[:, 0] * other[:, 1] != one[:, 1] * other[:, 0]
    return points[turns | ((one * other).sum(1) < 0)]


def _area(corners: np.ndarray) -> int:
    x, y = corners.T
    return int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def corner_polygons(mask: np.ndarray) -> list[list[float]]:
    """Return a mask's parts as polygons [x, y, x, y, ...] for pycocotools. Holes are filled."""
    return [[float(v) for point in one.corners for v in point] for one in outlines(mask) if not one.hole]


def center_polygons(mask: np.ndarray) -> list[Points]:
    """Return a mask's parts as polygons of pixel indices for Pillow and OpenCV. Holes are filled."""
    return [center_polygon(one) for one in outlines(mask) if not one.hole]


def center_polygon(outline: Outline) -> Points:
    """Return the centers of an outline as a polygon.

    A part that is a single pixel or a line has vertices that repeat, because the tools require three of them.
    """
    return (outline.centers * 3)[: max(3, len(outline.centers))]


def draw_centers(polygons: Sequence[Sequence[tuple[float, float]]], size_hw: tuple[int, int]) -> np.ndarray:
    """Draw polygons whose vertices are centers of pixels, as Pillow does. Return a bool mask (H, W)."""
    canvas = Image.new("1", size_hw[::-1])
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        pen.polygon([(float(x), float(y)) for x, y in polygon], fill=1, outline=1)
    return np.array(canvas)
