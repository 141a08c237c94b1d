"""What the bridge needs of a region: kept in place of its mask, which is a hundred times as large.

Shapes: K regions of an image, S input size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osm.data.processor import Processor
from osm.models.masks import MaskFeatures, context_mask
from osm.models.osm import OmniScientModel
from osm.recognition.regions import Region

_AT_ONCE = 32  # masks of an image's size in memory


@dataclass(frozen=True)
class EncodedMask:
    """What the bridge needs of one region, a row, or why it has no name."""

    features: MaskFeatures | None = None
    skipped: str = ""


class MaskEncoder:
    """Turns regions into what the bridge needs of them.

    Attributes:
        fallbacks: masks that had no cell of the grid to themselves, so far.
    """

    def __init__(self, model: OmniScientModel, processor: Processor) -> None:
        self.model, self.processor, self.fallbacks = model, processor, 0

    def of(self, regions: Sequence[Region]) -> Iterator[EncodedMask]:
        """Of each region of one image; a few masks at a time are drawn, and let go."""
        for start in range(0, len(regions), _AT_ONCE):
            yield from self._some(regions[start : start + _AT_ONCE])

    def _some(self, regions: Sequence[Region]) -> list[EncodedMask]:
        found: list[EncodedMask | None] = []
        canvases = []
        for region in regions:
            mask = region.mask
            canvas = self.processor.canvas_masks(mask[None])
            if not mask.any():
                found.append(EncodedMask(skipped="the mask is empty"))
            elif not canvas.any():
                found.append(EncodedMask(skipped="the mask vanishes at the model's input size"))
            else:
                found.append(None)
                canvases.append(canvas)
        features = iter(self._features(torch.cat(canvases)) if canvases else ())
        return [encoded or next(features) for encoded in found]

    def _features(self, pixels: Tensor) -> list[EncodedMask]:
        """Of masks (K, 1, S, S) that have a pixel each."""
        pixels = pixels.to(self.model.device)
        context = context_mask(pixels, self.model.config.context_enlarge_ratio)
        features = self.model.mask_features(pixels, context)
        self.fallbacks += features.fallbacks
        return [EncodedMask(row) for row in features.rows()]


def stack_features(encoded: Sequence[EncodedMask]) -> MaskFeatures:
    """Of regions that are to be named, one row each."""
    return MaskFeatures.stack([one.features for one in encoded if one.features is not None])
