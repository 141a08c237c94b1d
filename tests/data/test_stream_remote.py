"""The training stream from servers: the same samples as from files, each lane its own bytes, and faults that end it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import FileServer, S3Server, registered
from stream_sets import bands, dataset, panoptic, processor, write_shard

from osm.data.batch import Batch
from osm.data.processor import Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.shard_index import Indexes
from osm.data.shard_lists import existing_shards
from osm.data.shards import RawSample, read_shard
from osm.data.stages import Resume
from osm.data.stream import EpochLoader, Position, SampleStream, StreamConfig
from osm.errors import OsmError, RunStopped, exit_code
from osm.storage.cache import FileCache

SIZES = (5, 3, 6, 4)
LANES = [(0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, 0), (1, 2, 1), (0, 2, 2), (1, 2, 2)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards; the second has a sample that cannot be used, the last is cut off."""
    root = tmp_path_factory.mktemp("shards")
    number = 0
    for shard, size in enumerate(SIZES):
        samples = {}
        for _ in range(size):
            samples[f"s{number:03d}"] = panoptic(bands(64, 48, [(1, 2, 3), (3, 1, 2)][number % 2]))
            number += 1
        if shard == 1:
            del samples["s006"]["png"]
        write_shard(root / f"{shard:03d}.tar", samples)
    path = root / "003.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSM_RETRY_SECONDS", "0,0")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))


def local(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / f"{number:03d}.tar") for number in range(len(SIZES)))


def config(shards: tuple[str, ...], **changes: Any) -> StreamConfig:
    return StreamConfig(shards, **{"batch_size": 2, "samples_per_epoch": 16, "seed": 5, "shuffle_buffer": 4, **changes})


def content(batch: Batch) -> Any:
    assert batch.canvas is not None
    texts = [tensor.tolist() for tensor in vars(batch.text).values()]
    skipped = dict(batch.skipped)
    return batch.keys, batch.modes, batch.canvas.numpy().tobytes(), texts, skipped, batch.worker, batch.drawn


def epoch(
    prepared: Processor,
    folder: Path,
    chosen: StreamConfig,
    lane: tuple[int, int, int] = (0, 1, 0),
    start: Position | None = None,
    indexes: Indexes | None = None,
) -> list[Any]:
    rank, world, workers = lane
    transform = SampleTransform(SampleConfig(), prepared)
    loader = EpochLoader(dataset(folder), chosen, transform, rank, world, workers, indexes=indexes)
    try:
        return [content(batch) for (batch,) in loader.epoch(0, {rank: start or Position()})]
    finally:
        loader.close()


@pytest.mark.parametrize("resampled", [True, False])
def test_servers_give_the_batches_that_files_give(
    prepared: Processor, folder: Path, tmp_path: Path, resampled: bool
) -> None:
    """With 0, 1 and 2 workers on 1 and 2 ranks, by ranges and by a cache."""
    with FileServer(folder) as server:
        urls = tuple(server.url(f"{number:03d}.tar") for number in range(len(SIZES)))
        for place, lane in enumerate(LANES):
            expected = epoch(prepared, folder, config(local(folder), resampled=resampled), lane)
            cache = {"shard_cache": str(tmp_path / "shards"), "shard_cache_bytes": 10**7} if place % 2 else {}
            assert epoch(prepared, folder, config(urls, resampled=resampled, **cache), lane) == expected, lane


def test_object_stores_give_the_batches_that_files_give(
    prepared: Processor, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = epoch(prepared, folder, config(local(folder)), (1, 2, 0))
    with S3Server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = server.bucket("training")
        server.put_folder("training", folder, "set/")
        urls = tuple(f"{bucket}/set/{number:03d}.tar" for number in range(len(SIZES)))
        assert epoch(prepared, folder, config(urls), (1, 2, 0)) == expected
        assert epoch(prepared, folder, config(urls), (1, 2, 2)) == epoch(
            prepared, folder, config(local(folder)), (1, 2, 2)
        )
    for protocol in ("gs", "hf"):
        shutil.copytree(folder, tmp_path / protocol / "datasets")
        with registered(protocol, tmp_path / protocol):
            urls = tuple(f"{protocol}://datasets/{number:03d}.tar" for number in range(len(SIZES)))
            assert epoch(prepared, folder, config(urls), (1, 2, 0)) == expected


@pytest.fixture
def served(folder: Path) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        yield server


@pytest.fixture
def urls(served: FileServer) -> tuple[str, ...]:
    return tuple(served.url(f"{number:03d}.tar") for number in range(len(SIZES)))


def shard_bytes(served: FileServer) -> int:
    return sum(served.sent(f"{number:03d}.tar") for number in range(len(SIZES)))


def a_pass(prepared: Processor, folder: Path, indexes: Indexes, chosen: StreamConfig) -> None:
    """One pass over the set by 4 lanes: 2 ranks of 2 workers."""
    for rank in range(2):
        stream = SampleStream(
            dataset(folder), chosen, SampleTransform(SampleConfig(), prepared), rank, 2, indexes=indexes
        )
        for worker in range(2):
            stages = stream.stages(stream.lane(worker, 2), Counter(), 0)
            plan, read = stages[0], stages[3]
            places = range(sum(len(indexes[shard]) for shard in chosen.shards))[2 * rank + worker :: 4]
            drawn = Resume(np.random.default_rng(0), 0)(itertools.islice(plan(), len(places)))
            assert len(list(read(drawn))) == len(places)


def test_a_lane_reads_its_own_bytes(
    prepared: Processor, folder: Path, served: FileServer, urls: tuple[str, ...], tmp_path: Path
) -> None:
    total = sum((folder / f"{number:03d}.tar").stat().st_size for number in range(len(SIZES)))
    indexes = Indexes(keep=False)
    indexes.prepare(urls)
    samples = sum(int((indexes[url].stop - indexes[url].start).sum()) for url in urls)
    served.forget()
    a_pass(prepared, folder, indexes, config(urls))
    assert shard_bytes(served) == samples < total  # all lanes together, each its share
    served.forget()
    cached = config(urls, shard_cache=str(tmp_path / "shards"), shard_cache_bytes=10 * total)
    a_pass(prepared, folder, indexes, cached)
    assert shard_bytes(served) == total  # each shard once
    served.forget()
    a_pass(prepared, folder, indexes, cached)
    assert shard_bytes(served) == 0


def test_a_resumed_stream_skips_without_reading(
    prepared: Processor, folder: Path, served: FileServer, urls: tuple[str, ...]
) -> None:
    for resampled in (False, True):
        indexes = Indexes(keep=False)
        indexes.prepare(urls)
        chosen = config(urls, resampled=resampled, samples_per_epoch=64)
        served.forget()
        whole = epoch(prepared, folder, chosen, indexes=indexes)
        all_of_it = shard_bytes(served)
        served.forget()
        start = Position(24, {0: whole[23][-1]})
        assert epoch(prepared, folder, chosen, start=start, indexes=indexes) == whole[24:]
        assert shard_bytes(served) < 0.55 * all_of_it  # 8 of 32 batches, and what is fetched before its turn


def test_connections_that_break_off_are_tried_again(
    prepared: Processor, folder: Path, served: FileServer, urls: tuple[str, ...]
) -> None:
    expected = epoch(prepared, folder, config(local(folder)))
    indexes = Indexes(keep=False)
    indexes.prepare(urls)
    served.drop_after, served.drop_times = 100, 2
    assert epoch(prepared, folder, config(urls), indexes=indexes) == expected


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"drop_after": 100, "drop_times": None}, r"/00\d.tar: the connection broke off \(tried 3 times\)"),
        ({"stall": True, "stall_times": None}, r"/00\d.tar: no byte came for 0.5 s \(tried 3 times\)"),
        ({"status": {f"{n:03d}.tar": 503 for n in range(4)}}, r"/00\d.tar: HTTP 503 \(tried 3 times\)"),
        ({"lie": -50}, r"/00\d.tar: .*(changed|bytes were requested)"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_does_not_come_ends_the_run(
    prepared: Processor,
    folder: Path,
    served: FileServer,
    urls: tuple[str, ...],
    fault: dict[str, Any],
    message: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    indexes = Indexes(keep=False)
    indexes.prepare(urls)
    if "stall" in fault:
        monkeypatch.setenv("OSM_READ_TIMEOUT", "0.5")
    for name, value in fault.items():
        setattr(served, name, value)
    with pytest.raises(RunStopped, match=message) as error:
        epoch(prepared, folder, config(urls), (0, 1, workers), indexes=indexes)
    assert exit_code(error.value) == 3


@pytest.mark.parametrize("cached", [False, True])
def test_a_shard_that_changes_ends_the_run(prepared: Processor, folder: Path, tmp_path: Path, cached: bool) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.glob("*.tar"):
        (own / path.name).write_bytes(path.read_bytes())
    with FileServer(own) as server:
        urls = tuple(server.url(f"{number:03d}.tar") for number in range(len(SIZES)))
        indexes = Indexes(keep=False)
        indexes.prepare(urls)
        for path in own.glob("*.tar"):  # as many bytes, others
            path.write_bytes(path.read_bytes().replace(b"s0", b"t0"))
        cache = {"shard_cache": str(tmp_path / "shards")} if cached else {}
        with pytest.raises(RunStopped, match=r"/00\d.tar: the file was changed while it was in use"):
            epoch(prepared, folder, config(urls, **cache), indexes=indexes)


def test_a_local_shard_that_changes_ends_the_run(prepared: Processor, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "0.tar", {f"s{n}": panoptic(bands(64, 48)) for n in range(4)})
    indexes = Indexes()
    indexes.prepare([str(path)])
    for data in (path.read_bytes().replace(b"s1.", b"t1."), path.read_bytes()[:-1024]):
        path.write_bytes(data)
        with pytest.raises(RunStopped, match="0.tar: the shard was changed while it was in use"):
            epoch(prepared, tmp_path, config((str(path),)), indexes=indexes)


def test_a_server_without_ranges_sends_whole_shards(
    prepared: Processor, folder: Path, served: FileServer, urls: tuple[str, ...]
) -> None:
    expected = epoch(prepared, folder, config(local(folder)))
    served.ranges = False
    assert epoch(prepared, folder, config(urls)) == expected


def test_the_cache_stays_below_its_bound(
    prepared: Processor, folder: Path, served: FileServer, urls: tuple[str, ...], tmp_path: Path
) -> None:
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    bound = 2 * largest
    chosen = config(urls, shard_cache=str(tmp_path / "shards"), shard_cache_bytes=bound, samples_per_epoch=36)
    assert epoch(prepared, folder, chosen, (0, 1, 2)) == epoch(
        prepared, folder, config(local(folder), samples_per_epoch=36), (0, 1, 2)
    )
    held = sum(path.stat().st_size for path in (tmp_path / "shards" / "http").rglob("*.tar"))
    assert 0 < held <= bound
    with pytest.raises(OsmError, match=f"over the size limit of {largest - 1}"):
        FileCache(tmp_path / "small", largest - 1).get(served.url("002.tar"))


def test_the_first_lines_of_a_shard_are_read_by_anyone(folder: Path, served: FileServer, urls: tuple[str, ...]) -> None:
    def outline(location: str) -> list[str]:
        return [raw.key if isinstance(raw, RawSample) else raw.reason for raw in read_shard(location)]

    for number, url in enumerate(urls):
        assert outline(url) == outline(local(folder)[number])


def test_globs_over_http(folder: Path, served: FileServer, urls: tuple[str, ...]) -> None:
    assert tuple(existing_shards(f"{served.address}/*.tar", "--coco_shards")) == urls
    assert tuple(existing_shards(f"{served.address}/00[13].tar", "--coco_shards")) == (urls[1], urls[3])
    with pytest.raises(OsmError, match=r"--coco_shards .*/x\*.tar: no shard matches"):
        existing_shards(f"{served.address}/x*.tar", "--coco_shards")
    with pytest.raises(OsmError, match="none of the 2 shards exist"):
        existing_shards(f"{served.address}/{{7,8}}.tar", "--coco_shards")


def test_an_index_beside_a_remote_shard_is_used(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in folder.glob("*.tar"):
        (own / path.name).write_bytes(path.read_bytes())
    written = Indexes()
    written.prepare([str(own / "000.tar")])
    assert json.loads((own / "000.index.json").read_text())["samples"][0][0] == "s000"
    with FileServer(own) as server:
        index = Indexes()[server.url("000.tar")]
        assert len(index) == 5
        # Its last sample, and what comes after it: an index of another shard would not agree.
        assert server.sent("000.tar") == index.stat.size - int(index.start[-1])
        assert len(Indexes()[server.url("001.tar")]) == 3 and server.sent("001.tar") > 0
        server.forget()
        assert len(Indexes()[server.url("001.tar")]) == 3 and server.sent("001.tar") == 0  # kept in the user's cache
