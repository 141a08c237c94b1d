"""Bytes of remote files: what servers do wrong is retried, and ends in a sentence."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from servers import FileServer, S3Server, registered

from osm.errors import OsmError, RunStopped
from osm.storage import remote
from osm.storage.remote import Stat

DATA = os.urandom(300_000)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 100_000)


@pytest.fixture
def url(shelf: Path, server: FileServer) -> str:
    (shelf / "a b.bin").write_bytes(DATA)
    return server.url("a b.bin")


def test_a_file_by_http(url: str, server: FileServer, tmp_path: Path, small_blocks: None) -> None:
    assert remote.stat(url).size == len(DATA) and remote.exists(url) and not remote.exists(server.url("b"))
    assert remote.read_range(url, 10, 20) == DATA[10:20] and remote.read_whole(url, len(DATA)) == DATA
    assert remote.download(url, tmp_path / "x").size == len(DATA) and (tmp_path / "x").read_bytes() == DATA
    with pytest.raises(OsmError, match="which exceeds the limit of 9 bytes"):
        remote.read_whole(url, 9)


def test_an_empty_file(shelf: Path, server: FileServer, tmp_path: Path) -> None:
    (shelf / "empty").write_bytes(b"")
    assert remote.download(server.url("empty"), tmp_path / "x") == remote.stat(server.url("empty"))
    assert (tmp_path / "x").read_bytes() == b""


def test_a_dropped_connection_costs_one_block(url: str, server: FileServer, tmp_path: Path, small_blocks: None) -> None:
    server.drop_after, server.drop_times = 50_000, 2
    remote.download(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and server.sent() <= len(DATA) + 2 * 50_000


def test_drops_without_end_are_a_sentence(url: str, server: FileServer, tmp_path: Path) -> None:
    server.drop_after = 10
    with pytest.raises(
        RunStopped, match=r"a%20b.bin: the connection broke off \(tried 3 times\); run the same command again"
    ):
        remote.download(url, tmp_path / "x")


@pytest.mark.parametrize("times", [2, None])
def test_servers_that_are_busy(url: str, server: FileServer, times: int | None) -> None:
    server.status, server.status_times = {"a b.bin": 503}, times
    if times is None:
        with pytest.raises(RunStopped, match=r"HTTP 503 \(tried 3 times\)"):
            remote.stat(url)
    else:
        assert remote.stat(url).size == len(DATA)


def test_a_stall_ends(url: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_READ_TIMEOUT", "0.2")
    server.stall, server.stall_times = True, 1
    remote.download(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    server.stall_times = None
    with pytest.raises(RunStopped, match=r"no byte came for 0.2 s \(tried 3 times\)"):
        remote.download(url, tmp_path / "y")


def test_a_server_that_is_down_is_no_missing_file(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.json?token=hunter2"
    with pytest.raises(RunStopped, match=r"/a.json: .*tried 3 times") as error:
        remote.stat(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_refused(url: str, server: FileServer, status: int) -> None:
    server.status = {"a b.bin": status}
    with pytest.raises(OsmError, match=f"access is refused .HTTP {status}") as error:
        remote.stat(url)
    assert not isinstance(error.value, RunStopped) and server.requests() <= 2


def test_head_alone_may_be_refused(url: str, server: FileServer) -> None:
    server.status, server.status_times = {"a b.bin": 403}, 1  # as for a URL that is signed for GET
    assert remote.stat(url).size == len(DATA)


@pytest.mark.parametrize("lie, methods", [(-1000, {"HEAD"}), (1000, {"HEAD"}), (1000, {"HEAD", "GET"})])
def test_lengths_that_lie(url: str, server: FileServer, tmp_path: Path, lie: int, methods: set[str]) -> None:
    server.lie, server.lie_methods = lie, methods
    with pytest.raises(RunStopped, match=r"a%20b.bin: "):
        remote.download(url, tmp_path / "x")
    assert server.sent() < 4 * len(DATA)


@pytest.mark.parametrize("lie", [0, -1000, 1000])
def test_a_server_without_ranges(url: str, server: FileServer, tmp_path: Path, lie: int) -> None:
    server.ranges, server.lie, server.lie_methods = False, lie, {"HEAD"}
    if lie:
        with pytest.raises(RunStopped, match="was changed while it was in use"):
            remote.download(url, tmp_path / "x")
    else:
        remote.download(url, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == remote.read_whole(url, len(DATA)) == DATA


@pytest.mark.parametrize("etag", [True, False])
def test_a_file_that_changes_meanwhile(
    url: str, server: FileServer, shelf: Path, tmp_path: Path, small_blocks: None, etag: bool
) -> None:
    server.etag = etag
    before = remote.stat(url)
    (shelf / "a b.bin").write_bytes(DATA[::-1])
    os.utime(shelf / "a b.bin", (1, 1))
    with pytest.raises(RunStopped, match="the file was changed while it was in use .different ETag or date"):
        remote.download(url, tmp_path / "x", before)


def test_folders_by_http(shelf: Path, server: FileServer) -> None:
    for name in ("x/a b#1.jpg", "x/deep/c.jpg", "y.jpg"):
        (shelf / name).parent.mkdir(parents=True, exist_ok=True)
        (shelf / name).write_bytes(b"1")
    assert sorted(remote.list_files(server.url("x"))) == ["a b#1.jpg", "deep/c.jpg"]
    with pytest.raises(FileNotFoundError):
        remote.list_files(server.url("z"))


def test_a_page_leads_nowhere_else(shelf: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    links = [
        "../up.jpg",
        "/other/a.jpg",
        "http://elsewhere/b.jpg",
        "?C=N;O=D",
        "./",
        "..%2fup.jpg",
        "%2e%2e/",
        "ok.jpg",
    ]
    page = "".join(f"<a class=x href='{link}'>x</a>" for link in links)
    monkeypatch.setattr("servers._page", lambda folder: page.encode())
    (shelf / "x").mkdir()
    assert list(remote.list_files(server.url("x"))) == ["ok.jpg"]


def test_a_store(s3: S3Server, tmp_path: Path, small_blocks: None) -> None:
    bucket = s3.bucket("bkt")
    url = s3.put("bkt", "x/a #1.bin", DATA)
    s3.put("bkt", "x/deep/", b"")  # stands for a folder
    s3.put("bkt", "x/deep/c.bin", b"c")
    s3.put("bkt", "x2/d.bin", b"d")
    s3.drop_after, s3.drop_times = 50_000, 1
    found = remote.list_files(f"{bucket}/x")
    assert sorted(found) == ["a #1.bin", "deep/c.bin"] and found["a #1.bin"] == remote.stat(url)
    assert remote.download(url, tmp_path / "x", found["a #1.bin"]).size == len(DATA)
    assert (tmp_path / "x").read_bytes() == DATA and remote.read_range(url, 5, 9) == DATA[5:9]
    for missing in (f"{bucket}/nothing", "s3://nowhere/x"):
        assert not remote.exists(missing)
        with pytest.raises(FileNotFoundError):
            remote.list_files(missing)
    s3.status = {"bkt/x/deep/c.bin": 403}
    with pytest.raises(OsmError, match="s3://bkt/x/deep/c.bin: access is refused") as error:
        remote.stat(f"{bucket}/x/deep/c.bin")
    assert s3.SECRET not in str(error.value)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(OsmError, match="s3://b/k: no credentials were found") as error:
        remote.stat("s3://b/k")
    assert not isinstance(error.value, RunStopped)


@pytest.mark.parametrize("protocol", ["gs", "hf"])
def test_other_stores(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "store" / "b" / "x").mkdir(parents=True)
    (tmp_path / "store" / "b" / "x" / "a.bin").write_bytes(DATA)
    with registered(protocol, tmp_path / "store"):
        url = f"{protocol}://b/x/a.bin"
        assert remote.stat(url).size == len(DATA) and remote.stat(url).version
        assert remote.read_range(url, 5, 9) == DATA[5:9] and list(remote.list_files(f"{protocol}://b/x")) == ["a.bin"]
        remote.download(url, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == DATA and not remote.exists(f"{protocol}://b/y")


def test_seconds_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_RETRY_SECONDS", "soon")
    with pytest.raises(OsmError, match="OSM_RETRY_SECONDS='soon': expected a comma-separated list of seconds"):
        remote.retry_delays()


def test_versions_agree_where_one_knows_none() -> None:
    assert Stat(1, "a").agrees(Stat(1)) and not Stat(1, "a").agrees(Stat(1, "b")) and not Stat(1).agrees(Stat(2))
