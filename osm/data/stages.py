"""The stages of the training stream, which are chained in a `webdataset.DataPipeline`.

The order of the stages is `ShardPlan`, `SeededShuffle`, `Resume`, `ReadSamples`, `ToSample` and `ToBatch`.

A lane is the sample stream of one (rank, data-loader worker) pair. The sample order is determined from the shard
indexes before any sample is read. Each data-loader worker therefore reads only its own samples, and a resumed run skips
earlier samples without reading them. Each lane has its own random generator, which supplies all random numbers for the
lane's samples in order.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from osm.data.batch import Batch, make_batch
from osm.data.feature_cache import FeatureCache
from osm.data.sample import Sample, SampleTransform
from osm.data.shard_index import Indexes, ShardReader, is_held_out
from osm.data.shards import MAX_MEMBER_BYTES, MEMBERS, RawSample
from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError
from osm.forms import read_sample
from osm.storage.cache import FileCache
from osm.storage.locations import is_remote, public_text

T = TypeVar("T")
MAX_SKIPS_IN_A_ROW = 1000
_READ_AHEAD = 16
"""The number of samples that are prefetched from remote shards."""
_THREADS = 4


@dataclass(frozen=True)
class Lane:
    """Identifies a lane: the sample stream of one data-loader worker on one rank in one epoch.

    Attributes:
        dataset: name of the dataset.
        seed: seed of the run.
        epoch: index of the epoch.
        rank, world_size: rank of the process and number of ranks.
        worker, workers: index of the worker in its rank and number of workers per rank.
        salt: additional seeds. With a different salt, the lane draws different samples in the same epoch.
    """

    dataset: str
    seed: int
    epoch: int = 0
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1
    salt: tuple[int, ...] = ()

    @property
    def number(self) -> int:
        """The index of this (rank, worker) sample stream among all sample streams in the run."""
        return self.rank * self.workers + self.worker

    @property
    def count(self) -> int:
        """The number of (rank, worker) sample streams in the run."""
        return self.world_size * self.workers

    def generator(self) -> np.random.Generator:
        """Return a new random generator seeded for this (rank, worker) sample stream."""
        # The seed depends on the dataset's name, so that two datasets with the same shards are shuffled differently.
        name = int.from_bytes(self.dataset.encode(), "big")
        return np.random.default_rng([self.seed, self.epoch, self.rank, self.worker, name, *self.salt])

    def shared_generator(self) -> np.random.Generator:
        """Return a new random generator with a seed that is the same for all ranks and workers within an epoch.

        The shared generator ensures that all ranks and workers shuffle the shards into the same order.
        """
        return np.random.default_rng([self.seed, self.epoch, *self.salt])


class SamplePlace(NamedTuple):
    """The position of a sample: the index of its shard in the list of shards, and its index within the shard."""

    shard: int
    number: int


class DrawnSample(NamedTuple):
    """A sample from a (rank, worker) sample stream, or only its position if the sample has not been read yet.

    Attributes:
        item: a SamplePlace before the sample is read, and a RawSample or SampleError afterwards.
        number: number of the sample in the lane, starting at 1.
        seeds: seeds of the random generator for this sample, int64 (4).
    """

    item: Any
    number: int
    seeds: np.ndarray


class ShardPlan:
    """Yields an endless sequence of sample positions for one (rank, worker) sample stream.

    Args:
        shards: locations of the shards.
        indexes: indexes of the shards.
        lane: the lane whose positions are yielded.
        rng: random generator of the lane.
        resampled: if true, the lane draws whole shards with replacement. If false, each pass visits every shard once,
            and its samples are distributed over all lanes.
        held_out_share: share of the samples that is held out from training.

    Raises:
        OsmError: the shards contain no sample to train on.
    """

    def __init__(
        self,
        shards: Sequence[str],
        indexes: Indexes,
        lane: Lane,
        rng: np.random.Generator,
        resampled: bool,
        held_out_share: float,
    ) -> None:
        self.shards, self.indexes, self.lane, self.rng = shards, indexes, lane, rng
        self.resampled, self.share = resampled, held_out_share

    def __call__(self) -> Iterator[SamplePlace]:
        return self._with_replacement() if self.resampled else self._passes()

    def _with_replacement(self) -> Iterator[SamplePlace]:
        empty = 0
        while True:
            empty += 1
            shard = int(self.rng.integers(len(self.shards)))
            for number in self._training_numbers(shard):
                empty = 0
                yield SamplePlace(shard, int(number))
            require_samples(empty < MAX_SKIPS_IN_A_ROW, self.lane.dataset, self.share, len(self.shards))

    def _passes(self) -> Iterator[SamplePlace]:
        shared = self.lane.shared_generator()
        position = 0
        while True:
            for shard in shared.permutation(len(self.shards)):
                numbers = self._training_numbers(int(shard))
                first = (self.lane.number - position) % self.lane.count
                position += len(numbers)
                for number in numbers[first :: self.lane.count]:
                    yield SamplePlace(int(shard), int(number))
            require_samples(position > 0, self.lane.dataset, self.share, len(self.shards))

    def _training_numbers(self, shard: int) -> np.ndarray:
        return self.indexes[self.shards[shard]].training_numbers(self.share)


def require_samples(found: bool, name: str, share: float, shards: int) -> None:
    """Raise OsmError if the shards contain no samples to train on."""
    if not found:
        remaining = f" that --held_out_share {share} leaves" if share else ""
        raise OsmError(f"--{name}_shards: no sample{remaining} in {shards} shard(s)")


class SeededShuffle:
    """A shuffle buffer whose order is determined by the random generator of its (rank, worker) sample stream."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size

    def __call__(self, source: Iterable[T]) -> Iterator[T]:
        buffer: list[T] = []
        for item in source:
            if len(buffer) < self.size:
                buffer.append(item)
                continue
            slot = int(self.rng.integers(len(buffer)))
            buffer[slot], item = item, buffer[slot]
            yield item


class Resume:
    """Assigns a number and random seeds to each sample, and skips the first `start` samples without reading them."""

    def __init__(self, rng: np.random.Generator, start: int) -> None:
        self.rng, self.start = rng, start

    def __call__(self, source: Iterable[Any]) -> Iterator[DrawnSample]:
        for number, item in enumerate(source, 1):
            seeds = self.rng.integers(2**63, size=4)
            if number > self.start:
                yield DrawnSample(item, number, seeds)


class ReadSamples:
    """Reads the sample at each given position in the shards. Several threads prefetch samples from remote shards.

    Args:
        shards: locations of the shards.
        indexes: indexes of the shards.
        cache: cache of remote shards; None reads them by range requests.
    """

    def __init__(self, shards: Sequence[str], indexes: Indexes, cache: FileCache | None = None) -> None:
        self.shards, self.indexes, self.cache = shards, indexes, cache

    def __call__(self, source: Iterable[DrawnSample]) -> Iterator[DrawnSample]:
        if any(map(is_remote, self.shards)):
            yield from self._read_ahead(source)
            return
        reader = ShardReader()
        try:
            for drawn in source:
                yield drawn._replace(item=self._read(reader, drawn.item))
        finally:
            reader.close()

    def _read(self, reader: ShardReader, place: SamplePlace) -> RawSample | SampleError:
        return reader.read(self.indexes[self.shards[place.shard]], place.number)

    def _read_ahead(self, source: Iterable[DrawnSample]) -> Iterator[DrawnSample]:
        fetcher = _Fetcher(self._read, self.cache)
        waiting: deque[tuple[DrawnSample, Future[RawSample | SampleError]]] = deque()
        try:
            for drawn in source:
                waiting.append((drawn, fetcher.submit(drawn.item)))
                if len(waiting) > _READ_AHEAD:
                    first, fetched = waiting.popleft()
                    yield first._replace(item=fetched.result())
            while waiting:
                first, fetched = waiting.popleft()
                yield first._replace(item=fetched.result())
        finally:
            for _, fetched in waiting:
                fetched.cancel()
            fetcher.close()


class _Fetcher:
    """A pool of threads that prefetch samples from remote shards. Each thread has its own reader.

    Unlike the threads of a ThreadPoolExecutor, these are daemon threads, so that a stalled server does not keep the
    process from exiting.
    """

    def __init__(
        self, read: Callable[[ShardReader, SamplePlace], RawSample | SampleError], cache: FileCache | None
    ) -> None:
        self._read, self._cache = read, cache
        self._todo: queue.SimpleQueue[tuple[Future[RawSample | SampleError], SamplePlace] | None] = queue.SimpleQueue()
        for _ in range(_THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, place: SamplePlace) -> Future[RawSample | SampleError]:
        future: Future[RawSample | SampleError] = Future()
        self._todo.put((future, place))
        return future

    def close(self) -> None:
        """Stop each prefetching thread as soon as it has finished reading its current sample."""
        for _ in range(_THREADS):
            self._todo.put(None)

    def _work(self) -> None:
        reader = ShardReader(self._cache)
        try:
            while (item := self._todo.get()) is not None:
                future, place = item
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(self._read(reader, place))
                except BaseException as error:
                    future.set_exception(error)
        finally:
            reader.close()


class UserSamples:
    """Yields the samples of a user-defined pipeline as RawSample objects, and restarts the pipeline whenever it ends.

    Args:
        make: function that returns the webdataset samples of one pass as an iterable. A sample is a mapping with
            `__key__` and, for each member, its extension and bytes.
        where: prefix of messages, such as "--pipeline mine:samples".
        name: name of the dataset.
        share: share of the samples that is held out from training.

    Raises:
        OsmError: the pipeline raised an exception, yielded something other than webdataset samples, or yielded no
            sample to train on.
    """

    def __init__(self, make: Callable[[], Iterable[Mapping[str, Any]]], where: str, name: str, share: float) -> None:
        self.make, self.where, self.name, self.share = make, where, name, share

    def __call__(self) -> Iterator[RawSample]:
        while True:
            found = False
            for given in self._pass():
                raw = self._raw(given)
                if self.share and is_held_out(raw.key, self.share):
                    continue
                found = True
                yield raw
            if not found:
                remaining = f" that --held_out_share {self.share} leaves" if self.share else ""
                raise OsmError(f"{self.where}: the pipeline yielded no samples for dataset {self.name}{remaining}")

    def _pass(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self.make()
        except OsmError:
            raise
        except Exception as error:
            raise OsmError(f"{self.where}: {describe_exception(error)}") from None

    def _raw(self, given: Mapping[str, Any]) -> RawSample:
        if not isinstance(given, Mapping) or not isinstance(given.get("__key__"), str):
            raise OsmError(
                f"{self.where}: expected webdataset samples (mappings with a '__key__'), found {type(given).__name__}"
            )
        raw = RawSample(str(given.get("__url__", self.where)), given["__key__"])
        for name, value in given.items():
            if name.lower() not in MEMBERS:
                continue
            if not isinstance(value, bytes):
                raise OsmError(
                    f"{self.where}: sample {raw.key!r}: member {name!r} is of type {type(value).__name__}; expected "
                    "bytes (remove .decode() from the pipeline)"
                )
            raw.members[name.lower()] = value
        if sum(map(len, raw.members.values())) > MAX_MEMBER_BYTES:
            raise OsmError(f"{self.where}: sample {raw.key!r} exceeds the limit of {MAX_MEMBER_BYTES} bytes")
        return raw


def describe_exception(error: BaseException) -> str:
    """Describe an exception from user code: its type, message, file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"it raised {type(error).__name__}: {public_text(str(error))[:300]}{place}"


class ToSample:
    """Decodes raw samples and turns them into training samples. Unusable samples are counted and skipped.

    Args:
        dataset: the dataset that the samples belong to.
        transform: makes the training samples.
        skipped: counter to which skipped samples are added, by reason.
        cache: the feature cache, if one is used.

    Raises:
        OsmError: 1000 consecutive samples were unusable.
    """

    def __init__(
        self, dataset: Dataset, transform: SampleTransform, skipped: Counter[str], cache: FeatureCache | None
    ) -> None:
        self.dataset, self.transform, self.skipped, self.cache = dataset, transform, skipped, cache

    def __call__(self, source: Iterable[DrawnSample]) -> Iterator[tuple[Sample, int]]:
        in_a_row = 0
        for drawn in source:
            try:
                sample, faults = self._sample(drawn.item, np.random.default_rng(drawn.seeds))
                in_a_row = 0
                self.skipped.update(faults)
                yield sample, drawn.number
            except SampleError as error:
                self.skipped[error.reason] += 1
                in_a_row += 1
                if in_a_row == MAX_SKIPS_IN_A_ROW:
                    raise OsmError(
                        f"--{self.dataset.name}_shards: {in_a_row} samples in a row were unusable "
                        f"(counts by reason: {dict(self.skipped)}); the last error: {error}. "
                        f"Is {self.dataset.form!r} the correct annotation format for this dataset?"
                    ) from None

    def _sample(self, raw: RawSample | SampleError, rng: np.random.Generator) -> tuple[Sample, Counter[str]]:
        if isinstance(raw, SampleError):
            raise raw
        scene = read_sample(self.dataset.form, raw.members, self.dataset.label_set, self.dataset.rules)
        sample = self.transform(scene, raw.key, rng)
        if self.cache is not None:
            sample.cache_key = raw.cache_key
        for prompt, target in zip(sample.prompts, sample.targets, strict=True):
            self.transform.processor.training_row(prompt, target)  # raises SampleError if the answer is too long
        return sample, scene.faults()


class ToBatch:
    """Collates the samples of one data-loader worker into batches.

    Args:
        dataset: the dataset that the samples belong to.
        transform: the sample transform, whose processor tokenizes the texts.
        size: number of samples per batch.
        places: for each batch of this worker, its index among all batches of the rank in the epoch.
        worker: index of the worker, which is recorded in the batches.
        skipped: number of skipped samples, by reason. Each batch takes over the counts so far, and the counter is
            reset.
        cache: the feature cache that holds the vision tokens, if one is used.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: SampleTransform,
        size: int,
        places: Iterable[int],
        worker: int,
        skipped: Counter[str],
        cache: FeatureCache | None,
    ) -> None:
        self.dataset, self.transform, self.size, self.places = dataset, transform, size, places
        self.worker, self.skipped, self.cache = worker, skipped, cache

    def __call__(self, source: Iterable[tuple[Sample, int]]) -> Iterator[Batch]:
        samples = iter(source)
        for number in self.places:
            chosen, drawn = [], 0
            for _ in range(self.size):
                sample, drawn = next(samples)
                chosen.append(sample)
            batch = make_batch(
                chosen, self.dataset.name, self.transform.processor, self.transform.config.supervise, number
            )
            if self.cache is not None:
                parts = [self.cache.load(self.dataset.cache_name, s.cache_key, s.cached_view) for s in chosen]
                batch = replace(batch, tokens=torch.stack(parts))
            yield replace(batch, skipped=Counter(self.skipped), worker=self.worker, drawn=drawn)
            self.skipped.clear()
