"""Stores trained parameters under their published names, in epoch checkpoints and in model folders.

After each epoch, a run writes the checkpoint `<run_name>/checkpoint_<epoch>.pt`. The `.pt` file contains the published
entries (`epoch`, `model_state_dict`, `optimizer_state_dict`, `lr_scheduler_state_dict`) and two additional entries:
`config`, the model config with hashes of the frozen weights, and `progress`, from which the run can be resumed exactly.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from osm.errors import OsmError, shown
from osm.files import check_regular_file, sync_folder, write_atomically
from osm.models import checkpoint as files
from osm.models.osm import OmniScientModel
from osm.training.checkpoint_layout import Checkpoint, CheckpointLayout, UnreadableCheckpoint, config_in, read_count
from osm.training.distributed import World
from osm.training.parallel import distribute_like, full_tensor
from osm.training.run_position import RunPosition

_EPOCH_FILE = re.compile(r"checkpoint_(\d+)\.pt")


def epoch_file(folder: Path, epoch: int) -> Path:
    """Return the path of the checkpoint written after an epoch (counted from 0)."""
    return folder / f"checkpoint_{epoch}.pt"


def epoch_files(folder: Path) -> dict[int, Path]:
    """Map each epoch to its `.pt` checkpoint in a run's folder, sorted by epoch, including corrupt checkpoints."""
    found = [(_epoch_of(path), path) for path in folder.glob("checkpoint_*.pt") if _EPOCH_FILE.fullmatch(path.name)]
    return dict(sorted(found))


def _epoch_of(path: Path) -> int:
    match = _EPOCH_FILE.fullmatch(path.name)
    assert match is not None
    return int(match[1])


class PublishedLayout(CheckpointLayout):
    """Reads and writes the epoch checkpoints `checkpoint_<epoch>.pt`."""

    def paths(self, folder: Path) -> list[Path]:
        """Return the `.pt` checkpoints in a run's folder, ordered by epoch."""
        return list(epoch_files(folder).values())

    def read_header(self, path: Path) -> Checkpoint:
        """Read the counters of a `.pt` checkpoint; see `CheckpointLayout.read_header`."""
        try:
            document = files.read_published(path, device="meta")  # without the values of the tensors
        except OsmError as error:
            raise UnreadableCheckpoint(str(error)) from None
        counter = read_count(path, document.get("progress"), "saves")
        return Checkpoint(counter, _epoch_of(path) + 1, 0, path)

    def verify(self, path: Path) -> None:
        """Check each record of a `.pt` file (a zip archive) against its CRC-32; see `CheckpointLayout.verify`."""
        check_regular_file(path, "checkpoint")
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except OSError as error:
            raise UnreadableCheckpoint(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise UnreadableCheckpoint(f"checkpoint {path} is broken ({type(error).__name__}: {error})") from None
        if damaged is not None:
            raise UnreadableCheckpoint(
                f"checkpoint {path} is broken: record {damaged!r} does not match its stored checksum"
            )

    def write(
        self,
        path: Path,
        epoch: int,
        model: OmniScientModel,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        progress: Mapping[str, Any],
        world: World,
    ) -> None:
        """Write a checkpoint to `path`. All ranks must call this method together, but only rank 0 writes the file.

        A checkpoint is written under a temporary name and then renamed, so a crash never leaves an incomplete
        checkpoint.

        Raises:
            OSError: the file cannot be written.
        """
        document = {
            "epoch": epoch,
            "model_state_dict": {key: full_tensor(value).cpu() for key, value in model.trainable_state_dict().items()},
            "optimizer_state_dict": _full_optimizer_state(optimizer),
            # The schedule's lambdas are not stored, because torch.load(weights_only=True) rejects lambdas.
            # A resumed run rebuilds its learning-rate schedule from the config.
            "lr_scheduler_state_dict": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
            "config": files.config_document(model),
            "progress": progress,
        }
        if world.is_main:
            _save_atomically(path, document)

    def load(
        self, path: Path, model: OmniScientModel, optimizer: torch.optim.Optimizer
    ) -> tuple[RunPosition, Mapping[str, Any]]:
        """Load a `.pt` checkpoint; see `CheckpointLayout.load`."""
        where = f"checkpoint {path}"
        document = files.read_published(path)
        if "config" in document:
            files.check_frozen(model, document["config"], where)
        files.load_published_state_dict(model, document["model_state_dict"], where, distribute_like)
        files.check_meaning(model, document.get("config"), where)
        if "optimizer_state_dict" not in document or "epoch" not in document:
            raise OsmError(
                f"{where} has no optimizer state, so training cannot be resumed from it; use --start_from to start a "
                "new run with its weights"
            )
        _load_optimizer(optimizer, document["optimizer_state_dict"], where)
        stored, epoch = document.get("progress"), document["epoch"]
        if type(epoch) is not int:
            raise OsmError(f"{where}: the entry 'epoch' is {shown(epoch)}, but must be an integer")
        counters = dict(stored) if isinstance(stored, Mapping) else {}
        progress = RunPosition.read({**counters, "epoch": epoch + 1, "batches": 0, "positions": {}}, where)
        return progress, config_in(stored)


def _save_atomically(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".pt.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except RuntimeError as error:  # torch.save raises RuntimeError if the disk is full
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    document = optimizer.state_dict()
    state = {
        number: {key: full_tensor(value) if isinstance(value, Tensor) else value for key, value in values.items()}
        for number, values in document["state"].items()
    }
    return {**document, "state": state}


def _load_optimizer(optimizer: torch.optim.Optimizer, document: Any, where: str) -> None:
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        groups, state = document["param_groups"], document["state"]
        sizes = [len(group["params"]) for group in groups]
        if sizes != [len(group["params"]) for group in optimizer.param_groups]:
            raise ValueError(f"groups of {sizes} parameters")
        for number, parameter in enumerate(parameters):
            stored = state.get(number, {})
            for value in stored.values():
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
            optimizer.state[parameter] = {
                key: distribute_like(value, parameter) if value.ndim else value.clone() for key, value in stored.items()
            }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OsmError(f"{where}: the checkpoint's optimizer state does not fit this model ({error})") from None


def save_trained_model(
    model: OmniScientModel, folder: Path, world: World, figures: Mapping[str, Any] | None = None
) -> None:
    """Write the trained parameters to a model folder (config.json, model.safetensors).

    All ranks must call this function together. This function writes a run's model folders `final`, `best` and
    `initial`. A model folder contains no optimizer state, so a run cannot be resumed from it.

    Args:
        figures: evaluation metrics to write to `figures.json` in the same folder.
    """
    state = {key: full_tensor(value) for key, value in files.published_state_dict(model).items()}
    if world.is_main:
        files.write_folder(folder, files.config_document(model), state)
        if figures is not None:
            write_atomically(folder / "figures.json", [json.dumps(figures, indent=1) + "\n"])
