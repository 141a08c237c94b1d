"""Remote outputs: the lock beside them, the staging folder, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S
from servers import S3Server, registered

from osm.cli import main
from osm.errors import OsmError, RunStopped
from osm.storage import remote
from osm.storage.lock import STALE_SECONDS, Lock
from osm.storage.output import locked, open_output, write_text

URL = "s3://bucket/out/.osm.lock"


def owner(server: S3Server) -> dict:
    return json.loads(server.read("bucket", "out/.osm.lock"))


def place(server: S3Server, **changes: object) -> None:
    """Puts a lock there as another process would have: this one's, with some fields changed."""
    with Lock(URL, "out"):
        found = owner(server)
    server.put("bucket", "out/.osm.lock", json.dumps({**found, "token": "theirs", **changes}).encode())


def test_a_lock_is_had_by_one_and_given_back(clean_s3: S3Server) -> None:
    with Lock(URL, "--output_dir s3://bucket/out"):
        mine = owner(clean_s3)
        assert mine["pid"] == os.getpid()
        with pytest.raises(OsmError, match=r"--output_dir s3://bucket/out: another process is writing there") as error:
            Lock(URL, "--output_dir s3://bucket/out").__enter__()
        assert f"{os.getpid()} on {mine['host']}, last seen " in str(error.value)
        assert f"or remove {URL}" in str(error.value)
        assert owner(clean_s3) == mine
    assert clean_s3.names("bucket") == []
    with pytest.raises(KeyError), Lock(URL, "out"):
        raise KeyError
    assert clean_s3.names("bucket") == [], "also after an error"


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over(clean_s3: S3Server) -> None:
    code = f"import os; from osm.storage.lock import Lock; Lock({URL!r}, 'out').__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 9
    assert owner(clean_s3)["pid"] != os.getpid()
    with Lock(URL, "out"):
        assert owner(clean_s3)["pid"] == os.getpid()
    place(clean_s3, started="1")  # another process has its number by now
    with Lock(URL, "out") as lock:
        lock.check()


def test_a_lock_of_another_machine_is_somebodys_until_it_is_stale(clean_s3: S3Server) -> None:
    place(clean_s3, host="node-7", machine="another", pid=1)
    with pytest.raises(OsmError, match="writing there: 1 on node-7, last seen [0-9]+ s ago.*wait 10 minutes"):
        Lock(URL, "out").__enter__()
    place_time = owner(clean_s3)["time"]
    clean_s3.put(
        "bucket", "out/.osm.lock", json.dumps({**owner(clean_s3), "time": place_time - STALE_SECONDS - 60}).encode()
    )
    with Lock(URL, "out"):
        assert owner(clean_s3)["token"] != "theirs"
    clean_s3.put("bucket", "out/.osm.lock", b"a poem")
    with pytest.raises(OsmError, match=r"out: s3://bucket/out/.osm.lock is named like a lock but does not contain one"):
        Lock(URL, "out").__enter__()


@pytest.mark.parametrize("how", ["removed", "taken over"])
def test_a_lock_that_is_lost_ends_the_run_before_it_writes(clean_s3: S3Server, how: str) -> None:
    output = open_output("s3://bucket/out", "--output_dir")
    with locked(output):
        (output.path / "a.json").write_text("{}")
        if how == "removed":
            remote.remove(URL)
        else:
            clean_s3.put(
                "bucket", "out/.osm.lock", json.dumps({**owner(clean_s3), "token": "theirs", "host": "b"}).encode()
            )
        with pytest.raises(RunStopped, match=f"lost its lock: {URL} was {how}"):
            output.put("a.json")
        with pytest.raises(RunStopped):
            output.remove("b.json")
    assert clean_s3.names("bucket") == ([] if how == "removed" else ["out/.osm.lock"]), "another's is not given back"


class Between:
    """Stands before a filesystem and sees what is written."""

    def __init__(self, filesystem: Any, write: Callable[..., None]) -> None:
        self._filesystem, self._write = filesystem, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        self._write(self._filesystem, path, value, mode)


def stand_between(monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]) -> None:
    filesystem = remote.filesystem
    monkeypatch.setattr(remote, "filesystem", lambda url: Between(filesystem(url), write))


def test_a_lock_is_renewed(clean_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()

    def write(filesystem: Any, path: str, value: bytes, mode: str) -> None:
        filesystem.pipe_file(path, value, mode=mode)
        if mode == "overwrite":
            renewed.set()

    stand_between(monkeypatch, write)
    with Lock(URL, "out", renewed_every=0.01) as lock:
        first = owner(clean_s3)
        assert renewed.wait(30)
        lock.check()
        assert owner(clean_s3)["time"] > first["time"] and owner(clean_s3)["token"] == first["token"]
    assert clean_s3.names("bucket") == []


def test_a_service_without_conditions_is_written_and_read_again(
    clean_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(filesystem: Any, path: str, value: bytes, mode: str) -> None:
        if mode == "create":
            raise OSError(errno.ENOSYS, "NotImplemented")
        filesystem.pipe_file(path, value, mode=mode)

    stand_between(monkeypatch, write)
    with Lock(URL, "out"), pytest.raises(OsmError, match="another process is writing there"):
        Lock(URL, "out").__enter__()
    assert clean_s3.names("bucket") == []


def test_of_two_that_take_it_at_once_one_has_it(clean_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a service that ignores conditions, the other's lock may take the place of ours as soon as it is there."""
    first = True

    def write(filesystem: Any, path: str, value: bytes, mode: str) -> None:
        nonlocal first
        filesystem.pipe_file(path, value)
        if first:
            first = False
            other = {**json.loads(value), "token": "theirs", "host": "node-7"}
            filesystem.pipe_file(path, json.dumps(other).encode())

    stand_between(monkeypatch, write)
    with pytest.raises(OsmError, match="another process is writing there: [0-9]+ on node-7"):
        Lock(URL, "out").__enter__()
    assert owner(clean_s3)["token"] == "theirs"


def test_a_file_is_written_there_or_here(clean_s3: S3Server, tmp_path: Path) -> None:
    write_text("s3://bucket/deep/figures.json", "--json", ["{", "}"])
    assert clean_s3.read("bucket", "deep/figures.json") == b"{}"
    write_text(tmp_path / "deep" / "figures.json", "--json", ["{", "}"])
    assert (tmp_path / "deep" / "figures.json").read_text() == "{}"
    assert clean_s3.names("bucket") == ["deep/figures.json"] and not list((tmp_path / "cache" / "staging").iterdir())
    with pytest.raises(OsmError, match="--json s3://bucket: expected a file URL"):
        write_text("s3://bucket", "--json", [])
    with pytest.raises(OsmError, match=r"--json s3://nobody: there is no such bucket"):
        write_text("s3://nobody/a.json", "--json", [])
    with pytest.raises(OsmError, match=r"--json https://host/a.json: the location is read-only"):
        write_text("https://host/a.json?token=secret", "--json", [])


def test_an_upload_that_fails_leaves_the_old_file_and_the_staged_one(clean_s3: S3Server) -> None:
    clean_s3.put("bucket", "out/a.json", b"old")
    output = open_output("s3://bucket/out", "--output_dir")
    (output.path / "a.json").write_text("new")
    clean_s3.status, clean_s3.methods = {"bucket/out/a.json": 500}, {"PUT"}
    with locked(output), pytest.raises(RunStopped, match=r"s3://bucket/out/a.json: .*the same command again to resume"):
        output.put("a.json")
    assert clean_s3.read("bucket", "out/a.json") == b"old"
    clean_s3.status = {}
    again = open_output("s3://bucket/out/", "--output_dir")
    assert (again.path / "a.json").read_text() == "new", "found again by the URL"
    again.put("a.json")
    assert output.read("a.json", "figures") == b"new" and output.sizes() == {"a.json": 3}


def test_what_draws_pictures_writes_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenes", "s3://bucket/drawn"]) == 2
    assert "error: out s3://bucket/drawn: this output must be local" in capsys.readouterr().err
    needed = ["--table", "t.yaml", "--cutouts", "cutouts", "--backgrounds", "photos"]
    assert main(["collages", "s3://bucket/drawn", *needed]) == 2
    assert "error: out s3://bucket/drawn: this output must be local" in capsys.readouterr().err


def test_gs_has_the_same_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "google").mkdir()
    with registered("gs", tmp_path / "google"):
        with (
            Lock("gs://bucket/out/.osm.lock", "out"),
            pytest.raises(OsmError, match="another process is writing there"),
        ):
            Lock("gs://bucket/out/.osm.lock", "out").__enter__()
        write_text("gs://bucket/out/a.txt", "--json", ["text"])
    assert [path.name for path in (tmp_path / "google").rglob("*") if path.is_file()] == ["a.txt"]
