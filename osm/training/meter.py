"""Measures the values reported in the training log: losses per dataset and mode, throughput, FLOPs and memory.

Shapes: R rows, G groups of rows ((dataset, mode) pairs).
"""

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
from osm.training.gpu_peaks import PEAK_TFLOPS

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_flops(device: torch.device, precision: str, given: float) -> float:
    """Return the peak FLOP/s of one device at a given precision, or 0 if the peak is unknown.

    Args:
        given: the TFLOP/s from `--peak_tflops`, or 0 if the flag is not given.
    """
    if given:
        return given * 1e12
    if device.type != "cuda" or precision == "fp32":
        return 0.0
    name = torch.cuda.get_device_name(device)
    # Longer device names are compared first, because the name of an L40S GPU also contains "L4".
    found = [peak for key, peak in sorted(PEAK_TFLOPS.items(), key=lambda item: -len(item[0])) if key in name]
    return found[0] * 1e12 if found else 0.0


def memory_gib(device: torch.device) -> float:
    """Return this process's peak memory in GiB: GPU memory on CUDA, otherwise RAM; 0 if it cannot be measured."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass
class Interval:
    """The values measured by a `Meter` between two lines of the training log.

    Attributes:
        loss: the mean loss of an optimizer step.
        halves: the mean loss of each (dataset, mode) pair; NaN for a pair without samples.
        names: the number of names that were trained on, over all ranks.
        steps: the number of optimizer steps.
        seconds: the elapsed time of this process.
        data_seconds: the part of `seconds` in which this process waited for data.
    """

    loss: float
    halves: list[float]
    names: int
    steps: float
    seconds: float
    data_seconds: float

    def record(self, groups: list[tuple[str, str]]) -> dict[str, Any]:
        """Return the fields of a log record. `groups` lists the (dataset, mode) pair for each loss in `halves`."""
        found = zip(groups, self.halves, strict=True)
        return {
            "loss": self.loss,
            **{f"loss/{name}/{half}": value for (name, half), value in found if not math.isnan(value)},
            "names_per_second": self.names / max(self.seconds, 1e-9),
            "seconds_per_step": self.seconds / max(self.steps, 1e-9),
            "data_share": self.data_seconds / max(self.seconds, 1e-9),
        }


class Meter:
    """Accumulates this rank's losses and counts since the last log line. `result` sums them over all ranks.

    Args:
        groups: the number of (dataset, mode) pairs.
        world: the processes of the run.
    """

    def __init__(self, groups: int, world: World) -> None:
        self.world, self.started, self.data_seconds = world, time.monotonic(), 0.0
        self.sums = torch.zeros(2, groups, dtype=torch.float64, device=_float64_device(world.device))
        self.loss = torch.zeros((), dtype=torch.float64, device=self.sums.device)
        self.rows, self.steps = torch.zeros((), device=world.device), 0

    def add(self, index_R: Tensor, losses_R: Tensor, counts_R: Tensor, weights_R: Tensor, micro_batches: int) -> None:
        """Add the losses of one forward pass on this rank.

        Args:
            index_R: the index of each row's (dataset, mode) pair.
            losses_R: the loss of each row.
            counts_R: the number of supervised tokens of each row.
            weights_R: the weight of each row in the loss of the step.
            micro_batches: the number of micro-batches of the step.
        """
        place_R = index_R.to(self.sums.device)
        self.sums[0].index_add_(0, place_R, losses_R.to(self.sums))
        self.sums[1].index_add_(0, place_R, counts_R.to(self.sums))
        self.loss += reduce_losses(losses_R, weights_R).to(self.sums) / micro_batches

    def end_step(self, rows: Tensor) -> None:
        """Count one optimizer step. `rows` is the number of (mask, name) pairs in the step, over all ranks."""
        self.rows = self.rows + rows
        self.steps += 1

    def result(self) -> Interval:
        """Return the measurements aggregated over all ranks. All ranks must call this method together."""
        everything = torch.cat([self.sums.flatten(), self.loss[None]]).to(self.world.device)
        everything = self.world.sum(everything).double().cpu()
        sums_2G, loss = everything[:-1].view(2, -1), float(everything[-1])
        names, seconds = int(self.rows), time.monotonic() - self.started
        halves = (sums_2G[0] / sums_2G[1]).tolist()
        return Interval(loss / self.steps, halves, names, self.steps, seconds, self.data_seconds)


def _float64_device(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device
