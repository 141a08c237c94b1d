"""Deliberately wrong inputs for control experiments: they must lower the accuracy of a model that uses mask and image.

`shuffle_masks`: every annotation gets the mask of a random annotation from a different image of the split.
`blank_image`: every image is replaced by a uniform mid-gray image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from osm.errors import OsmError
from osm.forms import Split

ALTERATIONS = ("none", "shuffle_masks", "blank_image")
_MID_GREY = (128, 128, 128)
_TRIES = 1000


def blank(image: Image.Image) -> Image.Image:
    """Return a mid-gray image of the same size as the given image."""
    return Image.new("RGB", image.size, _MID_GREY)


def other_mask(split: Split, count: int, index: int, position: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """Return the mask of a different random annotation, resized to `size` (H, W) with nearest-neighbor interpolation.

    The random choice depends only on the seed and the annotation, so it stays the same if a prediction run is split or
    restarted.

    Args:
        split: the items that masks are drawn from.
        count: masks are drawn from the first `count` items.
        index: index of the item with the annotation that gets the mask.
        position: index of that annotation within its item.
        size: height and width of the returned mask.
        seed: the random seed.

    Raises:
        OsmError: No other annotation with a mask was found.
    """
    rng = np.random.default_rng((seed, index, position))
    for _ in range(_TRIES):
        donor = int(rng.integers(count))
        if donor == index and count > 1:
            continue
        item = split.load(donor)
        if not item.annotations:
            continue
        k = int(rng.integers(len(item.annotations)))
        if donor == index and k == position:
            continue
        mask = resize_nearest(item.mask(k), size)
        if mask.any():
            return mask
    raise OsmError(
        f"dataset {split.row.name!r}: --alter shuffle_masks found no other mask among the first {count} images"
    )


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask (h, w) to (H, W) with nearest-neighbor interpolation."""
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    return mask[rows[:, None], columns]
