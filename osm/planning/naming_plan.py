"""Plans the naming of masks: memory and names per second of one GPU."""

from __future__ import annotations

from dataclasses import dataclass

from osm.errors import OsmError
from osm.models.model_config import ModelConfig
from osm.planning.gpus import Gpu
from osm.planning.simulate import ANSWER_TOKENS, NamingCost, simulate_naming


@dataclass(frozen=True)
class NamingPlan:
    """The compute and memory that are needed to name the masks of a batch of images.

    Attributes:
        gpu: the GPU.
        mfu: the share of the peak FLOP/s that is assumed to be reached.
        images: images that are named together (`--batch` of generate_pred.py).
        masks: masks per image.
        modes: modes in which each mask is named.
        cost: the simulated cost.
    """

    gpu: Gpu
    mfu: float
    images: int
    masks: int
    modes: int
    cost: NamingCost

    @property
    def fits(self) -> bool:
        return self.cost.peak <= self.gpu.usable

    @property
    def flops(self) -> float:
        """FLOPs of the batch."""
        of_mask = self.cost.mask_flops + self.modes * self.cost.row_flops
        return self.images * (self.cost.tower_flops + self.masks * of_mask)

    @property
    def floor_seconds(self) -> float:
        """The shortest possible time of a batch: its FLOPs at the peak, or the LLM's weights read for each token."""
        return max(self.flops / (self.gpu.tflops * 1e12), self._read_seconds)

    @property
    def _read_seconds(self) -> float:
        return ANSWER_TOKENS * self.cost.llm_bytes / (self.gpu.gb_per_s * 1e9)

    @property
    def names_per_second(self) -> float:
        """Names per second of one GPU, if products reach the assumed MFU and each token waits for the weights."""
        seconds = self.flops / (self.gpu.tflops * 1e12 * self.mfu) + self._read_seconds
        return self.images * self.masks * self.modes / seconds


def plan_naming(config: ModelConfig, gpu: Gpu, mfu: float, images: int, masks: int, modes: int = 2) -> NamingPlan:
    """Simulate how a batch of images is named.

    Raises:
        OsmError: a number is less than 1, or the model cannot be built without weights.
    """
    for flag, value in (("batch", images), ("masks", masks), ("modes", modes)):
        if not 1 <= value <= 10_000:
            raise OsmError(f"--{flag} {value} is not between 1 and 10000")
    return NamingPlan(gpu, mfu, images, masks, modes, simulate_naming(config, images, masks, modes, gpu=True))
