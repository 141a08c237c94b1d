"""Named masks that overlap, as one map: every pixel belongs to one segment at most (the published demo's merge).

Shapes: K masks of H x W.
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
    """What the merge left.

    Attributes:
        ids: int32 (H, W), 0 = nobody's; else 1 and on, in the order of probability.
        segments: of each id, from 1 on, which mask it is.
        dropped: why the others are not in it, by mask.
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
    """Lays masks down by probability, the highest first (equals in their order); what is taken stays taken.

    Args:
        masks: bool (H, W) each. probs: of their names.
        min_prob: a mask below it is dropped. min_free: so much of a mask must be free yet. min_pixels: so many pixels
            of it, too. A mask that just meets a bound stays.

    Raises:
        OsmError: no mask, masks of several sizes, or not as many probabilities.
    """
    if len(masks) != len(probs):
        raise OsmError(f"{len(masks)} masks, but {len(probs)} probabilities")
    if not len(masks):
        raise OsmError("no masks to merge: their size is not known")
    shapes = {np.shape(mask) for mask in masks}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise OsmError(f"masks of shapes {sorted(shapes)}: one shape (H, W) is needed")
    ids = np.zeros(next(iter(shapes)), np.int32)
    segments: list[int] = []
    dropped: dict[int, str] = {}
    for k in sorted(range(len(masks)), key=lambda k: -probs[k]):
        if not probs[k] >= min_prob:  # nan, too
            dropped[k] = f"probability under {min_prob:g}"
            continue
        mask = np.asarray(masks[k], bool)
        free = mask & (ids == 0)
        left, area = int(free.sum()), int(mask.sum())
        if left < min_pixels:
            dropped[k] = f"under {min_pixels} pixels left"
        elif left < min_free * area - 1e-6:  # a product that rounds up is no miss
            dropped[k] = f"under {min_free:.0%} left"
        else:
            segments.append(k)
            ids[free] = len(segments)
    return Merged(ids, segments, dropped)


def as_png(ids: np.ndarray) -> Image.Image:
    """Ids (H, W) as COCO's panoptic PNGs have them: id = R + 256 G + 65536 B.

    Raises:
        OsmError: an id below 0, or that three bytes do not hold.
    """
    if ids.size and not (ids.min() >= 0 and ids.max() < 1 << 24):
        raise OsmError(f"ids from {ids.min()} to {ids.max()}: 0 to {(1 << 24) - 1} fit an RGB pixel")
    return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8))
