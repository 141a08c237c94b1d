"""Files of trained parts that a run writes whole: `<run_name>/checkpoint_<epoch>.pt` in the published layout, with what
exact resuming needs, and folders with safetensors (`final`, `best`, `initial`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osm.errors import OsmError, shown
from osm.files import sync_folder, write_atomically
from osm.models import checkpoint as files
from osm.models.osm import OmniScientModel
from osm.training.distributed import World
from osm.training.parallel import like, whole
from osm.training.progress import Progress
from osm.training.saved import scan


def frozen_hashes(model: OmniScientModel) -> dict[str, str]:
    """Hashes the frozen parts; to be called while they are whole, and before they are cast to half precision.

    The hash rounds values to bfloat16. A value that was cast to float16 first may round to another bfloat16 value.
    """
    return files.frozen_hashes(model)


def share_hashes(model: OmniScientModel, world: World) -> None:
    """Hashes the frozen parts on the main process for all; see `frozen_hashes`. Collective."""
    model.frozen_hashes = world.from_main(lambda: frozen_hashes(model))


def save_model(model: OmniScientModel, folder: Path, world: World, figures: Mapping[str, Any] | None = None) -> None:
    """Writes the trained parts as a folder; all processes call it together.

    Args:
        figures: go beside them, into `figures.json`.
    """
    state = {key: whole(value) for key, value in files.published_state_dict(model).items()}
    if world.is_main:
        files.write_folder(folder, files.config_document(model), state)
        if figures is not None:
            write_atomically(folder / "figures.json", [json.dumps(figures, indent=1) + "\n"])


def save(
    folder: Path,
    epoch: int,
    model: OmniScientModel,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    progress: dict[str, Any],
    delete_previous: bool,
    world: World,
) -> None:
    """Writes `checkpoint_<epoch>.pt` under a temporary name and renames it: a crash leaves the older one whole.

    All processes call it together.
    """
    document = {
        "epoch": epoch,
        "model_state_dict": {key: whole(value).cpu() for key, value in model.trainable_state_dict().items()},
        "optimizer_state_dict": _whole_optimizer(optimizer),
        "lr_scheduler_state_dict": _plain(schedule.state_dict()),
        "config": files.config_document(model),
        "progress": progress,
    }
    if not world.is_main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{epoch}.pt"
    previous = None
    if delete_previous:  # else no other checkpoint need be opened
        previous = next((saved.path for saved in scan(folder)[0] if saved.path.is_file()), None)
    temporary = path.with_suffix(".pt.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except RuntimeError as error:  # what torch makes of a disk that is full
        temporary.unlink(missing_ok=True)
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if previous is not None and previous != path:
        previous.unlink()


def _whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    document = optimizer.state_dict()
    state = {
        place: {key: whole(value) if isinstance(value, Tensor) else value for key, value in own.items()}
        for place, own in document["state"].items()
    }
    return {**document, "state": state}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    # The lambdas of a schedule cannot be loaded with weights_only=True, and are rebuilt from the config anyway.
    return {key: value for key, value in state.items() if key != "lr_lambdas"}


def load(path: Path, model: OmniScientModel, optimizer: torch.optim.Optimizer) -> tuple[Progress, Mapping[str, Any]]:
    """Loads a checkpoint of `save` into a model and its optimizer, whose flags stay as they are given.

    Returns:
        where to go on, and the training config that it was made with (empty where it does not say).

    Raises:
        OsmError: a file of another model, or of something else.
    """
    where = f"checkpoint {path}"
    document = files.read_published(path)
    if "config" in document:
        files.check_frozen(model, document["config"], where)
    files.load_published_state_dict(model, document["model_state_dict"], where, like)
    files.check_meaning(model, document.get("config"), where)
    if "optimizer_state_dict" not in document or "epoch" not in document:
        raise OsmError(
            f"{where} has no optimizer state: it cannot be resumed from; --start_from begins a new run with it"
        )
    _load_optimizer(optimizer, document["optimizer_state_dict"], where)
    progress = document.get("progress", {})
    progress = dict(progress) if isinstance(progress, Mapping) else {}
    epoch, config = document["epoch"], progress.get("config")
    if type(epoch) is not int:
        raise OsmError(f"{where}: its epoch is {shown(epoch)}, a whole number is needed")
    read = Progress.read({**progress, "epoch": epoch + 1, "batches": 0, "positions": {}}, where)
    return read, config if isinstance(config, Mapping) else {}


def _load_optimizer(optimizer: torch.optim.Optimizer, document: Any, where: str) -> None:
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        groups, state = document["param_groups"], document["state"]
        sizes = [len(group["params"]) for group in groups]
        if sizes != [len(group["params"]) for group in optimizer.param_groups]:
            raise ValueError(f"groups of {sizes} parameters")
        for place, parameter in enumerate(parameters):
            own = state.get(place, {})
            for value in own.values():
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(f"shape {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
            optimizer.state[parameter] = {
                key: like(value, parameter) if value.ndim else value.clone() for key, value in own.items()
            }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OsmError(f"{where}: its optimizer state does not fit this model ({error})") from None
