"""Golden sample orders: which samples each rank and worker trains on, batch by batch, for a given seed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream_sets import bands, dataset, panoptic, processor, write_shard

from osm.data.batch import Batch
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.stream import EpochLoader, StreamConfig

SEEDS, RANKS, WORKERS = (0, 7), ((0, 1), (0, 2), (1, 2)), (0, 1, 2)
SHARD_SIZES = (12, 9, 11)
BROKEN = "s014"  # a sample without its mask image
BANDS = [(1, 2, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (2, 1, 3), (1, 3, 2)]


def write_shards(folder: Path) -> tuple[str, ...]:
    """Writes three shards with 32 samples, one of them broken."""
    paths, number = [], 0
    for index, size in enumerate(SHARD_SIZES):
        samples = {}
        for _ in range(size):
            samples[f"s{number:03d}"] = panoptic(bands(64, 48, BANDS[number % len(BANDS)]))
            number += 1
        if BROKEN in samples:
            del samples[BROKEN]["png"]
        paths.append(str(write_shard(folder / f"{index:03d}.tar", samples)))
    return tuple(paths)


def record_orders(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the batches of two epochs for every combination of seed, rank, workers, resampling and held-out share."""
    paths, prepared = write_shards(folder / "shards"), processor(folder / "tokenizer")
    found = {}
    for seed, (rank, world), workers, resampled, share in itertools.product(
        SEEDS, RANKS, WORKERS, (True, False), (0.0, 0.1)
    ):
        loader = EpochLoader(
            dataset(folder, "blocks"),
            StreamConfig(paths, 2, 24, seed, resampled, 6, share),
            SampleTransform(SampleConfig(), prepared),
            rank,
            world,
            workers,
        )
        name = f"seed {seed}, rank {rank} of {world}, workers {workers}, resampled {resampled}, held out {share}"
        found[name] = [item for epoch in (0, 1) for item in _batches(loader, epoch)]
        loader.close()
    return found


def _batches(loader: EpochLoader, epoch: int) -> Iterator[dict[str, Any]]:
    for parts in loader.epoch(epoch):
        for batch in parts:
            entry: dict[str, Any] = {"epoch": epoch, "keys": batch.keys, "worker": batch.worker, "drawn": batch.drawn}
            if batch.skipped:
                entry["skipped"] = dict(batch.skipped)
            yield entry | {"content": _digest(batch)}


def _digest(batch: Batch) -> str:
    """Returns a digest of masks and texts; pixels are left out, since they depend on the resizing library."""
    digest = hashlib.sha256(batch.masks.numpy().tobytes())
    for tensor in vars(batch.text).values():
        digest.update(tensor.numpy().tobytes())
    digest.update(" ".join(batch.modes).encode())
    return digest.hexdigest()[:12]
