"""The processes of a training run: this process's rank and device, and collective operations over all ranks."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor

from osm.errors import OsmError
from osm.models.factory import pick_device

T = TypeVar("T")


@dataclass
class World:
    """This process's rank and device, and collective operations that also work in a single-process run.

    Attributes:
        rank: rank of this process among all processes, from 0.
        size: number of processes.
        device: the device of this process.
        local_size: number of processes on this machine.
        checkpoint_group: a separate process group for collective calls that run concurrently with the training; None
            in a single-process run.
    """

    rank: int
    size: int
    device: torch.device
    local_size: int = 1
    checkpoint_group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, which writes files and messages."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor of any shape over all ranks in place, and return the tensor."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def total(self, counts: Counter[str]) -> Counter[str]:
        """Sum `Counter` objects over all ranks, and return the result on every rank."""
        return sum(self.gathered(counts), Counter())

    def gathered(self, value: T) -> list[T]:
        """Gather one value from each rank, and return the values as a list ordered by rank.

        The gathered values are exchanged as pickles, which is safe because only processes of the same run send them.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, make: Callable[[], T]) -> T:
        """Call the function `make` on rank 0 only, and return its result on every rank.

        Raises:
            OsmError, OSError: `make` raised this error on rank 0. The error is then raised on all ranks.
        """
        result: tuple[T | None, Exception | None] = (None, None)
        if self.is_main:
            try:
                result = make(), None
            except (OsmError, OSError) as error:
                result = None, error
        value, fault = self.gathered(result)[0]
        if fault is not None:
            raise fault
        return value  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until all ranks have called this method."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Destroy the process group if the run has more than one process.

        Sharded tensors are collected first, because they keep gloo's threads alive. Such a thread would abort the
        process if it released a tensor while the interpreter shuts down.
        """
        if self.size > 1:
            gc.unfreeze()  # `quick_loading` has frozen the objects of the model
            gc.collect()
            dist.destroy_process_group()


def start(device: str, backend: str, url: str, no_set_device_rank: bool, num_threads: int) -> World:
    """Choose this process's device, and join torchrun's process group if torchrun started this process.

    Args:
        device: a torch device, or `auto`.
        backend: `nccl` or `gloo`; empty for nccl on CUDA and gloo on all other devices.
        url: the `init_method` of `torch.distributed.init_process_group`, at which the processes rendezvous.
        no_set_device_rank: do not choose the GPU by the local rank.
        num_threads: number of torch threads of this process on a CPU; 0 for the machine's cores divided by its
            processes.

    Raises:
        OsmError: this machine has fewer GPUs than processes, or the backend does not support the device.
    """
    rank, size, local = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    chosen = pick_device(device)
    if chosen.type == "mps" and size > 1 and device == "auto":
        chosen = torch.device("cpu")  # processes cannot exchange gradients on mps
    if chosen.type == "cuda" and not no_set_device_rank and chosen.index is None:
        if local >= torch.cuda.device_count():
            raise OsmError(
                f"local rank {local} has no GPU, because this machine has only {torch.cuda.device_count()} GPU(s); "
                f"use --nproc_per_node {torch.cuda.device_count()}, or --device cpu"
            )
        chosen = torch.device("cuda", local)
    if chosen.type == "cuda":
        if chosen.index is not None:
            torch.cuda.set_device(chosen)
        # CUDA is initialized here, because a device mesh would otherwise set the current device to LOCAL_RANK.
        torch.cuda.init()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.type == "cpu":
        given = os.environ.get("OMP_NUM_THREADS")
        # torchrun sets OMP_NUM_THREADS=1 by default, which would leave most cores of a CPU machine idle.
        if num_threads or size > 1 or given is None:
            torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // local_size))
    if size > 1:
        name = backend or ("nccl" if chosen.type == "cuda" else "gloo")
        if name == "nccl" and chosen.type != "cuda":
            raise OsmError(f"--dist-backend nccl requires CUDA, but this process runs on {chosen.type}; use gloo")
        # Checkpoints are written from CPU tensors, so gloo is needed even if gradients are exchanged over nccl.
        _join(f"cpu:gloo,cuda:{name}" if chosen.type == "cuda" else name, url, rank, size)
        # A separate process group keeps the checkpoint writer's collective operations separate from those of training.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup)
        return World(rank, size, chosen, local_size, group)
    return World(rank, size, chosen, local_size)


def _join(backend: str, url: str, rank: int, size: int) -> None:
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    address = urlsplit(url)
    if address.scheme == "tcp" and address.hostname and address.port and not address.query:
        # Under torchrun, torch before 2.14 would look for a store of torchrun at this address.
        store = dist.TCPStore(address.hostname, address.port, size, is_master=rank == 0)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return
    if "rank=" in address.query:  # the URL says what the arguments would say
        dist.init_process_group(backend, init_method=url)
        return
    if url != "env://" or restarts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=size)
        return
    # torchrun's store outlives the processes. Without a prefix, restarted processes would find the addresses of dead
    # processes. With several torchrun agents (machines), the restart count may differ between agents, so the count
    # cannot be a prefix. In that case, torchrun must create a new store for each restart (see the cluster scripts).
    store, rank, size = next(dist.rendezvous(url))
    dist.init_process_group(backend, store=dist.PrefixStore(f"restart {restarts}", store), rank=rank, world_size=size)


_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
