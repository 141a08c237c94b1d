"""The training stream of a dataset, which runs the stages from `osm.data.stages` in DataLoader workers.

The samples of each data-loader worker are fully determined by (seed, epoch, rank, worker).
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset import DataPipeline

from osm.data.batch import Batch
from osm.data.feature_cache import FeatureCache
from osm.data.sample import Sample, SampleTransform
from osm.data.shard_index import Indexes
from osm.data.stages import (
    Lane,
    ReadSamples,
    Resume,
    SeededShuffle,
    ShardPlan,
    ToBatch,
    ToSample,
    UserSamples,
    describe_exception,
)
from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.memory_reuse import keep_freed_memory
from osm.storage.cache import FileCache

_SIGTERM_GRACE_SECONDS = 60.0  # the time for which a worker keeps running after SIGTERM


@dataclass(frozen=True)
class Position:
    """The position that one rank's sample stream has reached in an epoch.

    Attributes:
        batches: number of batches consumed.
        drawn: worker index -> number of samples that the worker had drawn when it finished its last consumed batch.
            Skipped samples are included.
    """

    batches: int = 0
    drawn: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamConfig:
    """Settings for a dataset's sample stream: where its samples come from and how they are drawn.

    Attributes:
        shards: locations of the shards.
        batch_size: number of samples per batch and rank.
        samples_per_epoch: number of samples per epoch over all ranks.
        seed: seed of the run.
        resampled: whether shards are drawn with replacement.
        shuffle_buffer: size of the shuffle buffer in samples.
        held_out_share: share of the samples that is held out for validation. Samples are selected by their keys.
        shard_cache: folder for copies of remote shards; empty disables the cache.
        shard_cache_bytes: size limit of this folder; 0 means unlimited.
        pipeline: `module:function` of a user-defined pipeline that replaces reading and shuffling; empty for none.
    """

    shards: tuple[str, ...]
    batch_size: int
    samples_per_epoch: int
    seed: int = 42
    resampled: bool = False
    shuffle_buffer: int = 500
    held_out_share: float = 0.0
    shard_cache: str = ""
    shard_cache_bytes: int = 0
    pipeline: str = ""


def batches_per_epoch(samples: int, batch_size: int, world_size: int, workers: int) -> int:
    """Return the number of batches per epoch and rank, computed as in the published code.

    The number of batches is ceil(samples / (batch size x ranks)), rounded up to a multiple of the number of workers.
    """
    workers = max(1, workers)
    return math.ceil(math.ceil(samples / (batch_size * world_size)) / workers) * workers


UserPipeline = Callable[[Sequence[str], Lane], Iterable[Mapping[str, Any]]]


def user_pipeline(name: str) -> UserPipeline:
    """Import the function given as `--pipeline module:function`.

    The function receives the shards and a `Lane`, and returns the webdataset samples for one pass over the shards.

    Raises:
        OsmError: the name is malformed, or the module cannot be imported or has no such function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise OsmError(f"--pipeline {name!r}: expected module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise OsmError(f"--pipeline {name!r}: {error}; is the module's folder on PYTHONPATH?") from None
    except (Exception, SystemExit) as error:
        raise OsmError(f"--pipeline {name!r}: {describe_exception(error)}") from None
    if not callable(found):
        raise OsmError(f"--pipeline {name!r}: {module} has no function {function!r}")
    return found


def shard_cache(folder: str, most: int) -> FileCache | None:
    """Create the cache of remote shards. Return None if `folder` is empty.

    Args:
        most: size limit in bytes; 0 means unlimited.
    """
    if not folder:
        return None
    cache = FileCache(Path(folder), most or None)
    cache.make()
    return cache


@dataclass(frozen=True)
class WorkerFailure:
    """Sent by a failed data-loader worker in place of a batch, so that the training process raises `error`."""

    error: OsmError


class SampleStream(IterableDataset):
    """Iterates over the batches of one dataset for one rank.

    Each data-loader worker reads its own sample stream (lane).

    Attributes:
        epoch: index of the epoch to iterate over.
        start: position in the epoch at which the iteration starts.
        salt: see `Lane`.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        transform: SampleTransform,
        rank: int,
        world_size: int,
        cache: FeatureCache | None = None,
        indexes: Indexes | None = None,
    ) -> None:
        super().__init__()
        self.dataset, self.config, self.transform = dataset, config, transform
        self.rank, self.world_size, self.cache = rank, world_size, cache
        self.indexes = indexes or Indexes()
        self.epoch = 0
        self.start = Position()
        self.salt: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is None:
            yield from self._batches()
            return
        try:
            yield from self._batches()
        except OsmError as error:  # a raised error would reach the training process only as the text of a traceback
            yield WorkerFailure(error)  # type: ignore[misc]

    def lane(self, worker: int, workers: int) -> Lane:
        """Return the (rank, worker) sample stream of a worker in the current epoch."""
        return Lane(
            self.dataset.name, self.config.seed, self.epoch, self.rank, self.world_size, worker, workers, self.salt
        )

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        total = batches_per_epoch(self.config.samples_per_epoch, self.config.batch_size, self.world_size, workers)
        # A DataLoader always takes its first batch from worker 0.
        # When a run resumes, worker 0 is assigned the sample stream that produces the next batch.
        worker = (number + self.start.batches) % workers
        skipped: Counter[str] = Counter()
        places = range(self.start.batches + number, total, workers)
        to_batch = ToBatch(self.dataset, self.transform, self.config.batch_size, places, worker, skipped, self.cache)
        start = self.start.drawn.get(worker, 0)
        yield from DataPipeline(*self.stages(self.lane(worker, workers), skipped, start), to_batch)

    def samples(self, worker: int, workers: int, skipped: Counter[str], start: int = 0) -> Iterator[tuple[Sample, int]]:
        """Yield an endless sequence of samples for one DataLoader worker, each with the number of samples drawn so far.

        Args:
            skipped: counter to which skipped samples are added, by reason.
            start: number of samples to skip without reading them.
        """
        return iter(DataPipeline(*self.stages(self.lane(worker, workers), skipped, start)))

    def stages(self, lane: Lane, skipped: Counter[str], start: int) -> list[Callable[..., Iterator[Any]]]:
        """Return the pipeline stages that produce a data-loader worker's samples; see `samples` for the arguments."""
        rng, config = lane.generator(), self.config
        to_sample = ToSample(self.dataset, self.transform, skipped, self.cache)
        if config.pipeline:
            make = user_pipeline(config.pipeline)
            where = f"--pipeline {config.pipeline}"
            samples = UserSamples(lambda: make(config.shards, lane), where, lane.dataset, config.held_out_share)
            return [samples, Resume(rng, start), to_sample]
        cache = shard_cache(config.shard_cache, config.shard_cache_bytes)
        return [
            ShardPlan(config.shards, self.indexes, lane, rng, config.resampled, config.held_out_share),
            SeededShuffle(rng, config.shuffle_buffer),
            Resume(rng, start),
            ReadSamples(config.shards, self.indexes, cache),
            to_sample,
        ]


class EpochLoader:
    """Loads one dataset's batches for one process, epoch by epoch, and keeps track of the position in the epoch.

    Args:
        workers: number of data-loader workers per stream. With 0, this process loads the batches.
        cache: the feature cache, if one is used.
        emulate: world size to emulate. With `emulate` > 0, each process reads the streams of several ranks, so that
            fewer processes consume the same samples as a run with `emulate` ranks.
        pin_memory: whether to copy batches to pinned memory.
        indexes: indexes of the shards; None creates new ones.

    Raises:
        OsmError: `emulate` is not a multiple of `world_size`.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        transform: SampleTransform,
        rank: int,
        world_size: int,
        workers: int,
        cache: FeatureCache | None = None,
        emulate: int = 0,
        pin_memory: bool = False,
        indexes: Indexes | None = None,
    ) -> None:
        streams = emulate or world_size
        if streams % world_size:
            raise OsmError(f"--emulate_world_size {streams} is not a multiple of the number of processes, {world_size}")
        share = streams // world_size
        indexes = indexes or Indexes()
        self.streams = [
            SampleStream(dataset, config, transform, rank * share + i, streams, cache, indexes) for i in range(share)
        ]
        self.workers, self.pin_memory = workers, pin_memory
        self.batches = batches_per_epoch(config.samples_per_epoch, config.batch_size, streams, workers)
        self._taken = 0
        self._iterators: list[Any] = []
        self._drawn: dict[int, dict[int, int]] = {}  # stream -> worker -> number of samples drawn

    def epoch(self, number: int, start: Mapping[int, Position] | None = None, salt: int = 0) -> Iterator[list[Batch]]:
        """Yield this process's batches for each step of an epoch, one batch per sample stream of this process.

        Args:
            number: index of the epoch.
            start: for each sample stream, the position from which the stream resumes.
            salt: a nonzero value draws different samples for the same epoch.
        """
        self.close()
        self._drawn = {}
        for stream in self.streams:
            stream.epoch, stream.salt = number, (salt,) if salt else ()
            stream.start = (start or {}).get(stream.rank, Position())
            self._taken = stream.start.batches
            self._drawn[stream.rank] = dict(stream.start.drawn)
            # `init_worker` limits each worker to one torch thread, because the workers would otherwise compete for the
            # CPU cores.
            options: dict[str, Any] = {"worker_init_fn": init_worker, "pin_memory": self.pin_memory}
            self._iterators.append(iter(DataLoader(stream, batch_size=None, num_workers=self.workers, **options)))
        return self._track_positions(zip(*self._iterators, strict=True))

    def close(self) -> None:
        """Immediately terminate the data-loader workers of the most recent epoch."""
        for iterator in self._iterators:
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
                for worker in iterator._workers:
                    if worker.is_alive():
                        worker.kill()
        self._iterators = []

    def _track_positions(self, batches: Iterator[tuple[Batch, ...]]) -> Iterator[list[Batch]]:
        for parts in batches:
            for part in parts:
                if isinstance(part, WorkerFailure):
                    raise part.error
            self._taken += 1
            for stream, batch in zip(self.streams, parts, strict=True):
                self._drawn[stream.rank][batch.worker] = batch.drawn
            yield list(parts)

    def positions(self) -> dict[int, Position]:
        """Return the position of each sample stream of this process. Prefetched but unused batches are not counted."""
        return {stream: Position(self._taken, dict(drawn)) for stream, drawn in self._drawn.items()}


def init_worker(_: int) -> None:
    """Initialize a data-loader worker: use one torch thread, ignore SIGINT and delay SIGTERM."""
    torch.set_num_threads(1)
    keep_freed_memory(False)  # the training process may keep it, which makes no worker faster
    # Ctrl-C signals the whole process group; workers ignore it, because the current step still needs their batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_later)


def _exit_later(*_: Any) -> None:
    timer = threading.Timer(_SIGTERM_GRACE_SECONDS, os._exit, (0,))
    timer.daemon = True  # a worker that finishes earlier exits without waiting for the timer
    timer.start()
