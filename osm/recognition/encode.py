"""An image's part of naming, computed once: tower tokens, and what the bridge makes of them whatever the mask.

Shapes: N images, G windows, S input size, L image tokens, C tower width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osm.data.processor import Processor
from osm.errors import OsmError
from osm.io.resizing import fitted_size
from osm.models.bridges.bridge import ImageState
from osm.models.osm import OmniScientModel
from osm.recognition.budget import memory_of


@dataclass(frozen=True)
class EncodedImage:
    """What is kept of an image: its size (width, height), and what the bridge needs of it (tensors (1, ...))."""

    size: tuple[int, int]
    state: ImageState


def together(images: Sequence[EncodedImage]) -> ImageState:
    """What the bridge needs of several images."""
    return [
        parts[0] and tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        for parts in zip(*(image.state for image in images), strict=True)
    ]


class ImageEncoder:
    """Encodes images; windows that lie in the padding alone are computed once a model.

    Args:
        windows_at_once: of all images of a batch; halved where memory does not hold them.
    """

    def __init__(self, model: OmniScientModel, processor: Processor, windows_at_once: int = 64) -> None:
        self.model, self.processor, self.windows_at_once = model, processor, windows_at_once
        self._padding: tuple[Tensor, Tensor] | None = None  # class token and patches of a window of padding

    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """RGB images of any sizes."""
        model = self.model
        canvas = torch.stack([self.processor.canvas(image) for image in images]).to(model.device)
        sizes = [image.size for image in images]
        tokens = model.add_positions(self.tower_tokens(self.processor.pixel_values(canvas), sizes))
        state = model.bridge.image_state(tokens)
        return [
            EncodedImage(size, [part and tuple(x[i : i + 1] for x in part) for part in state])
            for i, size in enumerate(sizes)
        ]

    def tower_tokens(self, pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(N, 3, S, S) of images of these (width, height) -> (N, L, C), as `OmniScientModel.tower_tokens`."""
        model, windows = self.model, self.model.windows
        split = windows.split(pixel_values.to(next(model.tower.parameters()).dtype))
        seen = torch.from_numpy(np.concatenate([self._seen(size) for size in sizes])).to(split.device)
        parts = self._tower(split[seen])
        padding = self._padding_window(split[0].shape)
        prefix, patches = (
            empty[None].expand(len(split), *empty.shape).index_copy(0, seen.nonzero().flatten(), torch.cat(found))
            for empty, found in zip(padding, zip(*parts, strict=True), strict=True)
        )
        prefix = prefix.reshape(len(pixel_values), model.prefix_tokens, patches.shape[-1])
        return torch.cat([prefix, windows.merge(patches)], 1)

    def _tower(self, windows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Class tokens and patches of windows, in batches that memory holds.

        Raises:
            OsmError: not even one window fits.
        """
        while True:
            try:
                return [self.model.tower(part) for part in windows.split(self.windows_at_once)]
            except torch.OutOfMemoryError:
                if self.windows_at_once == 1:
                    raise OsmError(
                        "memory does not hold one window of the image in the tower: name on the CPU (--device cpu), or "
                        "free what else is on the device"
                    ) from None
            # Outside of the handler: an exception keeps its tensors alive.
            self.windows_at_once = min(self.windows_at_once, len(windows)) // 2 or 1
            memory = memory_of(self.model.device)
            if memory is not None:
                memory.release()

    def _seen(self, size: tuple[int, int]) -> np.ndarray:
        """(G,) which windows show something of an image of that size."""
        width, height = fitted_size(*size, self.processor.input_size)
        starts = np.array(self.model.windows.starts)
        return ((starts < height)[:, None] & (starts < width)[None]).flatten()

    def _padding_window(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        model = self.model
        tower = next(model.tower.parameters())
        if self._padding is None or self._padding[0].device != tower.device or self._padding[0].dtype != tower.dtype:
            empty = torch.zeros((1, *shape), dtype=torch.uint8, device=tower.device)
            prefix, patches = model.tower(self.processor.pixel_values(empty).to(tower.dtype))
            self._padding = (prefix[0], patches[0])
        return self._padding
