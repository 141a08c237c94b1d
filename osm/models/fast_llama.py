"""Runs a small Llama on a CPU with fewer passes over its activations than transformers' layers need.

A small LLM on a CPU spends a large part of its time on short operations between its matrix products. `FastLlama` uses
the weights of a Llama from Hugging Face, and computes the same values as the LLM's own `forward`, up to rounding:

- The products of queries, keys and values are one product. Its rows are reordered so that the rotary embedding is one
  multiplication of complex numbers.
- The activation of the feed-forward and the residual additions are computed by the matrix products before them.
- Keys and values are not repeated for the query heads that share them, and the cache has room for the next tokens.
- Padding is left out. After its attention, the last layer computes only the positions whose logits are needed.
- Rows that begin with the same embeddings share the work on them, except for the attention.

`make_fast` compares both ways on random inputs, and leaves the LLM as it is if they differ.

Shapes: R rows, r some rows, T new positions per row, S positions so far, N tokens, n tokens whose logits are needed, W
LLM width, X any width, H query heads, K key heads, G = H / K query heads per key head, D width of a head, F = D / 2
frequencies, P = G * T, M = R * T, L layers, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.models.packed_linear import PackedLinear
from osm.terminal import message_logger

logger = message_logger(__name__)

_CLASSES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
_WIDEST = 2048  # in wider LLMs, nearly all of the time is spent in the matrix products
# The largest difference of a logit, relative to the largest logit. On random inputs, rounding alone changes logits of
# SmolLM2 by up to 1e-4, and an epsilon of 1e-4 instead of 1e-5 in its RMS norms by 4e-3 or more.
_CLOSE = 1e-3
_SHORT = 128  # several new positions: up to this length, plain products are faster than PyTorch's fused attention
_MULTIPLE = 8  # the products of 259 rows take longer than those of 264, so unused tokens are added
_ROOM = 12  # spare positions whenever a cache is allocated; most names are shorter


class KeyValues:
    """The keys and values of all layers, with room for more positions.

    Attributes:
        values: (L, 2, R, K, room, D), of which the first `length` positions are filled.
        length: the number of positions so far.
    """

    def __init__(self, values: Tensor, length: int = 0) -> None:
        self.values, self.length = values, length

    def add(self, layer: int, keys_RKTD: Tensor, values_RKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the next positions of a layer, and return all keys and values (R, K, S, D) of the layer."""
        end = self.length + keys_RKTD.shape[2]
        if end > self.values.shape[4]:
            wider = self.values.new_empty((*self.values.shape[:4], end + _ROOM, self.values.shape[5]))
            wider[..., : self.length, :] = self.values[..., : self.length, :]
            self.values = wider
        stored_2RKSD = self.values[layer][..., :end, :]
        stored_2RKSD[0, :, :, self.length :] = keys_RKTD
        stored_2RKSD[1, :, :, self.length :] = values_RKTD
        return stored_2RKSD[0], stored_2RKSD[1]

    def reorder_cache(self, rows_r: Tensor) -> None:
        """Select rows in place. Indices may repeat. Of fewer rows, only those that change their place are copied."""
        count = len(rows_r)
        moved = (rows_r != torch.arange(count)).nonzero().flatten()
        if count > self.values.shape[2] or bool((rows_r[moved] < count).any()):
            self.values = self.values.index_select(2, rows_r)
            return
        self.values[:, :, moved] = self.values[:, :, rows_r[moved]]
        self.values = self.values[:, :, :count]

    def selected(self, rows_r: Tensor) -> KeyValues:
        """Return a copy with the selected rows, which may repeat."""
        return KeyValues(self.values.index_select(2, rows_r), self.length)


@dataclass
class _Layer:
    norm: Tensor
    qkv: PackedLinear
    output: PackedLinear
    mlp_norm: Tensor
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True)
class _Grid:
    """Where the tokens are in a grid of rows and positions.

    Attributes:
        rows, positions: the size of the grid.
        place_N: the tokens' indices in the flattened grid, or None if the grid has no padding. A token that is in
            several rows has its first index. If there are such tokens, a few unused ones may follow.
        token_M: the index of the token at each place of the flattened grid, or None if no token is in several rows.
            Padding has an arbitrary token.
    """

    rows: int
    positions: int
    place_N: Tensor | None = None
    token_M: Tensor | None = None

    def spread(self, x_NX: Tensor) -> Tensor:
        """Return (R, T, X), with zeros or arbitrary tokens at padding."""
        if self.token_M is not None:
            x_NX = x_NX.index_select(0, self.token_M)
        elif self.place_N is not None:
            x_NX = x_NX.new_zeros(self.rows * self.positions, x_NX.shape[1]).index_copy(0, self.place_N, x_NX)
        return x_NX.view(self.rows, self.positions, -1)

    def collect(self, x_RTX: Tensor, wanted_n: Tensor | None = None) -> Tensor:
        """Return the tokens (N, X) of a grid, or some of them."""
        x_MX = x_RTX.flatten(0, 1)
        place = self.place_N if wanted_n is None else wanted_n if self.place_N is None else self.place_N[wanted_n]
        return x_MX if place is None else x_MX.index_select(0, place)

    def tokens_at(self, place_n: Tensor) -> Tensor:
        """Return the indices of the tokens at places of the flattened grid that are not padding."""
        if self.token_M is not None:
            return self.token_M[place_n]
        if self.place_N is None:
            return place_n
        return torch.searchsorted(self.place_N, place_n)


def _grid_of(embeds_RTW: Tensor, mask_RT: Tensor | None = None, constant: int = 0) -> _Grid:
    """Return the grid of rows of embeddings. Adjacent rows share the positions up to which their embeddings are equal.

    Args:
        embeds_RTW: the inputs.
        mask_RT: 1 at tokens, 0 at padding, which may only be at the end of a row. None: no padding.
        constant: if gradients are computed, only so many positions can be shared, because equal embeddings at
            other positions may have different gradients.
    """
    rows, positions = embeds_RTW.shape[:2]
    real_RT = torch.ones(rows, positions, dtype=torch.bool) if mask_RT is None else mask_RT.bool()
    same_RT = (embeds_RTW[1:] == embeds_RTW[:-1]).all(-1) & real_RT[1:] & real_RT[:-1]
    same_RT = same_RT.long().cumprod(1)
    if torch.is_grad_enabled() and embeds_RTW.requires_grad:
        same_RT[:, constant:] = 0
    place_RT = torch.arange(rows * positions).view(rows, positions)
    if bool(same_RT.any()):
        own_RT = torch.cat([place_RT[:1], place_RT[1:] * (1 - same_RT)])
        place_RT = torch.where(real_RT, own_RT.cummax(0).values, 0)  # padding gets the first token
        kept_N, token_M = place_RT.flatten().unique(return_inverse=True)
        return _Grid(rows, positions, F.pad(kept_N, (0, -len(kept_N) % _MULTIPLE)), token_M)
    return _Grid(rows, positions, None if bool(real_RT.all()) else place_RT[real_RT])


class FastLlama:
    """A Llama in float32 on the CPU whose linear layers have been packed.

    Args:
        llm: the LLM, of one of `_CLASSES`. Its weights are not copied, except for those of queries, keys and values.
    """

    def __init__(self, llm: Any) -> None:
        config = llm.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        # Not the LLM, which refers to this object, so that it is freed as soon as it is no longer used.
        self.words, self.rotary, self.norm, self.head = (
            llm.model.embed_tokens,
            llm.model.rotary_emb,
            llm.model.norm,
            llm.lm_head,
        )
        self.eps = self.norm.variance_epsilon
        self.layers = [self._layer(layer) for layer in llm.model.layers]
        self._copied = [
            (projection, projection.packed)
            for layer in llm.model.layers
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        ]

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            layer.input_layernorm.weight,
            self._merged(attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj,
            layer.post_attention_layernorm.weight,
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
        )

    def _merged(self, query: PackedLinear, key: PackedLinear, value: PackedLinear) -> PackedLinear:
        """Return the layers as one. In each head of queries and keys, a pair to be rotated becomes adjacent."""
        order_D = torch.arange(self.width).view(2, -1).t().flatten()
        turned = (self.heads + self.key_heads) * self.width

        def joined(of_query: Tensor, of_key: Tensor, of_value: Tensor) -> Tensor:
            pairs = torch.cat([of_query, of_key]).unflatten(0, (-1, self.width))[:, order_D].flatten(0, 1)
            return torch.cat([pairs, of_value])

        with torch.no_grad():
            weight = joined(query.values(), key.values(), value.values())
            merged = nn.Linear(weight.shape[1], len(weight), bias=query.bias is not None, device="meta")
            merged.weight = nn.Parameter(weight, requires_grad=False)
            if query.bias is not None:
                assert key.bias is not None and value.bias is not None
                merged.bias = nn.Parameter(joined(query.bias, key.bias, value.bias), requires_grad=False)
        assert turned < len(weight)
        return PackedLinear(merged)

    def is_current(self) -> bool:
        """Return whether the weights that were copied are still those of the LLM."""
        return all(projection.packed is weight for projection, weight in self._copied)

    # -- what the callers need ---------------------------------------------------------------------------------------

    def read_prefix(self, embeds_RTW: Tensor) -> tuple[Tensor, KeyValues]:
        """Run the LLM on prefixes of equal length. Return the logits (R, V) after the last position, and the cache."""
        rows, length = embeds_RTW.shape[:2]
        shape = len(self.layers), 2, rows, self.key_heads, length + _ROOM, self.width
        cache = KeyValues(embeds_RTW.new_empty(shape))
        last_R = torch.arange(length - 1, rows * length, length)
        return self._logits(embeds_RTW, _grid_of(embeds_RTW), cache, last_R), cache

    def read_tokens(self, ids_RT: Tensor, cache: KeyValues, every_position: bool = False) -> Tensor:
        """Run the LLM on more tokens, and append their keys and values to the cache.

        Returns:
            the logits (R, V) after the last token or, with `every_position`, (R, T, V) after each token.
        """
        rows, length = ids_RT.shape
        wanted_n = None if every_position or length == 1 else torch.arange(length - 1, rows * length, length)
        logits = self._logits(self.words(ids_RT), _Grid(rows, length), cache, wanted_n)
        return logits.unflatten(0, (rows, length)) if every_position else logits

    def logits_at(self, embeds_RTW: Tensor, mask_RT: Tensor, wanted_RT: Tensor, constant: int = 0) -> Tensor:
        """Return the logits (n, V) after the wanted tokens, row by row.

        Args:
            embeds_RTW: the inputs.
            mask_RT: 1 at tokens, 0 at padding, which may only be at the end of a row.
            wanted_RT: true at the tokens whose logits are returned.
            constant: the number of positions at the beginning of each row that need no gradient.
        """
        wanted_n = (wanted_RT & mask_RT.bool()).flatten().nonzero().flatten()
        return self._logits(embeds_RTW, _grid_of(embeds_RTW, mask_RT, constant), None, wanted_n)

    # -- the layers --------------------------------------------------------------------------------------------------

    def _logits(self, x_RTW: Tensor, grid: _Grid, cache: KeyValues | None, place_n: Tensor | None) -> Tensor:
        """Return the logits (n, V) after the tokens at places of the flattened grid, or after all tokens if None."""
        start = 0 if cache is None else cache.length
        x_NW = grid.collect(x_RTW)
        wanted_n = None if place_n is None else grid.tokens_at(place_n)
        turn_N1F = self._turns(x_NW, grid, start)
        mask_PS = self._mask(grid.positions, start)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            read_NX = self._attention(layer, number, x_NW, grid, cache, turn_N1F, mask_PS, wanted_n if last else None)
            if last and wanted_n is not None:
                x_NW = x_NW[wanted_n]
            x_NW = layer.output.plus(read_NX, x_NW)
            normed_NW = rms_norm(x_NW, layer.mlp_norm, self.eps)
            x_NW = layer.down.plus(layer.up.times(normed_NW, layer.gate.silu(normed_NW)), x_NW)
        if cache is not None:
            cache.length += grid.positions
        return self.head(rms_norm(x_NW, self.norm.weight, self.eps))

    def _turns(self, x_NW: Tensor, grid: _Grid, start: int) -> Tensor:
        """Return the complex numbers (N, 1, F) by which the rotary embedding multiplies queries and keys."""
        positions_1T = torch.arange(start, start + grid.positions)[None]
        cos_1TD, sin_1TD = self.rotary(x_NW, position_ids=positions_1T)
        half = self.width // 2
        turn_TF = torch.complex(cos_1TD[0, :, :half].float(), sin_1TD[0, :, :half].float())
        turn_NF = turn_TF.repeat(grid.rows, 1) if grid.place_N is None else turn_TF[grid.place_N % grid.positions]
        return turn_NF[:, None]

    def _mask(self, positions: int, start: int) -> Tensor | None:
        """Return -inf (P, S) where a query must not read, or None if there is a single new position."""
        if positions == 1:
            return None
        ahead_TS = torch.ones(positions, start + positions, dtype=torch.bool).triu(start + 1)
        mask_TS = torch.zeros(ahead_TS.shape).masked_fill_(ahead_TS, -math.inf)
        return mask_TS.repeat(self.heads // self.key_heads, 1)

    def _attention(
        self,
        layer: _Layer,
        number: int,
        x_NW: Tensor,
        grid: _Grid,
        cache: KeyValues | None,
        turn_N1F: Tensor,
        mask_PS: Tensor | None,
        wanted_n: Tensor | None,
    ) -> Tensor:
        heads, key_heads, width = self.heads, self.key_heads, self.width
        turned = (heads + key_heads) * width
        qkv_NX = layer.qkv(rms_norm(x_NW, layer.norm, self.eps))
        pairs_NHF = torch.view_as_complex(qkv_NX[:, :turned].unflatten(1, (heads + key_heads, width // 2, 2)))
        qk_RTX = grid.spread(torch.view_as_real(pairs_NHF * turn_N1F).flatten(1))
        query_RTKGD = qk_RTX[..., : heads * width].unflatten(2, (key_heads, -1, width))
        key_RKTD = qk_RTX[..., heads * width :].unflatten(2, (key_heads, width)).transpose(1, 2)
        value_RKTD = grid.spread(qkv_NX[:, turned:]).unflatten(2, (key_heads, width)).transpose(1, 2)
        if cache is None:
            key_RKSD, value_RKSD = key_RKTD, value_RKTD
        else:
            key_RKSD, value_RKSD = cache.add(number, key_RKTD, value_RKTD)
        query_RKPD = query_RTKGD.permute(0, 2, 3, 1, 4).flatten(2, 3)
        read_RKPD = _attend(query_RKPD, key_RKSD, value_RKSD, mask_PS)
        read_RTX = read_RKPD.unflatten(2, (-1, grid.positions)).permute(0, 3, 1, 2, 4).flatten(2)
        return grid.collect(read_RTX, wanted_n)


def _attend(query_RKPD: Tensor, key_RKSD: Tensor, value_RKSD: Tensor, mask_PS: Tensor | None) -> Tensor:
    if mask_PS is None or mask_PS.shape[1] > _SHORT:
        return F.scaled_dot_product_attention(query_RKPD, key_RKSD, value_RKSD, mask_PS)
    query, key, value = (x.flatten(0, 1) for x in (query_RKPD, key_RKSD, value_RKSD))
    scores = torch.baddbmm(mask_PS, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), value).view_as(query_RKPD)


class _RmsNorm(torch.autograd.Function):
    """The norm with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x_NW: Tensor, weight_W: Tensor, eps: float) -> Tensor:
        scale_N1 = _inverse_rms(x_NW, eps)
        normed_NW = x_NW * scale_N1
        ctx.save_for_backward(normed_NW, scale_N1, weight_W)
        return normed_NW * weight_W

    @staticmethod
    def backward(ctx: Any, grad_NW: Tensor) -> tuple[Tensor, None, None]:
        normed_NW, scale_N1, weight_W = ctx.saved_tensors
        grad_NW = grad_NW * weight_W
        share_N1 = torch.linalg.vecdot(grad_NW, normed_NW)[:, None] / grad_NW.shape[1]
        return torch.addcmul(grad_NW, normed_NW, share_N1, value=-1).mul_(scale_N1), None, None


def _inverse_rms(x_NW: Tensor, eps: float) -> Tensor:
    norm_N1 = torch.linalg.vector_norm(x_NW, dim=-1, keepdim=True)
    return norm_N1.square_().div_(x_NW.shape[-1]).add_(eps).rsqrt_()


def rms_norm(x_NW: Tensor, weight_W: Tensor, eps: float) -> Tensor:
    """Return `x_NW` divided by its root mean square, times a frozen weight."""
    if torch.is_grad_enabled() and x_NW.requires_grad:
        return _RmsNorm.apply(x_NW, weight_W, eps)
    return x_NW * _inverse_rms(x_NW, eps) * weight_W


def make_fast(llm: nn.Module) -> bool:
    """Give an LLM with packed layers a `FastLlama`, and return whether it has one.

    The LLM must be a frozen Llama or Qwen2 in float32 on the CPU, without hooks or LoRA, whose hidden size is at most
    `_WIDEST`.
    """
    if not _is_supported(llm):
        return False
    fast = FastLlama(llm)
    try:
        agrees = _agrees(fast, llm)
    except (AttributeError, RuntimeError):  # an operator that this PyTorch does not have
        agrees = False
    if not agrees:
        logger.info(f"{type(llm).__name__} is run by transformers, because the faster way gives other values")
        return False
    vars(llm)["osm_fast"] = fast
    return True


def fast_llama(llm: nn.Module, embeds_RTW: Tensor | None = None) -> FastLlama | None:
    """Return the LLM's `FastLlama`, or None if there is none or it cannot run on these inputs."""
    fast: FastLlama | None = vars(llm).get("osm_fast")
    if embeds_RTW is None or fast is None:
        return fast
    possible = embeds_RTW.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return fast if possible and fast.is_current() else None


def ends_padded(mask_RT: Tensor) -> bool:
    """Return whether all padding is at the end of its row, and every row has a token."""
    return bool((mask_RT[:, 1:] <= mask_RT[:, :-1]).all() and mask_RT[:, 0].all())


def _is_supported(llm: Any) -> bool:
    if type(llm).__name__ not in _CLASSES or llm.config.hidden_size > _WIDEST:
        return False
    if llm.config.hidden_act != "silu" or getattr(llm.config, "use_sliding_window", False):
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in llm.modules()):
        return False
    if any(parameter.requires_grad for parameter in llm.parameters()):
        return False
    names = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    return all(isinstance(layer.get_submodule(name), PackedLinear) for layer in llm.model.layers for name in names)


@torch.inference_mode()
def _agrees(fast: FastLlama, llm: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    words = llm.model.embed_tokens.weight
    embeds_RTW = words.std() * torch.randn(2, 5, words.shape[1], generator=generator)
    embeds_RTW[1, :2] = embeds_RTW[0, :2]  # positions that are shared
    ids_RT = torch.randint(len(words), (2, 3), generator=generator)
    all_RTW = torch.cat([embeds_RTW, llm.model.embed_tokens(ids_RT)], 1)
    expected_RTV = llm(inputs_embeds=all_RTW, use_cache=False).logits[:, 4:]
    first_RV, cache = fast.read_prefix(embeds_RTW)
    more = [fast.read_tokens(part_RT, cache, every_position=True) for part_RT in (ids_RT[:, :2], ids_RT[:, 2:])]
    found_RTV = torch.cat([first_RV[:, None], *more], 1)
    return bool((found_RTV - expected_RTV).abs().max() <= _CLOSE * expected_RTV.abs().max())
