"""The figures of a log line: losses of each group of rows, names, times, FLOP/s and memory."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from osm.models.losses import reduce_losses
from osm.training.distributed import World

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Dense bf16 / fp16 TFLOP/s of a device, from the manufacturers' data sheets.
PEAK_TFLOPS = {"H100 80GB HBM3": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H200": 989.0, "A100": 312.0}
PEAK_TFLOPS |= {"L40S": 362.0, "L40": 181.0, "L4": 121.0, "A10G": 70.0, "A10": 125.0, "V100": 125.0}


def peak_flops(device: torch.device, precision: str, given: float) -> float:
    """Return the peak FLOP/s of one device at a precision; 0 if it is not known.

    Args:
        given: the value of `--peak_tflops`, which takes precedence; 0 if it is not given.
    """
    if given:
        return given * 1e12
    if device.type != "cuda" or precision == "fp32":
        return 0.0
    name = torch.cuda.get_device_name(device)
    # Longest name first, because "L4" is also a part of "L40S".
    found = [peak for key, peak in sorted(PEAK_TFLOPS.items(), key=lambda item: -len(item[0])) if key in name]
    return found[0] * 1e12 if found else 0.0


def memory_gib(device: torch.device) -> float:
    """Return the peak memory of this process in GiB: GPU memory on a GPU, otherwise main memory; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass
class Interval:
    """The figures of a meter.

    Attributes:
        loss: mean loss of a step.
        halves: mean cross entropy per token of each group; nan if a group had no tokens.
        names: number of masks that were trained on, over all ranks.
        steps: number of optimizer steps.
        seconds, data_seconds: time of this process in total, and waiting for data.
    """

    loss: float
    halves: list[float]
    names: int
    steps: float
    seconds: float
    data_seconds: float

    def record(self, groups: list[tuple[str, str]]) -> dict[str, Any]:
        """Return the figures as entries of the log; see `MixLoss.groups`."""
        found = zip(groups, self.halves, strict=True)
        return {
            "loss": self.loss,
            **{f"loss/{name}/{half}": value for (name, half), value in found if not math.isnan(value)},
            "names_per_second": self.names / max(self.seconds, 1e-9),
            "seconds_per_step": self.seconds / max(self.steps, 1e-9),
            "data_share": self.data_seconds / max(self.seconds, 1e-9),
        }


class Meter:
    """Sums losses, tokens and rows since the last log line.

    Args:
        groups: number of groups of rows.
    """

    def __init__(self, groups: int, world: World) -> None:
        self.world, self.started, self.data_seconds = world, time.monotonic(), 0.0
        self.sums = torch.zeros(2, groups, dtype=torch.float64, device=_float64_device(world.device))
        self.loss = torch.zeros((), dtype=torch.float64, device=self.sums.device)
        self.rows, self.steps = torch.zeros((), device=world.device), 0

    def add(self, index: Tensor, losses: Tensor, counts: Tensor, weights: Tensor, micro_batches: int) -> None:
        """Add one forward of this process.

        Args:
            index: the group of each row.
            losses, counts: cross entropy and supervised tokens of each row.
            weights: the weights with which the rows are summed.
            micro_batches: micro-batches of the step.
        """
        place = index.to(self.sums.device)
        self.sums[0].index_add_(0, place, losses.to(self.sums))
        self.sums[1].index_add_(0, place, counts.to(self.sums))
        self.loss += reduce_losses(losses, weights).to(self.sums) / micro_batches

    def end_step(self, rows: Tensor) -> None:
        """Count one optimizer step, with its number of rows over all ranks."""
        self.rows = self.rows + rows
        self.steps += 1

    def result(self) -> Interval:
        """Return the figures over all ranks. All ranks must call this method together."""
        everything = torch.cat([self.sums.flatten(), self.loss[None]]).to(self.world.device)
        everything = self.world.sum(everything).double().cpu()
        sums, loss = everything[:-1].view(2, -1), float(everything[-1])
        names, seconds = int(self.rows), time.monotonic() - self.started
        return Interval(loss / self.steps, (sums[0] / sums[1]).tolist(), names, self.steps, seconds, self.data_seconds)


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
