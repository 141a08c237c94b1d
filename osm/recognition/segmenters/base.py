"""What all segmenters have in common.

Shapes: H, W of the image that is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Segment:
    """A mask, bool (H, W) at the image's size, and how good its maker thinks it is (0 to 1)."""

    mask: np.ndarray
    score: float = 1.0

    @property
    def area(self) -> int:
        return int(self.mask.sum())


class Segmenter(Protocol):
    """Makes masks of one image at a time: `set_image` once, then any of the others any number of times.

    Each raises OsmError where no image is set, or a box or point lies outside of it.
    """

    name: str

    def set_image(self, image: Image.Image) -> None:
        """Takes an RGB image; the one before is forgotten."""

    def everything(self) -> list[Segment]:
        """All segments it finds, the largest first; they may overlap."""

    def at_points(self, points: Sequence[Sequence[float]], inside: Sequence[bool] | None = None) -> Segment:
        """The one segment that points (x, y) in pixels mean; `inside`: False for points that it must not have."""

    def in_box(self, box: Sequence[float]) -> Segment:
        """The one segment that a box (x, y, width, height) in pixels means."""


def by_area(segments: Sequence[Segment]) -> list[Segment]:
    """The largest first; equals stay in order."""
    return sorted(segments, key=lambda segment: -segment.area)
