"""The training stream: shards -> shuffled samples -> batches, decided by (seed, epoch, rank, worker) alone.

Shapes: N images, R rows (masks), S input size, T text tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from osm.data.datasets import ANY_MODE, Dataset
from osm.data.feature_cache import FeatureCache
from osm.data.processor import Processor, Text
from osm.data.sample import Sample, SampleTransform
from osm.data.shards import RawSample, read_shard
from osm.data.workers import WorkerFailed, quiet_worker
from osm.errors import OsmError, SampleError
from osm.forms import read_sample

MAX_SKIPS_IN_A_ROW = 1000


@dataclass
class Batch:
    """One batch of one set (or several, merged): N images, R masks.

    Attributes:
        datasets: (R), the set of each row. modes: (R), the mode it answers in.
        canvas: uint8 (N, 3, S, S), or None where `tokens` (N, L, C), float16, came from a cache.
        image_index: (R,), the image of each row. masks: bool (R, 1, S, S).
        skipped: samples left out since the last batch, by reason.
        worker, drawn: which worker made it, and how many samples it had drawn of its stream by then.
    """

    datasets: list[str]
    modes: list[str]
    canvas: Tensor | None
    tokens: Tensor | None
    image_index: Tensor
    masks: Tensor
    text: Text
    keys: list[str]
    skipped: Counter[str] = field(default_factory=Counter)
    worker: int = 0
    drawn: int = 0

    def __len__(self) -> int:
        return len(self.modes)

    def to(self, device: torch.device) -> Batch:
        return self._moved(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Called by the DataLoader, so that the copy to the GPU need not wait."""
        return self._moved(lambda x: x.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        text = Text(*(move(t) for t in vars(self.text).values()))
        return replace(
            self,
            canvas=None if self.canvas is None else move(self.canvas),
            tokens=None if self.tokens is None else move(self.tokens),
            image_index=move(self.image_index),
            masks=move(self.masks),
            text=text,
        )


def merge(batches: Sequence[Batch]) -> Batch:
    """Returns one batch of all images and rows, texts padded to the longest; of pinned batches a pinned one."""
    if len(batches) == 1:
        return batches[0]
    pinned = batches[0].masks.is_pinned()
    index, images = [], 0
    for batch in batches:
        index.append(batch.image_index + images)
        images += len(batch.keys)

    def together(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return _joined(present, pinned) if present else None

    text = Text(
        *(
            _joined(_padded([getattr(b.text, name) for b in batches], -100 if name == "labels" else 0), pinned)
            for name in vars(batches[0].text)
        )
    )
    return Batch(
        sum((b.datasets for b in batches), []),
        sum((b.modes for b in batches), []),
        together([b.canvas for b in batches]),
        together([b.tokens for b in batches]),
        _joined(index, pinned),
        _joined([b.masks for b in batches], pinned),
        text,
        sum((b.keys for b in batches), []),
        sum((b.skipped for b in batches), Counter()),
    )


def _joined(parts: list[Tensor], pinned: bool) -> Tensor:
    """Concatenates along the first axis, into pinned memory where a GPU is to copy the result without waiting."""
    if not pinned:
        return torch.cat(parts)
    first = parts[0]
    channels_last = first.ndim == 4 and not first.is_contiguous()
    out = torch.empty(
        (sum(len(part) for part in parts), *first.shape[1:]),
        dtype=first.dtype,
        pin_memory=True,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    return torch.cat(parts, out=out)


def _padded(parts: list[Tensor], value: int) -> list[Tensor]:
    length = max(part.shape[1] for part in parts)
    return [F.pad(part, (0, length - part.shape[1]), value=value) for part in parts]


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
    """

    shards: tuple[str, ...]
    batch_size: int
    samples_per_epoch: int
    seed: int = 42
    resampled: bool = False
    shuffle_buffer: int = 500
    held_out_share: float = 0.0


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample belongs to the share that is not trained on; the same for every run, rank and set."""
    digest = hashlib.sha256(f"held out: {key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def batches_per_epoch(samples: int, batch_size: int, world_size: int, workers: int) -> int:
    """The published count: ceil(samples / (batch x ranks)), then ceil per worker, times workers."""
    workers = max(1, workers)
    return math.ceil(math.ceil(samples / (batch_size * world_size)) / workers) * workers


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
    ) -> None:
        super().__init__()
        self.dataset, self.config, self.transform = dataset, config, transform
        self.rank, self.world_size, self.cache = rank, world_size, cache
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
            yield WorkerFailed(error)  # type: ignore[misc]

    def _batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        total = batches_per_epoch(self.config.samples_per_epoch, self.config.batch_size, self.world_size, workers)
        # A DataLoader asks its workers in turn and begins with the first: that one takes on whose turn it is.
        worker = (number + self.start.batches) % workers
        skipped: Counter[str] = Counter()
        samples = self.samples(worker, workers, skipped, self.start.drawn.get(worker, 0))
        for place in range(self.start.batches + number, total, workers):
            chosen, drawn = [], 0
            for _ in range(self.config.batch_size):
                sample, drawn = next(samples)
                chosen.append(sample)
            batch = self._batch(chosen, place, skipped)
            batch.worker, batch.drawn = worker, drawn
            yield batch
            skipped.clear()

    def samples(self, worker: int, workers: int, skipped: Counter[str], start: int = 0) -> Iterator[tuple[Sample, int]]:
        """Endless samples of one worker, each with how many were drawn by then.

        Args:
            skipped: what is left out is counted there by reason. start: so many are drawn and not looked at.
        """
        # The dataset's name is part of the key, so that two sets in the same shards do not walk in step.
        name = int.from_bytes(self.dataset.name.encode(), "big")
        rng = np.random.default_rng([self.config.seed, self.epoch, self.rank, worker, name, *self.salt])
        in_a_row = 0
        for drawn, raw in enumerate(self._shuffled(rng, worker, workers), 1):
            seeds = rng.integers(2**63, size=4)
            if drawn <= start:
                continue
            sample_rng = np.random.default_rng(seeds)
            try:
                if isinstance(raw, SampleError):
                    raise raw
                scene = read_sample(self.dataset.form, raw.members, self.dataset.label_set, self.dataset.rules)
                sample = self.transform(scene, raw.key, sample_rng)
                if self.cache is not None:
                    sample.cache_key = raw.cache_key
                self._check_text(sample)
                in_a_row = 0
                skipped.update(scene.faults())
                yield sample, drawn
            except SampleError as error:
                skipped[error.reason] += 1
                in_a_row += 1
                if in_a_row == MAX_SKIPS_IN_A_ROW:
                    raise OsmError(
                        f"--{self.dataset.name}_shards: {in_a_row} samples in a row were unusable "
                        f"({dict(skipped)}); the last: {error}. Is form {self.dataset.form!r} right for this set?"
                    ) from None

    def _check_text(self, sample: Sample) -> None:
        for prompt, target in zip(sample.prompts, sample.targets, strict=True):
            self.transform.processor.training_row(prompt, target)

    def _shuffled(self, rng: np.random.Generator, worker: int, workers: int) -> Iterator[RawSample | SampleError]:
        """Samples through a shuffle buffer, in an order that the generator decides."""
        buffer: list[RawSample | SampleError] = []
        for raw in self._in_order(rng, worker, workers):
            if len(buffer) < self.config.shuffle_buffer:
                buffer.append(raw)
                continue
            slot = int(rng.integers(len(buffer)))
            buffer[slot], raw = raw, buffer[slot]
            yield raw

    def _in_order(self, rng: np.random.Generator, worker: int, workers: int) -> Iterator[RawSample | SampleError]:
        """Shards drawn with replacement; or else every shard once a pass, its samples dealt out to all workers."""
        shards = self.config.shards
        empty = 0
        if self.config.resampled:
            while True:
                empty += 1
                for raw in self._trained_on(shards[int(rng.integers(len(shards)))]):
                    empty = 0
                    yield raw
                self._check_some(empty < MAX_SKIPS_IN_A_ROW)
        lane, lanes = self.rank * workers + worker, self.world_size * workers
        shared = np.random.default_rng([self.config.seed, self.epoch, *self.salt])  # one order for all: the deals agree
        position = 0
        while True:
            for shard in shared.permutation(len(shards)):
                for raw in self._trained_on(shards[shard]):
                    position += 1
                    if (position - 1) % lanes == lane:
                        yield raw
            self._check_some(position > 0)

    def _trained_on(self, shard: str) -> Iterator[RawSample | SampleError]:
        share = self.config.held_out_share
        for raw in read_shard(shard):
            if share and isinstance(raw, RawSample) and is_held_out(raw.key, share):
                continue
            yield raw

    def _check_some(self, found: bool) -> None:
        if not found:
            left = f" that --held_out_share {self.config.held_out_share} leaves" if self.config.held_out_share else ""
            raise OsmError(f"--{self.dataset.name}_shards: no sample{left} in {len(self.config.shards)} shard(s)")

    def _batch(self, samples: list[Sample], number: int, skipped: Counter[str]) -> Batch:
        batch = batch_of(samples, self.dataset.name, self.transform.processor, self.transform.config.supervise, number)
        if self.cache is not None:
            parts = [self.cache.load(self.dataset.cache_name, s.cache_key, s.cached_view) for s in samples]
            batch.tokens = torch.stack(parts)
        batch.skipped = Counter(skipped)
        return batch


def batch_of(samples: Sequence[Sample], name: str, processor: Processor, supervise: str, number: int) -> Batch:
    """Samples of one set as a batch: the first half of its rows in the set's own mode, the rest in `any`.

    Args:
        number: of the batch; a single row takes both modes in turn.
    """
    counts = [len(sample.targets) for sample in samples]
    rows = sum(counts)
    own = rows // 2 if rows > 1 else (number + 1) % 2
    pictures = [sample.pixels for sample in samples if sample.pixels is not None]
    text = processor.training_text(
        [prompt for sample in samples for prompt in sample.prompts],
        [target for sample in samples for target in sample.targets],
        supervise,
    )
    return Batch(
        [name] * rows,
        [name] * own + [ANY_MODE] * (rows - own),
        processor.padded_batch(pictures) if pictures else None,
        None,
        torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        torch.cat([sample.masks for sample in samples]),
        text,
        [sample.key for sample in samples],
    )


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
    ) -> None:
        streams = emulate or world_size
        if streams % world_size:
            raise OsmError(f"--emulate_world_size {streams} is not a multiple of the {world_size} processes")
        share = streams // world_size
        self.streams = [
            SampleStream(dataset, config, transform, rank * share + i, streams, cache) for i in range(share)
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
            options: dict[str, Any] = {"worker_init_fn": quiet_worker, "pin_memory": self.pin_memory}
            self._iterators.append(iter(DataLoader(stream, batch_size=None, num_workers=self.workers, **options)))
        return self._counted(zip(*self._iterators, strict=True))

    def close(self) -> None:
        """Ends the workers of the last epoch, whatever they are at."""
        for iterator in self._iterators:
            if hasattr(iterator, "_shutdown_workers"):
                iterator._shutdown_workers()
                for worker in iterator._workers:
                    if worker.is_alive():
                        worker.kill()
        self._iterators = []

    def _counted(self, batches: Iterator[tuple[Batch, ...]]) -> Iterator[list[Batch]]:
        for parts in batches:
            for part in parts:
                if isinstance(part, WorkerFailed):
                    raise part.error
            self._taken += 1
            for stream, batch in zip(self.streams, parts, strict=True):
                self._drawn[stream.rank][batch.worker] = batch.drawn
            yield list(parts)

    def positions(self) -> dict[int, Position]:
        """Stream -> how far it has been taken; what is made in advance does not count."""
        return {stream: Position(self._taken, dict(drawn)) for stream, drawn in self._drawn.items()}
