"""Tests of the guard over real sockets: allowed callers, and limits of sizes and rates."""

from __future__ import annotations

import base64
import http.client
import socket
import time
from collections.abc import Iterator

import pytest
from processes import wait_until
from server_threads import RunningServer, as_base64, drawn_picture, rle_region, served

from osm.serving import http_server
from osm.serving.app import AccessRules
from osm.serving.engine import Engine
from osm.serving.guard import GuardLimits, HostNames, RateLimit, RequestRefused

BODY = {"image": as_base64(drawn_picture()), "regions": [rle_region()]}
KEY = "a-long-secret-key"


@pytest.fixture(scope="module")
def closed(engine: Engine) -> Iterator[RunningServer]:
    """A server with a key, small limits, and an allowed origin."""
    limits = GuardLimits(max_body=20_000, max_bodies=30_000, seconds_without_data=0.3, body_seconds=1.5)
    origins = ("https://tool.example.org",)
    with served(engine, AccessRules(HostNames("127.0.0.1", ("Name.Example",)), limits, KEY, origins)) as found:
        yield found


def keyed(**more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", **more}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "a/b"])
def test_foreign_hosts(server: RunningServer, host: str) -> None:
    """A site whose name leads to this machine cannot read anything."""
    for path, body in (("/", None), ("/v1/name", BODY), ("/health", None)):
        assert "is not an allowed host name" in server.message(path, body, 403, headers={"Host": host})


def test_known_hosts(closed: RunningServer) -> None:
    for host in ("localhost", "LOCALHOST:9", "127.0.0.1:80", "[::1]:80", "name.example"):
        assert closed.send("/health", headers={"Host": host})[0] == 200, host
    names = HostNames("0.0.0.0")
    assert "192.168.1.5" in names and "evil.example" not in names and socket.gethostname().lower() in names
    assert "192.168.1.5" not in HostNames("127.0.0.1")


def test_foreign_origins(server: RunningServer) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert server.send("/v1/name", BODY, {"Origin": own})[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{server.port}x", "http://127.0.0.1:1", "x"):
        sentence = server.message("/v1/name", BODY, 403, headers={"Origin": origin})
        assert "does not match this server's host" in sentence, origin
    assert server.send("/v1/models", headers={"Origin": "http://evil.example"})[0] == 403


def test_allowed_origins(closed: RunningServer) -> None:
    origin = "https://tool.example.org"
    status, _, headers = closed.send("/v1/models", headers=keyed(Origin=origin))
    assert status == 200 and headers["access-control-allow-origin"] == origin
    status, _, headers = closed.send("/v1/name", method="OPTIONS", headers={"Origin": origin})
    assert status == 204 and "authorization" in headers["access-control-allow-headers"]
    assert closed.send("/v1/name", method="OPTIONS", headers={"Origin": "https://other.example"})[0] == 403


def test_keys(closed: RunningServer) -> None:
    basic = "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode()
    for headers in (keyed(), {"X-API-Key": KEY}, {"Token": KEY}, {"Authorization": basic}):
        assert closed.send("/v1/models", headers=headers)[0] == 200, headers
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Token": ""}, {"Authorization": "Basic %%%"}, {"Token": "\xff"}):
        message = closed.message("/v1/models", None, 401, headers=headers)
        assert "an API key is needed" in message and KEY not in message
    for path in ("/v1/name", "/v1/predict", "/predict", "/setup", "/v1/chat/completions", "/metrics", "/v1/export"):
        assert closed.send(path, None if path == "/metrics" else BODY)[0] == 401, path
    for path in ("/health", "/ready", "/openapi.json"):
        assert closed.send(path)[0] == 200, path


def test_large_bodies(closed: RunningServer) -> None:
    """A body is refused by its stated length, and by its real one."""
    assert "the maximum is 20000 bytes (--max_body_mb)" in closed.message(
        "/v1/name", bytes(20_001), 413, headers=keyed()
    )
    with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
        raw.sendall(head(closed, "Content-Length: 2147483648"))  # 2 GB, of which nothing is sent
        assert b"413" in raw.recv(4096)
    with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
        raw.sendall(head(closed, "Transfer-Encoding: chunked"))
        for _ in range(3):
            raw.sendall(b"2000\r\n" + bytes(0x2000) + b"\r\n")
        assert b"413" in raw.recv(4096)
    assert closed.guard._body_bytes == 0


def test_a_body_without_a_key_holds_no_memory(closed: RunningServer) -> None:
    """Paths that need no key for GET need one for POST, before the body is read."""
    for path in ("/health", "/", "/page/page.js", "/openapi.json"):
        assert closed.send(path, BODY)[0] == 401
    with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
        lines = (f"Host: 127.0.0.1:{closed.port}", "Content-Length: 19000")
        raw.sendall(("POST /health HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode() + bytes(9000))
        time.sleep(0.2)
        assert closed.guard._body_bytes == 0


def test_a_refused_client_can_read_why(closed: RunningServer) -> None:
    """Its body is read before the connection ends, so that the answer is not lost."""
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
            lines = (f"Host: 127.0.0.1:{closed.port}", "Content-Length: 19000")
            raw.sendall(("POST /v1/name HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
            time.sleep(0.05)
            raw.sendall(bytes(19_000))
            assert b" 401 " in raw.recv(4096)


def test_an_allowed_page_reads_refusals(closed: RunningServer) -> None:
    status, _, headers = closed.send("/v1/name", BODY, {"Origin": "https://tool.example.org"})
    assert status == 401 and headers["access-control-allow-origin"] == "https://tool.example.org"
    assert "retry-after" in headers["access-control-expose-headers"]


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30])
def test_bad_lengths(closed: RunningServer, length: str) -> None:
    with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
        raw.sendall(head(closed, f"Content-Length: {length}"))
        assert b" 400 " in raw.recv(4096).split(b"\r\n")[0]


def test_bodies_in_memory_are_bounded(closed: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", closed.port), 10) as one:
        one.sendall(head(closed, "Content-Length: 19000") + bytes(18_000))
        wait_until(lambda: closed.guard._body_bytes >= 18_000)
        assert "too many uploads" in closed.message("/v1/name", bytes(15_000), 503, headers=keyed())
    wait_until(lambda: closed.guard._body_bytes == 0)


def test_slow_bodies(closed: RunningServer) -> None:
    """A client that stops sending is ended, and so is one that sends a byte now and then."""
    with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
        raw.sendall(head(closed, "Content-Length: 100") + b"x")
        assert b"408" in raw.recv(4096)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", closed.port), 10) as raw:
        raw.sendall(head(closed, "Content-Length: 1000"))
        raw.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - started < 60:
            try:
                answer = raw.recv(4096)
            except TimeoutError:
                raw.sendall(b"x")
        assert b"408" in answer


def test_slow_heads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.3)
    with served(engine) as server:
        for sent in (b"", b"GET / HTT", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
                raw.sendall(sent)
                assert raw.recv(4096) == b"", sent  # closed
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(3):  # a kept connection has the time again for each head
            kept.request("GET", "/health")
            assert kept.getresponse().read()
            time.sleep(0.15)
        kept.sock.sendall(b"GET /health HT")
        assert kept.sock.recv(4096) == b""


def test_malformed_http(server: RunningServer) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
            raw.sendall(sent)
            assert raw.recv(4096).split(b" ")[1] in (b"400", b"403")
    assert server.send("/health")[0] == 200


def test_rate_limit(engine: Engine) -> None:
    with served(engine, AccessRules(limits=GuardLimits(requests_per_minute=3))) as server:
        statuses = [server.send("/v1/name", BODY) for _ in range(5)]
        assert [status for status, _, _ in statuses] == [200, 200, 200, 429, 429]
        assert 1 <= int(statuses[-1][2]["retry-after"]) <= 20
        assert server.send("/health")[0] == 200  # only POST is counted
        assert 'osm_refusals_total{code="rate_limit_exceeded"} 2.0' in server.send("/metrics")[1].decode()


def test_the_bucket() -> None:
    limit = RateLimit(60)
    for _ in range(60):
        limit.check("a", 0.0)
    with pytest.raises(RequestRefused) as refused:
        limit.check("a", 0.0)
    assert refused.value.retry_after == 1
    limit.check("b", 0.0)
    limit.check("a", 1.0)  # one more after a second
    with pytest.raises(RequestRefused):
        limit.check("a", 1.0)


def test_websockets_are_refused(server: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    connection.request("GET", "/v1/name", headers=headers)
    assert connection.getresponse().status in (400, 404, 405)
    connection.close()


def head(server: RunningServer, *lines: str) -> bytes:
    more = (f"Host: 127.0.0.1:{server.port}", f"X-API-Key: {KEY}", "Content-Type: application/json", *lines)
    return ("POST /v1/name HTTP/1.1\r\n" + "\r\n".join(more) + "\r\n\r\n").encode()
