"""The learning-rate schedules equal those of transformers, which the published code uses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from osm.training.optimization import make_schedule

THEIRS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def learning_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=8e-4)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 10), (5, 5), (60, 1000), (7, 3), (0, 1)])
def test_schedules_equal_those_of_transformers(name: str, warmup: int, total: int) -> None:
    from transformers import get_scheduler

    found = learning_rates(lambda optimizer: make_schedule(optimizer, name, warmup, total), total + 3)
    expected = learning_rates(lambda optimizer: get_scheduler(THEIRS[name], optimizer, warmup, total), total + 3)
    assert found == expected


def test_training_imports_no_package_that_it_does_not_use() -> None:
    """peft and bitsandbytes take several seconds to import, and only models with LoRA or quantization use them."""
    script = "import sys, osm.training.trainer; print({'peft', 'bitsandbytes'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
