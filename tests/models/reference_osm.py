"""The published model, slow and plain: Hugging Face's own InstructBLIP parts, one window and one mask at a time.

Nothing of `osm` is used here, so that an error in it cannot be in both. Shapes have no batch axis: an image is
(3, S, S), a mask (S, S), text a list of ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import InstructBlipForConditionalGeneration

PREFIX = "base_model.qformer."


@dataclass
class Row:
    """One mask and its text."""

    image: int
    mask: Tensor
    context: Tensor
    mode: str
    instruction: list[int]
    text: list[int]


@dataclass
class Reference:
    """The published model's computation.

    Attributes:
        base: an InstructBLIP; its Q-Former and projection hold the trained values.
        trained: the other trained tensors, by their published names.
        window, stride: in pixels.
    """

    base: InstructBlipForConditionalGeneration
    trained: Mapping[str, Tensor]
    window: int
    stride: int

    @property
    def patch(self) -> int:
        return self.base.config.vision_config.patch_size

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a published state dict, by the names in it."""
        part = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        self.base.qformer.load_state_dict(part)
        for name in ("weight", "bias"):
            getattr(self.base.language_projection, name).data.copy_(state[f"base_model.language_projection.{name}"])
        self.trained = {
            key: value.clone().requires_grad_() for key, value in state.items() if not key.startswith("base_model.")
        }

    def window_starts(self, size: int) -> list[int]:
        starts = []
        for i in range(max(size - self.window + self.stride - 1, 0) // self.stride + 1):
            start = i * self.stride
            if start + self.window > size:
                start = size - self.window
            starts.append(start)
        return starts

    def image_tokens(self, image: Tensor) -> Tensor:
        """(L, C): class token of every window, then the grid; window positions added."""
        size = image.shape[-1]
        grid, side = size // self.patch, self.window // self.patch
        cells: list[list[Tensor]] = [[] for _ in range(grid * grid)]
        class_tokens = []
        for y in self.window_starts(size):
            for x in self.window_starts(size):
                crop = image[:, y : y + self.window, x : x + self.window]
                with torch.no_grad():
                    out = self.base.vision_model(pixel_values=crop[None]).last_hidden_state[0]
                class_tokens.append(out[0])
                for i in range(side * side):
                    row, column = y // self.patch + i // side, x // self.patch + i % side
                    cells[row * grid + column].append(out[1 + i])
        merged = [torch.stack(seen).mean(0) for seen in cells]
        return torch.stack([*class_tokens, *merged]) + self.trained["window_pos_embed"][0]

    def visible(self, mask: Tensor, prefix: int) -> Tensor:
        """(L,) 1 where a token is inside the mask; class tokens always are."""
        grid = mask.shape[-1] // self.patch
        cells = F.interpolate(mask[None, None].float(), size=(grid, grid), mode="nearest")[0, 0]
        return torch.cat([torch.ones(prefix), cells.flatten()])

    def prefix(self, tokens: Tensor, row: Row) -> Tensor:
        """(queries + 1, W): projected mask queries and the mode token, from the image's tokens."""
        grid = (row.mask.shape[-1] // self.patch) ** 2
        inside = self.visible(row.mask, len(tokens) - grid)
        around = self.visible(row.context, len(tokens) - grid)
        mask_query, context_query = self.trained["mask_query"], self.trained["context_query"]
        queries = torch.cat([mask_query, context_query, self.trained[f"qformer_mode_query.{row.mode}"]], 1)
        seen = torch.stack([inside] * mask_query.shape[1] + [around] * (context_query.shape[1] + 1))
        out = self.base.qformer(
            input_ids=torch.tensor([row.instruction]),
            attention_mask=torch.ones(1, queries.shape[1] + len(row.instruction), dtype=torch.long),
            query_embeds=queries,
            encoder_hidden_states=tokens[None],
            encoder_attention_mask=((1 - seen) * torch.finfo(torch.float32).min)[None, None],
        ).last_hidden_state[0]
        projected = self.base.language_projection(out[: mask_query.shape[1]])
        return torch.cat([projected, self.trained[f"mode_query.{row.mode}"][0]])

    def logits(self, prefix: Tensor, text: list[int]) -> Tensor:
        """(P + T, V)."""
        words = self.base.language_model.get_input_embeddings()(torch.tensor(text))
        return self.base.language_model(inputs_embeds=torch.cat([prefix, words])[None]).logits[0]

    def row_loss(self, prefix: Tensor, text: list[int]) -> Tensor:
        """Summed cross entropy of the text's tokens but the first."""
        log_probs = self.logits(prefix, text).log_softmax(-1)
        total = torch.zeros(())
        for i in range(1, len(text)):
            total = total - log_probs[len(prefix) + i - 1, text[i]]
        return total

    def loss(self, images: Tensor, rows: list[Row]) -> Tensor:
        tokens = [self.image_tokens(image) for image in images]
        total = sum(self.row_loss(self.prefix(tokens[row.image], row), row.text) for row in rows)
        return torch.as_tensor(total) / sum(len(row.text) - 1 for row in rows)

    @torch.no_grad()
    def generate(self, prefix: Tensor, text: list[int], new: int, eos: int) -> tuple[list[int], Tensor]:
        """Greedy, without a cache: the new ids with the one that ended it (eos or 0), and each step's logits."""
        ids: list[int] = []
        steps = []
        while len(ids) < new and (not ids or ids[-1] not in (eos, 0)):
            steps.append(self.logits(prefix, text + ids)[-1])
            ids.append(int(steps[-1].argmax()))
        return ids, torch.stack(steps)


def enlarged_box(mask: Tensor, ratio: float) -> Tensor:
    """The context mask (S, S) of a mask (S, S)."""
    if ratio < 0:
        return torch.ones_like(mask)
    size = mask.shape[-1]
    (ys, xs), context = mask.nonzero(as_tuple=True), torch.zeros_like(mask)
    bounds = []
    for values in (ys, xs):
        low, high = int(values.min()), int(values.max())
        length = high - low + 1
        bounds.append((max(0, int(low - ratio * length)), min(size - 1, int(high + ratio * length))))
    (top, bottom), (left, right) = bounds
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            context[y, x] = 1
    return context
