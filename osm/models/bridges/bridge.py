"""The interface for trainable bridges between a vision tower and an LLM. Each kind of bridge is a subclass of `Bridge`.

Shapes: N images, R rows (masks), S input size, L image tokens, C tower width, P prefix embeddings, W LLM width.
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
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
"""What a bridge computes from the images alone, without masks: tensors (N, ...), which can be sliced by image."""


@dataclass(frozen=True)
class Instruction:
    """What is asked about each row. Only the `maskqformer` bridge uses text instructions.

    Attributes:
        ids_RT: token ids.
        mask_RT: true for tokens, false for padding.
        allowed_K: bool (K + 1,), true for each known name that may be chosen (`osm.models.bridges.known_names`). The
            last value is for the class *other*. None allows the known names of the row's mode, or all
            if the mode has none of its own.
    """

    ids_RT: Tensor
    mask_RT: Tensor
    allowed_K: Tensor | None = None


class Condition(NamedTuple):
    """The visual input that the LLM is conditioned on.

    Attributes:
        prefix_RPW: embeddings that are placed before BOS or, with `model.prompt_first`, after the prompt.
        gated_kv: keys and values for the gated layers within the LLM, or None if the bridge has no gated layers.
        name_logits_RK: the logits of all known names (`osm.models.bridges.known_names`), including those that are not
            allowed; None without known names.
        allowed: the known names that were allowed, bool (K + 1,) for all rows or (R, K + 1); None if all were. The last
            value is for the class *other*.
    """

    prefix_RPW: Tensor
    gated_kv: GatedKeyValues | None = None
    name_logits_RK: Tensor | None = None
    allowed: Tensor | None = None


class Bridge(nn.Module):
    """The interface of a bridge. The bridge is trained, while the tower and the LLM are frozen.

    `osm.models.bridges.BRIDGES` maps the name of each kind of bridge to its class.

    Attributes:
        Config: the dataclass of the settings for this kind of bridge.
        has_prefix: whether the bridge puts embeddings into the LLM's input.
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
        """Build a new bridge between a vision tower and an LLM.

        Args:
            config: the config of the model. `config.bridge` is an instance of `cls.Config`.
            tower: the frozen tower.
            llm: the frozen LLM, a decoder-only causal LM from transformers.
            vocabulary: the size of the instruction tokenizer's vocabulary.
        """

    @classmethod
    def of_instructblip(cls, config: ModelConfig, tower: Tower, base_model: Any) -> Self:
        """Build a bridge between the ViT and the LLM of an InstructBLIP model.

        This default implementation copies no weights from the InstructBLIP model.

        Args:
            base_model: a `transformers.InstructBlipForConditionalGeneration`.
        """
        return cls.of(config, tower, base_model.language_model, base_model.config.qformer_config.vocab_size)

    @classmethod
    @abstractmethod
    def blank(cls, config: ModelConfig, size: Callable[[str, int, int], int]) -> Self:
        """Build a bridge whose sizes match the tensors of a checkpoint, without loading the tower or the LLM.

        Args:
            config: the config of the model.
            size: a function (entry name, number of dimensions, axis) -> size of the entry along the axis. It raises
                OsmError if the checkpoint has no such entry with that number of dimensions.
        """

    @abstractmethod
    def mask_features(self, mask_R1SS: Tensor, context_R1SS: Tensor, patch: int, prefix: int, how: str) -> MaskFeatures:
        """Convert masks and context masks to the features that `forward` expects.

        Args:
            mask_R1SS: nonzero inside the mask.
            context_R1SS: nonzero inside the context box.
            patch: p, the side of a patch in pixels.
            prefix: the number of class tokens before the grid.
            how: `nearest` or `area` (`model.mask_to_grid`).

        Raises:
            SampleError: a mask or a context mask has no pixel (`empty_mask`).
        """

    @abstractmethod
    def image_state(self, tokens_NLC: Tensor) -> ImageState:
        """Compute the state that depends only on the images, so that all masks in an image can share it."""

    @abstractmethod
    def forward(
        self, state: ImageState, image_index_R: Tensor, features: Any, instruction: Instruction, modes: Sequence[str]
    ) -> Condition:
        """Compute the visual input that conditions the LLM.

        Each of the R batch rows pairs one mask of an image with one mode (answer style).

        Args:
            state: the result of `image_state`.
            image_index_R: the index of each row's image.
            features: the result of `mask_features`.
            instruction: the instruction of each row.
            modes: the mode of each row.
        """

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the blocks whose activations are recomputed during gradient checkpointing."""

    def recompute(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Enable gradient checkpointing: replace each function whose activations are recomputed by `wrap(function)`."""
        for layer in self.layers():
            layer.forward = wrap(layer.forward)  # type: ignore[method-assign]

    def layers_to_shard(self) -> list[nn.Module]:
        """Return the blocks that are large enough to be FSDP units."""
        return []

    def attach(self, llm: nn.Module) -> None:
        """Add the bridge's hooks to the LLM. A bridge that only provides prefix embeddings needs no hooks."""

    def detach(self) -> None:
        """Restore the LLM by removing the hooks that `attach` added."""

    def match_names(self, embeddings: nn.Embedding, ids: Sequence[Sequence[int]]) -> None:
        """Initialize what the LLM reads of the known names (`direct_names`) from the names' tokens.

        Args:
            embeddings: the LLM's word embeddings.
            ids: the token ids of each name.
        """

    def opened(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that opens the bridge's gates, so that every part of the bridge affects the LLM."""
        return contextlib.nullcontext()

    def follow(self, dtype: torch.dtype) -> None:
        """Cast the bridge modules that run in every decoding step to the LLM's dtype. Use this for inference only."""

    @staticmethod
    def published_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's tensors, keyed by their checkpoint names.

        In the model, the names of the bridge's tensors begin with `bridge.`, a prefix that checkpoints omit. LoRA's
        tensors have the prefix `llm.` in the model but `lora.` in checkpoints.
        """
        plain = {name.removeprefix("bridge."): value for name, value in named.items()}
        return {f"lora.{k.removeprefix('llm.')}" if k.startswith("llm.") else k: v for k, v in plain.items()}


def check_names(modes: Sequence[str]) -> None:
    """Raise OsmError if a mode's name is not a valid `nn.ParameterDict` key."""
    for mode in modes:
        if not re.fullmatch(r"\w[\w-]*", mode) or hasattr(nn.ParameterDict, mode):
            raise OsmError(
                f"mode {shown(mode)}: a mode name may contain only letters, digits, _ and -, and must not be a dict "
                "attribute such as 'keys'"
            )


@torch.no_grad()
def embedding_statistics(embeddings: nn.Embedding) -> tuple[Tensor, float] | None:
    """Return the mean (W,) and the standard deviation of an LLM's embeddings; None for a model without values."""
    if embeddings.weight.is_meta:
        return None  # a model without values (`osm.models.blank`) is not initialized
    # The outputs of the layer are used instead of its weights, because some LLMs scale their embeddings.
    table_VW = embeddings(torch.arange(len(embeddings.weight), device=embeddings.weight.device)).float()
    return table_VW.mean(0), table_VW.std().item()


@torch.no_grad()
def start_modes(table: nn.ParameterDict, mean_W: Tensor) -> None:
    """Initialize the embeddings of the modes near the mean of the LLM's embeddings.

    In some LLMs, embeddings that differ too much from those of tokens cause massive activations (Sun et al., COLM
    2024): the hidden state at their position hardly depends on the other inputs. A mode with such an embedding is
    learned slowly or not at all.
    """
    for query in table.values():
        query.copy_(mean_W).add_(torch.randn_like(query), alpha=0.02)


def lookup(table: nn.ParameterDict, modes: Sequence[str]) -> Tensor:
    """Return the mode embeddings (R, 1, width), one for each row of the batch.

    All mode embeddings are concatenated before indexing, because DDP requires a gradient for every parameter in every
    step.

    Raises:
        OsmError: the table lacks a mode.
    """
    names = list(table)
    unknown = sorted(set(modes) - set(names))
    if unknown:
        raise OsmError(f"dataset_type {unknown[0]!r} is not a mode of this model; its modes are {', '.join(names)}")
    index_R = torch.tensor([names.index(mode) for mode in modes], device=next(iter(table.values())).device)
    return torch.cat(list(table.values()), 0)[index_R]


def initialize(bridge: nn.Module, queries: Iterable[Tensor]) -> None:
    """Initialize queries and embeddings from a truncated normal distribution, and matrices with Xavier uniform."""
    for query in queries:
        nn.init.trunc_normal_(query, std=0.02)
    for module in bridge.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
