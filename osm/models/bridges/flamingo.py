"""The `flamingo` bridge: pooled image tokens of a mask, a resampler, and gated cross-attention in the LLM.

The bridge pools the image tokens over each mask. A resampler reduces the pooled tokens to a few visual tokens. The LLM
attends to the visual tokens in gated layers, as in Flamingo (Alayrac et al. 2022, https://arxiv.org/abs/2204.14198).

Shapes: N images, R rows (masks), S input size, L image tokens, C token width, T pooled tokens, Q queries (the last one
belongs to the mode), K = T + Q keys, D width, H heads, d = D / H.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.bridges.bridge import Bridge, Condition, ImageState, Instruction, check_names, initialize, lookup
from osm.models.bridges.direct import DirectPath
from osm.models.bridges.gated import FlamingoConfig, GatedLayers, decoder_layers, hidden_width
from osm.models.bridges.pooling import GEOMETRY, SINGLES, RegionFeatures, pool, region_features
from osm.models.model_config import ModelConfig
from osm.models.towers.tower import Tower

_FREQUENCIES = 6  # the frequencies for each geometry value of a token; the shortest period is 1/16 of the input


class ResamplerLayer(nn.Module):
    """A resampler layer (Flamingo, section 3.1.1).

    The queries attend to the pooled tokens and to each other, and then pass through a feed-forward network.
    """

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        self.norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(width, config.mlp_width), nn.Linear(config.mlp_width, width)

    def forward(self, queries_RQD: Tensor, tokens_RTD: Tensor, present_RT: Tensor) -> Tensor:
        normed_RQD = self.norm(queries_RQD)
        both_RKD = torch.cat([self.token_norm(tokens_RTD), normed_RQD], 1)
        visible_R11K = torch.cat([present_RT, present_RT.new_ones(normed_RQD.shape[:2])], 1)[:, None, None]
        query_RHQd = rearrange(self.query(normed_RQD), "r q (h d) -> r h q d", h=self.heads)
        key_RHKd, value_RHKd = rearrange(self.key_value(both_RKD), "r t (two h d) -> two r h t d", two=2, h=self.heads)
        read_RHQd = F.scaled_dot_product_attention(query_RHQd, key_RHKd, value_RHKd, visible_R11K)
        queries_RQD = queries_RQD + self.dropout(self.output(rearrange(read_RHQd, "r h q d -> r q (h d)")))
        return queries_RQD + self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(queries_RQD)))))


class FlamingoBridge(Bridge):
    """The `flamingo` bridge, which passes each mask's pooled and resampled tokens to gated layers within the LLM.

    The bridge contains all of a model's trained parameters except for LoRA's and `window_pos_embed`.

    Args:
        config: the sizes of the bridge.
        modes: the answer styles. Each mode has its own query, whose output is one of the visual tokens.
        token_width: C, the width of the tower's tokens.
        llm_width: the width of the LLM's layers.
        blocks: the number of gated blocks. A gated block is placed before every n-th layer of the LLM.
    """

    Config = FlamingoConfig
    config: FlamingoConfig
    has_prefix = False
    prefix_length = 0

    def __init__(
        self, config: FlamingoConfig, modes: Sequence[str], token_width: int, llm_width: int, blocks: int
    ) -> None:
        super().__init__()
        check_names(modes)
        self.config = config
        tokens = SINGLES + 2 * config.roi**2
        self.token_norm, self.projection = nn.LayerNorm(token_width), nn.Linear(token_width, config.width)
        self.place = nn.Parameter(torch.empty(1, tokens, config.width))
        self.geometry = nn.Linear(GEOMETRY * (1 + 2 * _FREQUENCIES), config.width)
        self.query = nn.Parameter(torch.empty(1, config.queries, config.width))
        self.mode_query = nn.ParameterDict({m: nn.Parameter(torch.empty(1, 1, config.width)) for m in modes})
        self.resampler = nn.ModuleList(ResamplerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.gated = GatedLayers(config, llm_width, blocks)
        if config.direct_tokens:
            self.direct = DirectPath(config, token_width, config.width, config.dropout)
        self.reset_parameters()

    @classmethod
    def of(cls, config: ModelConfig, tower: Tower, llm: Any, vocabulary: int) -> Self:
        sizes, layers = _sizes(config), len(decoder_layers(llm))
        if not layers:
            raise OsmError(
                f"model.llm.name {config.llm.name!r}: the flamingo bridge requires an LLM that stores its decoder "
                "layers in a list of length num_hidden_layers; choose a different LLM, or set model.bridge.kind to "
                "maskqformer"
            )
        if layers < sizes.every:
            raise OsmError(
                f"model.bridge.every {sizes.every}: the LLM has only {layers} layers, so there would be no gated "
                "blocks; choose a smaller number"
            )
        return cls(sizes, config.modes, tower.width, hidden_width(llm), layers // sizes.every)

    @classmethod
    def blank(cls, config: ModelConfig, size: Callable[[str, int, int], int]) -> Self:
        blocks, width = 0, size("gated.blocks.0.norm.weight", 1, 0)
        with contextlib.suppress(OsmError):
            while size(f"gated.blocks.{blocks}.norm.weight", 1, 0):
                blocks += 1
        return cls(_sizes(config), config.modes, size("window_pos_embed", 3, -1), width, blocks)

    def reset_parameters(self) -> None:
        """Initialize embeddings from a truncated normal distribution (std 0.02), and matrices with Xavier uniform."""
        initialize(self, (self.query, self.place, *self.mode_query.values()))
        if self.config.direct_tokens:
            self.direct.reset(1.0)  # a layer norm with unit variance follows

    def mask_features(
        self, mask_R1SS: Tensor, context_R1SS: Tensor, patch: int, prefix: int, how: str
    ) -> RegionFeatures:
        assert how == "area"  # FlamingoConfig.check_model requires it
        return region_features(mask_R1SS, context_R1SS, patch)

    def image_state(self, tokens_NLC: Tensor) -> ImageState:
        tokens_NLC = tokens_NLC.to(self.query.dtype)
        return [(tokens_NLC, tokens_NLC.mean(1))]

    def forward(
        self,
        state: ImageState,
        image_index_R: Tensor,
        features: RegionFeatures,
        instruction: Instruction,
        modes: Sequence[str],
    ) -> Condition:
        """Return the keys and values that all of the LLM's gated layers attend to.

        The keys and values are projected from each mask's Q resampled tokens, the last of which belongs to the mode,
        and from its direct tokens if the bridge has a direct path. The prefix is empty, because the
        `flamingo` bridge adds no embeddings before the text.
        """
        (image,) = state
        assert image is not None
        tokens_NLC, mean_NC = image
        pooled = pool(tokens_NLC, mean_NC, image_index_R, features, self.config.roi)
        tokens_RTD = self.projection(self.token_norm(pooled.tokens_RTC))
        tokens_RTD = tokens_RTD + self.place + self.geometry(fourier(pooled.geometry_RT6).to(tokens_RTD))
        queries_RQD = torch.cat([self.query.expand(len(tokens_RTD), -1, -1), lookup(self.mode_query, modes)], 1)
        for layer in self.resampler:
            queries_RQD = layer(queries_RQD, tokens_RTD, pooled.present_RT)
        logits_RK = allowed = None
        if self.config.direct_tokens:
            allowed = self.direct.allowed(modes, instruction.allowed_K)
            direct_RDD, logits_RK = self.direct(tokens_NLC, mean_NC, image_index_R, features, allowed)
            queries_RQD = torch.cat([queries_RQD, direct_RDD], 1)
        no_prefix_R00 = queries_RQD.new_zeros(len(queries_RQD), 0, 0)
        return Condition(no_prefix_R00, self.gated.project(self.norm(queries_RQD)), logits_RK, allowed)

    def layers(self) -> list[nn.Module]:
        return [*self.resampler, *self.gated.blocks]

    def layers_to_shard(self) -> list[nn.Module]:
        return list(self.gated.blocks)

    def attach(self, llm: nn.Module) -> None:
        self.gated.attach(llm)

    def detach(self) -> None:
        self.gated.detach()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        gates = self.gated.gates()
        before = [gate.detach().clone() for gate in gates]
        try:
            with torch.no_grad():
                for gate in gates:
                    gate.fill_(0.5 / self.config.gate_gain)
            yield
        finally:
            with torch.no_grad():
                for gate, value in zip(gates, before, strict=True):
                    gate.copy_(value)

    def follow(self, dtype: torch.dtype) -> None:
        self.gated.blocks.to(dtype)


def _sizes(config: ModelConfig) -> FlamingoConfig:
    assert isinstance(config.bridge, FlamingoConfig)
    return config.bridge


def fourier(numbers: Tensor) -> Tensor:
    """Return Fourier features (..., n * 13): the numbers (..., n), and their sines and cosines at 6 frequencies.

    Each frequency is twice the previous one.
    """
    scales = math.pi * 2.0 ** torch.arange(_FREQUENCIES, device=numbers.device, dtype=numbers.dtype)
    angles = (numbers[..., None] * scales).flatten(-2)
    return torch.cat([numbers, angles.sin(), angles.cos()], -1)
