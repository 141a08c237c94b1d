"""One optimizer step: forward and backward passes, gradient synchronization, gradient clipping and the update.

Shapes: R rows, M micro-batches, G groups of rows, T = G + 1 totals (supervised tokens per group; all rows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from osm.data.batch import Batch
from osm.errors import OsmError, RunStopped
from osm.models.losses import reduce_losses
from osm.training.distributed import World
from osm.training.meter import Meter
from osm.training.optimization import autocast
from osm.training.parallel import exchanges_gradients, full_tensor
from osm.training.task import MixLoss
from osm.training.train_config import TrainConfig

MAX_GRAD_NORM = 1.0


@dataclass
class StepResult:
    """The result of an optimizer step, which is the same on all ranks.

    Attributes:
        norm: norm of the gradient before clipping.
        skipped: whether the update was skipped, because the loss or the gradient was not finite.
        stop: whether a rank received a stop signal.
    """

    norm: float
    skipped: bool
    stop: bool


class Stepper:
    """Runs the optimizer steps of a training process.

    Args:
        forward: the training task, as returned by `osm.training.parallel.parallelize`.
        loss: weights the rows of a step.
        first_stream: index of this process's first sample stream.
        count_flops: count the FLOPs of the first batch (`flops_per_row`), which makes the first step a little slower.

    Attributes:
        flops_per_row: FLOPs of the forward and backward pass per row; 0 until the FLOPs are counted.
    """

    def __init__(
        self,
        forward: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        loss: MixLoss,
        world: World,
        first_stream: int,
        count_flops: bool = False,
    ) -> None:
        self.forward, self.optimizer, self.config, self.world = forward, optimizer, config, world
        self.loss, self.first_stream = loss, first_stream
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.flops_per_row, self._count_flops = 0.0, count_flops
        self.skipped_in_a_row = 0

    def step(
        self, micro_batches: Sequence[Sequence[Batch]], number: int, meter: Meter, stop: Callable[[], bool]
    ) -> StepResult:
        """Take one optimizer step. All ranks must call this method together.

        Args:
            micro_batches: for each micro-batch, one batch of each sample stream of this process.
            number: number of the step, from 0.
            meter: records the losses.
            stop: returns whether this process received a stop signal. `stop` is called after the last backward pass.

        Raises:
            RunStopped: too many consecutive steps were skipped.
        """
        totals_MT = self._totals(micro_batches)
        finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        for place, batches in enumerate(micro_batches):
            for stream, batch in enumerate(batches):
                torch.manual_seed(dropout_seed(self.config.seed, number, place, self.first_stream + stream))
                last = place == len(micro_batches) - 1 and stream == len(batches) - 1
                with exchanges_gradients(self.forward, last):
                    finite &= self._backward(batch.to(self.world.device), totals_MT[place], len(micro_batches), meter)
        self.scaler.unscale_(self.optimizer)
        norm = float(full_tensor(nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)))
        # All ranks skip the update together if any rank has a non-finite loss, and stop together after a stop signal.
        flags = torch.stack([~finite, torch.tensor(stop(), device=finite.device)]).int()
        non_finite, stops = self.world.sum(flags).tolist()
        skipped = non_finite > 0 or not math.isfinite(norm)
        if not skipped:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        meter.end_step(totals_MT[:, -1].sum())
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == self.config.max_skipped_steps:
            raise RunStopped(
                f"step {number + 1}: the loss or its gradient was not finite in {self.skipped_in_a_row} consecutive "
                "steps (--max_skipped_steps); a lower --learning_rate or --precision fp32 may help"
            )
        return StepResult(norm, skipped, stops > 0)

    def load_scaler(self, state: Mapping[str, float]) -> None:
        """Load the state of the loss scaler from a checkpoint.

        The checkpoints of a run without fp16 contain an empty scaler state. If the loaded state is empty, the loss
        scaler keeps its default values.

        Raises:
            OsmError: an entry of the state is missing.
        """
        if state and self.scaler.is_enabled():
            try:
                self.scaler.load_state_dict(dict(state))
            except KeyError as error:
                raise OsmError(f"the loss scaler state in the checkpoint is missing the key {error}") from None

    def _totals(self, micro_batches: Sequence[Sequence[Batch]]) -> Tensor:
        """Count each micro-batch's supervised tokens per (dataset, mode) group, and its masks, over all ranks.

        The returned tensor has the shape (M, T). Its last column is the number of masks.
        """
        totals_MT = torch.zeros(len(micro_batches), len(self.loss.groups) + 1)
        for total_T, batches in zip(totals_MT, micro_batches, strict=True):
            for batch in batches:
                total_T[:-1] += self.loss.supervised_tokens(batch)
                total_T[-1] += len(batch)
        return self.world.sum(totals_MT.to(self.world.device))

    def _backward(self, batch: Batch, totals_T: Tensor, micro_batches: int, meter: Meter) -> Tensor:
        """Run the forward and backward passes for one batch. Return whether the loss is finite, as a bool tensor."""
        index_R = self.loss.group_index(batch).to(self.world.device)
        weights_R = self.loss.row_weights(index_R, totals_T[:-1])
        counter = FlopCounterMode(display=False) if self._count_flops else None
        if counter is not None:
            counter.__enter__()
        with autocast(self.config.precision, self.world.device):
            losses_R, counts_R = self.forward(batch)
        # DDP and FSDP average gradients across ranks, but the loss of a step is the sum over all ranks.
        loss = reduce_losses(losses_R, weights_R) * self.world.size / micro_batches
        self.scaler.scale(loss).backward()
        if counter is not None:
            counter.__exit__(None, None, None)
            self.flops_per_row, self._count_flops = counter.get_total_flops() / len(batch), False
        meter.add(index_R, losses_R.detach(), counts_R, weights_R, micro_batches)
        return loss.detach().isfinite()


def dropout_seed(seed: int, step: int, micro_batch: int, stream: int) -> int:
    """Return the dropout seed for a forward pass, so that a resumed run drops the same units as an uninterrupted run.

    The dropout seed depends only on the run's seed and the position of the forward pass within the run.
    """
    return (seed * 1_000_003 + step * 8191 + micro_batch * 131 + stream) % 2**63
