"""Names the masks of an image. The image is the unit: its tokens, and their keys and values, are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from osm.data.processor import Processor
from osm.data.prompts import TEST_PROMPT
from osm.errors import OsmError
from osm.model.checkpoint import published_state_dict
from osm.model.factory import load_model, pick_device
from osm.model.llm import stop_ids
from osm.model.maskqformer import Instruction
from osm.model.masks import context_mask
from osm.model.osm import OmniScientModel
from osm.model.weights import fingerprint_tensors


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

    def __init__(self, model: OmniScientModel, processor: Processor, max_new_tokens: int = 12, rows: int = 64) -> None:
        self.model, self.processor = model.eval(), processor
        self.max_new_tokens, self.rows = max_new_tokens, rows
        self.modes = model.config.modes
        self.fingerprint = fingerprint_tensors(published_state_dict(model))
        self.centroid_fallbacks = 0

    @torch.inference_mode()
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
        unknown = sorted(set(modes) - set(self.modes))
        if unknown:
            raise OsmError(f"mode {unknown[0]!r} is not one of this model's: {', '.join(self.modes)}")
        canvas_masks = self.processor.canvas_masks(masks)
        kept = canvas_masks.flatten(1).any(1).nonzero().flatten().tolist()
        names: list[dict[str, Name] | None] = [None] * len(masks)
        for index in kept:
            names[index] = {}
        jobs = [(index, mode) for index in kept for mode in dict.fromkeys(modes)]
        if not jobs:
            return names
        model = self.model
        canvas = self.processor.canvas(image)[None].to(model.device)
        tokens = model.encode_image(self.processor.pixel_values(canvas))
        image_kv = model.bridge.image_keys_values(tokens)
        for start in range(0, len(jobs), self.rows):
            part = jobs[start : start + self.rows]
            pixels = canvas_masks[[index for index, _ in part]].to(model.device)
            found = self._decode(image_kv, pixels, [mode for _, mode in part])
            for (index, mode), name in zip(part, found, strict=True):
                entry = names[index]
                assert entry is not None
                entry[mode] = name
        return names

    def _decode(self, image_kv: list[tuple[Tensor, Tensor] | None], pixels: Tensor, modes: list[str]) -> list[Name]:
        model = self.model
        keys = model.visible_keys(pixels, context_mask(pixels, model.config.context_enlarge_ratio))
        self.centroid_fallbacks += keys.fallbacks
        text = self.processor.prompts([TEST_PROMPT])
        rows, device = len(modes), model.device
        instruction = Instruction(
            text.qformer_ids.expand(rows, -1).to(device), text.qformer_mask.expand(rows, -1).to(device)
        )
        index = torch.zeros(rows, dtype=torch.long, device=device)
        prefix = model.bridge(image_kv, index, keys, instruction, modes)
        out = model.generate_from_prefix(
            prefix,
            text.input_ids.expand(rows, -1).to(device),
            text.attention_mask.expand(rows, -1).to(device),
            max_new_tokens=self.max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        chosen = torch.stack(out.logits, 1).float().softmax(-1).gather(2, out.sequences[..., None])[..., 0].cpu()
        return [self._name(ids, probs) for ids, probs in zip(out.sequences.tolist(), chosen.tolist(), strict=True)]

    def _name(self, ids: list[int], probs: list[float]) -> Name:
        stops = stop_ids(self.model.llm)
        length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        prob = float(np.prod(probs[:length])) if length else probs[0]
        return Name(self.processor.name(ids[:length]), prob)


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
