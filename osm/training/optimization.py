"""The optimizer, the learning-rate schedule, and the numerical precision of a training run."""

from __future__ import annotations

import contextlib
import math
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from osm.errors import OsmError
from osm.models.osm import OmniScientModel
from osm.models.quantize import check_device


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the trainable parameters as two optimizer groups: one with weight decay and one without.

    Weight decay applies to the weights of linear layers, but not to biases, norms, queries or embeddings.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                (decayed if isinstance(owner, nn.Linear) and name == "weight" else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return an AdamW optimizer for a module's trainable parameters; see `parameter_groups`."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=learning_rate)


def make_schedule(optimizer: torch.optim.Optimizer, name: str, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Return one of the published learning-rate schedules: constant, linear or cosine, each with a linear warmup.

    Args:
        name: `constant`, `linear` or `cosine`.
        warmup_steps: number of optimizer steps of the warmup.
        total_steps: number of optimizer steps of the whole run, at whose end the linear and cosine schedules reach 0.
    """
    return LambdaLR(optimizer, partial(_factor, name=name, warmup_steps=warmup_steps, total_steps=total_steps))


def _factor(step: int, name: str, warmup_steps: int, total_steps: int) -> float:
    """Return the factor by which the learning rate is multiplied at a step, as in transformers' schedules.

    The schedules of transformers are not used, because importing them takes seconds in every process.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if name == "constant":
        return 1.0
    steps = max(1, total_steps - warmup_steps)
    if name == "linear":
        return max(0.0, (total_steps - step) / steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup_steps) / steps))))


def advance(schedule: LRScheduler) -> None:
    """Advance a learning-rate schedule by one step, without torch's warning about a skipped first optimizer step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedule.step()


def go_to_step(schedule: LRScheduler, step: int) -> None:
    """Advance a new learning-rate schedule and its optimizer's learning rates to a given optimizer step."""
    if step:
        state = {**schedule.state_dict(), "last_epoch": step - 1, "_step_count": step}
        schedule.load_state_dict(state)
        schedule.step()


def hold_frozen(model: OmniScientModel, precision: str, device: torch.device) -> None:
    """Cast a model's frozen parts to half precision if the training precision allows half-precision weights.

    The cast saves memory. Trained parameters keep their dtype.

    Raises:
        OsmError: the device does not support `precision`.
    """
    if precision == "fp16" and device.type not in ("cuda", "cpu"):
        raise OsmError(f"--precision fp16 requires CUDA or a CPU, but this process runs on {device.type}; use fp32")
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if half is None and precision.startswith("amp_") and device.type == "cuda":
        half = torch.bfloat16
    if half is not None:
        model.hold_frozen(half)


def check_quantized(model: OmniScientModel, fsdp: bool, device: torch.device) -> None:
    """Raise OsmError if training does not support the LLM's quantization.

    Raises:
        OsmError: the device cannot run an LLM in 8 or 4 bits, or FSDP would have to shard packed weights.
    """
    name = model.config.llm.quantization
    check_device(model.llm, name, device)
    if name and fsdp:
        raise OsmError(
            f"model.llm.quantization {name!r} cannot be combined with --fsdp, because packed weights cannot be sharded"
        )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return an autocast context for the forward pass: float16 or bfloat16, or a null context for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)
