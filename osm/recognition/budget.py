"""How many rows go through the LLM together: as many as memory holds, measured where it can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from osm.errors import OsmError

FIRST = 4096
"""LLM positions of a batch before anything was measured, and of every batch on a CPU, where more is no faster."""
_SHARE = 0.8  # of the free memory: an allocator's pieces do not fit together without gaps
_GROWTH = 4  # a batch is at most so many times the largest one that was measured

Job = TypeVar("Job")


class Memory(Protocol):
    """A device's memory, in bytes."""

    def begin(self) -> None:
        """What is taken is counted from here."""

    def taken(self) -> int:
        """The most that was taken since."""

    def free(self) -> int:
        """What could still be taken."""

    def release(self) -> None:
        """Gives back what is kept for later use."""


class CudaMemory:
    """`Memory` of one GPU."""

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
    """Bounds the rows of a batch.

    Args:
        max_batch_tokens: LLM positions of a batch; None = 4096 on a CPU; on a GPU what fits, by what the batches so far
            have taken.
        memory: of the device; None where it is not measured.

    Attributes:
        out_of_memory: how often a batch did not fit; it is then halved, and so are the ones after it.
        largest: rows of the largest batch so far.
    """

    def __init__(self, max_batch_tokens: int | None, memory: Memory | None) -> None:
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise OsmError(f"max_batch_tokens {max_batch_tokens} must be 1 or more")
        self.memory = memory
        self._measures = memory is not None and max_batch_tokens is None
        self.positions = max_batch_tokens or FIRST
        self._ceiling: int | None = None  # found by running out of memory: measuring does not lift it
        self.out_of_memory = self.largest = 0

    def rows(self, length: int) -> int:
        """How many rows of so many positions."""
        return max(1, self.positions // length)

    def run(self, jobs: Sequence[Job], length: int, work: Callable[[Sequence[Job]], list[Any]]) -> list[Any]:
        """Does the jobs in batches; `length` is a row's positions, and `work` gives one result a job.

        Raises:
            OsmError: not even one row fits.
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
        """What `work` gives, or None where memory ran out. A frame of its own: an exception keeps its tensors alive."""
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
        # A batch smaller than it may be (the last one of an image) tells little of larger ones.
        wanted = min(fitting, max(self.positions, _GROWTH * positions))
        self.positions = max(1, min(wanted, self._ceiling or wanted))

    def _halve(self, rows: int, length: int) -> None:
        self.out_of_memory += 1
        if self.memory is not None:
            self.memory.release()
        if rows == 1:
            raise OsmError(
                "memory does not hold one mask's row in the LLM: spread it with --device_map auto, or use a smaller one"
            )
        self.positions = self._ceiling = rows * length // 2


def memory_of(device: torch.device) -> Memory | None:
    """The memory of a GPU; None of other devices."""
    return CudaMemory(device) if device.type == "cuda" else None
