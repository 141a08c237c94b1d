"""Outlines are drawn by other programs exactly as the masks were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from osm.labeling.outlines import center_polygons, corner_polygons, draw_centers, outlines

EIGHT = np.ones((3, 3))  # pixels of a hole may touch in a corner


def blob(seed: int, size: tuple[int, int] = (40, 53)) -> np.ndarray:
    """A random mask, ragged and with holes and parts."""
    noise = np.random.default_rng(seed).normal(size=size)
    return ndimage.gaussian_filter(noise, 1 + seed % 3) > 0.03


@pytest.mark.parametrize("seed", range(12))
def test_parts_and_holes_are_those_that_scipy_counts(seed: int) -> None:
    mask = blob(seed)
    found = outlines(mask)
    holes = ndimage.label(~np.pad(mask, 1), EIGHT)[1] - 1
    assert sum(not one.hole for one in found) == ndimage.label(mask)[1]
    assert sum(one.hole for one in found) == holes


@pytest.mark.parametrize("seed", range(12))
def test_pycocotools_draws_the_corners_as_the_mask(seed: int) -> None:
    mask = blob(seed)
    rles = coco_mask.frPyObjects(corner_polygons(mask), *mask.shape)
    expected = ndimage.binary_fill_holes(mask, EIGHT)
    assert np.array_equal(coco_mask.decode(coco_mask.merge(rles)).astype(bool), expected)


@pytest.mark.parametrize("seed", range(12))
def test_opencv_and_pillow_draw_the_centers_as_the_mask(seed: int) -> None:
    mask = blob(seed)
    polygons = center_polygons(mask)
    canvas = np.zeros(mask.shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.array(polygon, np.int32)], 1)
    expected = ndimage.binary_fill_holes(mask, EIGHT)
    assert np.array_equal(canvas.astype(bool), expected)
    assert np.array_equal(draw_centers(polygons, mask.shape), expected)


@pytest.mark.parametrize("rows", [["1"], ["111"], ["1", "1"], ["10", "01"], ["111", "101", "111"]])
def test_the_smallest_masks(rows: list[str]) -> None:
    mask = np.pad(np.array([[c == "1" for c in row] for row in rows]), 2)
    polygons = center_polygons(mask)
    assert all(len(polygon) >= 3 for polygon in polygons)
    assert np.array_equal(draw_centers(polygons, mask.shape), ndimage.binary_fill_holes(mask, EIGHT))
    assert outlines(np.zeros((3, 4), bool)) == []
