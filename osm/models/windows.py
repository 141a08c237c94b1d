"""Sliding windows: a tower that was trained at a small size sees a large image window by window (paper, section 3.2).

Shapes: N images, S input size, w window, s stride, p patch, n windows a side, G = n^2 windows, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from osm.errors import OsmError


@dataclass(frozen=True)
class SlidingWindows:
    """Cuts images into windows and lays the windows' patch tokens back onto one grid.

    Raises:
        OsmError: S, w or s is not a multiple of the tower's patch.
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
                raise OsmError(f"{flag} {value} is not a multiple of the vision tower's patch, {self.patch}")

    @cached_property
    def starts(self) -> list[int]:
        """First pixel of every window along a side; one that would run past the image is shifted back."""
        count = max(self.size - self.window + self.stride - 1, 0) // self.stride + 1
        return [min(i * self.stride, self.size - self.window) for i in range(count)]

    @property
    def count(self) -> int:
        """G, the number of windows of an image."""
        return len(self.starts) ** 2

    @property
    def grid(self) -> int:
        """Patches along a side of the whole image."""
        return self.size // self.patch

    def split(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N*G, 3, w, w), the windows of an image row-major."""
        w = self.window
        windows = [images[..., y : y + w, x : x + w] for y in self.starts for x in self.starts]
        return torch.stack(windows, 1).flatten(0, 1)

    def merge(self, patches: Tensor) -> Tensor:
        """(N*G, (w/p)^2, C) -> (N, (S/p)^2, C); where windows overlap, their tokens are averaged."""
        n, side, c = len(self.starts), self.window // self.patch, patches.shape[-1]
        patches = patches.reshape(-1, n, n, side, side, c)
        if n * self.window == self.size:
            return patches.permute(0, 1, 3, 2, 4, 5).reshape(len(patches), self.grid**2, c)
        total = patches.new_zeros(len(patches), self.grid, self.grid, c)
        seen = patches.new_zeros(self.grid, self.grid, 1)
        for i, y in enumerate(start // self.patch for start in self.starts):
            for j, x in enumerate(start // self.patch for start in self.starts):
                total[:, y : y + side, x : x + side] += patches[:, i, j]
                seen[y : y + side, x : x + side] += 1
        return (total / seen).flatten(1, 2)
