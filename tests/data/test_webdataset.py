"""webdataset's own readers, writers and stages, and pipelines of a user's own."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from convert_sets import Set
from stream_sets import bands, dataset, panoptic, processor, write_shard

from osm.data.processor import Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.shard_index import Indexes
from osm.data.shards import RawSample, read_shard
from osm.data.stages import Lane, SamplePlace, SeededShuffle, ShardPlan
from osm.data.stream import SampleStream, StreamConfig
from osm.errors import OsmError

MINE = """
import webdataset as wds

def samples(shards, lane):
    # Each rank and worker takes every so many shards, as webdataset's own splitters do.
    mine = list(shards)[lane.number :: lane.count]
    return wds.DataPipeline(wds.SimpleShardList(mine), wds.tarfile_to_samples(), wds.shuffle(2, seed=lane.seed))

def dataset(shards, lane):
    return wds.WebDataset(list(shards), shardshuffle=False, nodesplitter=None, workersplitter=None)

def decoded(shards, lane):
    return dataset(shards, lane).decode()

def nothing(shards, lane):
    return []

def numbers(shards, lane):
    return range(3)

def returns_none(shards, lane):
    pass

def raises(shards, lane):
    yield {}["nothing"]

def takes_one(shards):
    return []

value = 3
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_pipeline.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "my_pipeline", raising=False)
    return "my_pipeline"


def two_shards(folder: Path) -> tuple[str, ...]:
    paths = []
    for shard in range(2):
        samples = {f"s{shard}{n}": panoptic(bands(64, 48)) for n in range(3)}
        paths.append(str(write_shard(folder / f"{shard}.tar", samples)))
    return tuple(paths)


def stream(prepared: Processor, folder: Path, shards: tuple[str, ...], **changes: Any) -> SampleStream:
    config = StreamConfig(shards, 1, 8, **{"shuffle_buffer": 1, **changes})
    return SampleStream(dataset(folder), config, SampleTransform(SampleConfig(), prepared), 0, 1)


def keys(made: SampleStream, count: int, start: int = 0, worker: int = 0, workers: int = 1) -> list[str]:
    samples = made.samples(worker, workers, Counter(), start)
    return [next(samples)[0].key for _ in range(count)]


def test_webdataset_reads_what_the_converters_write(tmp_path: Path) -> None:
    made = Set(tmp_path, "coco_panoptic")
    made.convert()
    shards = sorted(str(path) for path in (made.root / "out").glob("*.tar"))
    theirs = list(wds.WebDataset(shards, shardshuffle=False))
    ours = [raw for shard in shards for raw in read_shard(shard)]
    assert [sample["__key__"] for sample in theirs] == [raw.key for raw in ours if isinstance(raw, RawSample)]
    for sample, raw in zip(theirs, ours, strict=True):
        assert isinstance(raw, RawSample)
        assert {name: sample[name] for name in raw.members} == raw.members


def test_what_webdataset_writes_is_read(prepared: Processor, tmp_path: Path) -> None:
    with wds.ShardWriter(f"file:{tmp_path}/%06d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            writer.write({"__key__": f"folder/sample {number} é", **panoptic(bands(64, 48))})
    shards = tuple(sorted(map(str, tmp_path.glob("*.tar"))))
    assert len(shards) == 3 and sum(len(Indexes()[shard]) for shard in shards) == 5
    expected = {f"folder/sample {number} é" for number in range(5)}
    assert set(keys(stream(prepared, tmp_path, shards), 5)) == expected


def test_stages_stand_in_a_users_own_pipeline(tmp_path: Path) -> None:
    shards, lane, rng = two_shards(tmp_path), Lane("blocks", seed=3), np.random.default_rng(0)
    plan = ShardPlan(shards, Indexes(), lane, rng, resampled=False, held_out_share=0)
    places = iter(wds.DataPipeline(plan, SeededShuffle(rng, 2), wds.slice(6)))
    found = list(places)
    assert len(found) == 6 and all(isinstance(place, SamplePlace) for place in found)


def test_a_users_pipeline_gives_the_samples(prepared: Processor, tmp_path: Path, mine: str) -> None:
    shards = two_shards(tmp_path)
    made = stream(prepared, tmp_path, shards, pipeline=f"{mine}:dataset")
    in_order = [f"s{shard}{n}" for shard in range(2) for n in range(3)]
    assert keys(made, 12) == in_order * 2  # pass after pass
    assert keys(made, 3, start=4) == [*in_order[4:], in_order[0]]
    dealt = stream(prepared, tmp_path, shards, pipeline=f"{mine}:samples")
    assert {key[:2] for key in keys(dealt, 6, worker=1, workers=2)} == {"s1"}
    assert len(list(dealt)) == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decoded", "my_pipeline:decoded: sample 's00': member '.*' is of type .*; expected bytes"),
        ("nothing", "my_pipeline:nothing: the pipeline yielded no samples for dataset blocks"),
        ("numbers", "my_pipeline:numbers: expected webdataset samples .*, found int"),
        ("value", "my_pipeline has no function 'value'"),
        ("gone", "my_pipeline has no function 'gone'"),
        ("returns_none", "returns_none: it raised TypeError: .*not iterable"),
        ("raises", r"raises: it raised KeyError: .*my_pipeline.py, line \d+"),
        ("takes_one", "takes_one: it raised TypeError"),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_said(
    prepared: Processor, tmp_path: Path, mine: str, name: str, message: str
) -> None:
    made = stream(prepared, tmp_path, two_shards(tmp_path), pipeline=f"{mine}:{name}")
    with pytest.raises(OsmError, match=message):
        keys(made, 1)


@pytest.mark.parametrize("name", ["nowhere:f", "my_pipeline", ":f", "pipe:touch ran", "..:f", "ends:f", "broken:f"])
def test_a_pipeline_that_is_none(
    prepared: Processor, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OsmError, match=f"--pipeline '{name}'"):
        keys(stream(prepared, tmp_path, two_shards(tmp_path), pipeline=name), 1)
