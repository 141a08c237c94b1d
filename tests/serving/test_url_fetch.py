"""Images by URL, against real servers on loopback: only allowed hosts, never private addresses by a detour."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from server_threads import drawn_picture, file_of, rle_region, served

from osm.serving.engine import Engine
from osm.serving.url_fetch import UrlFetcher, UrlRefused, UrlRules

PICTURE = file_of(drawn_picture())


class Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        Handler.seen.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
            return
        data = {"/a.png": PICTURE, "/large": bytes(2_000_000)}.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.end_headers()
        self.wfile.write(data or b"none")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What host names resolve to."""
    names: dict[str, str] = {}
    whole = socket.getaddrinfo

    def lookup(host: Any, port: Any, *arguments: Any, **more: Any) -> Any:
        return whole(names.get(host, host), port, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return names


def fetch(url: str, *, hosts: tuple[str, ...] = (), private: tuple[str, ...] = (), token: str = "") -> bytes:
    fetcher = UrlFetcher(UrlRules(hosts, private), 1_000_000)
    return asyncio.run(fetcher.fetch(url, {"Authorization": token} if token else None))


def test_an_allowed_host(site: int) -> None:
    assert fetch(f"http://127.0.0.1:{site}/a.png", private=(f"127.0.0.1:{site}",)) == PICTURE
    assert fetch(f"http://LOCALHOST:{site}/a.png", private=(f"localhost:{site}",)) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{site}/a.png",
        "http://localhost:{site}/a.png",
        "http://[::1]:{site}/a.png",
        "http://2130706433:{site}/a.png",
        "http://0x7f.1:{site}/a.png",
        "http://0.0.0.0:{site}/a.png",
        "http://allowed.example@127.0.0.1:{site}/a.png",
        "http://allowed.example:{site}#@127.0.0.1/a.png",
        "file:///etc/passwd",
        "ftp://allowed.example/a.png",
        "http:///a.png",
        "http://[::1/a.png",
    ],
)
def test_other_hosts(site: int, url: str) -> None:
    before = len(Handler.seen)
    with pytest.raises(UrlRefused):
        fetch(url.format(site=site), hosts=("allowed.example",))
    assert len(Handler.seen) == before


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.9", "169.254.169.254", "172.16.0.1", "0.0.0.0", "224.0.0.1"]
)
def test_an_allowed_name_with_a_private_address(site: int, resolved: dict[str, str], address: str) -> None:
    """DNS cannot lead an allowed name into the server's own network."""
    resolved["allowed.example"] = address
    with pytest.raises(UrlRefused, match=f"'allowed.example' has the address {address}, which is not public"):
        fetch(f"http://allowed.example:{site}/a.png", hosts=(f"allowed.example:{site}",))


def test_an_allowed_address_is_checked_as_well(site: int) -> None:
    for address in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
        with pytest.raises(UrlRefused, match="not public"):
            fetch(f"http://{address}:{site}/a.png", hosts=(f"{address}:{site}",))


def test_a_private_host_by_its_own_flag(site: int, resolved: dict[str, str]) -> None:
    resolved["studio.internal"] = "127.0.0.1"
    assert fetch(f"http://studio.internal:{site}/a.png", private=(f"studio.internal:{site}",)) == PICTURE
    with pytest.raises(UrlRefused, match="is not allowed"):  # another port is another host
        fetch(f"http://studio.internal:{site}/a.png", private=("studio.internal",))


def test_redirects(site: int, resolved: dict[str, str]) -> None:
    resolved |= {"start.internal": "127.0.0.1", "allowed.example": "127.0.0.1"}
    start, rules = f"http://start.internal:{site}", (f"start.internal:{site}",)
    assert fetch(f"{start}/to?/a.png", private=rules) == PICTURE
    for target in (f"http://127.0.0.1:{site}/a.png", f"http://localhost:{site}/a.png", "file:///etc/passwd"):
        with pytest.raises(UrlRefused):
            fetch(f"{start}/to?{target}", private=rules)
    with pytest.raises(UrlRefused, match="not public"):
        fetch(f"{start}/to?http://allowed.example:{site}/a.png", hosts=(f"allowed.example:{site}",), private=rules)
    loop = f"{start}/to?/to?/to?/to?/to?/a.png"
    with pytest.raises(UrlRefused, match="redirected more than 3 times"):
        fetch(loop, private=rules)


def test_a_token_stays_with_its_host(site: int, resolved: dict[str, str]) -> None:
    resolved |= {"start.internal": "127.0.0.1", "other.internal": "127.0.0.1"}
    hosts = (f"start.internal:{site}", f"other.internal:{site}")
    Handler.seen.clear()
    fetch(f"http://start.internal:{site}/to?http://other.internal:{site}/a.png", private=hosts, token="Token secret")
    assert [token for _, token in Handler.seen] == ["Token secret", None]


def test_what_cannot_be_read(site: int) -> None:
    private = (f"127.0.0.1:{site}", "127.0.0.1:1")
    with pytest.raises(UrlRefused, match="larger than the maximum of 1000000 bytes"):
        fetch(f"http://127.0.0.1:{site}/large", private=private)
    with pytest.raises(UrlRefused, match="HTTP 404"):
        fetch(f"http://127.0.0.1:{site}/none?token=secret", private=private)
    with pytest.raises(UrlRefused, match="cannot be read") as refused:
        fetch("http://127.0.0.1:1/a.png?token=secret", private=private)
    assert "secret" not in str(refused.value)


def test_through_the_server(site: int, engine: Engine) -> None:
    with served(engine, urls=UrlRules((), (f"127.0.0.1:{site}",))) as server:
        for image in (f"http://127.0.0.1:{site}/a.png", {"url": f"http://127.0.0.1:{site}/a.png"}):
            assert server.send("/v1/name", {"image": image, "regions": [rle_region()]})[0] == 200
        body = {"image": f"http://127.0.0.1:{server.port}/metrics", "regions": [rle_region()]}
        assert "'127.0.0.1' is not allowed; use --allow_url_host" in server.message("/v1/name", body)
        body = {"image": {"url": "/etc/passwd"}, "regions": [rle_region()]}
        assert "is not an http(s) URL" in server.message("/v1/name", body)
