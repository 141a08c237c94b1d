"""In-training evaluation on held-out samples, which are selected by key and excluded from training.

Shapes: R rows, G groups of rows ((dataset, mode) pairs).
"""

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
from osm.training.optimization import autocast
from osm.training.task import MixLoss, TrainTask


class HeldOut:
    """Evaluates a model on the held-out samples of all datasets.

    Args:
        sets: dataset name -> its row of the dataset table, its shards, and its batch size.
        transform: makes training samples from raw samples. The random values of a sample are derived from its key, so
            they are the same in every evaluation.
        share: the fraction of the samples that is held out.
        count: the maximum number of samples to evaluate per dataset.
        precision: the training precision, in which the evaluation also runs its forward passes.
        indexes: indexes of the shards.
        shard_cache: cache for remote shards.
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

    def evaluate(self, task: TrainTask, loss: MixLoss) -> dict[str, float]:
        """Evaluate a model on the held-out samples. All ranks must call this method together.

        Returns:
            `eval/loss`, the mean cross entropy per token, and `eval/accuracy`, the fraction of rows whose name is
            predicted exactly. Both metrics are computed over all rows, and also for each group, as
            `eval/loss/<set>/<own|any>`. A name is predicted exactly if each of its tokens and the end token is the most
            likely token, so that greedy search would generate the name.
        """
        groups = loss.groups
        sums_4G = torch.zeros(4, len(groups), dtype=torch.float64)  # cross entropy, tokens, rows, exact rows
        for batch, weight in self._batches():
            with autocast(self.precision, self.world.device):
                outputs = task(batch.to(self.world.device), scored=True)
            losses_R, counts_R, exact_R = (x.cpu() for x in outputs)
            index_R = loss.group_index(batch)
            for place, values_R in enumerate((losses_R, counts_R, torch.ones_like(losses_R), exact_R)):
                sums_4G[place].index_add_(0, index_R, values_R.double() * weight)
        entropy_G, tokens_G, rows_G, exact_G = self._sum_over_ranks(sums_4G)
        found = {
            "eval/loss": float(entropy_G.sum() / tokens_G.sum().clamp(min=1)),
            "eval/accuracy": float(exact_G.sum() / rows_G.sum().clamp(min=1)),
        }
        for place, (name, half) in enumerate(groups):
            if rows_G[place]:
                found[f"eval/loss/{name}/{half}"] = float(entropy_G[place] / tokens_G[place])
                found[f"eval/accuracy/{name}/{half}"] = float(exact_G[place] / rows_G[place])
        return found

    def _sum_over_ranks(self, sums_4G: Tensor) -> Tensor:
        on_device_4G = sums_4G.float() if self.world.device.type == "mps" else sums_4G
        return self.world.sum(on_device_4G.to(self.world.device)).cpu()

    def _batches(self) -> Iterator[tuple[Batch, float]]:
        """Yield this rank's held-out batches, each with weight 1, followed by padding batches with weight 0.

        With FSDP, all ranks must run the same number of forward passes, so a rank with fewer samples repeats one of its
        samples with weight 0.
        """
        for name, (dataset, shards, size) in self.sets.items():
            if name not in self._raws:
                self._raws[name] = self._find(shards)
            raws, faults = self._raws[name], Counter[str]()
            mine = list(self._samples(dataset, raws[self.world.rank :: self.world.size], faults))
            filling = mine[:1] or list(islice(self._samples(dataset, raws, faults), 1))
            if not filling:
                why = f"all were skipped: {dict(faults)}" if faults else f"none in {len(shards)} shard(s)"
                raise OsmError(
                    f"--held_out_share {self.share}: dataset {name} has no usable held-out samples "
                    f"({why}); use a larger share"
                )
            for number in range(-(-len(raws) // (size * self.world.size))):
                chosen = mine[number * size : (number + 1) * size]
                batch = make_batch(chosen or filling, dataset.name, self.transform.processor, "answer", number)
                yield in_both_modes(batch), float(bool(chosen))

    def _samples(self, dataset: Dataset, raws: list[RawSample], faults: Counter[str]) -> Iterator[Sample]:
        """Yield the usable samples, and count the skipped samples by reason in `faults`."""
        for raw in raws:
            seed = int.from_bytes(hashlib.sha256(f"evaluation: {raw.key}".encode()).digest()[:8], "big")
            try:
                scene = read_sample(dataset.form, raw.members, dataset.label_set, dataset.rules)
                yield self.transform(scene, raw.key, np.random.default_rng(seed))
            except SampleError as error:
                faults[error.reason] += 1

    def _find(self, shards: list[str]) -> list[RawSample]:
        """Read at most `count` held-out samples from the beginning of the shards.

        The method `_batches` keeps the samples in memory, so the shards are searched only once per run.
        """
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
    """Return a batch that contains every mask twice: in its dataset's mode and in the open-vocabulary mode `any`.

    The metrics of the two modes are comparable, because every mask is evaluated in both modes.
    """
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
    """Return whether an evaluation is better than every earlier evaluation of the run.

    Args:
        metric: `accuracy` (higher is better) or `loss` (lower is better).
        found: the metrics that `HeldOut.evaluate` returned.
        best: the best earlier value of the metric; None if there is no earlier evaluation.
    """
    value = found[f"eval/{metric}"]
    return best is None or (value > best if metric == "accuracy" else value < best)
