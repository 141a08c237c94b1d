"""Builds the tower and the bridge of a model from an InstructBLIP model.

Shapes: W windows of side w, T = 1 + G tokens (class token, patches), C width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from osm.errors import OsmError
from osm.models.bridges import BRIDGES
from osm.models.bridges.bridge import Bridge
from osm.models.model_config import ModelConfig, TowerConfig
from osm.models.towers.tower import Tower


@dataclass(frozen=True)
class InstructBlipTowerConfig(TowerConfig):
    """Config of the `instructblip` tower, the ViT of `model.base_model_name`. This tower has no settings of its own."""

    kind: str = field(default="instructblip", kw_only=True)

    def check_model(self, model: ModelConfig) -> None:
        if not model.base_model_name:
            raise OsmError("model.tower.kind 'instructblip' requires a base model; set model.base_model_name")


class InstructBlipTower(Tower):
    """InstructBLIP's ViT at its native window size, with its final layer norm."""

    Config = InstructBlipTowerConfig

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.vision_model = vision_model
        config = vision_model.config
        self.patch, self.width, self.class_tokens = config.patch_size, config.hidden_size, 1
        self.window = config.image_size

    @classmethod
    def of(cls, config: TowerConfig, window: int) -> Tower:
        raise OsmError(
            "model.tower.kind 'instructblip' can only be built as part of a base model; set model.base_model_name"
        )

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        tokens_WTC = self.vision_model(pixel_values=windows_W3ww).last_hidden_state
        return tokens_WTC[:, :1], tokens_WTC[:, 1:]


def take_apart(base_model: nn.Module, config: ModelConfig) -> tuple[InstructBlipTower, Bridge, ModelConfig]:
    """Build a tower and a bridge from a `transformers.InstructBlipForConditionalGeneration` of any size.

    Returns:
        (tower, bridge, config). In the returned config, the bridge's sizes are the sizes of the base model.

    Raises:
        OsmError: the base model is not an InstructBLIP with a decoder-only LLM, or does not suit the bridge.
    """
    base: Any = base_model
    for part in ("vision_model", "qformer", "language_projection", "language_model", "query_tokens"):
        if not hasattr(base, part):
            raise OsmError(f"base_model is not an InstructBLIP model: {type(base).__name__} has no {part}")
    if not base.config.use_decoder_only_language_model:
        raise OsmError("base_model has an encoder-decoder LLM (Flan-T5); expected a decoder-only LLM (Vicuna)")
    tower = InstructBlipTower(base.vision_model)
    kind: type[Bridge] = BRIDGES.get(config.bridge.kind)
    bridge = kind.of_instructblip(config, tower, base)
    return tower, bridge, replace(config, bridge=bridge.config)
