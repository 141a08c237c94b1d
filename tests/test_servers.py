"""The test equipment itself: a fault that a server does not commit proves nothing about the code under test."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import fsspec
import pytest
from fsspec.exceptions import FSTimeoutError
from processes import PATIENCE_S
from servers import FileServer, S3Server, registered

DATA = bytes(range(256)) * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "shards" / "deep").mkdir(parents=True)
    (tmp_path / "shards" / "a b.tar").write_bytes(DATA)
    (tmp_path / "shards" / "deep" / "c.tar").write_bytes(b"c")
    with FileServer(tmp_path) as started:
        yield started


@pytest.fixture
def client() -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("http", skip_instance_cache=True)


NAME = "shards/a b.tar"


def ask(
    server: FileServer, name: str = NAME, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=PATIENCE_S)
    connection.request(method, server.url(name).removeprefix(server.address), headers=headers)
    answer = connection.getresponse()
    try:
        return answer, answer.read()
    finally:
        connection.close()


def test_files_come_with_size_tag_and_date(server: FileServer) -> None:
    answer, body = ask(server)
    head, nothing = ask(server, method="HEAD")
    assert (answer.status, body, nothing) == (200, DATA, b"")
    assert answer.headers["ETag"].startswith('"') and answer.headers["Last-Modified"].endswith("GMT")
    for name in ("ETag", "Content-Length", "Last-Modified", "Accept-Ranges"):
        assert head.headers[name] == answer.headers[name]
    assert server.sent(NAME) == server.sent() == len(DATA)
    assert (server.requests(NAME, "HEAD"), server.requests(method="GET"), server.requests()) == (1, 1, 2)
    (server.folder / NAME).write_bytes(b"other")
    assert ask(server)[0].headers["ETag"] != answer.headers["ETag"]
    server.forget()
    assert server.sent() == server.requests() == 0


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=262100-999999", 206, slice(262100, None)),
        ("bytes=262100-", 206, slice(262100, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=262144-", 416, slice(0, 0)),
        ("bytes=0-1,4-5", 200, slice(None)),  # several ranges: the whole file, as the protocol allows
    ],
)
def test_ranges(server: FileServer, asked: str, status: int, part: slice) -> None:
    answer, body = ask(server, Range=asked)
    assert (answer.status, body) == (status, DATA[part])
    first, last, _ = part.indices(len(DATA))
    told = {206: f"bytes {first}-{last - 1}/{len(DATA)}", 416: f"bytes */{len(DATA)}"}
    assert answer.headers.get("Content-Range") == told.get(status)
    assert server.sent(NAME) == len(body)


def test_conditions_on_the_tag(server: FileServer) -> None:
    tag = ask(server, method="HEAD")[0].headers["ETag"]
    assert ask(server, **{"If-Match": tag})[0].status == 200
    assert ask(server, **{"If-Match": '"old"'})[0].status == 412
    assert ask(server, **{"Range": "bytes=1-2", "If-Range": tag})[0].status == 206
    assert ask(server, **{"Range": "bytes=1-2", "If-Range": '"old"'})[0].status == 200


def test_names_that_are_not_there(server: FileServer) -> None:
    (server.folder.parent / "secret").write_bytes(b"s")
    assert ask(server, "shards/none")[0].status == 404
    assert ask(server, "../secret")[0].status == 404


def test_fsspec_reads_and_lists(server: FileServer, client: fsspec.AbstractFileSystem) -> None:
    url = server.url(NAME)
    assert client.cat_file(url, start=5, end=50) == DATA[5:50]
    info = client.info(url)
    assert info["size"] == len(DATA) and info["ETag"] and info["type"] == "file"
    with client.open(url, block_size=1000) as file:
        file.seek(-7, 2)
        assert file.read() == DATA[-7:]
    assert client.find(server.url("shards/")) == sorted([url, server.url("shards/deep/c.tar")])
    assert client.glob(server.url("shards/") + "*.tar") == [url]


def test_another_process_reads(server: FileServer) -> None:
    script = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))"
    done = subprocess.run([sys.executable, "-c", script, server.url(NAME)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == server.sent(NAME) == len(DATA)


def test_connections_drop_for_a_while(server: FileServer, client: fsspec.AbstractFileSystem) -> None:
    server.drop_after, server.drop_times = 1000, 2
    assert client.cat_file(server.url("shards/deep/c.tar")) == b"c"  # it is shorter: not one of the two
    for _ in range(2):
        with pytest.raises(aiohttp.ClientPayloadError):
            client.cat_file(server.url(NAME))
    assert server.sent(NAME) == 2000
    assert client.cat_file(server.url(NAME)) == DATA


def test_connections_drop_for_ever(server: FileServer) -> None:
    server.drop_after = 0
    for _ in range(3):
        with pytest.raises(http.client.IncompleteRead):
            ask(server)
    assert (server.sent(), server.requests()) == (0, 3)


def test_a_stalled_body_goes_on(server: FileServer) -> None:
    server.stall = True
    bodies: list[bytes] = []
    reader = threading.Thread(target=lambda: bodies.append(ask(server)[1]))
    reader.start()
    assert server.stalling.wait(30)
    assert server.sent(NAME) == len(DATA) // 2 and not bodies
    server.resume.set()
    reader.join()
    assert bodies == [DATA]


def test_a_stalled_body_ends_with_the_server(server: FileServer) -> None:
    server.stall = True
    ended: list[str] = []

    def read() -> None:
        with pytest.raises(http.client.IncompleteRead):
            ask(server)
        ended.append("cut")

    reader = threading.Thread(target=read)
    reader.start()
    assert server.stalling.wait(30)
    server.close()
    reader.join()
    assert ended == ["cut"] and server.sent() == len(DATA) // 2


def test_a_stall_meets_the_clients_timeout(server: FileServer) -> None:
    server.stall, server.stall_times = True, 1
    timeout = aiohttp.ClientTimeout(sock_read=0.2)
    client = fsspec.filesystem("http", skip_instance_cache=True, client_kwargs={"timeout": timeout})
    with pytest.raises(FSTimeoutError):
        client.cat_file(server.url(NAME))
    assert client.cat_file(server.url(NAME)) == DATA


def test_a_slow_body_comes_in_blocks(server: FileServer) -> None:
    server.slow, server.delay = 1000, 3600
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=PATIENCE_S)
    connection.request("GET", "/shards/a%20b.tar")
    assert connection.getresponse().status == 200  # the headers do not wait
    server.close()  # nor does the end of the server
    connection.close()
    assert server.sent() == 0


def test_waiting_for_a_count(server: FileServer) -> None:
    server.slow, server.delay = 10_000, 0.001
    reader = threading.Thread(target=ask, args=(server,))
    reader.start()
    assert server.wait_for(lambda: server.sent(NAME) >= 20_000)
    reader.join()
    assert not server.wait_for(lambda: server.sent() > len(DATA), timeout=0)


def test_sizes_that_are_lies(server: FileServer) -> None:
    server.lie = 10
    assert ask(server, method="HEAD")[0].headers["Content-Length"] == str(len(DATA) + 10)
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(server)
    assert cut.value.partial == DATA
    server.lie = -10
    assert ask(server)[1] == DATA[:-10]
    server.lie_methods = {"HEAD"}
    assert ask(server)[1] == DATA
    assert ask(server, method="HEAD")[0].headers["Content-Length"] == str(len(DATA) - 10)


def test_a_server_without_ranges_and_tags(server: FileServer) -> None:
    server.ranges = server.etag = False
    answer, body = ask(server, Range="bytes=0-9")
    assert (answer.status, body) == (200, DATA)
    assert not {"ETag", "Accept-Ranges", "Content-Range"} & set(answer.headers)


def test_refusals(server: FileServer) -> None:
    server.status, server.status_times = {NAME: 503}, 1
    assert ask(server)[0].status == 503
    assert ask(server)[0].status == 200
    server.status, server.status_times = {NAME: 403}, None
    assert [ask(server, method=method)[0].status for method in ("HEAD", "GET", "GET")] == [403] * 3
    assert ask(server, "shards/deep/c.tar")[0].status == 200


def test_s3_round_trip(s3: S3Server, tmp_path: Path) -> None:
    s3.bucket("osm")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a b.tar").write_bytes(DATA)
    (tmp_path / "in" / "deep" / "c.tar").write_bytes(b"c")
    s3.put_folder("osm", tmp_path / "in", "shards/")
    client = fsspec.filesystem("s3")
    assert client.find("s3://osm/shards") == ["osm/shards/a b.tar", "osm/shards/deep/c.tar"]
    assert client.cat_file("s3://osm/shards/a b.tar", start=5, end=50) == DATA[5:50]
    assert s3.sent("osm/shards/a b.tar") == 45 and s3.requests("osm/shards/a b.tar", "GET") == 1
    info = client.info("s3://osm/shards/a b.tar")
    assert info["size"] == len(DATA) and info["ETag"].startswith('"')
    client.put_file(str(tmp_path / "in" / "a b.tar"), "s3://osm/out/d.tar")
    assert s3.names("osm") == ["out/d.tar", "shards/a b.tar", "shards/deep/c.tar"]
    assert s3.read("osm", "out/d.tar") == DATA
    client.get_file("s3://osm/out/d.tar", str(tmp_path / "d.tar"))
    assert (tmp_path / "d.tar").read_bytes() == DATA


def test_s3_is_empty_at_the_start(s3: S3Server) -> None:
    s3.bucket("osm")
    assert s3.names("osm") == s3.unfinished("osm") == []
    assert "QX7" in s3.environment["AWS_SECRET_ACCESS_KEY"]


def test_s3_in_another_process(s3: S3Server) -> None:
    url = s3.put(s3.bucket("osm").removeprefix("s3://"), "a", DATA)
    script = "import fsspec, sys; print(len(fsspec.open(sys.argv[1]).open().read()))"
    done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(DATA)


def test_s3_refuses(s3: S3Server) -> None:
    s3.bucket("osm")
    s3.put("osm", "a", DATA)
    s3.status = {"osm/a": 403}
    client = fsspec.filesystem("s3")
    with pytest.raises(PermissionError):
        client.cat_file("s3://osm/a")
    s3.status, s3.methods = {"osm/b": 403}, {"PUT"}
    with pytest.raises(PermissionError):
        client.pipe_file("s3://osm/b", b"b")
    assert s3.names("osm") == ["a"]
    s3.status, s3.methods, s3.status_times = {"osm/a": 503}, {"GET"}, 1
    assert client.cat_file("s3://osm/a") == DATA  # s3fs tries again


def test_s3_connections_drop(s3: S3Server, tmp_path: Path) -> None:
    s3.bucket("osm")
    s3.put("osm", "a", DATA)
    s3.forget()
    s3.drop_after, s3.drop_times = 1000, 1
    fsspec.filesystem("s3").get_file("s3://osm/a", str(tmp_path / "a"))  # s3fs tries again
    assert (tmp_path / "a").read_bytes() == DATA
    assert s3.drop_times == 0 and s3.requests("osm/a", "GET") == 2


@pytest.mark.parametrize("protocol", ["gs", "hf"])
def test_stand_in_reads_and_writes(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "bucket" / "deep").mkdir(parents=True)
    (tmp_path / "bucket" / "a b.tar").write_bytes(DATA)
    (tmp_path / "bucket" / "deep" / "c.tar").write_bytes(b"c")
    url = f"{protocol}://bucket/a b.tar"
    with registered(protocol, tmp_path):
        client, path = fsspec.url_to_fs(url)
        assert path == "bucket/a b.tar"
        assert client.cat_file(url, start=5, end=50) == DATA[5:50]
        assert client.find(f"{protocol}://bucket") == ["bucket/a b.tar", "bucket/deep/c.tar"]
        assert client.find(f"{protocol}://") == ["bucket/a b.tar", "bucket/deep/c.tar"]
        assert client.glob(f"{protocol}://bucket/*.tar") == ["bucket/a b.tar"]
        with client.open(f"{protocol}://bucket/new/d.tar", "wb") as file:
            file.write(b"d")
            assert not client.exists("bucket/new/d.tar") and client.ls("") == [client.info("bucket")]
        assert (tmp_path / "bucket" / "new" / "d.tar").read_bytes() == b"d"
        client.put_file(str(tmp_path / "bucket" / "a b.tar"), f"{protocol}://other/e.tar")
        client.mv(f"{protocol}://other/e.tar", f"{protocol}://other/f.tar")
        assert client.cat_file("other/f.tar") == DATA and client.find("other") == ["other/f.tar"]
        client.rm("other", recursive=True)
        assert client.ls("", detail=False) == ["bucket"]
        with pytest.raises(FileNotFoundError):
            client.cat_file(f"{protocol}://bucket/none")
        with pytest.raises(FileNotFoundError):
            client.cat_file(f"{protocol}://../{tmp_path.parent.name}/secret")


def test_stand_ins_tell_what_their_stores_tell(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_bytes(b"a")
    with registered("gs", tmp_path), registered("hf", tmp_path):
        google, hub = fsspec.filesystem("gs"), fsspec.filesystem("hf")
        before = google.info("gs://bucket/a")
        assert before["size"] == 1 and set(before) == {"name", "size", "type", "etag"}
        assert set(hub.info("hf://bucket/a")) == {"name", "size", "type"}
        # As `git hash-object` has it.
        assert hub.info("hf://bucket/a", expand_info=True)["blob_id"] == "2e65efe2a145dda7ee51d1741299f848e5bf752e"
        google.pipe_file("gs://bucket/a", b"b")
        assert google.info("gs://bucket/a")["etag"] != before["etag"]


def test_the_registry_is_as_before(tmp_path: Path) -> None:
    before = dict(fsspec.registry)
    with registered("gs", tmp_path) as outer:
        with registered("gs", tmp_path / "other") as inner:
            assert fsspec.get_filesystem_class("gs") is fsspec.get_filesystem_class("gcs") is inner
        assert fsspec.get_filesystem_class("gs") is outer
    assert dict(fsspec.registry) == before
