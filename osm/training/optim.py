"""Optimizer and learning rate."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

_NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices decay; biases, norms, queries and embeddings do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                (decayed if isinstance(owner, nn.Linear) and name == "weight" else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=learning_rate)


def make_schedule(optimizer: torch.optim.Optimizer, name: str, warmup_steps: int, total_steps: int) -> LRScheduler:
    """The published schedules, over the optimiser steps that are really taken."""
    return get_scheduler(_NAMES[name], optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)


def advance(schedule: LRScheduler) -> None:
    """Takes a schedule one step further, without torch's warning where the first optimizer step was skipped."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedule.step()


def go_to_step(schedule: LRScheduler, step: int) -> None:
    """Sets a fresh schedule, and its optimizer's learning rates, to where they are after so many steps."""
    if step:
        state = {**schedule.state_dict(), "last_epoch": step - 1, "_step_count": step}
        schedule.load_state_dict(state)
        schedule.step()
