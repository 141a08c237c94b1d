"""Names masks with the benchmark prompt, for prediction files. Each image is encoded only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.data.processor import Processor
from osm.datasets.labels import LabelClass
from osm.errors import OsmError
from osm.models.checkpoint import published_state_dict
from osm.models.osm import OmniScientModel
from osm.models.weights import fingerprint_tensors
from osm.recognition.answers import Alternative
from osm.recognition.recognizer import Recognizer, load_recognizer


@dataclass(frozen=True)
class Name:
    """The predicted name of a mask, with its probability.

    `prob` is the product of the name's token probabilities, excluding the end token. For an empty name, `prob` is the
    probability of the end token. With top_k > 1, `top` holds the most likely names.
    """

    text: str
    prob: float
    top: tuple[Alternative, ...] = ()


class Namer:
    """Names masks with a trained model.

    Args:
        options: arguments of `Recognizer`.
    """

    def __init__(self, model: OmniScientModel, processor: Processor, **options: Any) -> None:
        self._use(Recognizer(model, processor, **options))

    @classmethod
    def of(cls, recognizer: Recognizer) -> Namer:
        """Return a namer that uses an existing recognizer."""
        namer = cls.__new__(cls)
        namer._use(recognizer)
        return namer

    def _use(self, recognizer: Recognizer) -> None:
        self.recognizer, model = recognizer, recognizer.model
        self.model, self.processor, self.modes = model, recognizer.processor, model.config.modes
        self.max_new_tokens = recognizer.decoder.max_new_tokens
        self.fingerprint = fingerprint_tensors(published_state_dict(model))

    @property
    def centroid_fallbacks(self) -> int:
        """The number of masks that cover no token-grid cell, so that the cell at their centroid is used instead."""
        return self.recognizer.centroid_fallbacks

    def name_image(
        self,
        image: Image.Image,
        masks: np.ndarray,
        modes: Sequence[str],
        vocabulary: Sequence[str] | None = None,
        method: str = "constrained",
        boxed: bool = False,
    ) -> list[dict[str, Name] | None]:
        """Name the masks of one image; see `name_images`."""
        return self.name_images([image], [masks], modes, vocabulary, method, boxed)[0]

    def name_images(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[np.ndarray],
        modes: Sequence[str],
        vocabulary: Sequence[str | LabelClass] | None = None,
        method: str = "constrained",
        boxed: bool = False,
        top_k: int = 1,
    ) -> list[list[dict[str, Name] | None]]:
        """Name each mask in each vocabulary mode with the benchmark prompt.

        A batch may contain masks from several images.

        Args:
            images: RGB images.
            masks: for each image, bool (K, H, W) with the image's height and width.
            modes: the modes in which each mask is named; duplicates are ignored.
            vocabulary, method: see `Recognizer.name`.
            boxed: see `Recognizer.name_batch`.
            top_k: number of candidate names per mask.

        Returns:
            for each mask of each image, a dict from mode to name; None if the mask is empty after resizing.

        Raises:
            OsmError: masks and image differ in size, or the model does not have one of the modes.
        """
        if isinstance(modes, str):
            raise OsmError(f"modes must be a list, such as [{modes!r}], not the string {modes!r}")
        checked = [_checked(image, of_image) for image, of_image in zip(images, masks, strict=True)]
        modes = list(dict.fromkeys(modes))
        if not modes:
            return [[{} for _ in of_image] for of_image in checked]
        found = self.recognizer.name_batch(
            images, checked, modes=modes, vocabulary=vocabulary, method=method, boxed=boxed, top_k=top_k
        )
        return [
            [
                None
                if any(answer.skipped for answer in answers)
                else {a.mode: Name(a.text, a.prob, a.top) for a in answers}
                for answers in of_image
            ]
            for of_image in found
        ]


def _checked(image: Image.Image, masks: np.ndarray) -> np.ndarray:
    if not isinstance(image, Image.Image):
        raise OsmError(f"image is a {type(image).__name__}; expected a PIL image (use Image.open or Image.fromarray)")
    shape = tuple(masks.shape if hasattr(masks, "shape") else np.shape(masks))
    if len(shape) != 3 or shape[1:] != (image.height, image.width):
        raise OsmError(f"masks have shape {shape}; expected (K, {image.height}, {image.width}) for this image")
    return masks


def load_namer(
    checkpoint: str | Path, *, config: str | None = None, device: str = "auto", max_new_tokens: int = 12, **options: Any
) -> Namer:
    """Load a checkpoint as a `Namer`. See `load_recognizer` and `Recognizer` for the arguments."""
    options = {"config": config, "device": device, "max_new_tokens": max_new_tokens, **options}
    return Namer.of(load_recognizer(checkpoint, **options))
