"""Checkpoints of a run: `<run_name>/checkpoint_<epoch>.pt` in the published layout, and what exact resuming needs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from osm.errors import OsmError
from osm.model import checkpoint as files
from osm.model.osm import OmniScientModel

_NAME = re.compile(r"checkpoint_(\d+)\.pt")


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest epoch in a run's folder."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint_*.pt") if (match := _NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def save(
    folder: Path,
    epoch: int,
    model: OmniScientModel,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    progress: dict[str, Any],
    delete_previous: bool,
) -> Path:
    """Writes `checkpoint_<epoch>.pt` under a temporary name and renames it: a crash leaves the older one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{epoch}.pt"
    previous = newest(folder)
    document = {
        "epoch": epoch,
        "model_state_dict": {key: value.cpu() for key, value in model.trainable_state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": _plain(schedule.state_dict()),
        "config": files.config_document(model),
        "progress": progress,
    }
    temporary = path.with_suffix(".pt.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if delete_previous and previous is not None and previous != path:
        previous.unlink()
    return path


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    # The lambdas of a schedule cannot be loaded with weights_only=True, and are rebuilt from the config anyway.
    return {key: value for key, value in state.items() if key != "lr_lambdas"}


def resume(
    path: Path, model: OmniScientModel, optimizer: torch.optim.Optimizer, schedule: Any
) -> tuple[int, dict[str, Any]]:
    """Loads a checkpoint of train.py into everything.

    Returns:
        the epoch to go on with, and the progress counters.

    Raises:
        OsmError: a file of another model, or of something else.
    """
    document = model.load_checkpoint(path)
    if "config" in document:
        files.check_frozen(model, document["config"], f"checkpoint {path}")
    if "optimizer_state_dict" not in document or "lr_scheduler_state_dict" not in document:
        raise OsmError(f"checkpoint {path} has no optimizer state: it cannot be resumed from")
    try:
        optimizer.load_state_dict(document["optimizer_state_dict"])
    except ValueError as error:
        raise OsmError(f"checkpoint {path}: its optimizer state does not fit this model ({error})") from None
    schedule.load_state_dict({**schedule.state_dict(), **document["lr_scheduler_state_dict"]})
    return int(document["epoch"]) + 1, dict(document.get("progress", {}))
