"""An epoch's stream taken up again in its middle: the very batches that were left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stream_sets import bands, dataset, panoptic, processor, shards, write_shard

from osm.data.batch import Batch
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.stream import EpochLoader, StreamConfig


def content(batches: list[Batch]) -> list[Any]:
    """All that the model is fed with, and what was left out on the way."""
    found = []
    for batch in batches:
        tensors = [batch.canvas, batch.masks, *vars(batch.text).values()]
        found.append(
            (batch.keys, batch.modes, batch.skipped, [t.tolist() for t in tensors if isinstance(t, torch.Tensor)])
        )
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("resampled", [True, False])
def test_an_epoch_goes_on_where_it_was(tmp_path: Path, workers: int, resampled: bool) -> None:
    """With a broken sample on the way, two streams, and any number of batches taken before."""
    good = [panoptic(bands(40, 30)) for _ in range(9)]
    good[4]["image.png"] = good[4]["image.png"][:60]
    path = tmp_path / "with_a_broken_one.tar"
    write_shard(path, {f"b{number}": members for number, members in enumerate(good)})
    config = StreamConfig((*shards(tmp_path, (4, 3)), str(path)), 2, 32, 5, resampled, shuffle_buffer=4)
    transform = SampleTransform(SampleConfig(), processor(tmp_path / "tokenizer"))

    def fresh() -> EpochLoader:
        return EpochLoader(dataset(tmp_path, "blocks"), config, transform, 0, 1, workers, None, 2)

    whole = list(fresh().epoch(1))
    assert len(whole) == 8 and any(batch.skipped for parts in whole for batch in parts)
    for taken in (1, 3, 4):
        first = fresh()
        batches = first.epoch(1)
        for _ in range(taken):
            next(batches)
        positions = first.positions()
        assert set(positions) == {0, 1} and all(at.batches == taken for at in positions.values())
        rest = list(fresh().epoch(1, positions))
        for stream in (0, 1):
            assert content([parts[stream] for parts in rest]) == content([parts[stream] for parts in whole[taken:]])
    salted = list(fresh().epoch(1, salt=3))
    assert content([parts[0] for parts in salted]) != content([parts[0] for parts in whole])
