"""Rows by measured memory: a device whose memory is a number, and batches that take so many bytes a position."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from osm.errors import OsmError
from osm.recognition.budget import FIRST, RowBudget

LENGTH = 32


class Device:
    """Memory of which each position of a batch takes `each` bytes while it is worked on."""

    def __init__(self, room: int, each: int = 10) -> None:
        self.room, self.each, self.most, self.released = room, each, 0, 0
        self.batches: list[int] = []

    def begin(self) -> None:
        self.most = 0

    def taken(self) -> int:
        return self.most

    def free(self) -> int:
        return self.room

    def release(self) -> None:
        self.released += 1

    def work(self, part: Sequence[int]) -> list[int]:
        self.batches.append(len(part))
        wanted = len(part) * LENGTH * self.each
        if wanted > self.room:
            raise torch.OutOfMemoryError("no room")
        self.most = max(self.most, wanted)
        return [2 * job for job in part]


def test_batches_grow_to_what_memory_holds() -> None:
    device = Device(room=2_000_000)
    budget = RowBudget(None, device)
    jobs = list(range(20_000))
    assert budget.run(jobs, LENGTH, device.work) == [2 * job for job in jobs]
    fitting = int(0.8 * 2_000_000 / 10) // LENGTH
    assert device.batches[:2] == [FIRST // LENGTH, 4 * (FIRST // LENGTH)]  # no leap beyond four times what was seen
    assert set(device.batches[3:-1]) == {fitting} and budget.largest == fitting and budget.out_of_memory == 0
    # A small image in between does not make the batches of the next one small.
    budget.run([1, 2], LENGTH, device.work)
    assert budget.rows(LENGTH) == fitting


def test_less_memory_later_means_smaller_batches() -> None:
    device = Device(room=2_000_000)
    budget = RowBudget(None, device)
    budget.run(range(20_000), LENGTH, device.work)
    device.room = 100_000
    assert budget.run(list(range(3000)), LENGTH, device.work) == [2 * job for job in range(3000)]
    assert budget.out_of_memory > 0 and budget.rows(LENGTH) * LENGTH * 10 <= 100_000


def test_out_of_memory_halves_and_nothing_is_lost() -> None:
    device = Device(room=40 * LENGTH * 10)
    budget = RowBudget(FIRST, device)  # a bound that is too high for this device
    assert budget.run(list(range(300)), LENGTH, device.work) == [2 * job for job in range(300)]
    assert device.batches[:3] == [128, 64, 32] and budget.out_of_memory == device.released == 2
    assert set(device.batches[3:-1]) == {32}  # and it does not try again


def test_one_row_that_does_not_fit_is_said() -> None:
    device = Device(room=LENGTH * 10 - 1)
    with pytest.raises(OsmError, match="ran out of memory even with a single mask: use --device_map auto"):
        RowBudget(None, device).run([1, 2], LENGTH, device.work)


def test_other_errors_are_not_taken_for_it() -> None:
    def broken(part: Sequence[int]) -> list[int]:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        RowBudget(None, Device(1000)).run([1], LENGTH, broken)


def test_a_given_bound_is_kept() -> None:
    device = Device(room=10**9)
    budget = RowBudget(10 * LENGTH, device)
    budget.run(list(range(95)), LENGTH, device.work)
    assert device.batches == [10] * 9 + [5]
    cpu = RowBudget(None, None)
    cpu.run(list(range(500)), LENGTH, device.work)
    assert cpu.rows(LENGTH) == FIRST // LENGTH
    with pytest.raises(OsmError, match="max_batch_tokens 0 must be 1 or more"):
        RowBudget(0, None)
