"""Resumes a run: loads a checkpoint and adapts its counters to the current number of processes and batch sizes.

The flag `--resume_from_checkpoint` selects the checkpoint; by default, the newest intact checkpoint in the run's folder
is loaded. A run can be resumed with a different number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from osm.config import as_dict
from osm.errors import OsmError
from osm.models.osm import OmniScientModel
from osm.storage.locations import public
from osm.terminal import message_logger
from osm.training.checkpoint_layout import UnreadableCheckpoint
from osm.training.checkpoints import layout_of, local_checkpoint, newest_intact, scan, verify
from osm.training.distributed import World
from osm.training.run_position import RunPosition
from osm.training.train_config import TrainConfig

logger = message_logger(__name__)

# These settings may change when a run is resumed, because they do not affect what is trained.
_WITHOUT_EFFECT = (
    "run_name resume_from_checkpoint start_from wandb wandb_project logging_steps num_threads device workers"
)


def resume(
    config: TrainConfig, model: OmniScientModel, optimizer: torch.optim.Optimizer, world: World
) -> tuple[RunPosition, Path | None]:
    """Load the checkpoint to resume the run from, if there is one. All ranks must call this function together.

    Broken checkpoints in the run's folder are renamed to `<name>.broken`, and the newest intact checkpoint is loaded.

    Returns:
        the progress of the run, and the path of the loaded checkpoint; for a new run, initial progress and None.

    Raises:
        OsmError: the given checkpoint cannot be read, the checkpoint does not fit the model, or the run's folder has
            checkpoints but none of them is intact.
    """
    folder = Path(config.run_name)
    given = local_checkpoint(config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    broken: dict[Path, str] = {}
    if given:
        world.from_main(lambda: verify(given))
    while path := given or newest_intact(folder, world, broken):
        try:
            progress, before = layout_of(path).load(path, model, optimizer)
        except UnreadableCheckpoint as error:  # `verify` cannot detect damage if an older version wrote no checksums
            if given:
                raise
            broken[path] = str(error)
            continue
        except OsmError as error:
            hint = "" if given else f"\nIt was found in --run_name {folder}; choose a different folder for a new run"
            raise OsmError(f"{error}{hint}") from None
        progress.check_bounds(_epochs(before, config), _batch_sizes(before, config), f"checkpoint {path}")
        # The next checkpoint must have the largest counter in the folder, because the counters order the checkpoints.
        checkpoints = world.from_main(lambda: scan(folder)[0])
        progress.saves = max([progress.saves, *(checkpoint.counter for checkpoint in checkpoints)])
        if world.is_main:
            instead = f", not started from {public(config.start_from)}" if config.start_from else ""
            name = public(config.resume_from_checkpoint) or path
            logger.info(f"resumed from {name}: epoch {progress.epoch}, step {progress.step}{instead}", to_stdout=True)
            _report_changed_settings(before, as_dict(config))
        return progress, path
    return RunPosition(), None


def _epochs(before: Mapping[str, Any], config: TrainConfig) -> int:
    """Return the number of epochs in the checkpoint's config or in this run's config, whichever is larger."""
    epochs = before.get("num_epochs")
    return max(config.num_epochs, epochs if type(epochs) is int and epochs < 1 << 32 else 0)


def _batch_sizes(before: Mapping[str, Any], config: TrainConfig) -> dict[str, int]:
    """Return each dataset's batch size in the checkpoint's config or in this run's config, whichever is larger."""
    sizes = {name: chosen.batch_size for name, chosen in config.sets.items()}
    saved = before.get("sets")
    for name, chosen in saved.items() if isinstance(saved, Mapping) else ():
        size = chosen.get("batch_size") if isinstance(chosen, Mapping) else None
        if type(size) is int and size < 1 << 20:
            sizes[name] = max(size, sizes.get(name, 0))
    return sizes


def _report_changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if name in before and before[name] != value and name not in _WITHOUT_EFFECT.split():
            logger.info(
                f"changed since the checkpoint: {name} was {str(before[name])[:200]}, is now {str(value)[:200]}",
                to_stdout=True,
            )


def choose_streams(config: TrainConfig, progress: RunPosition, world: World) -> int:
    """Return the number of independent sample streams from which the run's ranks draw their samples.

    A resumed run keeps its number of sample streams if that number is divisible by the number of ranks. A run
    that keeps its number of sample streams draws the same samples as an uninterrupted run.
    """
    if config.emulate_world_size:
        return config.emulate_world_size
    if progress.streams and progress.streams % world.size == 0:
        if progress.streams != world.size and world.is_main:
            logger.info(f"resuming the sample streams of {progress.streams} processes on {world.size}", to_stdout=True)
        return progress.streams
    return world.size


def convert_progress(
    progress: RunPosition, config: TrainConfig, streams: int, batches: int, is_main: bool
) -> RunPosition:
    """Convert a checkpoint's progress for a resumed run whose epochs may have a different number of batches.

    Args:
        streams: number of sample streams of this run.
        batches: batches per epoch and stream of this run.
        is_main: whether this rank logs that the progress was converted.

    Raises:
        OsmError: the checkpoint was written by an older version, which did not store the number of batches per epoch,
            and its step does not match the steps per epoch of this run.
    """
    accumulation = config.gradient_accumulation_steps
    steps = math.ceil(batches / accumulation)
    if not progress.streams:  # a new run, or a checkpoint written by an older version
        progress.streams, progress.workers, progress.batches_per_epoch = streams, config.workers, batches
        if progress.step != progress.epoch * steps:
            raise OsmError(
                f"the checkpoint is at step {progress.step} after {progress.epoch} epochs, but this run has {steps} "
                "steps per epoch; resume with the earlier run's number of processes, batch size and number of samples"
            )
    same_steps = progress.step == progress.epoch * steps + progress.batches / accumulation
    if same_steps and progress.resumes_exactly(streams, config.workers, batches):
        progress.workers = config.workers
        return progress
    converted = progress.converted_to(streams, config.workers, batches, accumulation)
    if is_main:
        logger.info(
            "the number of processes, workers, batches or samples has changed: "
            f"resuming at step {converted.step}, epoch {converted.epoch}, at the same point of the schedule; "
            "the order of samples changes",
            to_stdout=True,
        )
    return converted
