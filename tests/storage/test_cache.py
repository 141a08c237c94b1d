"""The cache of a node: fetched once, whole, of the right version, and never over its bound."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from processes import PATIENCE_S
from servers import FileServer, S3Server

from osm.errors import OsmError, RunStopped
from osm.storage import cache as module
from osm.storage.cache import FileCache, RemoteFolder, localize, user_cache

DATA = os.urandom(1000)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "kept")


def put(shelf: Path, name: str, data: bytes = DATA) -> str:
    path = shelf / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def parts(cache: FileCache) -> list[Path]:
    return list((cache.folder / ".osm" / "parts").iterdir())


def test_a_file_is_fetched_once(cache: FileCache, shelf: Path, server: FileServer) -> None:
    url = server.url(put(shelf, "a b.bin"))
    path = cache.get(url)
    assert path.read_bytes() == DATA and path.name == "a b.bin" and path == cache.path_of(url)
    assert cache.get(url) == path and server.requests(method="GET") == 1
    with cache.open(url) as file:
        assert file.read() == DATA
    path.write_bytes(b"short")  # somebody's doing
    assert cache.get(url).read_bytes() == DATA and not parts(cache)


def test_another_version_is_fetched_anew(cache: FileCache, shelf: Path, server: FileServer) -> None:
    url = server.url(put(shelf, "a.bin"))
    cache.get(url)
    put(shelf, "a.bin", DATA[::-1])
    assert cache.get(url).read_bytes() == DATA[::-1]


def test_what_signs_a_url_is_no_part_of_its_name(cache: FileCache, shelf: Path, server: FileServer) -> None:
    url = server.url(put(shelf, "a.csv"))
    paths = [cache.get(f"{url}?{query}") for query in ("X-Amz-Signature=1", "X-Amz-Signature=2", "v=1", "v=2")]
    assert paths[0] == paths[1] and len(set(paths)) == 3 and {path.name for path in paths} == {"a.csv"}
    assert server.requests(method="GET") == 3
    kept = "".join(path.read_text() for path in (cache.folder / ".osm" / "meta").iterdir())
    assert "Signature" not in kept and "?" not in kept


def test_two_urls_of_one_path_are_not_taken_for_each_other(
    cache: FileCache, shelf: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.etag = False  # as on a disk that does not tell A from a
    for name in ("A.bin", "a.bin"):
        put(shelf, name, name.encode())
        os.utime(shelf / name, (1, 1))
    monkeypatch.setattr(cache, "path_of", lambda url: cache.folder / "one.bin")
    for name in ("A.bin", "a.bin", "A.bin"):
        assert cache.get(server.url(name)).read_bytes() == name.encode()


@pytest.mark.parametrize("name", ["..", ".", "a/../b", "x" * 300 + ".jpg", "a%2F..%2Fb", "é ñ", "\udcff", "\ud800"])
def test_every_name_stays_within(cache: FileCache, name: str) -> None:
    for url in (f"https://host:80/x/{name}", f"s3://b/{name}"):
        path = cache.path_of(url)
        assert path.resolve().is_relative_to(cache.folder.resolve()) and ".." not in path.parts
        assert all(len(os.fsencode(part)) <= 255 for part in path.relative_to(cache.folder).parts)


FETCH = """
import sys
from pathlib import Path
from osm.storage.cache import FileCache
print(len(FileCache(Path(sys.argv[1])).get(sys.argv[2]).read_bytes()))
"""


def test_processes_fetch_a_file_once(cache: FileCache, shelf: Path, server: FileServer) -> None:
    url = server.url(put(shelf, "a.bin", DATA * 1000))
    server.stall, server.stall_times = True, 1  # the first is in the middle of it when the second comes
    command = [sys.executable, "-c", FETCH, str(cache.folder), url]
    one = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.stalling.wait(60)
    two = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert server.wait_for(lambda: server.requests(method="HEAD") >= 2, 60)
    server.resume.set()
    assert [process.communicate(timeout=PATIENCE_S)[0].strip() for process in (one, two)] == [b"1000000"] * 2
    assert server.requests(method="GET") == 1 and server.sent() == 1_000_000


def test_a_killed_process_leaves_nothing_that_counts(cache: FileCache, shelf: Path, server: FileServer) -> None:
    url = server.url(put(shelf, "a.bin", DATA * 1000))
    server.stall, server.stall_times = True, 1
    killed = subprocess.Popen([sys.executable, "-c", FETCH, str(cache.folder), url], stdout=subprocess.PIPE)
    assert server.stalling.wait(60)
    killed.kill()
    killed.communicate()
    server.resume.set()
    assert len(parts(cache)) == 1
    bounded = FileCache(cache.folder, limit=1500)  # the part would fill it
    assert bounded.get(server.url(put(shelf, "b.bin"))).read_bytes() == DATA and not parts(cache)
    assert cache.get(url).read_bytes() == DATA * 1000 and not parts(cache)


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, shelf: Path, server: FileServer) -> None:
    cache = FileCache(tmp_path / "kept", limit=2500)
    a, b, c = (server.url(put(shelf, name)) for name in ("a", "b", "c"))
    for age, url in ((30, a), (20, b)):
        os.utime(cache.get(url), (1e9 - age, 1e9 - age))
    opened = cache.open(a)  # used now
    cache.get(c)
    assert [cache.path_of(url).exists() for url in (a, b, c)] == [True, False, True]
    os.utime(cache.path_of(a), (1, 1))
    cache.get(b)
    assert not cache.path_of(a).exists() or os.name == "nt"
    with opened:
        assert opened.read() == DATA  # whoever has it open keeps reading
    with pytest.raises(OsmError, match="has 3000 bytes, over the size limit of 2500"):
        cache.get(server.url(put(shelf, "d", DATA * 3)))


class Killed(BaseException):
    """Stands for a signal that ends the process."""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_file_counts_whenever_its_process_is_killed(
    tmp_path: Path, shelf: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch, which: int, moment: str
) -> None:
    """Each file is stored by two renames, and the limit must hold whichever of them is the last one done."""
    cache = FileCache(tmp_path / "kept", limit=2500)
    a, b, c = (server.url(put(shelf, name)) for name in ("a", "b", "c"))
    done: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        done.append(target)
        if moment == "before" and len(done) == which + 1:
            raise Killed
        os.rename(source, target)
        if len(done) == which + 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", replace)
        with pytest.raises(Killed):
            cache.get(a)
    for url in (b, c):
        assert cache.get(url).read_bytes() == DATA
    assert sum(path.stat().st_size for path in (tmp_path / "kept" / "http").rglob("*") if path.is_file()) <= 2500
    assert cache.get(a).read_bytes() == DATA


def test_a_full_cache_waits_for_what_others_fetch(tmp_path: Path, shelf: Path, server: FileServer) -> None:
    cache = FileCache(tmp_path / "kept", limit=1500)
    a, b = (server.url(put(shelf, name)) for name in ("a", "b"))
    server.stall, server.stall_times = True, 1
    first = threading.Thread(target=cache.get, args=(a,))
    first.start()
    assert server.stalling.wait(60)
    second = threading.Thread(target=cache.get, args=(b,))
    second.start()
    assert server.wait_for(lambda: server.requests("b", "HEAD") == 1, 60) and server.requests("b", "GET") == 0
    server.resume.set()
    for thread in (first, second):
        thread.join(60)
    assert cache.path_of(b).read_bytes() == DATA and not cache.path_of(a).exists()


def test_a_disk_without_room_is_seen_before(
    cache: FileCache, shelf: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url(put(shelf, "x/a.bin"))
    monkeypatch.setattr(module, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=999)))
    for get in (lambda: cache.get(url), lambda: cache.get_tree(server.url("x"))):
        with pytest.raises(RunStopped, match="1000 bytes must be fetched, but the disk of .* has only 999 bytes free"):
            get()
    assert server.requests(method="GET") <= 1 and not parts(cache)  # the page of the folder


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OsmError, match="cache .*file: .*; expected a folder that can be written"):
        FileCache(tmp_path / "file").make()
    FileCache(tmp_path / "none")  # nothing is made before something is fetched
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("console")
def test_folders(s3: S3Server, cache: FileCache, capsys: pytest.CaptureFixture[str]) -> None:
    bucket = s3.bucket("bkt")
    for name in ("x/a.bin", "x/deep/b.bin", "x2/c.bin"):
        s3.put("bkt", name, name.encode())
    root = cache.get_tree(f"{bucket}/x")
    assert (root / "deep" / "b.bin").read_bytes() == b"x/deep/b.bin" and not (root.parent / "x2").exists()
    assert "s3://bkt/x: fetching 2 files" in capsys.readouterr().err
    s3.forget()
    cache.get_tree(f"{bucket}/x/")
    assert s3.requests("bkt/x/a.bin") == 0 and not capsys.readouterr().err
    s3._client.delete_object(Bucket="bkt", Key="x/a.bin")
    os.utime(root / "a.bin", (1, 1))
    cache.get_tree(f"{bucket}/x")
    assert [path.name for path in root.rglob("*.bin")] == ["b.bin"]


def test_files_of_a_folder_as_they_are_needed(shelf: Path, server: FileServer, cache: FileCache) -> None:
    for name in ("x/a.jpg", "x/deep/b #1.jpg", "x/c.jpg"):
        put(shelf, name)
    folder = RemoteFolder(server.url("x"), cache)
    wanted = [folder.root / "a.jpg", folder.root / "deep" / "b #1.jpg", folder.root / "nothing.jpg"]
    folder.fetch(wanted)
    folder.fetch(wanted)
    assert [path.exists() for path in wanted] == [True, True, False] and not (folder.root / "c.jpg").exists()
    assert server.requests() == 2 * 2 + 1 and sorted(folder.names or ()) == ["a.jpg", "c.jpg", "deep/b #1.jpg"]
    server.status = {"x/": 403}
    assert RemoteFolder(server.url("x"), cache).names is None


def test_locations_are_made_local(shelf: Path, server: FileServer, tmp_path: Path) -> None:
    url = server.url(put(shelf, "x/a.json"))
    path = localize(url, "--json_file")
    assert path.read_bytes() == DATA and path.is_relative_to(tmp_path / "cache") and user_cache().path_of(url) == path
    assert localize(Path(url), "--json_file") == path  # with one slash less
    assert localize("a.json", "--json_file") == Path("a.json")
    assert localize(path.as_uri(), "--json_file") == path
    with pytest.raises(OsmError, match=r"^--json_file http://.*/x/b.json: there is no such file$"):
        localize(f"{server.url('x/b.json')}?sig=hunter2", "--json_file")
    server.drop_after = 10
    with pytest.raises(RunStopped, match=r"^--json_file http://.*/x/c.json: the connection broke off"):
        localize(server.url(put(shelf, "x/c.json")), "--json_file")
    with pytest.raises(OsmError, match="--json_file 'pipe:x': expected a local path"):
        localize("pipe:x", "--json_file")


def test_a_disk_without_locks(
    cache: FileCache, monkeypatch: pytest.MonkeyPatch, shelf: Path, server: FileServer
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(
        OsmError, match="its disk has no locks; set OSM_CACHE to a folder on a local disk of this machine"
    ):
        cache.get(server.url(put(shelf, "a")))


def test_everything_is_removed_with_the_folder(cache: FileCache, shelf: Path, server: FileServer) -> None:
    url = server.url(put(shelf, "a"))
    cache.get(url)
    shutil.rmtree(cache.folder / "http")
    assert cache.get(url).read_bytes() == DATA
