"""Packs the rows of a batch by image, so that attention to the image runs once for all masks of the image.

Shapes: N images, R rows (masks), P positions of an image, Q positions of a row, K the largest number of rows per image,
G = N * K slots. X is any width.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from osm.errors import OsmError


class RowGroups:
    """Packs all rows of an image together, so that the rows share one copy of the image's keys.

    Args:
        image_index_R: the image of each row.
        images: the number of images, N.

    Raises:
        OsmError: a row's image is out of range.
    """

    def __init__(self, image_index_R: Tensor, images: int) -> None:
        index = image_index_R.tolist()
        wrong = [image for image in index if not 0 <= image < images]
        if wrong:
            raise OsmError(f"image_index contains {wrong[0]}, which is out of range for {images} images")
        rows_of: Counter[int] = Counter()
        slots = []
        for image in index:
            slots.append(rows_of[image])
            rows_of[image] += 1
        self.images, self.per_image = images, max(rows_of.values(), default=1)
        self.slot_R = image_index_R * self.per_image + torch.tensor(
            slots, device=image_index_R.device, dtype=torch.long
        )
        self.trivial = self.slot_R.tolist() == list(range(images * self.per_image))

    def pack(self, rows_RQX: Tensor, fill: float = 0) -> Tensor:
        """Pack rows by image into (N, K * Q, X). Unused slots have the value `fill`."""
        slots_GQX = rows_RQX
        if not self.trivial:
            empty_GQX = rows_RQX.new_full((self.images * self.per_image, *rows_RQX.shape[1:]), fill)
            slots_GQX = empty_GQX.index_copy(0, self.slot_R, rows_RQX)
        return slots_GQX.reshape(self.images, self.per_image * slots_GQX.shape[1], *slots_GQX.shape[2:])

    def unpack(self, packed_NPX: Tensor) -> Tensor:
        """Unpack the P = K * Q positions of each image into rows (R, Q, X)."""
        slots_GQX = packed_NPX.reshape(self.images * self.per_image, -1, *packed_NPX.shape[2:])
        return slots_GQX if self.trivial else slots_GQX[self.slot_R]
