"""The `maskqformer` bridge: queries that attend to the image inside and around a mask (paper, section 3.3).

Each layer is a Q-Former layer from InstructBLIP, extended to handle many masks per image. Keys and values are computed
once per image and shared by the queries of all its masks. Parameters have the same names as in InstructBLIP's Q-Former,
so that InstructBLIP's weights and the published checkpoints can be loaded by name.

Shapes: N images, R rows (masks), S input size, L image tokens, Q = mask + context + 1 mode queries, M mask queries, T
instruction tokens, U = Q + T, C Q-Former width (in `tokens_NLC` the tower width), I inner width of a block, H heads, D
= C / H, W LLM width, V visible keys. In attention, B is the batch size (R rows or N images), P the number of positions
and J the number of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.config import FieldError
from osm.errors import OsmError, shown
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
from osm.models.bridges.direct import DirectKeys, DirectPath, DirectPathConfig
from osm.models.bridges.gated import LayerKV
from osm.models.bridges.pooling import region_features
from osm.models.bridges.row_groups import RowGroups
from osm.models.checkpoint import without_ignored
from osm.models.masks import VisibleKeys, visible_keys
from osm.models.model_config import (
    LARGEST,
    ModelConfig,
    check_dropout,
    check_heads,
    check_layers,
    check_sizes,
)
from osm.models.packed_linear import PackedLinear
from osm.models.towers.tower import Tower

_BASE_PARTS = ("qformer.", "language_projection.")  # parts with the prefix `base_model.` in published checkpoints


@dataclass(frozen=True)
class QFormerConfig(DirectPathConfig):
    """Settings for the `maskqformer` bridge.

    If the model has an InstructBLIP base model, all settings except `dropout` are taken from that base model.

    Attributes:
        layers: the number of layers.
        width: the width of the queries and of the instruction's tokens.
        heads: the number of attention heads in each layer.
        mlp_width: the width of the feed-forwards.
        cross_attention_frequency: every n-th layer has cross-attention to the image, beginning with the first.
        mask_queries: the number of queries that attend to the mask. The LLM reads the outputs of these queries.
        context_queries: the number of queries that attend to the context of the mask.
        dropout: the dropout in all layers.
        instruction_dim: a value above 0 factorizes the instruction's word embedding into (vocabulary x dim) and
            (dim x width). The bridge then stays small even if the instruction is encoded with the large vocabulary of
            an LLM.
        direct_first: whether the tokens of the direct path come before the outputs of the queries instead of after
            them. Without `direct_mode_names`, they do not depend on the mode. When it names masks, a small LLM on a CPU
            (`osm.models.fast_llama`) then computes these positions once for all modes of a mask.
    """

    kind: str = field(default="maskqformer", kw_only=True)
    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    cross_attention_frequency: int = 2
    mask_queries: int = 32
    context_queries: int = 32
    dropout: float = 0.1
    instruction_dim: int = 0
    direct_first: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "layers width heads mlp_width cross_attention_frequency mask_queries context_queries")
        check_layers(self)
        check_dropout(self)
        self.check_direct()
        if self.direct_first and not self.direct_tokens:
            raise FieldError(
                "direct_first true needs direct_tokens of 1 or more; set direct_tokens, or set direct_first to false"
            )
        if not 0 <= self.instruction_dim <= LARGEST:
            raise FieldError(f"instruction_dim {shown(self.instruction_dim)} is not 0 to {LARGEST}")
        check_heads(self, "width", "heads")

    def least_parameters(self) -> int:
        crossed = -(-self.layers // self.cross_attention_frequency)
        queries = self.mask_queries + self.context_queries
        own = self.width * (self.layers * 4 * (self.width + self.mlp_width) + crossed * 2 * self.width + queries)
        return own + super().least_parameters()

    def layer_count(self) -> int:
        return self.layers


@dataclass
class VisibleKeyIndices:
    """A group of adjacent batch rows that attend to the same image keys.

    Attributes:
        image: the index of the image.
        rows: the rows.
        by_mask_V: the indices of the keys that the mask queries attend to.
        by_context_V: the indices of the keys that the context and mode queries attend to.
    """

    image: int
    rows: slice
    by_mask_V: Tensor
    by_context_V: Tensor


def visible_key_indices(keys: VisibleKeys, image_index: Sequence[int]) -> list[VisibleKeyIndices]:
    """Convert the visible keys to indices.

    Adjacent rows with the same visible keys, such as the rows of one mask in several modes, share one
    `VisibleKeyIndices`.
    """
    found: list[VisibleKeyIndices] = []
    for row, image in enumerate(image_index):
        last = found[-1] if found else None
        if last is not None and last.image == image and _same(keys, row - 1, row):
            last.rows = slice(last.rows.start, row + 1)
        else:
            by_mask_V, by_context_V = (
                visible_RL[row].nonzero().flatten() for visible_RL in (keys.mask_RL, keys.context_RL)
            )
            found.append(VisibleKeyIndices(image, slice(row, row + 1), by_mask_V, by_context_V))
    return found


def _same(keys: VisibleKeys, one: int, other: int) -> bool:
    return all(torch.equal(visible_RL[one], visible_RL[other]) for visible_RL in (keys.mask_RL, keys.context_RL))


class _Projections(nn.Module):
    def __init__(self, width: int, key_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(key_width, width),
            nn.Linear(key_width, width),
        )
        self.heads, self.dropout = heads, dropout

    def _split(self, x_BPC: Tensor) -> Tensor:
        return x_BPC.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, tokens_BJC: Tensor) -> LayerKV:
        return self._split(self.key(tokens_BJC)), self._split(self.value(tokens_BJC))

    def attend(self, x_BPC: Tensor, keys_values: LayerKV, visible_B1PJ: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        read_BHPD = F.scaled_dot_product_attention(self._split(self.query(x_BPC)), *keys_values, visible_B1PJ, dropout)
        return read_BHPD.transpose(1, 2).flatten(2)

    def attend_to_visible(
        self, queries_RQC: Tensor, keys_values: LayerKV, visible: Sequence[VisibleKeyIndices], mask_queries: int
    ) -> Tensor:
        """Compute `attend` on the visible keys only, because most masks can attend to just a few image keys."""
        query_RHQD = self._split(self.query(queries_RQC))
        out_RHQD = torch.empty_like(query_RHQD)
        for group in visible:
            key_HLD, value_HLD = (part[group.image] for part in keys_values)
            halves = (slice(0, mask_queries), group.by_mask_V), (slice(mask_queries, None), group.by_context_V)
            for places, index_V in halves:
                # All rows of a group attend to the same keys, so their queries are concatenated.
                some_HRQD = query_RHQD[group.rows, :, places].transpose(0, 1)
                read_1HPD = F.scaled_dot_product_attention(
                    some_HRQD.flatten(1, 2)[None], key_HLD[:, index_V][None], value_HLD[:, index_V][None]
                )
                out_RHQD[group.rows, :, places] = read_1HPD[0].unflatten(1, some_HRQD.shape[1:3]).transpose(0, 1)
        return out_RHQD.transpose(1, 2).flatten(2)


class _Residual(nn.Module):
    """The output half of a BERT block: dense, dropout, then LayerNorm(x + residual)."""

    def __init__(self, inner: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BPI: Tensor, residual_BPC: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x_BPI)) + residual_BPC)


class _Attention(nn.Module):
    def __init__(self, config: QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.attention = _Projections(config.width, key_width, config.heads, config.dropout)
        self.output = _Residual(config.width, config.width, config.dropout)


class _Intermediate(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, inner)

    def forward(self, x_BPC: Tensor) -> Tensor:
        dense = self.dense
        return dense.gelu(x_BPC) if isinstance(dense, PackedLinear) else F.gelu(dense(x_BPC))


class MaskQFormerLayer(nn.Module):
    """A Q-Former layer: self-attention, masked cross-attention for the queries, and two feed-forward networks.

    Queries and instruction tokens share the self-attention, but have separate feed-forward networks.
    """

    def __init__(self, config: QFormerConfig, key_width: int, index: int) -> None:
        super().__init__()
        self.attention = _Attention(config, config.width)
        self.has_cross_attention = index % config.cross_attention_frequency == 0
        if self.has_cross_attention:
            self.crossattention = _Attention(config, key_width)
        # The last layer does not use its text feed-forward network, but checkpoints contain that network's weights.
        self.reads_text = index < config.layers - 1
        self.intermediate = _Intermediate(config.width, config.mlp_width)
        self.output = _Residual(config.mlp_width, config.width, config.dropout)
        self.intermediate_query = _Intermediate(config.width, config.mlp_width)
        self.output_query = _Residual(config.mlp_width, config.width, config.dropout)
        if not self.reads_text:
            self.intermediate.requires_grad_(False)
            self.output.requires_grad_(False)

    def forward(
        self,
        x_RUC: Tensor,
        queries: int,
        self_visible_R11U: Tensor | None,
        image_kv: LayerKV | None,
        image_visible: Tensor | Sequence[VisibleKeyIndices],
        groups: RowGroups,
        mask_queries: int,
        last: bool = False,
    ) -> Tensor:
        """Return the outputs of all positions, or only those of the mask queries if this is the last layer."""
        block = self.attention
        keys_values, read_RPC = block.attention.keys_values(x_RUC), x_RUC
        if last and image_kv is None:
            queries, read_RPC = mask_queries, x_RUC[:, :mask_queries]
        x_RUC = block.output(block.attention.attend(read_RPC, keys_values, self_visible_R11U), read_RPC)
        query_RQC, text_RTC = x_RUC[:, :queries], x_RUC[:, queries:]
        if image_kv is not None:
            block = self.crossattention
            if isinstance(image_visible, Tensor):
                read_RQC = groups.unpack(block.attention.attend(groups.pack(query_RQC), image_kv, image_visible))
            else:
                read_RQC = block.attention.attend_to_visible(query_RQC, image_kv, image_visible, mask_queries)
            query_RQC = block.output(read_RQC, query_RQC)
        query_RQC = self.output_query(self.intermediate_query(query_RQC), query_RQC)
        if self.reads_text and text_RTC.shape[1]:
            text_RTC = self.output(self.intermediate(text_RTC), text_RTC)
        return torch.cat([query_RQC, text_RTC], 1)


class _Embeddings(nn.Module):
    def __init__(self, config: QFormerConfig, vocabulary: int, positions: int) -> None:
        super().__init__()
        dim = config.instruction_dim or config.width
        self.word_embeddings = nn.Embedding(vocabulary, dim)
        if config.instruction_dim:
            self.word_projection = nn.Linear(dim, config.width, bias=False)
        self.factorised = bool(config.instruction_dim)
        self.position_embeddings = nn.Embedding(positions, config.width)
        self.layernorm, self.dropout = nn.LayerNorm(config.width, eps=1e-12), nn.Dropout(config.dropout)

    def forward(self, queries_RQC: Tensor, ids_RT: Tensor) -> Tensor:
        words_RTC = self.word_embeddings(ids_RT)
        if self.factorised:
            words_RTC = self.word_projection(words_RTC)
        words_RTC = words_RTC + self.position_embeddings.weight[: ids_RT.shape[1]]
        return self.dropout(self.layernorm(torch.cat([queries_RQC, words_RTC], 1)))


class _Encoder(nn.Module):
    def __init__(self, layers: list[MaskQFormerLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def layers(self) -> list[MaskQFormerLayer]:
        return cast(list[MaskQFormerLayer], list(self.layer))


class MaskQFormer(nn.Module):
    """The MaskQ-Former's transformer, which maps queries and an instruction to output queries."""

    def __init__(self, config: QFormerConfig, key_width: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config, vocabulary, positions)
        self.encoder = _Encoder([MaskQFormerLayer(config, key_width, i) for i in range(config.layers)])

    def image_keys_values(self, tokens_NLC: Tensor) -> list[LayerKV | None]:
        """Return the images' keys and values for each layer, or None for a layer without cross-attention."""
        return [
            layer.crossattention.attention.keys_values(tokens_NLC) if layer.has_cross_attention else None
            for layer in self.encoder.layers()
        ]

    def forward(
        self,
        queries_RQC: Tensor,
        ids_RT: Tensor,
        text_mask_RT: Tensor,
        image_kv: list[LayerKV | None],
        visible: Tensor | Sequence[VisibleKeyIndices],
        groups: RowGroups,
        mask_queries: int,
    ) -> Tensor:
        """Return the outputs of the mask queries (R, M, C).

        Args:
            queries_RQC: mask queries, context queries, then the mode's query.
            ids_RT: the token ids of the instruction.
            text_mask_RT: true for tokens, false for padding.
            image_kv: the images' keys and values for each layer.
            visible: bool (R, Q, L), true for visible keys; or the indices of the visible keys.
            groups: the rows of each image.
            mask_queries: the number of mask queries.
        """
        count = queries_RQC.shape[1]
        if ids_RT.shape[1] > self.embeddings.position_embeddings.num_embeddings:
            raise OsmError(
                f"the instruction has {ids_RT.shape[1]} tokens, but the Q-Former supports at most "
                f"{self.embeddings.position_embeddings.num_embeddings}"
            )
        x_RUC = self.embeddings(queries_RQC, ids_RT)
        text_visible_RT = text_mask_RT.bool()
        self_visible_R11U = torch.cat([text_visible_RT.new_ones(len(x_RUC), count), text_visible_RT], 1)[:, None, None]
        # Unused query slots attend to all keys, because a softmax over zero keys would be NaN, as would its gradient.
        image_visible = groups.pack(visible, fill=True)[:, None] if isinstance(visible, Tensor) else visible
        # Training computes all outputs of the last layer, so that its results do not depend on this shortcut.
        layers, shorter = self.encoder.layers(), not torch.is_grad_enabled()
        seen_R11U = None if shorter and x_RUC.is_cpu and text_visible_RT.all() else self_visible_R11U
        for layer, kv in zip(layers, image_kv, strict=True):
            last = shorter and layer is layers[-1]
            x_RUC = layer(x_RUC, count, seen_R11U, kv, image_visible, groups, mask_queries, last)
        return x_RUC[:, :mask_queries]


class MaskQFormerBridge(Bridge):
    """The `maskqformer` bridge, which maps image tokens, masks, instructions and modes to a prefix for the LLM's input.

    Args:
        config: the sizes of the bridge.
        modes: the answer styles. Each mode has a query in the Q-Former and an embedding in the prefix.
        token_width: the width of the tower's tokens.
        llm_width: the width of the LLM's word embeddings.
        vocabulary: the size of the instruction tokenizer's vocabulary.
        positions: the largest supported number of instruction tokens.
    """

    Config = QFormerConfig
    config: QFormerConfig

    def __init__(
        self,
        config: QFormerConfig,
        modes: Sequence[str],
        token_width: int,
        llm_width: int,
        vocabulary: int,
        positions: int = 512,
    ) -> None:
        super().__init__()
        self.config = config
        self.mask_query = nn.Parameter(torch.empty(1, config.mask_queries, config.width))
        self.context_query = nn.Parameter(torch.empty(1, config.context_queries, config.width))
        check_names(modes)
        self.qformer_mode_query = nn.ParameterDict({m: nn.Parameter(torch.empty(1, 1, config.width)) for m in modes})
        self.mode_query = nn.ParameterDict({m: nn.Parameter(torch.empty(1, 1, llm_width)) for m in modes})
        self.qformer = MaskQFormer(config, token_width, vocabulary, positions)
        self.language_projection = nn.Linear(config.width, llm_width)
        if config.direct_tokens:
            self.direct = DirectPath(config, token_width, llm_width, config.dropout)
        self.prefix_length = config.mask_queries + config.direct_tokens + 1  # the mode's embedding comes last
        self.reset_parameters()

    @classmethod
    def of(cls, config: ModelConfig, tower: Tower, llm: Any, vocabulary: int) -> Self:
        words = llm.get_input_embeddings()
        bridge = cls(_sizes(config), config.modes, tower.width, words.embedding_dim, vocabulary)
        # This is also done if a checkpoint replaces the values: before that, `osm.models.self_check` computes finite
        # differences, which are wrong if the prefix causes massive activations.
        bridge.match_embeddings(words)
        return bridge

    @classmethod
    def of_instructblip(cls, config: ModelConfig, tower: Tower, base_model: Any) -> Self:
        """Build a bridge with the sizes and weights of the Q-Former in an InstructBLIP model.

        The mask queries and the context queries are both initialized from the base model's queries.
        """
        base, queries = base_model.config.qformer_config, base_model.query_tokens.shape[1]
        if base.hidden_act != "gelu":
            raise OsmError(f"base_model: the Q-Former's activation is {base.hidden_act!r}; expected 'gelu'")
        bridge = cls(
            replace(
                _sizes(config),
                layers=base.num_hidden_layers,
                width=base.hidden_size,
                heads=base.num_attention_heads,
                mlp_width=base.intermediate_size,
                cross_attention_frequency=base.cross_attention_frequency,
                mask_queries=queries,
                context_queries=queries,
                instruction_dim=0,
            ),
            config.modes,
            token_width=tower.width,
            llm_width=base_model.language_model.get_input_embeddings().embedding_dim,
            vocabulary=base.vocab_size,
            positions=base.max_position_embeddings,
        )
        bridge.qformer.load_state_dict(without_ignored(base_model.qformer.state_dict()))
        for module in bridge.qformer.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = base.layer_norm_eps
        bridge.language_projection.load_state_dict(base_model.language_projection.state_dict())
        with torch.no_grad():
            bridge.mask_query.copy_(base_model.query_tokens)
            bridge.context_query.copy_(base_model.query_tokens)
        return bridge

    @classmethod
    def blank(cls, config: ModelConfig, size: Callable[[str, int, int], int]) -> Self:
        embeddings = "base_model.qformer.embeddings"
        return cls(
            _sizes(config),
            config.modes,
            token_width=size("window_pos_embed", 3, -1),
            llm_width=size("base_model.language_projection.weight", 2, 0),
            vocabulary=size(f"{embeddings}.word_embeddings.weight", 2, 0),
            positions=size(f"{embeddings}.position_embeddings.weight", 2, 0),
        )

    def reset_parameters(self) -> None:
        """Initialize embeddings from a truncated normal distribution (std 0.02), and matrices with Xavier uniform."""
        modes = (*self.qformer_mode_query.values(), *self.mode_query.values())
        initialize(self, (self.mask_query, self.context_query, *modes))
        if self.config.direct_tokens:
            self.direct.reset(0.02)

    @torch.no_grad()
    def match_embeddings(self, embeddings: nn.Embedding) -> None:
        """Initialize the prefix with the mean and standard deviation of the LLM's embeddings (`start_modes`)."""
        found = embedding_statistics(embeddings)
        if found is None:
            return
        mean_W, spread = found
        nn.init.normal_(self.language_projection.weight, std=spread * self.config.width**-0.5)
        self.language_projection.bias.copy_(mean_W)
        if self.config.direct_tokens:
            self.direct.match(mean_W, spread)
        start_modes(self.mode_query, mean_W)

    def match_names(self, embeddings: nn.Embedding, ids: Sequence[Sequence[int]]) -> None:
        if self.config.direct_tokens:
            self.direct.match_names(embeddings, ids)

    def mask_features(self, mask_R1SS: Tensor, context_R1SS: Tensor, patch: int, prefix: int, how: str) -> VisibleKeys:
        keys = visible_keys(mask_R1SS, context_R1SS, patch, prefix, how)
        if not self.config.direct_tokens:
            return keys
        regions = region_features(mask_R1SS, context_R1SS, patch)
        return DirectKeys(**vars(regions) | vars(keys))

    def image_state(self, tokens_NLC: Tensor) -> ImageState:
        tokens_NLC = tokens_NLC.to(self.mask_query.dtype)
        image_kv = self.qformer.image_keys_values(tokens_NLC)
        return [*image_kv, (tokens_NLC, tokens_NLC.mean(1))] if self.config.direct_tokens else list(image_kv)

    def forward(
        self,
        state: ImageState,
        image_index_R: Tensor,
        features: VisibleKeys,
        instruction: Instruction,
        modes: Sequence[str],
    ) -> Condition:
        """Return the prefix (R, prefix_length, W): the projected mask queries, the direct tokens, the mode's embedding.

        With `direct_first`, the direct tokens come first.

        Args:
            state: the images' keys and values for each layer, from `image_state`. With a direct path, the images'
                tokens come last.
            image_index_R: the index of each row's image.
            features: the visible keys of each row.
            instruction: the instruction of each row.
            modes: the mode of each row.
        """
        keys, rows, config = features, len(features), self.config
        image_kv = cast(list[LayerKV | None], state[: config.layers])
        images = next(kv[0].shape[0] for kv in image_kv if kv is not None)
        queries_RQC = torch.cat(
            [
                self.mask_query.expand(rows, -1, -1),
                self.context_query.expand(rows, -1, -1),
                lookup(self.qformer_mode_query, modes),
            ],
            1,
        )
        groups = RowGroups(image_index_R, images)
        visible: Tensor | list[VisibleKeyIndices]
        if queries_RQC.device.type == "cpu" and not torch.is_grad_enabled():
            visible = visible_key_indices(keys, image_index_R.tolist())
        else:  # one dense attention is faster on a GPU, and training needs the gradient of the dense attention
            visible = torch.cat(
                [
                    keys.mask_RL[:, None].expand(-1, config.mask_queries, -1),
                    keys.context_RL[:, None].expand(-1, config.context_queries + 1, -1),
                ],
                1,
            )
        out_RMC = self.qformer(
            queries_RQC, instruction.ids_RT, instruction.mask_RT, image_kv, visible, groups, config.mask_queries
        )
        prefix_RMW = self.language_projection(out_RMC)
        prefix, logits_RK, allowed = [prefix_RMW, lookup(self.mode_query, modes)], None, None
        if config.direct_tokens:
            assert state[-1] is not None and isinstance(features, DirectKeys)
            tokens_NLC, mean_NC = state[-1]
            allowed = self.direct.allowed(modes, instruction.allowed_K)
            direct_RDW, logits_RK = self.direct.once_per_mask(tokens_NLC, mean_NC, image_index_R, features, allowed)
            prefix.insert(0 if config.direct_first else 1, direct_RDW)
        return Condition(torch.cat(prefix, 1), name_logits_RK=logits_RK, allowed=allowed)

    def layers(self) -> list[nn.Module]:
        return list(self.qformer.encoder.layer)

    def recompute(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        super().recompute(wrap)
        # Under autocast, each key and value layer would keep its own half-precision copy of the image tokens.
        for layer in self.qformer.encoder.layers():
            if layer.has_cross_attention:
                projections: Any = layer.crossattention.attention
                projections.keys_values = wrap(projections.keys_values)

    @staticmethod
    def published_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a model's tensors, keyed by their names in published checkpoints.

        The tensor `context_query` is also returned under the name `base_model.query_tokens`.
        """
        state = {}
        for key, value in Bridge.published_names(named).items():
            state[f"base_model.{key}" if key.startswith(_BASE_PARTS) else key] = value
        if "context_query" in state:  # if missing, the checkpoint is for a different bridge; a later check reports it
            state["base_model.query_tokens"] = state["context_query"]
        return state


def _sizes(config: ModelConfig) -> QFormerConfig:
    assert isinstance(config.bridge, QFormerConfig)
    return config.bridge
