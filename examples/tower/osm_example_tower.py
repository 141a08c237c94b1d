"""A vision tower without pretrained weights: each patch becomes the mean and the spread of its colours."""

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

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        cells = windows.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch).flatten(2, 3).flatten(3)
        statistics = torch.cat([cells.mean(3), cells.std(3)], 1)  # (W, 6, patches)
        patches = self.projection(statistics.transpose(1, 2))
        return patches[:, :0], patches
