"""Sizes and source pixels of a resize, by the published rule and by Pillow's nearest-neighbour sampling."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image


def fitted_size(width: int, height: int, target: int) -> tuple[int, int]:
    """(width, height) of a picture whose longest side goes to `target`, by the published rule.

    A square goes to the target; else the short side goes to target - 1 and, where the long one would then be over the
    target, the long one to the target.
    """
    if width == height:
        return target, target
    short, long = min(width, height), max(width, height)
    new_short = max(1, target - 1)
    new_long = int(new_short * long / short)
    if new_long > target:
        new_short, new_long = max(1, int(target * new_short / new_long)), target
    return (new_long, new_short) if width > height else (new_short, new_long)


def nearest_rows(size: int, resized: int, start: int = 0, count: int | None = None) -> np.ndarray:
    """Source indices of pixels start..start+count of Pillow's nearest-neighbour resize."""
    return _nearest(size, resized)[start : resized if count is None else start + count]


@lru_cache(maxsize=1024)
def _nearest(size: int, resized: int) -> np.ndarray:
    # Asked of Pillow itself: its running sum rounds some exact ties the other way than a formula would.
    line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(line.resize((resized, 1), Image.Resampling.NEAREST))[0]
