"""Merges overlapping masks into a label map with at most one segment per pixel, as the published demo does.

Shapes: K masks, each H x W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from osm.errors import OsmError

MIN_PROB, MIN_FREE, MIN_PIXELS = 0.2, 0.8, 100


@dataclass(frozen=True)
class Merged:
    """The label map that `merge` creates from overlapping masks.

    Attributes:
        ids: label map, int32 (H, W). 0 = no segment; ids start at 1, in descending order of probability.
        segments: for each id, starting with id 1, the index of its mask.
        dropped: for each mask that is not in the map, its index and the reason.
    """

    ids: np.ndarray
    segments: list[int]
    dropped: dict[int, str]


def merge(
    masks: Sequence[np.ndarray],
    probs: Sequence[float],
    min_prob: float = MIN_PROB,
    min_free: float = MIN_FREE,
    min_pixels: int = MIN_PIXELS,
) -> Merged:
    """Paint masks into a label map in descending order of probability, without overwriting painted pixels.

    Masks with equal probability keep their order. A mask is dropped if its probability is below `min_prob`,
    or if too few of its pixels are still unpainted (`min_pixels` and `min_free`).

    Args:
        masks: masks of one size, each bool (H, W).
        probs: the probability of each mask's name.
        min_prob: minimum probability of a mask's name.
        min_free: minimum share of a mask's pixels that no earlier mask covers.
        min_pixels: minimum number of a mask's pixels that no earlier mask covers.

    Raises:
        OsmError: there is no mask, the masks differ in size, or the numbers of masks and probabilities differ.
    """
    if len(masks) != len(probs):
        raise OsmError(f"{len(masks)} masks, but {len(probs)} probabilities")
    if not len(masks):
        raise OsmError("no masks to merge: without a mask, the size of the label map is unknown")
    shapes = {np.shape(mask) for mask in masks}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise OsmError(f"masks have the shapes {sorted(shapes)}; expected all masks to have the same shape (H, W)")
    ids = np.zeros(next(iter(shapes)), np.int32)
    segments: list[int] = []
    dropped: dict[int, str] = {}
    for k in sorted(range(len(masks)), key=lambda k: -probs[k]):
        if not probs[k] >= min_prob:  # also true for nan
            dropped[k] = f"probability under {min_prob:g}"
            continue
        mask = np.asarray(masks[k], bool)
        free = mask & (ids == 0)
        left, area = int(free.sum()), int(mask.sum())
        if left < min_pixels:
            dropped[k] = f"under {min_pixels} pixels left"
        elif left < min_free * area - 1e-6:  # tolerance for rounding of the product
            dropped[k] = f"under {min_free:.0%} left"
        else:
            segments.append(k)
            ids[free] = len(segments)
    return Merged(ids, segments, dropped)


def as_png(ids: np.ndarray) -> Image.Image:
    """Encode a label map (H, W) as an RGB image in the COCO panoptic format, with id = R + 256 G + 65536 B.

    Raises:
        OsmError: an id is negative, or does not fit into three bytes.
    """
    if ids.size and not (ids.min() >= 0 and ids.max() < 1 << 24):
        raise OsmError(
            f"segment ids range from {ids.min()} to {ids.max()}, but only 0 to {(1 << 24) - 1} fit in an RGB pixel"
        )
    return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8))
