"""One optimiser step: forward and backward of every micro-batch, one exchange of gradients, one clip, one update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from osm.data.batch import Batch
from osm.errors import OsmError, RunStopped
from osm.training.config import TrainConfig
from osm.training.distributed import World
from osm.training.meter import Meter
from osm.training.parallel import exchanges_gradients, whole
from osm.training.precision import autocast
from osm.training.task import group_index, row_weights, supervised_tokens

MAX_GRAD_NORM = 1.0


@dataclass
class Outcome:
    """Of a step, the same on all processes. `stop`: one of them was asked to end."""

    norm: float
    skipped: bool
    stop: bool


class Stepper:
    """Takes optimiser steps.

    Args:
        forward: the laid-out training task. first_stream: the number of this process's first sample stream.
        count_flops: count them in the first step (`flops_per_row`); it is a little slower.
    """

    def __init__(
        self,
        forward: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        groups: list[tuple[str, str]],
        multipliers: Mapping[str, float],
        world: World,
        first_stream: int,
        count_flops: bool = False,
    ) -> None:
        self.forward, self.optimizer, self.config, self.world = forward, optimizer, config, world
        self.groups, self.multipliers, self.first_stream = groups, multipliers, first_stream
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.flops_per_row, self._count_flops = 0.0, count_flops
        self.skipped_in_a_row = 0

    def step(
        self, micro_batches: Sequence[Sequence[Batch]], number: int, meter: Meter, stop: Callable[[], bool]
    ) -> Outcome:
        """Trains on the batches of each micro-batch, one a sample stream of this process.

        Args:
            number: of the step, from 0. stop: whether this process was asked to end, asked when all is computed.

        Raises:
            RunStopped: too many steps in a row were skipped.
        """
        totals = self._totals(micro_batches)
        finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        for place, batches in enumerate(micro_batches):
            for stream, batch in enumerate(batches):
                torch.manual_seed(dropout_seed(self.config.seed, number, place, self.first_stream + stream))
                last = place == len(micro_batches) - 1 and stream == len(batches) - 1
                with exchanges_gradients(self.forward, last):
                    finite &= self._backward(batch.to(self.world.device), totals[place], len(micro_batches), meter)
        self.scaler.unscale_(self.optimizer)
        norm = float(whole(nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)))
        # What is not finite on one process, all of them skip together; whoever was asked to stop, all of them do.
        said = torch.stack([~finite, torch.tensor(stop(), device=finite.device)]).int()
        broken, stops = self.world.sum(said).tolist()
        skipped = broken > 0 or not math.isfinite(norm)
        if not skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        meter.end_step(totals[:, -1].sum())
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == self.config.max_skipped_steps:
            raise RunStopped(
                f"step {number + 1}: the loss or its gradient was not finite, {self.skipped_in_a_row} steps in a row "
                "(--max_skipped_steps); a lower --learning_rate or --precision fp32 may help"
            )
        return Outcome(norm, skipped, stops > 0)

    def load_scaler(self, state: Mapping[str, float]) -> None:
        """Takes the loss scaler's state from a checkpoint; one that was trained without fp16 has none."""
        if state and self.scaler.is_enabled():
            try:
                self.scaler.load_state_dict(dict(state))
            except KeyError as error:
                raise OsmError(f"the checkpoint's loss scaler lacks {error}") from None

    def _totals(self, micro_batches: Sequence[Sequence[Batch]]) -> Tensor:
        """Of all processes, for each micro-batch: supervised tokens of each group and, in the last place, rows."""
        totals = torch.zeros(len(micro_batches), len(self.groups) + 1)
        for total, batches in zip(totals, micro_batches, strict=True):
            for batch in batches:
                counts = supervised_tokens(batch).float()
                total[:-1].index_add_(0, group_index(batch, self.groups), counts)
                total[-1] += len(batch)
        return self.world.sum(totals.to(self.world.device))

    def _backward(self, batch: Batch, totals: Tensor, micro_batches: int, meter: Meter) -> Tensor:
        """One batch. Returns whether its loss was finite (a bool scalar)."""
        index = group_index(batch, self.groups).to(self.world.device)
        weights = row_weights(index, totals[:-1], self.groups, self.multipliers)
        counter = FlopCounterMode(display=False) if self._count_flops else None
        if counter is not None:
            counter.__enter__()
        with autocast(self.config.precision, self.world.device):
            losses, counts = self.forward(batch)
        # Gradients are averaged over the processes, the loss is a sum over them.
        loss = (losses * weights).sum() * self.world.size / micro_batches
        self.scaler.scale(loss).backward()
        if counter is not None:
            counter.__exit__(None, None, None)
            self.flops_per_row, self._count_flops = counter.get_total_flops() / len(batch), False
        meter.add(index, losses.detach(), counts, weights, micro_batches)
        return loss.detach().isfinite()


def dropout_seed(seed: int, step: int, micro_batch: int, stream: int) -> int:
    """Seeds every forward by itself, so that a resumed run drops the same units as one never stopped."""
    return (seed * 1_000_003 + step * 8191 + micro_batch * 131 + stream) % 2**63
