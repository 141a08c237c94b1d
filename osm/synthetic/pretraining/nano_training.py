"""The learning-rate schedule and the checkpoint format for pre-training osm-nano's tower and LLM."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch

from osm.errors import OsmError
from osm.models.weights import load_torch


def warmup_cosine(step: int, total: int) -> float:
    """Return the learning rate at a step, as a fraction of the peak learning rate.

    The learning rate rises linearly over the first 5% of the steps and then decays to 0 along a cosine curve.
    """
    warm = max(1, total // 20)
    return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint to the `--work` folder atomically."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def read_state(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint from the `--work` folder. The checkpoint must have been written with the same `config`.

    Raises:
        OsmError: the file is broken, or was written with a different `config`.
    """
    try:
        document = load_torch(path)
    except ValueError as error:
        raise OsmError(f"the checkpoint {path} {error}; choose a different --work folder, or remove the file") from None
    if not isinstance(document, dict) or document.get("config") != config:
        raise OsmError(
            f"the checkpoint {path} was made with different settings; choose a different --work folder, "
            "or remove the file"
        )
    return document
