"""The `pooled` bridge: the direct path alone, without queries.

The LLM reads the embeddings of the direct path (`osm.models.bridges.direct`), and then the embedding of the mode.
Nothing in this bridge attends to the image, so it is the smallest and fastest one, and suits few photos.

Shapes: N images, R rows (masks), S input size, L image tokens, D direct embeddings, W LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from osm.config import FieldError
from osm.errors import shown
from osm.models.bridges.bridge import (
    Bridge,
    Condition,
    ImageState,
    Instruction,
    check_names,
    embedding_statistics,
    initialize,
    lookup,
    start_modes,
)
from osm.models.bridges.direct import DirectPath, DirectPathConfig
from osm.models.bridges.pooling import RegionFeatures, region_features
from osm.models.model_config import ModelConfig, check_area_weights, check_dropout
from osm.models.towers.tower import Tower


@dataclass(frozen=True)
class PooledConfig(DirectPathConfig):
    """Settings for the `pooled` bridge.

    Attributes:
        direct_tokens: the number of embeddings of each mask, at least 1.
        dropout: the dropout of the pooled tokens and of the hidden layer.
    """

    kind: str = field(default="pooled", kw_only=True)
    direct_tokens: int = field(default=2, kw_only=True)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_dropout(self)
        self.check_direct()
        if not self.direct_tokens:
            raise FieldError(f"direct_tokens {shown(self.direct_tokens)}: the pooled bridge needs 1 or more")

    def check_model(self, model: ModelConfig) -> None:
        super().check_model(model)
        check_area_weights(self, model)


class PooledBridge(Bridge):
    """The `pooled` bridge, which maps the pooled tokens of a mask to a prefix for the LLM's input.

    Args:
        config: the sizes of the bridge.
        modes: the answer styles. Each mode has an embedding in the prefix.
        token_width: the width of the tower's tokens.
        llm_width: the width of the LLM's word embeddings.
    """

    Config = PooledConfig
    config: PooledConfig

    def __init__(self, config: PooledConfig, modes: Sequence[str], token_width: int, llm_width: int) -> None:
        super().__init__()
        check_names(modes)
        self.config = config
        self.mode_query = nn.ParameterDict({m: nn.Parameter(torch.empty(1, 1, llm_width)) for m in modes})
        self.direct = DirectPath(config, token_width, llm_width, config.dropout)
        self.prefix_length = config.direct_tokens + 1
        initialize(self, tuple(self.mode_query.values()))
        self.direct.reset(0.02)

    @classmethod
    def of(cls, config: ModelConfig, tower: Tower, llm: Any, vocabulary: int) -> Self:
        words = llm.get_input_embeddings()
        bridge = cls(_settings(config), config.modes, tower.width, words.embedding_dim)
        bridge.match_embeddings(words)  # also if a checkpoint replaces the values: see `MaskQFormerBridge.of`
        return bridge

    @classmethod
    def blank(cls, config: ModelConfig, size: Callable[[str, int, int], int]) -> Self:
        outputs = size("direct.linear.weight", 2, 0)
        return cls(
            _settings(config),
            config.modes,
            token_width=size("window_pos_embed", 3, -1),
            llm_width=outputs // _settings(config).direct_tokens,
        )

    @torch.no_grad()
    def match_embeddings(self, embeddings: nn.Embedding) -> None:
        """Initialize the prefix with the mean and standard deviation of the LLM's embeddings."""
        found = embedding_statistics(embeddings)
        if found is not None:
            self.direct.match(*found)
            start_modes(self.mode_query, found[0])

    def match_names(self, embeddings: nn.Embedding, ids: Sequence[Sequence[int]]) -> None:
        self.direct.match_names(embeddings, ids)

    def mask_features(
        self, mask_R1SS: Tensor, context_R1SS: Tensor, patch: int, prefix: int, how: str
    ) -> RegionFeatures:
        return region_features(mask_R1SS, context_R1SS, patch)

    def image_state(self, tokens_NLC: Tensor) -> ImageState:
        tokens_NLC = tokens_NLC.to(self.direct.norm.weight.dtype)
        return [(tokens_NLC, tokens_NLC.mean(1))]

    def forward(
        self,
        state: ImageState,
        image_index_R: Tensor,
        features: RegionFeatures,
        instruction: Instruction,
        modes: Sequence[str],
    ) -> Condition:
        """Return the prefix (R, D + 1, W): the embeddings of the direct path, then that of the mode."""
        (image,) = state
        assert image is not None
        tokens_NLC, mean_NC = image
        allowed = self.direct.allowed(modes, instruction.allowed_K)
        direct_RDW, logits_RK = self.direct.once_per_mask(tokens_NLC, mean_NC, image_index_R, features, allowed)
        prefix_RPW = torch.cat([direct_RDW, lookup(self.mode_query, modes)], 1)
        return Condition(prefix_RPW, name_logits_RK=logits_RK, allowed=allowed)

    def layers(self) -> list[nn.Module]:
        return [self.direct]


def _settings(config: ModelConfig) -> PooledConfig:
    assert isinstance(config.bridge, PooledConfig)
    return config.bridge
