"""Gated cross-attention within a frozen LLM (Flamingo, Alayrac et al. 2022, https://arxiv.org/abs/2204.14198, section
3.1.2): blocks before every n-th decoder layer, whose gates start closed, so that the LLM starts as it was.

The blocks stand outside of the LLM and reach its layers by hooks: its modules, names and files stay what they are, with
any Hugging Face decoder-only LLM, and taking the hooks away gives it back.

Shapes: R rows, N visual tokens, T text positions, B blocks, D their attention's width, H heads, W LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from osm.config import FlamingoConfig
from osm.errors import OsmError

LayerKV = tuple[Tensor, Tensor]


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network (a transformer's layers); empty where it has none."""
    lists = [
        list(found)
        for found in module.modules()
        if isinstance(found, (nn.ModuleList, nn.Sequential)) and len(found) > 1 and len({type(m) for m in found}) == 1
    ]
    return max(lists, key=lambda found: sum(p.numel() for m in found for p in m.parameters()), default=[])


def decoder_layers(llm: nn.Module) -> list[nn.Module]:
    """The decoder layers of an LLM, first to last; a hybrid's are of several classes.

    Empty where no list of its modules is as long as its config says that it has layers.
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


def hidden_width(llm: nn.Module) -> int:
    """W between an LLM's layers; its word embeddings may be narrower (OPT-350m)."""
    return llm.config.get_text_config().hidden_size


class GatedBlock(nn.Module):
    """Attention to visual tokens, then a feed-forward; each adds tanh(gate) of what it finds.

    Returns what is to be added, so that at gates of 0 it is exactly 0 in any precision of the LLM.
    """

    def __init__(self, config: FlamingoConfig, width: int) -> None:
        super().__init__()
        inner, mlp = config.gated_width, config.gated_mlp_width
        self.heads, self.gain, self.dropout = config.gated_heads, config.gate_gain, config.dropout
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.output = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.gate, self.mlp_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, hidden_RTW: Tensor, key_RHND: Tensor, value_RHND: Tensor) -> Tensor:
        query = rearrange(self.query(self.norm(hidden_RTW)), "r t (h d) -> r h t d", h=self.heads)
        read = F.scaled_dot_product_attention(
            query, key_RHND.to(query), value_RHND.to(query), dropout_p=self.dropout if self.training else 0.0
        )
        read = self.output(rearrange(read, "r h t d -> r t (h d)"))
        seen = torch.tanh(self.gain * self.gate) * read
        mlp = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden_RTW + seen))))
        return seen + torch.tanh(self.gain * self.mlp_gate) * mlp


class GatedLayers(nn.Module):
    """The blocks of an LLM, and the keys and values that each makes of a mask's visual tokens, once a mask.

    Args:
        width: of the LLM's layers. blocks: how many of them.
    """

    def __init__(self, config: FlamingoConfig, width: int, blocks: int) -> None:
        super().__init__()
        self.every, self.heads = config.every, config.gated_heads
        self.blocks = nn.ModuleList(GatedBlock(config, width) for _ in range(blocks))
        self.keys_values = nn.ModuleList(nn.Linear(config.width, 2 * config.gated_width) for _ in range(blocks))
        self._handles: list[Any] = []
        self._conditioned_on: GatedKeyValues | None = None

    def project(self, tokens_RND: Tensor) -> GatedKeyValues:
        """What all blocks see of these tokens."""
        found = [
            rearrange(project(tokens_RND), "r n (two h d) -> two r h n d", two=2, h=self.heads)
            for project in self.keys_values
        ]
        return GatedKeyValues(self, [(key, value) for key, value in found])

    def attach(self, llm: nn.Module) -> None:
        """Hooks the blocks to an LLM; without conditioning, it computes as before.

        Raises:
            OsmError: it is hooked already, or has no layers that fit.
        """
        if self._handles:
            raise OsmError("these gated layers are within an LLM already; detach() comes before another attach()")
        layers = decoder_layers(llm)
        if len(layers) // self.every != len(self.blocks):
            raise OsmError(
                f"model.flamingo.every {self.every}: an LLM of {len(layers)} layers takes {len(layers) // self.every} "
                f"gated blocks, these are {len(self.blocks)}"
            )
        for number in range(len(self.blocks)):
            layer = layers[(number + 1) * self.every - 1]
            self._handles.append(layer.register_forward_pre_hook(_Hook(self, number), with_kwargs=True))

    def detach(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Hook:
    """Runs a block before a decoder layer. An object, and no closure: a copy of a model has copies of these."""

    def __init__(self, layers: GatedLayers, number: int) -> None:
        self.layers, self.number = layers, number

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        conditioned_on = self.layers._conditioned_on
        if conditioned_on is None:
            return None
        block = self.layers.blocks[self.number]
        hidden = args[0] if args else kwargs["hidden_states"]
        kv = conditioned_on.of_rows(self.number, len(hidden))
        mine = hidden.to(kv[0].device, next(block.parameters()).dtype)  # a large LLM's layers may lie elsewhere
        hidden = hidden + block(mine, *kv).to(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


class GatedKeyValues:
    """What the gated blocks see of R masks; they see it within `with gated_kv:` alone."""

    def __init__(self, layers: GatedLayers, keys_values: Sequence[LayerKV]) -> None:
        self.layers, self.keys_values = layers, list(keys_values)
        self._before: list[GatedKeyValues | None] = []

    def __len__(self) -> int:
        return len(self.keys_values[0][0])

    def of_rows(self, block: int, rows: int) -> LayerKV:
        """A block's keys and values for a batch of the LLM, which may hold several beams of each row side by side."""
        key, value = self.keys_values[block]
        if rows == len(key):
            return key, value
        if rows % len(key):
            raise OsmError(f"the LLM names {rows} rows, but {len(key)} masks are shown to it")
        beams = rows // len(key)
        return key.repeat_interleave(beams, 0), value.repeat_interleave(beams, 0)

    def select(self, rows: Tensor) -> GatedKeyValues:
        """Of some rows, in this order; they may repeat."""
        rows = rows.to(self.keys_values[0][0].device)
        return GatedKeyValues(self.layers, [(key[rows], value[rows]) for key, value in self.keys_values])

    def __enter__(self) -> GatedKeyValues:
        self._before.append(self.layers._conditioned_on)
        self.layers._conditioned_on = self
        return self

    def __exit__(self, *_: object) -> None:
        self.layers._conditioned_on = self._before.pop()
