"""Evaluation during training: on samples that are never trained on, chosen by their keys."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from osm.data.batch import Batch, make_batch
from osm.data.processor import Text
from osm.data.sample import Sample, SampleTransform
from osm.data.shard_index import Indexes, ShardReader
from osm.data.shards import RawSample
from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError, SampleError
from osm.forms import read_sample
from osm.storage.cache import FileCache
from osm.training.distributed import World
from osm.training.precision import autocast
from osm.training.task import TrainTask, group_index


class HeldOut:
    """The held-out samples of all sets, and how well the model names them.

    Args:
        sets: name -> its row of the table, its shards, and its batch size. transform: how samples are made; each is
            made from its own key, the same every time. count: samples of each set. precision: of the run; the forwards
            compute in it, as those of the training do. indexes: of the shards. shard_cache: of remote ones.
    """

    def __init__(
        self,
        sets: Mapping[str, tuple[Dataset, list[str], int]],
        transform: SampleTransform,
        share: float,
        count: int,
        world: World,
        precision: str = "fp32",
        indexes: Indexes | None = None,
        shard_cache: FileCache | None = None,
    ) -> None:
        self.sets, self.transform, self.world = sets, transform, world
        self.share, self.count, self.precision = share, count, precision
        self.indexes, self.shard_cache = indexes or Indexes(), shard_cache
        self._raws: dict[str, list[RawSample]] = {}

    def evaluate(self, task: TrainTask, groups: list[tuple[str, str]]) -> dict[str, float]:
        """Loss a token and share of names said exactly, of each set's halves and over all rows.

        A name counts where every token of it, and the end after it, is the likeliest one: greedy search would say it.
        """
        sums = torch.zeros(4, len(groups), dtype=torch.float64)  # cross entropy, tokens, names, right ones
        for batch, weight in self._batches():
            with autocast(self.precision, self.world.device):
                found = task(batch.to(self.world.device), scored=True)
            losses, counts, right = (x.cpu() for x in found)
            index = group_index(batch, groups)
            for place, values in enumerate((losses, counts, torch.ones_like(losses), right)):
                sums[place].index_add_(0, index, values.double() * weight)
        loss, tokens, names, right = self._summed(sums)
        found = {
            "eval/loss": float(loss.sum() / tokens.sum().clamp(min=1)),
            "eval/accuracy": float(right.sum() / names.sum().clamp(min=1)),
        }
        for place, (name, half) in enumerate(groups):
            if names[place]:
                found[f"eval/loss/{name}/{half}"] = float(loss[place] / tokens[place])
                found[f"eval/accuracy/{name}/{half}"] = float(right[place] / names[place])
        return found

    def _summed(self, sums: Tensor) -> Tensor:
        on_device = sums.float() if self.world.device.type == "mps" else sums
        return self.world.sum(on_device.to(self.world.device)).cpu()

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """This process's share, each with its weight: with FSDP all must run equally many forwards, if for nothing."""
        for name, (dataset, shards, size) in self.sets.items():
            if name not in self._raws:
                self._raws[name] = self._find(shards)
            raws, faults = self._raws[name], Counter[str]()
            mine = list(self._samples(dataset, raws[self.world.rank :: self.world.size], faults))
            filling = mine[:1] or list(islice(self._samples(dataset, raws, faults), 1))
            if not filling:
                why = f"all were left out: {dict(faults)}" if faults else f"none in {len(shards)} shard(s)"
                raise OsmError(f"--held_out_share {self.share}: no sample of {name} to evaluate on ({why}); give more")
            for number in range(-(-len(raws) // (size * self.world.size))):
                chosen = mine[number * size : (number + 1) * size]
                batch = make_batch(chosen or filling, dataset.name, self.transform.processor, "answer", number)
                yield in_both_modes(batch), float(bool(chosen))

    def _samples(self, dataset: Dataset, raws: list[RawSample], faults: Counter[str]) -> Iterator[Sample]:
        for raw in raws:
            seed = int.from_bytes(hashlib.sha256(f"evaluation: {raw.key}".encode()).digest()[:8], "big")
            try:
                scene = read_sample(dataset.form, raw.members, dataset.label_set, dataset.rules)
                yield self.transform(scene, raw.key, np.random.default_rng(seed))
            except SampleError as error:
                faults[error.reason] += 1

    def _find(self, shards: list[str]) -> list[RawSample]:
        """The first ones in the shards' order; kept as they lie there, so that they are looked for once."""
        raws: list[RawSample] = []
        reader = ShardReader(self.shard_cache)
        try:
            for shard in shards:
                if len(raws) == self.count:
                    break
                index = self.indexes[shard]
                for number in index.held_out_numbers(self.share)[: self.count - len(raws)]:
                    raw = reader.read(index, int(number))
                    assert isinstance(raw, RawSample)
                    raws.append(raw)
        finally:
            reader.close()
        return raws


def in_both_modes(batch: Batch) -> Batch:
    """Every row in its set's own mode, and again in `any`: the figures of both halves are of the same masks."""
    text = Text(*(value.repeat(2, 1) for value in vars(batch.text).values()))
    return replace(
        batch,
        datasets=batch.datasets * 2,
        modes=[*batch.datasets, *[ANY_MODE] * len(batch)],
        image_index=batch.image_index.repeat(2),
        masks=batch.masks.repeat(2, 1, 1, 1),
        text=text,
    )


def best_so_far(metric: str, found: Mapping[str, float], best: float | None) -> bool:
    """Whether these figures are the best yet, by `accuracy` (more is better) or `loss` (less is)."""
    value = found[f"eval/{metric}"]
    return best is None or (value > best if metric == "accuracy" else value < best)
