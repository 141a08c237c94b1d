"""A set's training stream, decided by (seed, epoch, rank, worker) alone: its stages put together, and its epochs."""

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
from osm.storage.cache import FileCache

_SIGTERM_GRACE_SECONDS = 60.0  # seconds that a worker goes on after a SIGTERM


@dataclass(frozen=True)
class Position:
    """How far the stream of one rank has come in an epoch.

    Attributes:
        batches: that were taken of it. drawn: worker -> samples drawn by the last batch taken of it, bad ones included.
    """

    batches: int = 0
    drawn: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamConfig:
    """Where a set's samples come from and how they are drawn.

    Attributes:
        held_out_share: of the samples, chosen by their keys: kept for evaluation, and never trained on.
        shard_cache: a folder for copies of remote shards; empty = none. shard_cache_bytes: that it may hold.
        pipeline: `module:function`, a pipeline of the user's own instead of our reading and shuffling.
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
    """The published count: ceil(samples / (batch x ranks)), then ceil per worker, times workers."""
    workers = max(1, workers)
    return math.ceil(math.ceil(samples / (batch_size * world_size)) / workers) * workers


UserPipeline = Callable[[Sequence[str], Lane], Iterable[Mapping[str, Any]]]


def user_pipeline(name: str) -> UserPipeline:
    """The function that `--pipeline module:function` names: (shards, lane) -> webdataset's samples of one pass.

    Raises:
        OsmError: there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise OsmError(f"--pipeline {name!r}: expected module:function")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise OsmError(f"--pipeline {name!r}: {error}; is its folder in PYTHONPATH?") from None
    except (Exception, SystemExit) as error:
        raise OsmError(f"--pipeline {name!r}: {describe_exception(error)}") from None
    if not callable(found):
        raise OsmError(f"--pipeline {name!r}: {module} has no function {function!r}")
    return found


def shard_cache(folder: str, most: int) -> FileCache | None:
    """The cache of remote shards in a folder, bounded by so many bytes (0 = not); None where no folder is given."""
    if not folder:
        return None
    cache = FileCache(Path(folder), most or None)
    cache.make()
    return cache


@dataclass(frozen=True)
class WorkerFailure:
    """Takes the place of a batch that a worker could not make; the process that trains raises the error."""

    error: OsmError


class SampleStream(IterableDataset):
    """Batches of one set for one rank; each worker draws a stream of its own."""

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
        self.salt: tuple[int, ...] = ()  # another one draws other samples of the same epoch

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is None:
            yield from self._batches()
            return
        try:
            yield from self._batches()
        except OsmError as error:  # raised here, it would reach the process that trains as the text of a traceback
            yield WorkerFailure(error)  # type: ignore[misc]

    def lane(self, worker: int, workers: int) -> Lane:
        """The lane of one of its workers."""
        where = (self.epoch, self.rank, self.world_size, worker, workers, self.salt)
        return Lane(self.dataset.name, self.config.seed, *where)

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        total = batches_per_epoch(self.config.samples_per_epoch, self.config.batch_size, self.world_size, workers)
        # A DataLoader starts at worker 0: on resume, the worker whose turn it is takes that place.
        worker = (number + self.start.batches) % workers
        skipped: Counter[str] = Counter()
        places = range(self.start.batches + number, total, workers)
        to_batch = ToBatch(self.dataset, self.transform, self.config.batch_size, places, worker, skipped, self.cache)
        start = self.start.drawn.get(worker, 0)
        yield from DataPipeline(*self.stages(self.lane(worker, workers), skipped, start), to_batch)

    def samples(self, worker: int, workers: int, skipped: Counter[str], start: int = 0) -> Iterator[tuple[Sample, int]]:
        """Endless samples of one worker, each with how many were drawn by then.

        Args:
            skipped: what is left out is counted there by reason. start: so many are drawn and not looked at.
        """
        return iter(DataPipeline(*self.stages(self.lane(worker, workers), skipped, start)))

    def stages(self, lane: Lane, skipped: Counter[str], start: int) -> list[Callable[..., Iterator[Any]]]:
        """The stages up to samples."""
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
    """The batches of one set for one process, epoch by epoch, and how far they have been taken.

    With `emulate` > 0 this process draws the streams of several ranks, as many as it takes to make `emulate` in all:
    the samples of a larger run on fewer processes.
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
            raise OsmError(f"--emulate_world_size {streams} is not a multiple of the {world_size} processes")
        share = streams // world_size
        indexes = indexes or Indexes()
        self.streams = [
            SampleStream(dataset, config, transform, rank * share + i, streams, cache, indexes) for i in range(share)
        ]
        self.workers, self.pin_memory = workers, pin_memory
        self.batches = batches_per_epoch(config.samples_per_epoch, config.batch_size, streams, workers)
        self._taken = 0
        self._iterators: list[Any] = []
        self._drawn: dict[int, dict[int, int]] = {}  # stream -> worker -> samples

    def epoch(self, number: int, start: Mapping[int, Position] | None = None, salt: int = 0) -> Iterator[list[Batch]]:
        """For each step of an epoch the batches of this process's streams.

        Args:
            start: stream -> how far it had come. salt: other than 0, other samples of the same epoch are drawn.
        """
        self.close()
        self._drawn = {}
        for stream in self.streams:
            stream.epoch, stream.salt = number, (salt,) if salt else ()
            stream.start = (start or {}).get(stream.rank, Position())
            self._taken = stream.start.batches
            self._drawn[stream.rank] = dict(stream.start.drawn)
            # Workers fork before any thread pool has run in them; their own torch threads would fight over the cores.
            options: dict[str, Any] = {"worker_init_fn": init_worker, "pin_memory": self.pin_memory}
            self._iterators.append(iter(DataLoader(stream, batch_size=None, num_workers=self.workers, **options)))
        return self._track_positions(zip(*self._iterators, strict=True))

    def close(self) -> None:
        """Ends the workers of the last epoch, whatever they are at."""
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
        """Stream -> how far it has been taken; what is made in advance does not count."""
        return {stream: Position(self._taken, dict(drawn)) for stream, drawn in self._drawn.items()}


def init_worker(_: int) -> None:
    """The `worker_init_fn`: one thread, and a signal to the whole group is not for the worker."""
    torch.set_num_threads(1)
    # A signal to the whole group is for the process that trains: it still needs its workers for this step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_later)


def _exit_later(*_: Any) -> None:
    timer = threading.Timer(_SIGTERM_GRACE_SECONDS, os._exit, (0,))
    timer.daemon = True  # a worker that is done does not wait for it
    timer.start()
