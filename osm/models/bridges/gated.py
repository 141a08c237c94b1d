"""Gated cross-attention within a frozen LLM, as in Flamingo (https://arxiv.org/abs/2204.14198, section 3.1.2).

A gated block runs before every n-th decoder layer (Alayrac et al. 2022). All gates start closed, so the LLM's output is
unchanged at the start of training.

The gated blocks are not submodules of the LLM. Forward hooks run the gated blocks before the decoder layers. Thanks to
the hooks, the LLM's modules, parameter names and files stay unchanged, and any decoder-only Hugging Face LLM is
supported. Removing the hooks restores the original LLM.

Shapes: R = rows, K = selected rows, N = visual tokens, D = width of a visual token, T = text positions, B = blocks,
H = heads, d = width of a head, W = LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from osm.config import FieldError
from osm.errors import OsmError
from osm.models.bridges.direct import DirectPathConfig
from osm.models.model_config import (
    ModelConfig,
    check_area_weights,
    check_dropout,
    check_heads,
    check_layers,
    check_sizes,
)

LayerKV = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FlamingoConfig(DirectPathConfig):
    """Settings for the `flamingo` bridge, which consists of a resampler and gated cross-attention blocks in the LLM.

    Attributes:
        width: the width of the resampler.
        heads: the number of attention heads of the resampler.
        layers: the number of layers of the resampler.
        mlp_width: the width of the resampler's feed-forward.
        queries: the number of visual tokens that the resampler outputs for each mask, in addition to the mode's token.
        roi: the number of cells per side of the grids in which a mask and its context are pooled.
        every: n, where a gated block is placed before every n-th layer of the LLM.
        gated_width: the width of the attention in the gated blocks.
        gated_heads: the number of attention heads in the gated blocks.
        gated_mlp_width: the width of the feed-forward in the gated blocks.
        gate_gain: a gate is tanh(gate_gain * parameter). With a gain above 1, gates open sooner, which helps short
            training runs.
        dropout: the dropout in the resampler and in the gated blocks.
    """

    kind: str = field(default="flamingo", kw_only=True)
    width: int = 1024
    heads: int = 16
    layers: int = 4
    mlp_width: int = 4096
    queries: int = 32
    roi: int = 4
    every: int = 4
    gated_width: int = 1024
    gated_heads: int = 16
    gated_mlp_width: int = 4096
    gate_gain: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "width heads layers mlp_width queries roi every gated_width gated_heads gated_mlp_width")
        check_layers(self)
        if self.roi > 32:
            raise FieldError(f"roi {self.roi} exceeds the maximum of 32 (at most 2 * 32^2 pooled tokens per mask)")
        check_heads(self, "width", "heads")
        check_heads(self, "gated_width", "gated_heads")
        check_dropout(self)
        self.check_direct()
        if not 0 < self.gate_gain <= 1000:
            raise FieldError(f"gate_gain {self.gate_gain} must be greater than 0 and at most 1000")

    def check_model(self, model: ModelConfig) -> None:
        super().check_model(model)
        check_area_weights(self, model)

    def least_parameters(self) -> int:
        resampler = self.layers * self.width * (4 * self.width + 2 * self.mlp_width)
        own = resampler + 2 * self.width * self.gated_width + self.queries * self.width
        return own + super().least_parameters()

    def layer_count(self) -> int:
        return self.layers


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Return a network's repeated blocks (the layers of a transformer), or an empty list if there are none."""
    lists = [
        list(found)
        for found in module.modules()
        if isinstance(found, (nn.ModuleList, nn.Sequential)) and len(found) > 1 and len({type(m) for m in found}) == 1
    ]
    return max(lists, key=lambda found: sum(p.numel() for m in found for p in m.parameters()), default=[])


def decoder_layers(llm: Any) -> list[nn.Module]:
    """Return the decoder layers of an LLM, first to last.

    In a hybrid LLM, the decoder layers may be instances of different classes. The result is empty if the LLM has no
    module list of length `num_hidden_layers` (a field of its config).
    """
    config = getattr(llm, "config", None)
    count = None if config is None else getattr(config.get_text_config(), "num_hidden_layers", None)
    if count is None:
        return repeated_blocks(llm)
    lists = [
        list(found)
        for found in llm.modules()
        if isinstance(found, (nn.ModuleList, nn.Sequential)) and len(found) == count
    ]
    return max(lists, key=lambda found: sum(p.numel() for m in found for p in m.parameters()), default=[])


def hidden_width(llm: Any) -> int:
    """Return W, the width of an LLM's hidden states.

    An LLM's word embeddings may be narrower than its hidden states, as in OPT-350m.
    """
    return llm.config.get_text_config().hidden_size


class GatedBlock(nn.Module):
    """A gated block: attention to visual tokens and a feed-forward network, both scaled by tanh(gain * gate).

    `forward` returns the update that the caller adds to the hidden states. If both gates are 0, the update is exactly 0
    in any precision.
    """

    def __init__(self, config: FlamingoConfig, width: int) -> None:
        super().__init__()
        inner, mlp = config.gated_width, config.gated_mlp_width
        self.heads, self.gain, self.dropout = config.gated_heads, config.gate_gain, config.dropout
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.output = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, hidden_RTW: Tensor, key_RHNd: Tensor, value_RHNd: Tensor) -> Tensor:
        query_RHTd = rearrange(self.query(self.norm(hidden_RTW)), "r t (h d) -> r h t d", h=self.heads)
        dropout = self.dropout if self.training else 0.0
        read_RHTd = F.scaled_dot_product_attention(
            query_RHTd, key_RHNd.to(query_RHTd), value_RHNd.to(query_RHTd), dropout_p=dropout
        )
        read_RTW = self.output(rearrange(read_RHTd, "r h t d -> r t (h d)"))
        attended_RTW = torch.tanh(self.gain * self.gate) * read_RTW
        mlp_RTW = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden_RTW + attended_RTW))))
        return attended_RTW + torch.tanh(self.gain * self.mlp_gate) * mlp_RTW


class GatedLayers(nn.Module):
    """The gated blocks of an LLM, and the projections that compute each block's keys and values once per mask.

    Args:
        config: the sizes of the blocks.
        width: W, the width of the LLM's layers.
        blocks: B, the number of blocks.
    """

    def __init__(self, config: FlamingoConfig, width: int, blocks: int) -> None:
        super().__init__()
        self.every, self.heads = config.every, config.gated_heads
        self.blocks = nn.ModuleList(GatedBlock(config, width) for _ in range(blocks))
        self.keys_values = nn.ModuleList(nn.Linear(config.width, 2 * config.gated_width) for _ in range(blocks))
        self._handles: list[Any] = []
        self._conditioned_on: GatedKeyValues | None = None

    def gates(self) -> list[nn.Parameter]:
        """Return the gates of all blocks."""
        return [gate for block in self.blocks if isinstance(block, GatedBlock) for gate in (block.gate, block.mlp_gate)]

    def project(self, tokens_RND: Tensor) -> GatedKeyValues:
        """Project visual tokens (R, N, resampler width) to the keys and values of all gated blocks."""
        found = [
            rearrange(project(tokens_RND), "r n (two h d) -> two r h n d", two=2, h=self.heads)
            for project in self.keys_values
        ]
        return GatedKeyValues(self, [(key, value) for key, value in found])

    def attach(self, llm: nn.Module) -> None:
        """Add the hooks that run the gated blocks within an LLM.

        Outside `with gated_kv:`, the hooks do nothing, and the LLM's output is unchanged.

        Raises:
            OsmError: the blocks are already attached, or their number does not fit the LLM's number of layers.
        """
        if self._handles:
            raise OsmError("the gated layers are already attached to an LLM; call detach() before attach()")
        layers = decoder_layers(llm)
        if len(layers) // self.every != len(self.blocks):
            raise OsmError(
                f"model.bridge.every {self.every}: an LLM with {len(layers)} layers needs {len(layers) // self.every} "
                f"gated blocks, but the bridge has {len(self.blocks)}"
            )
        for number in range(len(self.blocks)):
            layer = layers[(number + 1) * self.every - 1]
            self._handles.append(layer.register_forward_pre_hook(_Hook(self, number), with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks from the LLM."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Hook:
    """A hook that runs a gated block before a decoder layer.

    The hook is a class rather than a closure, because `copy.deepcopy` does not copy closures.
    """

    def __init__(self, layers: GatedLayers, number: int) -> None:
        self.layers, self.number = layers, number

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        conditioned_on = self.layers._conditioned_on
        if conditioned_on is None:
            return None
        block = self.layers.blocks[self.number]
        hidden_RTW = args[0] if args else kwargs["hidden_states"]
        kv = conditioned_on.of_rows(self.number, len(hidden_RTW))
        mine_RTW = hidden_RTW.to(
            kv[0].device, next(block.parameters()).dtype
        )  # a layer of a large LLM may be on a different device
        hidden_RTW = hidden_RTW + block(mine_RTW, *kv).to(hidden_RTW)
        return ((hidden_RTW, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden_RTW})


class GatedKeyValues:
    """The keys and values of R masks for all gated blocks.

    Inside `with gated_kv:`, the LLM's gated blocks attend to the keys and values in `gated_kv`.
    """

    def __init__(self, layers: GatedLayers, keys_values: Sequence[LayerKV]) -> None:
        self.layers, self.keys_values = layers, list(keys_values)
        self._before: list[GatedKeyValues | None] = []

    def __len__(self) -> int:
        return len(self.keys_values[0][0])

    def of_rows(self, block: int, rows: int) -> LayerKV:
        """Return a block's keys and values for an LLM batch, which may contain several adjacent beams per mask."""
        key_RHNd, value_RHNd = self.keys_values[block]
        if rows == len(key_RHNd):
            return key_RHNd, value_RHNd
        if rows % len(key_RHNd):
            raise OsmError(
                f"the LLM's batch has {rows} rows; expected a multiple of the number of masks ({len(key_RHNd)})"
            )
        beams = rows // len(key_RHNd)
        return key_RHNd.repeat_interleave(beams, 0), value_RHNd.repeat_interleave(beams, 0)

    def select(self, rows_K: Tensor) -> GatedKeyValues:
        """Return the keys and values of the masks with indices `rows_K`, in that order. Indices may repeat."""
        rows_K = rows_K.to(self.keys_values[0][0].device)
        return GatedKeyValues(self.layers, [(key[rows_K], value[rows_K]) for key, value in self.keys_values])

    def __enter__(self) -> GatedKeyValues:
        self._before.append(self.layers._conditioned_on)
        self.layers._conditioned_on = self
        return self

    def __exit__(self, *_: object) -> None:
        self.layers._conditioned_on = self._before.pop()
