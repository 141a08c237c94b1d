"""Precision of a run: what the frozen parts are held in, and what the forward computes in."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from osm.errors import OsmError
from osm.model.osm import OmniScientModel


def hold_frozen(model: OmniScientModel, precision: str, device: torch.device) -> None:
    """Keeps the frozen parts in half precision where that saves memory and costs nothing trained."""
    if precision == "fp16" and device.type != "cuda":
        raise OsmError(f"--precision fp16 needs CUDA (this process runs on {device.type}); amp_bf16 or fp32 work there")
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if half is None and precision.startswith("amp_") and device.type == "cuda":
        half = torch.bfloat16
    if half is not None:
        model.hold_frozen(half)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)
