"""Chooses the largest LLM batch size that fits in memory. On GPUs, memory usage is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from osm.errors import OsmError

FIRST = 4096
"""LLM positions per batch before the first measurement, and always on a CPU, where larger batches are no faster."""
_SHARE = 0.8  # share of the free memory that is used; less than 1 because the allocator's memory is fragmented
_GROWTH = 4  # maximum ratio between the size of a batch and the size of the last measured batch

Job = TypeVar("Job")


class Memory(Protocol):
    """The memory of a device. All sizes are in bytes."""

    def begin(self) -> None:
        """Start a measurement."""

    def taken(self) -> int:
        """Return the peak memory usage since `begin`."""

    def free(self) -> int:
        """Return the amount of memory that can still be allocated."""

    def release(self) -> None:
        """Release the allocator's cached memory back to the system."""


class CudaMemory:
    """The memory of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, 0

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)

    def taken(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self._before

    def free(self) -> int:
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + kept

    def release(self) -> None:
        torch.cuda.empty_cache()


class RowBudget:
    """Limits the LLM's batch size so that each batch fits in memory.

    Args:
        max_batch_tokens: maximum number of LLM positions per batch. None means 4096 on a CPU; on a GPU, the limit is
            estimated from the memory that previous batches used.
        memory: the memory of the device; None if memory cannot be measured.

    Attributes:
        out_of_memory: number of batches that did not fit in memory. After each, the limit is half of that batch.
        largest: number of rows in the largest batch so far.
    """

    def __init__(self, max_batch_tokens: int | None, memory: Memory | None) -> None:
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise OsmError(f"max_batch_tokens {max_batch_tokens} must be 1 or more")
        self.memory = memory
        self._measures = memory is not None and max_batch_tokens is None
        self.positions = max_batch_tokens or FIRST
        self._ceiling: int | None = None  # set when memory runs out; later measurements do not exceed it
        self.out_of_memory = self.largest = 0

    def rows(self, length: int) -> int:
        """Return how many rows of `length` positions fit in one LLM batch."""
        return max(1, self.positions // length)

    def run(self, jobs: Sequence[Job], length: int, work: Callable[[Sequence[Job]], list[Any]]) -> list[Any]:
        """Process jobs in batches that fit in memory and return one result per job.

        Args:
            jobs: the jobs, each of which needs one row of the LLM.
            length: number of LLM positions per row.
            work: function that processes a batch and returns one result per job.

        Raises:
            OsmError: not even one row fits in memory.
        """
        done: list[Any] = []
        while len(done) < len(jobs):
            part = jobs[len(done) : len(done) + self.rows(length)]
            found = self._attempt(part, length, work)
            if found is None:
                self._halve(len(part), length)
            else:
                done += found
        return done

    def _attempt(self, part: Sequence[Job], length: int, work: Callable[[Sequence[Job]], list[Any]]) -> Any:
        """Return the results of `work`, or None if the device ran out of memory.

        An out-of-memory exception keeps the tensors in its stack frames alive. `_attempt` is a separate function so
        that these tensors are freed when it returns.
        """
        if self._measures:
            assert self.memory is not None
            self.memory.begin()
        try:
            found = work(part)
        except torch.OutOfMemoryError:
            return None
        self.largest = max(self.largest, len(part))
        if self._measures:
            self._learn(len(part) * length)
        return found

    def _learn(self, positions: int) -> None:
        assert self.memory is not None
        each = self.memory.taken() / positions
        fitting = int(_SHARE * self.memory.free() / each) if each > 0 else self.positions
        # The batch size grows by at most a factor of _GROWTH, because small batches do not predict memory usage well.
        wanted = min(fitting, max(self.positions, _GROWTH * positions))
        self.positions = max(1, min(wanted, self._ceiling or wanted))

    def _halve(self, rows: int, length: int) -> None:
        self.out_of_memory += 1
        if self.memory is not None:
            self.memory.release()
        if rows == 1:
            raise OsmError("the LLM ran out of memory even with a single mask: use --device_map auto or a smaller LLM")
        self.positions = self._ceiling = rows * length // 2


def memory_of(device: torch.device) -> Memory | None:
    """Return the `Memory` of a GPU, or None for any other device, whose memory is not measured."""
    return CudaMemory(device) if device.type == "cuda" else None
