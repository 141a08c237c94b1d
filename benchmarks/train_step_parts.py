"""A training step in parts, and the seconds or FLOPs that each part takes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from meter import Meter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_step_models import SET, on_meta

from osm.data.batch import Batch
from osm.models import llm as llms
from osm.models.losses import reduce_losses
from osm.training import task as task_module
from osm.training.optimization import autocast, hold_frozen, make_optimizer
from osm.training.step import MAX_GRAD_NORM
from osm.training.task import MixLoss, TrainTask

PARTS = ("copy", "pixels", "tower", "masks", "bridge", "llm", "backward", "optimizer", "other")
Part = Callable[[str], AbstractContextManager[Any]]


@contextmanager
def watched(task: TrainTask, meter: Meter) -> Iterator[None]:
    """Within this context, `meter` measures the parts of the task's forward pass."""
    model = task.model
    places: list[tuple[Any, str, str]] = [
        (task.processor, "pixel_values", "pixels"),
        (model, "tower_tokens", "tower"),
        (task_module, "context_mask", "masks"),
        (model, "mask_features", "masks"),
        (model, "add_positions", "bridge"),
        (model.bridge, "image_state", "bridge"),
        (model.bridge, "forward", "bridge"),
        (model, "llm_inputs", "llm"),
        (llms, "token_losses", "llm"),
    ]

    with ExitStack() as patches:
        for owner, attribute, name in places:
            patches.enter_context(patch.object(owner, attribute, meter.measured(name, getattr(owner, attribute))))
        yield


class TrainStep:
    """An optimizer step of one process on one batch, as in `osm.training.trainer`."""

    def __init__(self, task: TrainTask, precision: str, device: torch.device) -> None:
        self.task, self.precision, self.device = task, precision, device
        hold_frozen(task.model, precision, device)
        task.model.to(device).train()
        self.optimizer = make_optimizer(task, learning_rate=1e-5, weight_decay=0.05)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.loss = MixLoss({SET: 1.0})

    def __call__(self, batch: Batch, part: Part = contextlib.nullcontext) -> float:
        """Run the step and return its loss."""
        with part("copy"):
            batch = batch.to(self.device)
        index = self.loss.group_index(batch).to(self.device)
        with autocast(self.precision, self.device):
            losses, counts = self.task(batch)
        totals = torch.zeros(len(self.loss.groups), device=self.device).index_add_(0, index, counts.float())
        loss = reduce_losses(losses, self.loss.row_weights(index, totals))
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            norm = float(nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM))
            if math.isfinite(norm):
                self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss.detach())


def clock(device: torch.device) -> float:
    """Return the time in seconds, once the device has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


# -- FLOPs -------------------------------------------------------------------------------------------------------------


def step_flops(meta_task: TrainTask, batch: Batch) -> dict[str, float]:
    """Count the FLOPs of each part of a step with a model on the meta device, so that nothing is computed.

    Recomputation to save memory is not counted. Fused and unfused attention have the same count.
    """
    # Fused attention reads the values of its mask, which a tensor on the meta device does not have.
    meta_task.model.llm.set_attn_implementation("eager")
    mask_features, cross_entropy = meta_task.model.mask_features, F.cross_entropy

    def features_on_meta(*masks: Tensor) -> Any:
        return mask_features(*masks).to("meta")

    def losses_on_meta(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
        return cross_entropy(logits, targets.to("meta"), **options)

    with ExitStack() as stack:
        stack.enter_context(patch.object(meta_task.model, "mask_features", features_on_meta))
        stack.enter_context(patch.object(F, "cross_entropy", losses_on_meta))
        counter = stack.enter_context(FlopCounterMode(display=False))
        meter = Meter(counter.get_total_flops, PARTS)
        stack.enter_context(watched(meta_task, meter))
        losses, _ = meta_task(on_meta(batch))
        with meter.part("backward"):
            losses.sum().backward()
        flops = meter.take()
    meta_task.zero_grad()
    return flops


# -- compiled and recomputed layers ------------------------------------------------------------------------------------


def layers(module: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a transformer. A module without repeated blocks counts as one block."""
    stacks = [list(found) for found in module.modules() if isinstance(found, nn.ModuleList)]
    longest = max(stacks, key=len, default=[])
    return longest if len(longest) > 1 else [module]


@contextmanager
def changed_layers(changed: list[nn.Module], change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator:
    """Within this context, the forward function of each of these modules is `change(forward)`."""
    with ExitStack() as patches:
        for layer in changed:
            patches.enter_context(patch.object(layer, "forward", change(layer.forward)))
        yield


def compiled(backend: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda forward: torch.compile(forward, backend=backend)
