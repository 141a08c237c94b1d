#!/usr/bin/env python3
"""Compares training steps with and without the faster frozen parts on CPUs, in turns, on the same batches.

    python3 benchmarks/packed_training.py osm_small > packed_training.json

The tower's tokens of the images are computed once and then given, as with `--feature_cache`. Zoom windows are encoded
in every step; without the faster parts, they are resized by torchvision, and the tower is not packed.
`published_prompts` is the model without the faster parts, with the published prompts, and with the bridge's prefix
before them.

The first step with and without the faster parts is compared with the same step in float64. The losses have to be
within 1e-5 of it, relatively. The relative error of the gradient with the faster parts may be at most twice that
without them, or 1e-4 if that is more. Otherwise the benchmark fails. The later steps drift apart, because Adam enlarges
the rounding errors of gradients that are zero. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import train_step_models as models  # noqa: E402
from speed_machine import process_state  # noqa: E402
from train_step_parts import TrainStep  # noqa: E402
from zoom_windows import windows_as  # noqa: E402

from osm.memory_reuse import keep_freed_memory  # noqa: E402
from osm.models.fast_inference import speed_up_tower  # noqa: E402
from osm.models.fast_llama import make_fast  # noqa: E402
from osm.models.packed_linear import pack_linears  # noqa: E402
from osm.training.task import TrainTask  # noqa: E402

BATCHES, IMAGES = 3, 4
WAYS = ("published_prompts", "before", "after")


def prepared(
    config: str, masks: int, way: str, batches: int = BATCHES, dtype: torch.dtype = torch.float32
) -> tuple[TrainStep, list[Any]]:
    torch.manual_seed(0)
    model, processor = models.pretrained(config, published_prompts=way == "published_prompts")
    made = models.make_batches(processor, IMAGES, masks, batches, models.supervise(config))
    with torch.no_grad():
        encoded = [model.tower_tokens(processor.pixel_values(batch.canvas)).to(dtype) for batch in made]
    tokens = iter(encoded * 1000)
    model.to(dtype)
    step = TrainStep(TrainTask(model, processor), "fp32", torch.device("cpu"))
    model.tower_tokens = lambda *_, **__: next(tokens)
    if way == "after":
        speed_up_tower(model.tower, model.config.sliding_window_size)
        pack_linears(model.llm)
        make_fast(model.llm)
    return step, made


def gradients(step: TrainStep, batches: list[Any]) -> tuple[float, torch.Tensor]:
    """The loss of the first batch, and its gradient with respect to all trained parameters."""
    torch.manual_seed(0)
    losses, counts = step.task(batches[0])
    loss = losses.sum() / counts.sum()
    loss.backward()
    found = torch.cat([one.grad.flatten() for one in step.trained if one.grad is not None])
    step.optimizer.zero_grad()
    return float(loss.detach()), found


def errors(config: str, masks: int, steps: dict[str, tuple[TrainStep, list[Any]]]) -> dict[str, dict[str, float]]:
    """The relative errors of the first step's loss and gradient, compared with float64."""
    exact_loss, exact = gradients(*prepared(config, masks, "before", 1, torch.float64))
    found = {key: gradients(*steps[key]) for key in ("before", "after")}
    return {
        key: {"loss": abs(loss / exact_loss - 1), "gradient": float((gradient - exact).norm() / exact.norm())}
        for key, (loss, gradient) in found.items()
    }


def is_close(found: dict[str, dict[str, float]]) -> bool:
    allowed = max(2 * found["before"]["gradient"], 1e-4)
    return max(one["loss"] for one in found.values()) <= 1e-5 and found["after"]["gradient"] <= allowed


def measure(config: str, masks: int, rounds: int) -> dict[str, Any]:
    steps = {key: prepared(config, masks, key) for key in WAYS}
    apart = errors(config, masks, steps)
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for number in range(rounds + 1):  # the first round warms up
        order = list(steps) if number % 2 == 0 else list(reversed(steps))
        for key in order:
            step, batches = steps[key]
            keep_freed_memory(key == "after")
            torch.manual_seed(number)  # the same dropout
            begun = time.perf_counter()
            with windows_as(key == "after"):
                step(batches[number % BATCHES])
            seconds[key].append(time.perf_counter() - begun)
    taken = {key: values[1:] for key, values in seconds.items()}
    names = len(steps["before"][1][0])
    return {
        "masks_per_image": masks,
        "names_per_step": names,
        "seconds": {key: [round(value, 4) for value in values] for key, values in taken.items()},
        "names_per_second": {key: round(names / statistics.median(values), 2) for key, values in taken.items()},
        "gain": gain(taken["before"], taken["after"]),
        "gain_in_total": gain(taken["published_prompts"], taken["after"]),
        "errors": apart,
    }


def gain(before: list[float], after: list[float]) -> float:
    """The median of the ratios of the rounds."""
    return round(statistics.median(b / a for b, a in zip(before, after, strict=True)), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="the name of a config, such as osm_small")
    parser.add_argument("--masks", default="1,4,8", help="numbers of masks per image [%(default)s]")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each way [%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="torch threads [%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [measure(args.config, int(masks), args.rounds) for masks in args.masks.split(",")]
    document = {
        "config": args.config,
        **process_state(),
        "images_per_step": IMAGES,
        "cases": cases,
    }
    print(json.dumps(document, indent=1))
    return int(not all(is_close(case["errors"]) for case in cases))


if __name__ == "__main__":
    sys.exit(main())
