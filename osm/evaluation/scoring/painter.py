"""From overlapping masks to a map in which each pixel is of one segment at most.

The heuristic of Kirillov et al. (2019, section 5): masks in the order of their scores, each where nothing lies yet; one
of which too little is left is left out. What is left of a stuff class's masks is one segment.

Shapes: H, W = the image's sides.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np


class Painter:
    """One image's map.

    Args:
        size: its height and width.
        merged: the category ids whose masks become one segment (stuff).
        min_share: what a mask has to have left of its pixels, 0 to 1, so as not to be left out. Those that its own
            merged segment has already count as left.

    Attributes:
        segments_HW: int32; 0 = nothing, k + 1 = the segment of the k-th of `categories`.
        categories: their category ids.
        hidden: how many masks were left out.
    """

    def __init__(self, size: tuple[int, int], merged: Container[int], min_share: float) -> None:
        self.segments_HW = np.zeros(size, np.int32)
        self.categories: list[int] = []
        self.hidden = 0
        self._merged, self._min_share = merged, min_share
        self._of_class: dict[int, int] = {}

    def add(self, mask_HW: np.ndarray, category_id: int) -> None:
        """Paints a mask (bool); masks come in the order of their scores, the highest first."""
        value = self._of_class.get(category_id)
        area = int(mask_HW.sum())
        free_HW = mask_HW & (self.segments_HW == 0)
        free = int(free_HW.sum())
        own = 0 if value is None else int((self.segments_HW[mask_HW] == value).sum())
        if not free + own or free + own < self._min_share * area:
            self.hidden += 1
            return
        if value is None:
            self.categories.append(category_id)
            value = len(self.categories)
            if category_id in self._merged:
                self._of_class[category_id] = value
        self.segments_HW[free_HW] = value
