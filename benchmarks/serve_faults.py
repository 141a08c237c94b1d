#!/usr/bin/env python3
"""Tests `osm serve` with killed workers, hostile requests, slow clients, decompression bombs, and requests for URLs.

The server runs through one case after the other, and each result is written with the server's memory. After each case,
the server has to answer an ordinary request. The exit code is 1 if a result is not as expected.

    python3 benchmarks/serve_faults.py CHECKPOINT [--schemathesis PATH] [--output faults.json]

--schemathesis: the program, if malformed requests made from the OpenAPI schema are to be tried as well (in an
environment of its own: pip install schemathesis).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from serve_load import Server, resident, server  # noqa: E402


@dataclass
class Found:
    """What happened, and whether it is what should happen."""

    what: str
    happened: str
    right: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--schemathesis", type=Path)
    parser.add_argument("--examples", type=int, default=50, help="of schemathesis, for each operation [%(default)s]")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with server(args.checkpoint, ["--timeout", "60"]) as one:
        faults = Faults(one, args)
        faults.ordinary()
        for check in (
            faults.killed_worker,
            faults.slow_head,
            faults.slow_body,
            faults.stated_upload,
            faults.streamed_upload,
            faults.many_uploads,
            faults.large_image,
            faults.scan_bomb,
            faults.json_bombs,
            faults.mask_bombs,
            faults.foreign_host,
            faults.foreign_origin,
            faults.urls,
            faults.malformed,
        ):
            for row in check():
                found.append({**vars(row), "resident_mib": one.memory()["resident_mib"]})
                print(found[-1], file=sys.stderr)
            faults.ordinary()
    document = {"benchmark": "serve_faults", "checkpoint": Path(args.checkpoint).name, "faults": found}
    if args.output is not None:
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["right"] for row in found) else 1


class Faults:
    """The tries. Each returns what happened."""

    def __init__(self, one: Server, args: argparse.Namespace) -> None:
        self.one, self.args = one, args
        self.port = int(one.address.rsplit(":", 1)[1])
        self.picture = base64.b64encode(png(64, 64)).decode()
        self.body = {"image": self.picture, "regions": [{"box": [5, 5, 40, 40]}]}

    def send(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        text = reply.read().decode("utf-8", "replace")
        connection.close()
        code = json.loads(text).get("error", {}).get("code", "") if text.startswith("{") else ""
        return reply.status, code

    def raw(self, data: bytes, more: Callable[[socket.socket], None] = lambda _: None, seconds: float = 90) -> str:
        """Send bytes, and return the status, or `closed`."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as link:
            link.sendall(data)
            try:
                more(link)
                reply = link.recv(65536)
            except (ConnectionError, BrokenPipeError):
                reply = b""
            return reply.split(b" ")[1].decode() if reply else "closed"

    def ordinary(self) -> None:
        deadline = time.monotonic() + 120
        while self.send("/v1/name", self.body)[0] != 200:
            assert time.monotonic() < deadline, "the server does not recover"
            time.sleep(0.2)

    def killed_worker(self) -> list[Found]:
        children = subprocess.run(["pgrep", "-P", str(self.one.process.pid)], capture_output=True, text=True)
        pids = map(int, children.stdout.split())
        [worker] = [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        many = {**self.body, "regions": [{"box": [5, 5, 40, 40]}] * 250}
        with ThreadPoolExecutor(16) as pool:
            tries = [pool.submit(self.send, "/v1/name", many) for _ in range(16)]
            time.sleep(0.3)
            os.kill(worker, signal.SIGKILL)
            killed = time.monotonic()
            statuses = [done.result() for done in tries]
        self.ordinary()
        seconds = time.monotonic() - killed
        failed = [code for status, code in statuses if status != 200]
        text = f"{len(failed)} of 16 requests get 500 `worker_died`, the others are answered after {seconds:.0f} s"
        right = set(failed) == {"worker_died"} and len(failed) < 16
        return [Found("the worker process is killed while 16 requests of 250 regions are under way", text, right)]

    def slow_head(self) -> list[Found]:
        started = time.monotonic()
        answer = self.raw(b"POST /v1/name HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        text = f"the connection is {answer} after {time.monotonic() - started:.0f} s"
        return [Found("a head that does not end", text, answer == "closed")]

    def slow_body(self) -> list[Found]:
        def trickle(link: socket.socket) -> None:
            link.settimeout(1)
            for _ in range(100):
                try:
                    if link.recv(1, socket.MSG_PEEK):
                        break
                except TimeoutError:
                    link.sendall(b" ")
            link.settimeout(30)

        found = []
        for what, more in (("stops", lambda _: None), ("sends a byte a second", trickle)):
            started = time.monotonic()
            status = self.raw(self.head("Content-Length: 100000") + b"{", more)
            seconds = time.monotonic() - started
            found.append(Found(f"a client that {what} in its body", f"{status} after {seconds:.0f} s", status == "408"))
        return found

    def stated_upload(self) -> list[Found]:
        status = self.raw(self.head(f"Content-Length: {2 << 30}"))
        return [Found("an upload of 2 GB, by its stated length", f"{status}, before anything is read", status == "413")]

    def streamed_upload(self) -> list[Found]:
        sent = 0

        def stream(link: socket.socket) -> None:
            nonlocal sent
            part = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
            while sent < 2 << 30:
                link.sendall(part)
                sent += 1 << 20

        before = self.one.memory()["resident_mib"]
        with socket.create_connection(("127.0.0.1", self.port), 60) as link:
            link.sendall(self.head("Transfer-Encoding: chunked"))
            with contextlib.suppress(ConnectionError):
                stream(link)
            try:
                reply = link.recv(4096).split(b" ")[1].decode()
            except (ConnectionError, IndexError):
                reply = "closed"
        more = self.one.memory()["resident_mib"] - before
        text = f"{reply} after {sent >> 20} MiB, {max(0, more):.0f} MiB more memory"
        return [Found("an upload of 2 GB in chunks", text, sent < 64 << 20 and more < 128)]

    def many_uploads(self) -> list[Found]:
        links = [socket.create_connection(("127.0.0.1", self.port), 30) for _ in range(24)]
        statuses = []
        for link in links:
            with contextlib.suppress(OSError):
                link.sendall(self.head(f"Content-Length: {32 << 20}") + bytes(31 << 20))
        for link in links:
            link.settimeout(30)
            try:
                reply = link.recv(4096)
                statuses.append(reply.split(b" ")[1].decode() if reply else "closed")
            except (OSError, IndexError):
                statuses.append("closed")
            link.close()
        refused, ended = statuses.count("503") + statuses.count("closed"), statuses.count("408")
        text = f"{refused} are refused (503), the other {ended} end with 408 after 15 s"
        return [Found("24 uploads of 31 MiB at the same time, none of which ends", text, refused >= 7)]

    def large_image(self) -> list[Found]:
        found = []
        black = png(9_000, 9_000)
        for what, data in (
            ("a PNG that claims 60,000 x 60,000 pixels", png(60_000, 60_000, rows=1)),
            (f"a PNG of 9,000 x 9,000 black pixels in {len(black) >> 10} KB", black),
        ):
            status, code = self.send("/v1/name", {**self.body, "image": base64.b64encode(data).decode()})
            found.append(Found(what, f"{status} `{code}`, not decoded", (status, code) == (413, "image_too_large")))
        return found

    def scan_bomb(self) -> list[Found]:
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (4000, 4000)).save(buffer, "JPEG", progressive=True, quality=30)
        data = buffer.getvalue()
        start = data.rindex(b"\xff\xda")
        bomb = data[:-2] + data[start:-2] * 300 + b"\xff\xd9"
        started = time.monotonic()
        status, code = self.send("/v1/name", {**self.body, "image": base64.b64encode(bomb).decode()})
        text = f"{status} `{code}` after {time.monotonic() - started:.1f} s"
        right = status == 422 and time.monotonic() - started < 10
        return [Found("a progressive JPEG of 16 million pixels with 300 more scans", text, right)]

    def json_bombs(self) -> list[Found]:
        found = []
        for what, body, expected in (
            ("JSON nested 100,000 levels deep", b'{"image":' + b"[" * 100_000, (400, "invalid_json")),
            (
                "a JSON list of 10 million numbers",
                b'{"regions":[' + b"1," * 10_000_000 + b"1]}",
                (413, "request_too_large"),
            ),
            ("100,000 regions", {**self.body, "regions": [{"box": [1, 2, 3, 4]}] * 100_000}, (413, "too_many_regions")),
            (
                "a vocabulary of 100,000 names",
                {**self.body, "vocabulary": [str(k) for k in range(100_000)]},
                (413, "vocabulary_too_large"),
            ),
        ):
            started = time.monotonic()
            answer = self.send("/v1/name", body)
            text = f"{answer[0]} `{answer[1]}` after {time.monotonic() - started:.1f} s"
            found.append(Found(what, text, answer == expected))
        return found

    def mask_bombs(self) -> list[Found]:
        found = []
        for what, region in (
            ("an RLE of 4 billion pixels", {"rle": {"size": [65535, 65535], "counts": [65535 * 65535]}}),
            ("an RLE whose one run has 10^18 pixels", {"rle": {"size": [64, 64], "counts": [10**18]}}),
            ("a polygon with corners at 10^300", {"polygons": [[0, 0, 1e300, 0, 1e300, 1e300]]}),
            (
                "a mask PNG that claims 60,000 x 60,000 pixels",
                {"png": base64.b64encode(png(60_000, 60_000, rows=1)).decode()},
            ),
        ):
            status, code = self.send("/v1/name", {**self.body, "regions": [region]})
            found.append(Found(what, f"{status} `{code}`", status == 422))
        return found

    def foreign_host(self) -> list[Found]:
        status, code = self.send("/v1/name", self.body, {"Host": "evil.example"})
        return [Found("a foreign Host (DNS rebinding)", f"{status} `{code}`", status == 403)]

    def foreign_origin(self) -> list[Found]:
        status, code = self.send("/v1/name", self.body, {"Origin": "https://evil.example"})
        return [Found("a foreign Origin (another website)", f"{status} `{code}`", status == 403)]

    def urls(self) -> list[Found]:
        tries = (
            f"http://127.0.0.1:{self.port}/metrics",
            "http://localhost/",
            "http://[::1]/",
            "http://169.254.169.254/latest/meta-data/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://127.1/",
            "https://example.org@127.0.0.1/",
            "http://metadata.google.internal/",
        )
        answers = {self.send("/v1/name", {**self.body, "image": {"url": url}}) for url in tries}
        found = [
            Found(
                f"{len(tries)} URLs of loopback, private and metadata addresses",
                described(answers),
                answers == {(422, "url_not_allowed")},
            )
        ]
        others = ("file:///etc/passwd", "gopher://127.0.0.1/", "/etc/passwd", "pipe:id")
        answers = {self.send("/v1/name", {**self.body, "image": {"url": url}}) for url in others}
        return [
            *found,
            Found(
                f"{len(others)} other addresses (file, gopher, path, pipe)",
                described(answers),
                answers == {(422, "url_not_allowed")},
            ),
        ]

    def malformed(self) -> list[Found]:
        if self.args.schemathesis is None:
            return []
        command = [
            str(self.args.schemathesis),
            "run",
            f"{self.one.address}/openapi.json",
            "--max-examples",
            str(self.args.examples),
        ]
        command += [
            "--checks",
            "not_a_server_error",
            "--seed",
            "7",
            "--request-timeout",
            "90",
            "--no-color",
            "--exclude-path",
            "/metrics",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        text = done.stdout + done.stderr
        Path("/tmp/schemathesis.log").write_text(text, encoding="utf-8")
        cases = re.search(r"([\d,]+) generated", text)
        count = cases[1] if cases else "all"
        memory = f"{resident(self.one.process.pid) >> 20} MiB in the web server"
        happened = f"{count} cases, no 5xx" if done.returncode == 0 else f"{count} cases, failures: see the log"
        return [
            Found("malformed requests to all operations (schemathesis)", f"{happened}; {memory}", done.returncode == 0)
        ]

    def head(self, *lines: str) -> bytes:
        more = (f"Host: 127.0.0.1:{self.port}", "Content-Type: application/json", *lines)
        return ("POST /v1/name HTTP/1.1\r\n" + "\r\n".join(more) + "\r\n\r\n").encode()


def described(answers: set[tuple[int, str]]) -> str:
    return ", ".join(f"{status} `{code}`" for status, code in sorted(answers))


def png(width: int, height: int, rows: int | None = None) -> bytes:
    """A black PNG, with fewer rows of pixels than it claims if `rows` is given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + width * 3)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


if __name__ == "__main__":
    sys.exit(main())
