"""A vision tower without pretrained weights: each patch becomes the mean and the spread of its colours.

Shapes: W windows of side w, G patches of q pixels each, C width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from osm.models.model_config import TowerConfig, check_sizes
from osm.models.towers.tower import Tower


@dataclass(frozen=True)
class ColourStatisticsConfig(TowerConfig):
    """Patches of `patch` pixels, tokens of `width` values."""

    patch: int = 14
    width: int = 32

    def __post_init__(self) -> None:
        check_sizes(self, "patch width")


class ColourStatisticsTower(Tower):
    Config = ColourStatisticsConfig

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch, self.width, self.class_tokens = patch, width, 0
        self.projection = nn.Linear(6, width)
        with torch.no_grad():  # the same values in every process
            self.projection.weight.copy_(torch.linspace(-1, 1, 6 * width).sin().reshape(width, 6))
            self.projection.bias.zero_()

    @classmethod
    def of(cls, config: ColourStatisticsConfig, window: int) -> "ColourStatisticsTower":
        return cls(config.patch, config.width)

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        p = self.patch
        cells_W3Gq = windows_W3ww.unfold(2, p, p).unfold(3, p, p).flatten(2, 3).flatten(3)
        statistics_W6G = torch.cat([cells_W3Gq.mean(3), cells_W3Gq.std(3)], 1)
        patches_WGC = self.projection(statistics_W6G.transpose(1, 2))
        return patches_WGC[:, :0], patches_WGC
