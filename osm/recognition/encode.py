"""Encodes images and masks for the bridge. Each image is encoded once, and each mask once for all vocabulary modes.

Shapes: N images, G windows, S input size, L tokens per image, P patches per window, C tower width, K masks per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osm.data.processor import Processor
from osm.errors import OsmError
from osm.io.images import as_rgb
from osm.io.resizing import fitted_size
from osm.models.bridges.bridge import ImageState
from osm.models.masks import MaskFeatures, context_mask, is_any
from osm.models.osm import OmniScientModel
from osm.recognition.budget import memory_of
from osm.recognition.regions import Region
from osm.storage.cache import localize
from osm.storage.locations import is_remote

_CPU_TOKENS = 4096  # maximum number of tokens of the images that are encoded together on a CPU
_MASKS_AT_ONCE = 32  # maximum number of masks at the image's own size that are in memory together
ZOOM_PIXELS = 2**20  # maximum number of pixels of the zoom windows that are encoded together (16 windows of 256)


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image: its (width, height) and the bridge state, whose tensors have a batch size of 1.

    `canvas_13SS` is the padded image in uint8, which only models with zoom windows need.
    """

    size: tuple[int, int]
    state: ImageState
    canvas_13SS: Tensor | None = None

    @property
    def bytes(self) -> int:
        """The memory of the tensors in bytes, if no other image shares it."""
        tensors = [x for part in self.state if part for x in part]
        tensors += [] if self.canvas_13SS is None else [self.canvas_13SS]
        return sum(x.numel() * x.element_size() for x in tensors)

    def copied(self) -> EncodedImage:
        """Return a copy that shares no memory with other images of its batch."""
        canvas_13SS = None if self.canvas_13SS is None else self.canvas_13SS.clone()
        return EncodedImage(self.size, [part and tuple(x.clone() for x in part) for part in self.state], canvas_13SS)


def stack_images(images: Sequence[EncodedImage]) -> ImageState:
    """Concatenate the bridge states of several images, in the order of the images. One image is not copied."""
    if len(images) == 1:
        return images[0].state
    return [
        parts[0] and tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        for parts in zip(*(image.state for image in images), strict=True)
    ]


def opened_image(image: Image.Image | np.ndarray | str | Path) -> Image.Image:
    """Load an 8-bit RGB image. An image given as a URL is downloaded first."""
    return as_rgb(localize(image, "image") if isinstance(image, str) and is_remote(image) else image)


class ImageEncoder:
    """Runs the vision tower and the mask-independent part of the bridge.

    Windows that contain only padding are passed through the tower only once per model.

    Args:
        windows_at_once: windows per tower batch, which may contain windows of several images. The number is halved when
            memory runs out.

    Attributes:
        keeps_tokens: whether the tower's tokens of the last image are kept, so that a segmenter that uses the tower and
            the recognizer run it only once.
    """

    keeps_tokens = False

    def __init__(self, model: OmniScientModel, processor: Processor, windows_at_once: int = 64) -> None:
        self.model, self.processor, self.windows_at_once = model, processor, windows_at_once
        self._last: tuple[Tensor, Tensor] | None = None  # the canvas and the tokens of the last image
        self._padding: tuple[Tensor, Tensor] | None = None  # class token and patches of a padding-only window

    def encode(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        """Encode RGB images, which may have different sizes."""
        at_once = self._images_at_once(len(images))
        return [
            found
            for start in range(0, len(images), at_once)
            for found in self._encode_together(images[start : start + at_once])
        ]

    def _images_at_once(self, images: int) -> int:
        """Return how many images the tower encodes together.

        On a CPU, it is twice as slow to encode several images together if their activations do not fit in its caches.
        """
        if self.model.device.type != "cpu":
            return images
        windows = self.model.windows
        return max(1, min(images, _CPU_TOKENS // windows.grid**2))

    def _encode_together(self, images: Sequence[Image.Image]) -> list[EncodedImage]:
        model = self.model
        canvases = [self.processor.canvas(image) for image in images]
        if len(images) == 1 and self.keeps_tokens:
            state = model.bridge.image_state(model.add_positions(self._kept_tokens(canvases[0], images[0].size)))
            return [EncodedImage(images[0].size, state, canvases[0][None].to(model.device) if model.zoom else None)]
        canvas_N3SS = torch.stack(canvases).to(model.device)
        sizes = [image.size for image in images]
        tokens_NLC = model.add_positions(self.tower_tokens(self.processor.pixel_values(canvas_N3SS), sizes))
        state = model.bridge.image_state(tokens_NLC)
        return [
            EncodedImage(
                size,
                [part and tuple(x[i : i + 1] for x in part) for part in state],
                canvas_N3SS[i : i + 1] if model.zoom else None,
            )
            for i, size in enumerate(sizes)
        ]

    def image_tokens(self, image: Image.Image) -> Tensor:
        """Return the tower's tokens (1, L, C) of an RGB image. With `keeps_tokens`, those of the last image are kept.

        Images are the same if their pixels are equal after they are resized and padded.
        """
        return self._kept_tokens(self.processor.canvas(image), image.size)

    def _kept_tokens(self, canvas_3SS: Tensor, size: tuple[int, int]) -> Tensor:
        if self._last is not None and torch.equal(self._last[0], canvas_3SS):
            return self._last[1]
        pixels_13SS = self.processor.pixel_values(canvas_3SS[None].to(self.model.device))
        tokens_1LC = self.tower_tokens(pixels_13SS, [size])
        self._last = (canvas_3SS, tokens_1LC) if self.keeps_tokens else None
        return tokens_1LC

    def tower_tokens(self, pixels_N3SS: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Return the same tokens (N, L, C) as `OmniScientModel.tower_tokens`, but encode padding-only windows once.

        Args:
            pixels_N3SS: the padded images.
            sizes: for each image, its original (width, height).
        """
        model, windows = self.model, self.model.windows
        windows_B3ww = windows.split(pixels_N3SS.to(next(model.tower.parameters()).dtype))  # B = N * G
        has_image_B = torch.from_numpy(np.concatenate([self._has_image(size) for size in sizes]))
        has_image_B = has_image_B.to(windows_B3ww.device)
        prefix, patches_BPC = map(torch.cat, zip(*self._run_tower(windows_B3ww[has_image_B]), strict=True))
        if not has_image_B.all():
            prefix, patches_BPC = (
                empty[None]
                .expand(len(windows_B3ww), *empty.shape)
                .index_copy(0, has_image_B.nonzero().flatten(), found)
                for empty, found in zip(self._padding_window(windows_B3ww[0].shape), (prefix, patches_BPC), strict=True)
            )
        prefix = prefix.reshape(len(pixels_N3SS), model.prefix_tokens, patches_BPC.shape[-1])
        return torch.cat([prefix, windows.merge(patches_BPC)], 1)

    def _run_tower(self, windows_B3ww: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Run the tower on image windows in batches that fit in memory.

        Return the class and patch tokens for each batch.

        Raises:
            OsmError: not even one window fits in memory.
        """
        while True:
            try:
                return [self.model.tower(part) for part in windows_B3ww.split(self.windows_at_once)]
            except torch.OutOfMemoryError:
                if self.windows_at_once == 1:
                    raise OsmError(
                        "the vision tower ran out of memory on a single image window: use the CPU (--device cpu), "
                        "or free up memory on the device"
                    ) from None
            # Memory is released outside the exception handler, because the exception keeps the batch's tensors alive.
            self.windows_at_once = min(self.windows_at_once, len(windows_B3ww)) // 2 or 1
            memory = memory_of(self.model.device)
            if memory is not None:
                memory.release()

    def _has_image(self, size: tuple[int, int]) -> np.ndarray:
        """Return a boolean array (G,) that marks the windows overlapping an image of the given (width, height).

        The other windows contain only padding.
        """
        width, height = fitted_size(*size, self.processor.input_size)
        starts = np.array(self.model.windows.starts)
        return ((starts < height)[:, None] & (starts < width)[None]).flatten()

    def _padding_window(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the class and patch tokens of a padding-only window, cached per device and dtype."""
        model = self.model
        tower = next(model.tower.parameters())
        if self._padding is None or self._padding[0].device != tower.device or self._padding[0].dtype != tower.dtype:
            empty_13ww = torch.zeros((1, *shape), dtype=torch.uint8, device=tower.device)
            prefix, patches_1PC = model.tower(self.processor.pixel_values(empty_13ww).to(tower.dtype))
            self._padding = (prefix[0], patches_1PC[0])
        return self._padding


@dataclass(frozen=True)
class EncodedMask:
    """The bridge features of one mask (a single row), or the reason why the mask was skipped.

    The mask itself is not stored, because it takes up about 100 times as much memory as its features.
    """

    features: MaskFeatures | None = None
    skipped: str = ""


class MaskEncoder:
    """Computes the bridge features of image regions.

    Attributes:
        fallbacks: number of masks so far that covered no token-grid cell, so the cell at their centroid was used.
    """

    def __init__(self, model: OmniScientModel, processor: Processor) -> None:
        self.model, self.processor, self.fallbacks = model, processor, 0

    def encode(self, regions: Sequence[Region], image: EncodedImage) -> Iterator[EncodedMask]:
        """Encode the regions of one image. Only a few masks are created at a time, to limit memory usage."""
        pixels_13SS = None if image.canvas_13SS is None else self.processor.pixel_values(image.canvas_13SS)
        at_once = _MASKS_AT_ONCE
        if self.model.zoom:
            at_once = max(1, min(at_once, ZOOM_PIXELS // (self.model.windows_per_mask * self.model.zoom**2)))
        for start in range(0, len(regions), at_once):
            yield from self._encode_some(regions[start : start + at_once], pixels_13SS)

    def skip_reason(self, region: Region) -> str:
        """Return why a region cannot be encoded, or an empty text if it can be."""
        return self._canvas(region)[1]

    def _canvas(self, region: Region) -> tuple[Tensor, str]:
        """Return the padded mask (1, 1, S, S) of a region, and the reason why it is skipped."""
        mask = region.mask
        canvas_11SS = self.processor.canvas_masks(mask[None])
        if not mask.any():
            return canvas_11SS, "the mask is empty"
        return canvas_11SS, "" if is_any(canvas_11SS) else "the mask vanishes at the model's input size"

    def _encode_some(self, regions: Sequence[Region], pixels_13SS: Tensor | None) -> list[EncodedMask]:
        found = [self._canvas(region) for region in regions]
        canvases = [canvas_11SS for canvas_11SS, skipped in found if not skipped]
        encoded = iter(self._features(torch.cat(canvases), pixels_13SS) if canvases else ())
        return [EncodedMask(skipped=skipped) if skipped else next(encoded) for _, skipped in found]

    def _features(self, masks_K1SS: Tensor, pixels_13SS: Tensor | None) -> list[EncodedMask]:
        """Encode non-empty masks, each of which contains at least one pixel."""
        masks_K1SS = masks_K1SS.to(self.model.device)
        context_K1SS = context_mask(masks_K1SS, self.model.config.context_enlarge_ratio)
        image_K = torch.zeros(len(masks_K1SS), dtype=torch.long, device=masks_K1SS.device)
        features = self.model.mask_features(masks_K1SS, context_K1SS, pixels_13SS, image_K)
        self.fallbacks += features.fallbacks
        return [EncodedMask(row) for row in features.rows()]


def stack_masks(masks: Sequence[EncodedMask]) -> MaskFeatures:
    """Concatenate the features of several masks, one row per mask. Skipped masks are omitted."""
    return MaskFeatures.stack([mask.features for mask in masks if mask.features is not None])
