"""Sliding windows: a tower trained on small images encodes a large image window by window (paper, section 3.2).

Shapes: N images, S input size, w window size, s stride, p patch size, n windows per side, G = n^2 windows,
B = N * G windows of all images, g = S / p grid cells per side, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from osm.errors import OsmError


@dataclass(frozen=True)
class SlidingWindows:
    """Splits images into windows, and merges the windows' patch tokens into one grid per image.

    Args:
        size: S.
        window: w.
        stride: s.
        patch: p.

    Raises:
        OsmError: the size, the window or the stride is not a multiple of the patch size.
    """

    size: int
    window: int
    stride: int
    patch: int

    def __post_init__(self) -> None:
        for flag, value in (
            ("--input_size", self.size),
            ("--sliding_window_size", self.window),
            ("--sliding_window_stride", self.stride),
        ):
            if value % self.patch:
                raise OsmError(f"{flag} {value} is not a multiple of the vision tower's patch size ({self.patch})")

    @cached_property
    def starts(self) -> list[int]:
        """The first pixel of each window along one image axis.

        Windows that would extend past the image border are shifted inward.
        """
        count = max(self.size - self.window + self.stride - 1, 0) // self.stride + 1
        return [min(i * self.stride, self.size - self.window) for i in range(count)]

    @property
    def count(self) -> int:
        """The number of windows per image, G."""
        return len(self.starts) ** 2

    @property
    def grid(self) -> int:
        """The number of patches along each side of the whole image, g."""
        return self.size // self.patch

    def split(self, images_N3SS: Tensor) -> Tensor:
        """Split images into windows (N * G, 3, w, w), with the windows of each image in row-major order."""
        w = self.window
        windows = [images_N3SS[..., y : y + w, x : x + w] for y in self.starts for x in self.starts]
        return torch.stack(windows, 1).flatten(0, 1)

    def merge(self, patches_BPC: Tensor) -> Tensor:
        """Merge the windows' patch tokens (N * G, (w/p)^2, C) into (N, g^2, C). Overlapping tokens are averaged."""
        n, side, c = len(self.starts), self.window // self.patch, patches_BPC.shape[-1]
        patches = patches_BPC.reshape(-1, n, n, side, side, c)
        if n * self.window == self.size:
            return patches.permute(0, 1, 3, 2, 4, 5).reshape(len(patches), self.grid**2, c)
        total_NggC = patches.new_zeros(len(patches), self.grid, self.grid, c)
        count_gg1 = patches.new_zeros(self.grid, self.grid, 1)
        for i, y in enumerate(start // self.patch for start in self.starts):
            for j, x in enumerate(start // self.patch for start in self.starts):
                total_NggC[:, y : y + side, x : x + side] += patches[:, i, j]
                count_gg1[y : y + side, x : x + side] += 1
        return (total_NggC / count_gg1).flatten(1, 2)
