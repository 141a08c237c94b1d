"""Defines the contents of a training checkpoint, and the common interface of the two on-disk checkpoint layouts.

A checkpoint contains everything needed to resume a run: the trained parameters, the optimizer state, and the run's
counters and stream positions (`RunPosition`). A checkpoint contains no RNG state, because every random draw is derived
from the seed and the sample's position. A checkpoint contains hashes of the model's frozen weights, but not the weights
themselves.

A run writes checkpoints in two layouts:

- `PublishedLayout`: one file `<run_name>/checkpoint_<epoch>.pt` after each epoch, with the published entries.
- `ShardedLayout`: one folder `<run_name>/checkpoints/step_<n>/` for each checkpoint written within an epoch. Each rank
  writes its own shards of the tensors while training continues.

`osm.training.checkpoints` writes, finds, orders, verifies and prunes the checkpoints of both layouts.
`osm.training.resume` loads a checkpoint into a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from osm.errors import OsmError, shown
from osm.models.osm import OmniScientModel
from osm.training.run_position import RunPosition


class UnreadableCheckpoint(OsmError):
    """Raised for a corrupt or incomplete checkpoint. Loading a different model's checkpoint raises a plain OsmError."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint in a run's folder. Checkpoints are ordered from oldest to newest, so `max` returns the newest.

    Each checkpoint stores a counter that is higher than that of any earlier checkpoint. Checkpoints cannot be ordered
    by step and epoch, because these numbers may decrease when a run is resumed with a different batch size or number of
    processes. Checkpoints written by older versions have a counter of 0 and are ordered by epoch and batch.

    Attributes:
        counter: number of checkpoints that the run had written, including this one; 0 in files written by older
            versions.
        epoch: epoch in which a resumed run continues.
        batches: number of batches of that epoch that are already done.
        path: the `.pt` file or the step folder.
    """

    counter: int
    epoch: int
    batches: int
    path: Path


class CheckpointLayout(ABC):
    """Base class for on-disk checkpoint layouts."""

    @abstractmethod
    def paths(self, folder: Path) -> list[Path]:
        """Return the paths of all checkpoints with this layout in a run's folder, including corrupt ones."""

    @abstractmethod
    def read_header(self, path: Path) -> Checkpoint:
        """Read the counters of a checkpoint without loading its tensors.

        Raises:
            UnreadableCheckpoint: the counters cannot be read.
        """

    @abstractmethod
    def verify(self, path: Path) -> None:
        """Verify a checkpoint's files against their stored checksums.

        Raises:
            UnreadableCheckpoint: a file is missing, cannot be read, or has changed since it was written.
        """

    @abstractmethod
    def load(
        self, path: Path, model: OmniScientModel, optimizer: torch.optim.Optimizer
    ) -> tuple[RunPosition, Mapping[str, Any]]:
        """Load a checkpoint into a model and its optimizer. All ranks must call this method together.

        The optimizer's state is loaded, but the optimizer keeps its current hyperparameters.

        Returns:
            the progress from which the run continues, and the training config of the run that wrote the checkpoint
            (empty if the checkpoint contains no config).

        Raises:
            UnreadableCheckpoint: the checkpoint is damaged.
            OsmError: the checkpoint belongs to a different model, or the file is not a training checkpoint.
        """


def read_count(path: Path, progress: Any, name: str) -> int:
    """Return the counter `name` from a checkpoint's progress document, or 0 if the counter is missing.

    Raises:
        UnreadableCheckpoint: the value is not a non-negative integer, or is implausibly large.
    """
    count = progress.get(name, 0) if isinstance(progress, Mapping) else 0
    if type(count) is not int or not 0 <= count < 1 << 62:
        raise UnreadableCheckpoint(
            f"checkpoint {path}: progress.{name} is {shown(count)}, but must be a non-negative integer"
        )
    return count


def config_in(progress: Any) -> Mapping[str, Any]:
    """Return the training config from a progress document, or an empty mapping if the document has no config."""
    config = progress.get("config") if isinstance(progress, Mapping) else None
    return config if isinstance(config, Mapping) else {}
