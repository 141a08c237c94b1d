"""Processes: who this one is, how they talk, and what they sum."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from osm.errors import OsmError
from osm.models.factory import pick_device

T = TypeVar("T")


@dataclass
class World:
    """This process among all: works alike with one process and under torchrun.

    Attributes:
        local_size: processes of this machine. aside: a group for what runs beside the training, None with one process.
    """

    rank: int
    size: int
    device: torch.device
    local_size: int = 1
    aside: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes (in place)."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def total(self, counts: Counter[str]) -> Counter[str]:
        """The counts of all processes together."""
        return sum(self.gathered(counts), Counter())

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank; they are pickled, and only ever come from our own processes."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone

    def from_main(self, make: Callable[[], T]) -> T:
        """Returns what `make` returns on the main process; where it raises there, all processes raise. Collective."""
        outcome: tuple[T | None, Exception | None] = (None, None)
        if self.is_main:
            try:
                outcome = make(), None
            except (OsmError, OSError) as error:
                outcome = None, error
        value, fault = self.gathered(outcome)[0]
        if fault is not None:
            raise fault
        return value  # type: ignore[return-value]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def start(device: str, backend: str, url: str, no_set_device_rank: bool, num_threads: int) -> World:
    """Joins the process group that torchrun describes, if it does.

    Args:
        backend: `nccl`, `gloo`, or empty = nccl on CUDA, gloo elsewhere.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    chosen = pick_device(device)
    if chosen.type == "mps" and size > 1 and device == "auto":
        chosen = torch.device("cpu")  # processes cannot exchange gradients on mps
    if chosen.type == "cuda" and not no_set_device_rank and chosen.index is None:
        if local >= torch.cuda.device_count():
            raise OsmError(
                f"process {local} of this machine has no GPU of its own, there are {torch.cuda.device_count()}: "
                f"--nproc_per_node {torch.cuda.device_count()}, or --device cpu"
            )
        chosen = torch.device("cuda", local)
    if chosen.type == "cuda":
        if chosen.index is not None:
            torch.cuda.set_device(chosen)
        # A device mesh sets the device to LOCAL_RANK where CUDA has not been initialized, whatever `device` says.
        torch.cuda.init()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.type == "cpu":
        given = os.environ.get("OMP_NUM_THREADS")
        # torchrun sets OMP_NUM_THREADS=1 by itself, which would leave most cores of a CPU machine idle.
        if num_threads or size > 1 or given is None:
            torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local_size))
    if size > 1:
        name = backend or ("nccl" if chosen.type == "cuda" else "gloo")
        if name == "nccl" and chosen.type != "cuda":
            raise OsmError(f"--dist-backend nccl needs CUDA, this process runs on {chosen.type}; gloo works there")
        # Checkpoints are written through the CPU, whatever gradients are exchanged by.
        _join(f"cpu:gloo,cuda:{name}" if chosen.type == "cuda" else name, url)
        # Of its own: a collective of a checkpoint that is being written must not meet one of the training.
        aside = dist.new_group(backend="gloo")
        assert isinstance(aside, dist.ProcessGroup)
        return World(rank, size, chosen, local_size, aside)
    return World(rank, size, chosen, local_size)


def _join(backend: str, url: str) -> None:
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if url != "env://" or restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, init_method=url)
        return
    # torchrun's store outlives its processes: without a prefix, those of a restart find the addresses of the dead. With
    # several agents the count is not the same for all; there torchrun has to make a store a round (see the scripts).
    store, rank, size = next(dist.rendezvous(url))
    dist.init_process_group(backend, store=dist.PrefixStore(f"restart {restarts}", store), rank=rank, world_size=size)


_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
