"""Precision of a run: what the frozen parts are held in, and what the forward computes in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from osm.errors import OsmError
from osm.models.osm import OmniScientModel
from osm.models.quantize import check_device


def hold_frozen(model: OmniScientModel, precision: str, device: torch.device) -> None:
    """Keeps the frozen parts in half precision where that saves memory and costs nothing trained."""
    if precision == "fp16" and device.type not in ("cuda", "cpu"):
        raise OsmError(f"--precision fp16 needs CUDA or a CPU, this process runs on {device.type}; fp32 works there")
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if half is None and precision.startswith("amp_") and device.type == "cuda":
        half = torch.bfloat16
    if half is not None:
        model.hold_frozen(half)


def check_quantized(model: OmniScientModel, fsdp: bool, device: torch.device) -> None:
    """Raises OsmError where an LLM in 8 or 4 bits cannot be trained around as asked."""
    name = model.config.llm.quantization
    check_device(model.llm, name, device)
    if name and fsdp:
        raise OsmError(
            f"model.llm.quantization {name!r} with --fsdp: packed weights cannot be cut into shards; leave one out"
        )


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)
