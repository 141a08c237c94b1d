"""Names the masks of an image. The image is the unit: its tokens, and their keys and values, are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from osm.data.processor import Processor
from osm.errors import OsmError
from osm.model.checkpoint import published_state_dict
from osm.model.factory import load_model, pick_device
from osm.model.osm import OmniScientModel
from osm.model.weights import fingerprint_tensors
from osm.recognition.recognizer import Recognizer


@dataclass(frozen=True)
class Name:
    """What a mask is called, and how sure the model is of it.

    `prob` is the product of the probabilities of the name's tokens, the end token's excluded; an empty name has that
    of the end token, the only one there was.
    """

    text: str
    prob: float


class Namer:
    """Names masks with a trained model.

    Args:
        max_new_tokens: of a name (12 in the published benchmark, 16 in its demo).
        rows: masks x modes that are decoded together.
    """

    def __init__(
        self, model: OmniScientModel, processor: Processor, max_new_tokens: int = 12, max_batch_tokens: int = 4096
    ) -> None:
        self.recognizer = Recognizer(model, processor, max_new_tokens, max_batch_tokens)
        self.model, self.processor, self.modes = model, processor, model.config.modes
        self.max_new_tokens = max_new_tokens
        self.fingerprint = fingerprint_tensors(published_state_dict(model))

    @property
    def centroid_fallbacks(self) -> int:
        """Masks that had no cell of the grid to themselves, so far."""
        return self.recognizer.centroid_fallbacks

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: Sequence[str]) -> list[dict[str, Name] | None]:
        """Names each mask in each mode with the benchmark's prompt.

        Args:
            image: RGB. masks: bool (K, H, W) at the image's size.

        Returns:
            for each mask its name by mode; None where the mask is empty after resizing.

        Raises:
            OsmError: masks of another size, or a mode that the model does not have.
        """
        if not isinstance(image, Image.Image):
            raise OsmError(f"image is a {type(image).__name__}; a PIL image is needed (Image.open, Image.fromarray)")
        if isinstance(modes, str):
            raise OsmError(f"modes is the text {modes!r}; a list is needed: [{modes!r}]")
        masks = np.asarray(masks).astype(bool)
        if masks.ndim != 3 or masks.shape[1:] != (image.height, image.width):
            raise OsmError(f"masks have shape {masks.shape}, (K, {image.height}, {image.width}) needed for this image")
        modes = list(dict.fromkeys(modes))
        found = self.recognizer.name_batch([image], [masks], modes=modes)[0] if modes else [[] for _ in masks]
        return [
            None if any(answer.skipped for answer in answers) else {a.mode: Name(a.text, a.prob) for a in answers}
            for answers in found
        ]


def load_namer(
    checkpoint: str | Path,
    *,
    config: str | None = None,
    device: str = "auto",
    max_new_tokens: int = 12,
) -> Namer:
    """Loads a checkpoint (folder, hub id or `.pt`) for naming; see `osm.load_model`. On CUDA in half precision."""
    target = pick_device(device)
    model, processor, _ = load_model(checkpoint, config)
    if target.type == "cuda":
        model.tower.to(torch.bfloat16)
        model.llm.to(torch.bfloat16)
    return Namer(model.to(target), processor, max_new_tokens)
