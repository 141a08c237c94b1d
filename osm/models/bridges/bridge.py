"""What every variant's bridge between tower and LLM is asked for. A variant is one subclass of `Bridge`.

Shapes: N images, R rows (masks), S input size, L image tokens, C tower width, P prefix embeddings, W LLM width.
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from osm.config import FlamingoConfig, ModelConfig, QFormerConfig
from osm.errors import OsmError, shown
from osm.models.bridges.gated import GatedKeyValues
from osm.models.masks import MaskFeatures
from osm.models.towers.tower import Tower

ImageState = list[tuple[Tensor, ...] | None]
"""What a bridge needs of images, whatever the mask: tensors (N, ...), so that one image's part can be cut out."""


@dataclass(frozen=True)
class Instruction:
    """The instruction's token ids and mask, (R, T); only the MaskQ-Former reads it."""

    ids_RT: Tensor
    mask_RT: Tensor


class Condition(NamedTuple):
    """What the LLM is conditioned on.

    Attributes:
        prefix_RPW: embeddings before BOS. gated_kv: what gated layers within the LLM see, where the variant has any.
    """

    prefix_RPW: Tensor
    gated_kv: GatedKeyValues | None = None


class Bridge(nn.Module):
    """Interface. A bridge is trained; tower and LLM are not.

    Attributes:
        prefix_length: P. has_prefix: whether there is any.
        config: its sizes. mode_query: the modes' learned embeddings, by name.
    """

    has_prefix = True
    prefix_length: int
    config: QFormerConfig | FlamingoConfig
    mode_query: nn.ParameterDict

    @classmethod
    @abstractmethod
    def of(cls, config: ModelConfig, tower: Tower, llm: nn.Module, vocabulary: int) -> Self:
        """A new bridge between two frozen parts.

        Args:
            vocabulary: of the instruction's tokenizer.
        """

    @classmethod
    @abstractmethod
    def blank(cls, config: ModelConfig, size: Callable[[str, int, int], int]) -> Self:
        """A bridge of the sizes that a checkpoint's entries have, without the frozen parts.

        Args:
            size: gives an entry's (name, its number of dimensions, axis) size, and raises OsmError where it is not so.
        """

    @abstractmethod
    def mask_features(self, mask: Tensor, context: Tensor, patch: int, prefix: int, how: str) -> MaskFeatures:
        """What the bridge needs of masks and context masks (R, 1, S, S), in place of their pixels.

        Args:
            patch: p. prefix: tokens before the grid's. how: `nearest` or `area` (`mask_to_grid`).

        Raises:
            SampleError: `empty_mask`.
        """

    @abstractmethod
    def image_state(self, tokens_NLC: Tensor) -> ImageState:
        """What depends on the images alone, computed once for all their masks."""

    @abstractmethod
    def forward(
        self, state: ImageState, image_index_R: Tensor, features: Any, instruction: Instruction, modes: Sequence[str]
    ) -> Condition:
        """Conditions the LLM for rows of (image, mask, mode)."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The repeated blocks, for gradient checkpointing."""

    def layers_to_shard(self) -> list[nn.Module]:
        """Blocks large enough to be a unit of FSDP each."""
        return []

    def attach(self, llm: nn.Module) -> None:
        """Puts what works within the LLM in its place; what stands before the LLM has nothing to put."""

    def detach(self) -> None:
        """Takes it out again, and leaves the LLM as it was."""

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Within it all of the bridge takes part in what the LLM computes, also what training starts switched off."""
        return contextlib.nullcontext()

    def follow(self, dtype: torch.dtype) -> None:
        """Brings what runs at every step of the LLM to the LLM's precision, for naming; the rest stays as it is."""

    @staticmethod
    def published_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's entries from the model's own: those of the bridge start with `bridge.`, LoRA's with `llm.`."""
        plain = {name.removeprefix("bridge."): value for name, value in named.items()}
        return {f"lora.{k.removeprefix('llm.')}" if k.startswith("llm.") else k: v for k, v in plain.items()}


def check_names(modes: Sequence[str]) -> None:
    """A mode names an entry of a checkpoint, and of a table of parameters whose own attributes it must not be."""
    for mode in modes:
        if not re.fullmatch(r"\w[\w-]*", mode) or hasattr(nn.ParameterDict, mode):
            raise OsmError(f"mode {shown(mode)}: expected letters, digits, _ and -, and no word of Python's mappings")


def lookup(table: nn.ParameterDict, modes: Sequence[str]) -> Tensor:
    """(R, 1, C). Goes through the whole table, so that under DDP every mode has a gradient in every step."""
    names = list(table)
    unknown = sorted(set(modes) - set(names))
    if unknown:
        raise OsmError(f"dataset_type {unknown[0]!r} is not a mode of this model; its modes are {', '.join(names)}")
    index = torch.tensor([names.index(mode) for mode in modes], device=next(iter(table.values())).device)
    return torch.cat(list(table.values()), 0)[index]
