"""The parts of an InstructBLIP: its ViT, its LLM, and for `maskqformer` its Q-Former as the bridge's start."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from osm.config import ModelConfig, QFormerConfig
from osm.errors import OsmError
from osm.models.bridges.bridge import Bridge
from osm.models.bridges.maskqformer import MaskQFormerBridge
from osm.models.bridges.variants import BRIDGES
from osm.models.checkpoint import without_ignored
from osm.models.towers.tower import InstructBlipTower


def take_apart(base_model: nn.Module, config: ModelConfig) -> tuple[InstructBlipTower, Bridge, ModelConfig]:
    """The tower and a bridge of a `transformers.InstructBlipForConditionalGeneration` of any size.

    Returns:
        with them the config, in which the Q-Former's sizes are the base's own.

    Raises:
        OsmError: a base model of another kind.
    """
    for part in ("vision_model", "qformer", "language_projection", "language_model", "query_tokens"):
        if not hasattr(base_model, part):
            raise OsmError(f"base_model is a {type(base_model).__name__} without {part}: no InstructBLIP model")
    if not base_model.config.use_decoder_only_language_model:
        raise OsmError("base_model has an encoder-decoder LLM (Flan-T5); a decoder-only one (Vicuna) is needed")
    tower = InstructBlipTower(base_model.vision_model)
    if config.variant != "maskqformer":  # the only one that InstructBLIP has weights for
        vocabulary = base_model.config.qformer_config.vocab_size
        return tower, BRIDGES[config.variant].of(config, tower, base_model.language_model, vocabulary), config
    config = replace(config, qformer=_sizes(base_model, config))
    return tower, _maskqformer(base_model, config, tower), config


def _sizes(base_model: nn.Module, config: ModelConfig) -> QFormerConfig:
    base = base_model.config.qformer_config
    if base.hidden_act != "gelu":
        raise OsmError(f"base_model's Q-Former uses {base.hidden_act!r}, not 'gelu'")
    return QFormerConfig(
        layers=base.num_hidden_layers,
        width=base.hidden_size,
        heads=base.num_attention_heads,
        mlp_width=base.intermediate_size,
        cross_attention_frequency=base.cross_attention_frequency,
        mask_queries=base_model.query_tokens.shape[1],
        context_queries=base_model.query_tokens.shape[1],
        dropout=config.qformer.dropout,
    )


def _maskqformer(base_model: nn.Module, config: ModelConfig, tower: InstructBlipTower) -> MaskQFormerBridge:
    base = base_model.config.qformer_config
    bridge = MaskQFormerBridge(
        config.qformer,
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
