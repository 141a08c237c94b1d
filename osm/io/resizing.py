"""Compute the size of a resized image and the source indices for nearest-neighbor resizing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image


def fitted_size(width: int, height: int, target: int) -> tuple[int, int]:
    """Return the (width, height) of an image resized to fit into a square, computed as in the published model.

    A square image is resized to `target` x `target`. For any other image, the short side becomes `target` - 1, unless
    the long side would then exceed `target`. A long side that would exceed `target` is set to `target`, and the short
    side is scaled down in proportion.
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
    """Return the source index of each resized pixel, as used by Pillow's nearest-neighbor resizing.

    Args:
        size: the number of source pixels along the axis.
        resized: the number of pixels after resizing.
        start: the index of the first resized pixel.
        count: the number of resized pixels. None means all pixels from `start` on.
    """
    return _nearest(size, resized)[start : resized if count is None else start + count]


def taken(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the pixels (..., H, W) at some rows and columns. This is ten times as fast as `pixels[rows, columns]`."""
    return pixels.take(columns, -1).take(rows, -2)


@lru_cache(maxsize=1024)
def _nearest(size: int, resized: int) -> np.ndarray:
    # Let Pillow compute the indices, because a closed formula would round some exact ties differently.
    line = Image.fromarray(np.arange(size, dtype=np.int32)[None])
    return np.asarray(line.resize((resized, 1), Image.Resampling.NEAREST))[0]
