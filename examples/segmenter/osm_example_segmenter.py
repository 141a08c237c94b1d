"""A segmenter that cuts an image into square tiles: `osm demo --segmenter tiles`."""

import numpy as np

from osm.recognition.segmenters import ScoredMask, Segmenter, by_area
from osm.recognition.segmenters.base import check_set, checked_box, checked_points


class TileSegmenter(Segmenter):
    """Cuts an image into a grid of square tiles."""

    name = "tiles"

    def __init__(self, tiles=4):
        self.tiles, self._size = tiles, None

    @classmethod
    def load(cls, checkpoint, recognizer, device, **options):
        return cls(**options)

    def set_image(self, image):
        self._size = image.size
        side = max(1, max(image.size) // self.tiles)
        rows, columns = np.arange(image.height) // side, np.arange(image.width) // side
        self._labels = rows[:, None] * self.tiles * 2 + columns[None]

    def everything(self):
        check_set(self._size)
        return by_area([ScoredMask(self._labels == label) for label in np.unique(self._labels)])

    def at_points(self, points, inside=None):
        places, marks = checked_points(check_set(self._size), points, inside)
        wanted = [self._labels[int(y), int(x)] for (x, y), mark in zip(places, marks, strict=True) if mark]
        return ScoredMask(np.isin(self._labels, wanted))

    def in_box(self, box):
        left, top, right, bottom = checked_box(check_set(self._size), box)
        mask = np.zeros(self._labels.shape, bool)
        mask[top:bottom, left:right] = True
        return ScoredMask(mask)
