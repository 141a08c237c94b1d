"""The interface of trainable bridges between tower and LLM. A kind of bridge is a subclass of `Bridge`.

Shapes: N images, R rows (masks), S input size, L image tokens, C tower width, P prefix embeddings, W LLM width.
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from osm.errors import OsmError, shown
from osm.models.bridges.gated import GatedKeyValues
from osm.models.masks import MaskFeatures
from osm.models.model_config import BridgeConfig, ModelConfig
from osm.models.towers.tower import Tower

ImageState = list[tuple[Tensor, ...] | None]
"""What a bridge computes from images without masks: tensors (N, ...), which can be sliced to one image."""


@dataclass(frozen=True)
class Instruction:
    """The instruction of each row. Only the MaskQ-Former reads it.

    Attributes:
        ids_RT: token ids.
        mask_RT: true for tokens, false for padding.
    """

    ids_RT: Tensor
    mask_RT: Tensor


class Condition(NamedTuple):
    """What the LLM is conditioned on.

    Attributes:
        prefix_RPW: embeddings before BOS.
        gated_kv: keys and values for gated layers within the LLM, or None for a bridge without such layers.
    """

    prefix_RPW: Tensor
    gated_kv: GatedKeyValues | None = None


class Bridge(nn.Module):
    """The interface of a bridge. A bridge is trained; tower and LLM are frozen.

    A subclass is found by its name in `osm.models.bridges.BRIDGES`.

    Attributes:
        Config: the dataclass of this kind's settings.
        has_prefix: whether the bridge puts embeddings before the text.
        prefix_length: P, the number of these embeddings.
        config: the settings of this bridge.
        mode_query: the learned embeddings of the modes, by name.
    """

    Config: ClassVar[type[BridgeConfig]]
    has_prefix = True
    prefix_length: int
    config: BridgeConfig
    mode_query: nn.ParameterDict

    @classmethod
    @abstractmethod
    def of(cls, config: ModelConfig, tower: Tower, llm: Any, vocabulary: int) -> Self:
        """Build a new bridge between a tower and an LLM.

        Args:
            config: the config of the model. `config.bridge` is an instance of `cls.Config`.
            tower: the frozen tower.
            llm: the frozen LLM, a decoder-only causal LM of transformers.
            vocabulary: the size of the instruction tokenizer's vocabulary.
        """

    @classmethod
    def of_instructblip(cls, config: ModelConfig, tower: Tower, base_model: Any) -> Self:
        """Build a bridge between an InstructBLIP's ViT and its LLM, by default without the base model's weights.

        Args:
            base_model: a `transformers.InstructBlipForConditionalGeneration`.
        """
        return cls.of(config, tower, base_model.language_model, base_model.config.qformer_config.vocab_size)

    @classmethod
    @abstractmethod
    def blank(cls, config: ModelConfig, size: Callable[[str, int, int], int]) -> Self:
        """Build a bridge for the sizes of a checkpoint's entries, without tower and LLM.

        Args:
            config: the config of the model.
            size: returns the size of an entry along an axis, from (name, number of dimensions, axis). It raises
                OsmError if the checkpoint has no such entry with that number of dimensions.
        """

    @abstractmethod
    def mask_features(self, mask: Tensor, context: Tensor, patch: int, prefix: int, how: str) -> MaskFeatures:
        """Compute the features of masks and context masks (R, 1, S, S) that `forward` needs.

        Args:
            mask: nonzero inside the mask.
            context: nonzero inside the context box.
            patch: p, the side of a patch in pixels.
            prefix: the number of class tokens before the grid.
            how: `nearest` or `area` (`model.mask_to_grid`).

        Raises:
            SampleError: `empty_mask`, a mask or context mask without a pixel.
        """

    @abstractmethod
    def image_state(self, tokens_NLC: Tensor) -> ImageState:
        """Compute what depends only on the images. It is reused for all masks of an image."""

    @abstractmethod
    def forward(
        self, state: ImageState, image_index_R: Tensor, features: Any, instruction: Instruction, modes: Sequence[str]
    ) -> Condition:
        """Compute the condition of the LLM for R rows of image, mask and mode.

        Args:
            state: the result of `image_state`.
            image_index_R: the index of each row's image.
            features: the result of `mask_features`.
            instruction: the instruction of each row.
            modes: the mode of each row.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the blocks whose activations are recomputed with gradient checkpointing."""

    def layers_to_shard(self) -> list[nn.Module]:
        """Return the blocks that are large enough to be FSDP units."""
        return []

    def attach(self, llm: nn.Module) -> None:
        """Add the bridge's hooks to the LLM. A bridge that provides only a prefix has none."""

    def detach(self) -> None:
        """Remove the hooks of `attach`, which restores the LLM."""

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which all parts of the bridge affect the LLM, including gates that start closed."""
        return contextlib.nullcontext()

    def follow(self, dtype: torch.dtype) -> None:
        """Cast the modules that run in every step of the LLM to the LLM's dtype, for naming."""

    @staticmethod
    def published_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of a checkpoint for named tensors of the model.

        Names of the bridge begin with `bridge.`, names of LoRA begin with `llm.`.
        """
        plain = {name.removeprefix("bridge."): value for name, value in named.items()}
        return {f"lora.{k.removeprefix('llm.')}" if k.startswith("llm.") else k: v for k, v in plain.items()}


def check_names(modes: Sequence[str]) -> None:
    """Raise OsmError for a mode that cannot be a name in a `ParameterDict`, and so an entry of a checkpoint."""
    for mode in modes:
        if not re.fullmatch(r"\w[\w-]*", mode) or hasattr(nn.ParameterDict, mode):
            raise OsmError(f"mode {shown(mode)}: expected letters, digits, _ and -, and no word of Python's mappings")


def lookup(table: nn.ParameterDict, modes: Sequence[str]) -> Tensor:
    """Return the embeddings (R, 1, C) of the rows' modes.

    All embeddings of the table are concatenated first, so that with DDP each of them has a gradient in every step.

    Raises:
        OsmError: a mode that the table does not have.
    """
    names = list(table)
    unknown = sorted(set(modes) - set(names))
    if unknown:
        raise OsmError(f"dataset_type {unknown[0]!r} is not a mode of this model; its modes are {', '.join(names)}")
    index = torch.tensor([names.index(mode) for mode in modes], device=next(iter(table.values())).device)
    return torch.cat(list(table.values()), 0)[index]
