#!/usr/bin/env python3
"""Compares the memory that `osm plan` estimates for a training step with the memory that a real step takes.

    python3 benchmarks/plan_check.py [--cases vit_l_qwen2_0.5b,...] [--device cpu] [--out FILE]

The models have random weights, so nothing is downloaded. On a CPU, the memory is the sum of all allocations and frees
that torch's profiler records, plus the weights and AdamW's moments, which exist before the step. On a GPU, it is
`torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from osm.config import from_dict  # noqa: E402
from osm.errors import OsmError, did_you_mean  # noqa: E402
from osm.models.blank import blank_model  # noqa: E402
from osm.models.model_config import ModelConfig  # noqa: E402
from osm.planning.fake_tensors import bytes_of, replace_tensors  # noqa: E402
from osm.planning.simulate import Pixels, StepRequest, simulate_step, training_batch  # noqa: E402
from osm.training import parallel  # noqa: E402
from osm.training.optimization import autocast, hold_frozen, make_optimizer  # noqa: E402
from osm.training.step import MAX_GRAD_NORM  # noqa: E402
from osm.training.task import TrainTask  # noqa: E402

_BRIDGE = {"kind": "maskqformer", "layers": 6, "width": 512, "heads": 8, "mlp_width": 2048, "instruction_dim": 64}
_FLAMINGO = {"kind": "flamingo", "width": 512, "heads": 8, "layers": 2, "mlp_width": 2048, "every": 6}
_GATED = {"gated_width": 512, "gated_heads": 8, "gated_mlp_width": 2048}
_VIT = {"kind": "timm", "name": "vit_large_patch14_clip_224"}
_MODEL: dict[str, Any] = {
    "input_size": 448,
    "mask_to_grid": "area",
    "tower": _VIT,
    "llm": {"name": "Qwen/Qwen2.5-0.5B-Instruct"},
    "bridge": _BRIDGE,
}
CASES: dict[str, dict[str, Any]] = {
    "vit_l_qwen2_0.5b": {"model": _MODEL, "images": 4},
    "checkpointing": {"model": _MODEL, "images": 4, "masks": 8, "checkpointing": True},
    "bfloat16": {"model": _MODEL, "images": 4, "masks": 4, "precision": "bf16"},
    "flamingo": {"model": {**_MODEL, "bridge": {**_FLAMINGO, **_GATED}}, "images": 4, "masks": 4},
    "qwen3_0.6b_cached": {
        "model": {**_MODEL, "llm": {"name": "Qwen/Qwen3-0.6B"}},
        "images": 8,
        "masks": 4,
        "cached_tokens": True,
    },
}


def request_of(name: str, gpu: bool) -> StepRequest:
    if name not in CASES:
        raise OsmError(f"--cases {name}: expected some of {', '.join(CASES)}{did_you_mean(name, CASES)}")
    case = dict(CASES[name])
    config = from_dict(ModelConfig, case.pop("model"), "model")
    return StepRequest(config.with_modes(["coco"]), gpu=gpu, **case)


def compare(name: str, device: torch.device) -> dict[str, Any]:
    """Estimate and measure one case."""
    asked = request_of(name, device.type == "cuda")
    started = time.perf_counter()
    estimated = simulate_step(asked).memory
    seconds = time.perf_counter() - started
    measured, weights = measure(asked, device)
    record = {
        "case": name,
        "weights_gb": round(weights / 1e9, 2),
        "estimated_gb": round(estimated.total / 1e9, 3),
        "measured_gb": round(measured / 1e9, 3),
        "error": round(estimated.total / measured - 1, 4),
        "activations_estimated_gb": round(estimated.activations / 1e9, 3),
        "seconds_of_the_estimate": round(seconds, 1),
    }
    print(json.dumps(record), flush=True)
    return record


def measure(asked: StepRequest, device: torch.device) -> tuple[int, int]:
    """Take a real step, and return the bytes at its peak and the bytes of the weights."""
    torch.manual_seed(0)
    model = blank_model(asked.model)
    hold_frozen(model, asked.precision, device)
    replace_tensors(model, lambda old: _values(old, device))
    task = TrainTask(model.train(), Pixels())  # type: ignore[arg-type]
    if asked.checkpointing:
        parallel.enable_gradient_checkpointing(task)
    batch = training_batch(model, None, asked.images, asked.masks, asked.cached_tokens).to(device)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(task, 1e-4, 0.05)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    moments = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    weights = bytes_of([*task.parameters(), *task.buffers()])
    static = weights + bytes_of(moments) + _batch_bytes(batch)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        _step(task, batch, asked, trained, optimizer, device)
        return torch.cuda.max_memory_allocated(device), weights
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _step(task, batch, asked, trained, optimizer, device)
    return static + _peak(profile), weights


def _step(
    task: TrainTask,
    batch: Any,
    asked: StepRequest,
    trained: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    with autocast(asked.precision, device):
        losses, _ = task(batch)
    losses.sum().backward()
    nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimizer.step()


def _peak(profile: Any) -> int:
    """Return the largest sum of allocations minus frees that a profile recorded."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _values(old: Tensor, device: torch.device) -> Tensor:
    """Return small random values of a meta tensor's shape, so that the step is finite."""
    new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
    return new.normal_(0, 0.02) if new.is_floating_point() else new.zero_()


def _batch_bytes(batch: Any) -> int:
    parts = [batch.canvas, batch.tokens, batch.masks, *vars(batch.text).values()]
    return sum(part.nbytes for part in parts if part is not None)


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--cases", default=",".join(CASES), help="names of cases, separated by commas [all]")
    out.add_argument("--device", default="cpu", help="cpu or cuda [%(default)s]")
    out.add_argument("--images", type=int, default=0, help="images of each case [the case's]")
    out.add_argument("--out", type=Path, help="JSON file [none]")
    args = out.parse_args()
    device = torch.device(args.device)
    try:
        if args.images:
            for case in CASES.values():
                case["images"] = args.images
        records = [compare(name, device) for name in args.cases.split(",")]
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    document = {"machine": machine, "torch": torch.__version__, "cases": records}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
