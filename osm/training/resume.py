"""Going on: from the newest checkpoint of a run's folder, or a given one, on as many processes as there are now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from osm.config import as_dict
from osm.errors import OsmError
from osm.models import checkpoint as files
from osm.models.osm import OmniScientModel
from osm.storage.locations import public
from osm.terminal import message_logger
from osm.training import checkpoint, dcp
from osm.training.config import TrainConfig
from osm.training.distributed import World
from osm.training.run_position import RunPosition
from osm.training.saved import Unreadable, check_whole, local_checkpoint, newest_whole, run_document, scan

logger = message_logger(__name__)

# What may differ from run to run, and changes nothing that is trained.
_ASIDE = "run_name resume_from_checkpoint start_from wandb wandb_project logging_steps num_threads device workers"


def resume(
    config: TrainConfig, model: OmniScientModel, optimizer: torch.optim.Optimizer, world: World
) -> tuple[RunPosition, Path | None]:
    """Loads the checkpoint to go on from, if there is one; a collective call.

    A broken checkpoint in the run's folder is set aside, and the newest whole one is taken.

    Raises:
        OsmError: a given file that cannot be read, or one that does not fit the model; or none is whole.
    """
    folder = Path(config.run_name)
    given = local_checkpoint(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    broken: dict[Path, str] = {}
    if given:
        world.from_main(lambda: check_whole(given))
    while path := given or newest_whole(folder, world, broken):
        try:
            progress, before = _load(path, model, optimizer)
        except Unreadable as error:  # of older code, without checksums
            if given:
                raise
            broken[path] = str(error)
            continue
        except OsmError as error:
            hint = "" if given else f"\nIt was found in --run_name {folder}; for another run choose another folder"
            raise OsmError(f"{error}{hint}") from None
        progress.check_bounds(_epochs(before, config), _batch_sizes(before, config), f"checkpoint {path}")
        # Not lower than any in the folder: what is saved next is the newest.
        progress.saves = max([progress.saves, *(saved.counter for saved in world.from_main(lambda: scan(folder)[0]))])
        if world.is_main:
            instead = f", not started from {public(config.start_from)}" if config.start_from else ""
            told = public(config.resume_from_checkpoint) or path
            logger.info(f"resumed from {told}: epoch {progress.epoch}, step {progress.step}{instead}", to_stdout=True)
            _say_changes(before, as_dict(config))
        return progress, path
    return RunPosition(), None


def _epochs(before: Mapping[str, Any], config: TrainConfig) -> int:
    epochs = before.get("num_epochs")
    return max(config.num_epochs, epochs if type(epochs) is int and epochs < 1 << 32 else 0)


def _batch_sizes(before: Mapping[str, Any], config: TrainConfig) -> dict[str, int]:
    """Returns each set's batch size, the larger one of the run that was saved and of this one."""
    sizes = {name: chosen.batch_size for name, chosen in config.sets.items()}
    saved = before.get("sets")
    for name, chosen in saved.items() if isinstance(saved, Mapping) else ():
        size = chosen.get("batch_size") if isinstance(chosen, Mapping) else None
        if type(size) is int and size < 1 << 20:
            sizes[name] = max(size, sizes.get(name, 0))
    return sizes


def _load(
    path: Path, model: OmniScientModel, optimizer: torch.optim.Optimizer
) -> tuple[RunPosition, Mapping[str, Any]]:
    if not path.is_dir():
        return checkpoint.load(path, model, optimizer)
    document = run_document(path)
    files.check_frozen(model, document.get("model", {}), f"checkpoint {path}")
    dcp.load(path, dcp.state_of(model, optimizer))
    files.check_meaning(model, document.get("model"), f"checkpoint {path}")
    config = document["progress"].get("config", {})
    return RunPosition.read(document["progress"], f"checkpoint {path}"), config if isinstance(config, Mapping) else {}


def _say_changes(before: Any, now: Mapping[str, Any]) -> None:
    if not isinstance(before, Mapping):
        return
    for name, value in now.items():
        if name in before and before[name] != value and name not in _ASIDE.split():
            logger.info(
                f"changed since: {name} was {str(before[name])[:200]}, and is {str(value)[:200]}", to_stdout=True
            )


def streams_of(config: TrainConfig, progress: RunPosition, world: World) -> int:
    """How many sample streams the run has: as many as before, where its processes can share them out."""
    if config.emulate_world_size:
        return config.emulate_world_size
    if progress.streams and progress.streams % world.size == 0:
        if progress.streams != world.size and world.is_main:
            logger.info(f"going on with the samples of {progress.streams} processes on {world.size}", to_stdout=True)
        return progress.streams
    return world.size


def placed(progress: RunPosition, config: TrainConfig, streams: int, batches: int, is_main: bool) -> RunPosition:
    """The progress as that of this run, whose epochs may have other batches than those of the run before."""
    accumulation = config.gradient_accumulation_steps
    steps = math.ceil(batches / accumulation)
    if not progress.streams:  # of a new run, or a file that did not say
        progress.streams, progress.workers, progress.batches_per_epoch = streams, config.workers, batches
        if progress.step != progress.epoch * steps:
            raise OsmError(
                f"the checkpoint is of step {progress.step} after {progress.epoch} epochs, but an epoch of this run "
                f"has {steps} steps: go on with the processes, batch size and samples that it was made with"
            )
    same_steps = progress.step == progress.epoch * steps + progress.batches / accumulation
    if same_steps and progress.goes_on_exactly(streams, config.workers, batches):
        progress.workers = config.workers
        return progress
    moved = progress.moved_to(streams, config.workers, batches, accumulation)
    if is_main:
        logger.info(
            f"processes, workers, batch sizes or samples are others than before: going on at step {moved.step}, epoch "
            f"{moved.epoch}, as far in the schedule; the order of samples is another one",
            to_stdout=True,
        )
    return moved
