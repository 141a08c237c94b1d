"""Indexes of shards: what a stale or lying one does, and what is not written over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import FileServer
from stream_sets import bands, panoptic, write_shard

from osm.config import as_dict
from osm.data import shard_index
from osm.data.shard_index import Indexes, ShardReader, index_document, index_text, parse_index
from osm.data.shard_lists import expand_shards
from osm.data.shards import RawSample
from osm.errors import OsmError, RunStopped, SampleError
from osm.storage.cache import FileCache
from osm.storage.remote import Stat
from osm.training.train_config import SetConfig, TrainConfig


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OSM_RETRY_SECONDS", "0,0")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "user"))
    return tmp_path / "user"


def shard(path: Path, *keys: str) -> Path:
    return write_shard(path, {key: panoptic(bands(64, 48)) for key in keys})


def keys(location: Any) -> list[str]:
    index, reader = Indexes()[str(location)], ShardReader()
    try:
        found = [reader.read(index, number) for number in range(len(index))]
    finally:
        reader.close()
    return [raw.key if isinstance(raw, RawSample) else raw.reason for raw in found]


def test_an_index_is_made_once_and_remade_for_another_shard(tmp_path: Path) -> None:
    path, index = shard(tmp_path / "a.tar", "k1", "k2"), tmp_path / "a.index.json"
    assert keys(path) == ["k1", "k2"]
    made = index.stat().st_mtime_ns
    assert keys(path) == ["k1", "k2"] and index.stat().st_mtime_ns == made
    path.write_bytes(path.read_bytes().ljust(30720, b"\0"))
    assert keys(path) == ["k1", "k2"]
    for names in (["k1", "k3"], ["k1", "k2", "k3"], ["k2"]):  # older than the index, and of one size
        other = shard(tmp_path / "other.tar", *names)
        other.write_bytes(other.read_bytes().ljust(30720, b"\0"))
        os.utime(other, (1, 1))
        os.replace(other, path)
        assert keys(path) == names


def test_a_shard_that_changed_within_is_told_and_its_index_removed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", "k1", "k2", "k3")
    assert keys(path) == ["k1", "k2", "k3"]
    other = shard(tmp_path / "b.tar", "x1", "k2", "k3")
    os.utime(other, (1, 1))
    os.replace(other, path)
    with pytest.raises(RunStopped, match="a.tar: the shard was changed .*its index will be rebuilt"):
        keys(path)
    assert keys(path) == ["x1", "k2", "k3"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["samples"].append(d["samples"][-1]),
        lambda d: d["samples"][0].__setitem__(1, -512),
        lambda d: d["samples"][1].__setitem__(2, 10**12),
        lambda d: d["samples"][0].__setitem__(0, 7),
        lambda d: d.update(samples=d["samples"] * 10**4),
        lambda d: d.update(global_headers=[[0, {"size": 5}]]),
        lambda d: d.update(global_headers=[[0, {"path": 7}]]),
        lambda d: d["samples"].append(["", 0, 0, "x" * 10**5, "fault"]),
        lambda d: d["samples"].pop(),
        lambda d: d.update(bytes=1),
        lambda d: d.pop("samples"),
    ],
)
def test_an_index_that_lies_is_made_anew(tmp_path: Path, change: Any) -> None:
    path = shard(tmp_path / "a.tar", "k1", "k2")
    with path.open("rb") as stream:
        document = index_document(str(path), stream)
    change(document)
    (tmp_path / "a.index.json").write_text(json.dumps(document))
    assert keys(path) == ["k1", "k2"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"osm_index": 1}', '{"my": "own"}'])
def test_what_is_no_index_is_not_written_over(tmp_path: Path, own_cache: Path, text: str) -> None:
    path = shard(tmp_path / "a.tar", "k1")
    (tmp_path / "a.index.json").write_text(text)
    assert keys(path) == keys(path) == ["k1"]
    if not text.startswith('{"osm_index"'):
        assert (tmp_path / "a.index.json").read_text() == text
        assert len(list((own_cache / "indexes").iterdir())) == 1


def test_an_index_of_a_folder_that_cannot_be_written(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "set" / "a.tar", "k1")
    real = os.replace

    def refused(source: Any, target: Any) -> None:
        if Path(target).parent == path.parent:
            raise PermissionError("read-only")
        real(source, target)

    monkeypatch.setattr(os, "replace", refused)
    assert keys(path) == ["k1"] and [p.name for p in path.parent.iterdir()] == ["a.tar"]
    assert len(list((own_cache / "indexes").iterdir())) == 1


def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys(shard(tmp_path / "a.tar", "k1")) == ["k1"] and keys(shard(tmp_path / "a", "k2")) == ["k2"]
    latin = os.fsdecode(os.fsencode(str(tmp_path)) + b"/caf\xe9.tar")
    shutil.copy(tmp_path / "a.tar", latin)
    assert keys(latin) == ["k1"]
    monkeypatch.delenv("OSM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", _no_home)
    assert keys(shard(tmp_path / "b.tar", "k3")) == ["k3"]


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_remote_index_need_not_be_there(tmp_path: Path, status: int) -> None:
    shard(tmp_path / "set/a.tar", "k1", "k2")
    with FileServer(tmp_path / "set") as server:
        server.status = {"a.index.json": status}
        assert keys(server.url("a.tar")) == ["k1", "k2"]


def test_a_remote_index_of_another_shard_is_not_used(tmp_path: Path) -> None:
    path = shard(tmp_path / "set/a.tar", "k1", "k2")
    with path.open("rb") as stream:
        (tmp_path / "set/a.index.json").write_text(index_text(index_document("a.tar", stream)))
    other = shard(tmp_path / "other.tar", "k1", "k3")
    assert other.stat().st_size == path.stat().st_size
    os.replace(other, path)
    with FileServer(tmp_path / "set") as server:
        assert keys(server.url("a.tar")) == ["k1", "k3"]


def test_a_span_with_much_that_is_not_ours_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = panoptic(bands(64, 48))
    between = {"image.png": members["image.png"], "bin": bytes(300_000), "png": members["png"], "json": members["json"]}
    write_shard(tmp_path / "set/a.tar", {"k1": between, "k2": members})
    monkeypatch.setattr(shard_index, "MAX_MEMBER_BYTES", 100_000)
    with FileServer(tmp_path / "set") as server:
        assert keys(server.url("a.tar")) == ["k1", "k2"]
        index, reader = Indexes()[server.url("a.tar")], ShardReader()
        server.forget()
        reader.read(index, 0)  # by a file
        assert server.sent("a.tar") == (tmp_path / "set/a.tar").stat().st_size


def test_with_a_cache_a_shard_without_index_is_fetched_once(tmp_path: Path) -> None:
    path = shard(tmp_path / "set/a.tar", "k1", "k2")
    cache = FileCache(tmp_path / "node")
    with FileServer(tmp_path / "set") as server:
        index, reader = Indexes(cache=cache)[server.url("a.tar")], ShardReader(cache)
        assert isinstance(reader.read(index, 1), RawSample)
        assert server.sent("a.tar") == path.stat().st_size


def test_the_cache_removes_its_own_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "thesis.txt").write_bytes(bytes(5000))
    os.utime(folder / "thesis.txt", (1, 1))
    for name in "abc":
        shard(tmp_path / f"set/{name}.tar", "k1")
    size = (tmp_path / "set/a.tar").stat().st_size
    with FileServer(tmp_path / "set") as server:
        for age, name in enumerate("abc"):
            got = FileCache(folder, 2 * size).get(server.url(f"{name}.tar"))
            os.utime(got, (10 + age, 10 + age))
        monkeypatch.chdir(tmp_path)
        FileCache(Path("node"), 2 * size).get(server.url("c.tar"))  # the same folder by another name
        assert server.sent("c.tar") == size
    assert (folder / "thesis.txt").exists()
    assert sorted(path.name for path in folder.rglob("*.tar")) == ["b.tar", "c.tar"]


def test_queries_tell_files_apart_but_for_what_signs_them(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "node")

    def place(query: str) -> Path:
        return cache.path_of(f"https://example.org/get.tar?{query}")

    assert place("f=1") != place("f=2") and place("a") != place("b") and place("sr=1") != place("sr=2")
    assert place("f=1&X-Amz-Signature=1") == place("f=1&X-Amz-Signature=2")
    assert place("sr=b&sig=1") == place("sr=c&sig=2")


def test_lists_and_addresses(tmp_path: Path) -> None:
    assert expand_shards("http://[::1]:80/a.tar::b.tar") == ["http://[::1]:80/a.tar", "b.tar"]
    (tmp_path / "x[1]").mkdir()
    listed = tmp_path / "x[1]/l.txt"
    listed.write_text("file:///d/a.tar\n{0..1}.tar::b.tar\n")
    assert expand_shards(f"@{listed}") == ["/d/a.tar", *(f"{tmp_path}/x[1]/{name}.tar" for name in "01b")]
    with FileServer(tmp_path / "x[1]") as server:
        listed.write_text("{0..1}.tar\n*.tar\na%20b.tar\n")
        names = ["0.tar", "1.tar", "*.tar", "a%20b.tar"]
        assert expand_shards(f"@{server.url('l.txt')}") == [f"{server.address}/{name}" for name in names]


@pytest.mark.parametrize(
    "pattern",
    [
        "@http://h/l.txt?X-Amz-Signature=SECRET",
        "/d/a.tar::http://h/b.tar?sig=SECRET::http://h/c.tar?sig=SECRET",
        "{http://h/a.tar?sig=SECRET,http://h/b.tar?sig=SECRET}",
        "http://h/{a,b}.tar?sig=SECRET",
    ],
)
def test_signatures_are_not_recorded(pattern: str) -> None:
    config = TrainConfig(sets={"coco": SetConfig(shards=pattern, batch_size=0)})
    assert "SECRET" not in str(as_dict(config)) and "http://h/" in str(as_dict(config))


def test_signatures_are_not_told() -> None:
    with pytest.raises(OsmError, match="braces do not match") as error:
        expand_shards("http://h/{a.tar?sig=SECRET")
    assert "SECRET" not in str(error.value)


def test_a_large_index_takes_a_few_bytes_a_sample() -> None:
    rows = [[f"k{number}", 1024 * number, 1024] for number in range(100_000)]
    document = {"osm_index": 1, "bytes": 1024 * 100_000, "version": "", "samples": rows}
    index = parse_index("a.tar", json.dumps(document).encode(), Stat(1024 * 100_000))
    assert index is not None and len(index) == 100_000
    assert sum(array.nbytes for array in (index.start, index.stop, index.keys, index.held_out)) <= 28 * len(index)
    held = index.held_out_numbers(0.1)
    assert len(np.intersect1d(held, index.training_numbers(0.1))) == 0
    assert len(held) + len(index.training_numbers(0.1)) == len(index) and 9_000 < len(held) < 11_000


def test_faults_keep_their_places(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", "k1", "k2", "k3")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"k3.json") + 600])
    assert keys(path) == keys(path) == ["k1", "k2", "broken_tar"]
    index = Indexes()[str(path)]
    assert isinstance(index.error(2), SampleError) and index.error(0) is None
    assert 2 in index.training_numbers(0.5) and 2 not in index.held_out_numbers(1.0)
