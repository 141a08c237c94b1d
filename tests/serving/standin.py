"""A segmenter for tests of what uses one: areas of one colour, found by scikit-image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb

from osm.errors import OsmError
from osm.recognition.segmenters.base import ScoredMask, by_area


class Areas:
    """A `Segmenter`; `pictures` counts those that were set."""

    name = "areas"

    def __init__(self) -> None:
        self.pictures = 0
        self._ids: np.ndarray | None = None

    def set_image(self, image: Image.Image) -> None:
        small = image.copy()
        small.thumbnail((256, 256))
        ids = felzenszwalb(np.asarray(small), scale=200, sigma=0.8, min_size=150).astype(np.int32)
        self._ids = np.asarray(Image.fromarray(ids).resize(image.size, Image.Resampling.NEAREST))
        self.pictures += 1

    def everything(self) -> list[ScoredMask]:
        return by_area([ScoredMask(self.ids == number) for number in np.unique(self.ids)])

    def largest(self, count: int) -> tuple[Iterator[ScoredMask], int]:
        found = self.everything()
        return iter(found[:count]), len(found)

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> ScoredMask:
        (x, y), *_ = points
        return ScoredMask(self.ids == self.ids[int(y), int(x)])

    def in_box(self, box: Sequence[float]) -> ScoredMask:
        x, y, width, height = (int(side) for side in box)
        mask = np.zeros(self.ids.shape, bool)
        mask[y : y + height, x : x + width] = True
        return ScoredMask(mask)

    def state(self) -> None:
        return None

    @property
    def ids(self) -> np.ndarray:
        if self._ids is None:
            raise OsmError("no image is set")
        return self._ids
