#!/usr/bin/env python3
"""Measures a server on this machine: requests per second, latencies, refusals and memory, with and without batching.

Each client sends requests of 8 masks, one after the other, on a connection of its own. The images are synthetic scenes.
In `distinct`, every request has an image that the server has not seen (a comment in the JPEG file differs). In
`shared`, all clients send the same eight images, which are in the cache. Batching across requests is compared at one
number of clients: two servers with otherwise the same settings take turns in one run. All answers are compared with
those of the recognizer. Names have to be equal, and probabilities within 1e-4.

    python3 benchmarks/serve_load.py osm_small --seconds 60 --output load.json
    python3 benchmarks/serve_load.py runs/quickstart/run/final --soak 10000 --output soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MASKS = 8
SHARED = 8
SIDE = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each number of clients [%(default)s]")
    parser.add_argument(
        "--compared", type=int, default=32, help="clients of the comparison of batching; 0: none [%(default)s]"
    )
    parser.add_argument("--pictures", nargs="+", default=["distinct", "shared"])
    parser.add_argument("--soak", type=int, default=0, help="instead: so many requests, and the memory on the way")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of osm serve")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    bodies = Bodies(args.checkpoint)
    machine = {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    document: dict[str, Any] = {"benchmark": "serve_load", "checkpoint": Path(args.checkpoint).name, "machine": machine}
    document |= soaked(args, bodies) if args.soak else loaded(args, bodies)
    text = json.dumps(document, indent=1)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


def loaded(args: argparse.Namespace, bodies: Bodies) -> dict[str, Any]:
    found: dict[str, Any] = {"seconds": args.seconds, "masks_per_request": MASKS, "load": [], "batching": []}
    for pictures in args.pictures:
        with (
            server(args.checkpoint, args.flags) as on,
            server(args.checkpoint, ["--max_batch_requests", "1", *args.flags]) as off,
        ):
            for one in (on, off):  # the first requests are slower
                asyncio.run(run(one, bodies, pictures, 2, 3.0))
            for clients in args.clients:
                result = asyncio.run(run(on, bodies, pictures, clients, args.seconds))
                found["load"].append({"pictures": pictures, "clients": clients, **result.figures(), **on.memory()})
                print(found["load"][-1], file=sys.stderr)
            if not args.compared:
                continue
            slices = {"on": Result(), "off": Result()}
            for name in ("on", "off", "off", "on"):
                part = asyncio.run(run({"on": on, "off": off}[name], bodies, pictures, args.compared, args.seconds / 2))
                slices[name].add(part)
            both = {name: result.figures() for name, result in slices.items()}
            gain = both["on"]["requests_per_second"] / max(both["off"]["requests_per_second"], 1e-9)
            found["batching"].append({"pictures": pictures, "clients": args.compared, "gain": round(gain, 3), **both})
            print(found["batching"][-1], file=sys.stderr)
    return found


def soaked(args: argparse.Namespace, bodies: Bodies) -> dict[str, Any]:
    """The memory after 1,000 requests and after all, half of them with new pictures."""
    points = []
    with server(args.checkpoint, args.flags) as one:
        done = 0
        for count in sorted({1000, *range(2000, args.soak, 2000), args.soak}):
            result = asyncio.run(run(one, bodies, "both", 16, requests=count - done))
            done = count
            assert not result.wrong and set(result.statuses) == {200}, (result.wrong, result.statuses)
            points.append({"requests": done, **one.memory()})
            print(points[-1], file=sys.stderr)
    growth = points[-1]["resident_mib"] / points[0]["resident_mib"] - 1
    return {"soak": points, "growth_percent": round(100 * growth, 2)}


class Bodies:
    """The bodies of requests, and the answers that the recognizer itself gives."""

    def __init__(self, checkpoint: str) -> None:
        from PIL import Image

        import osm
        from osm.io.segmentation import encode_rle
        from osm.synthetic.scenes.compose import draw_scene
        from osm.synthetic.scenes.scene_names import choose_pairs

        recognizer = osm.load_recognizer(checkpoint, device="cpu")
        self.jpegs, self.regions, self.expected = [], [], []
        for number in range(SHARED):
            buffer = io.BytesIO()
            Image.fromarray(draw_scene(SIDE, choose_pairs("all"), 77, number).image).save(buffer, "JPEG", quality=90)
            self.jpegs.append(buffer.getvalue())
            masks = blobs(number)
            self.regions.append([{"rle": encode_rle(mask)} for mask in masks])
            recognizer.set_image(Image.open(io.BytesIO(buffer.getvalue())))
            self.expected.append([(one.text, one.prob) for (one,) in recognizer.name(list(masks))])
        self._shared = [self._body(number, self.jpegs[number]) for number in range(SHARED)]
        self._count = 0

    def next(self, pictures: str) -> tuple[int, bytes]:
        """The number of a picture, and the body of a request for it."""
        self._count += 1
        number = self._count % SHARED
        if pictures == "shared" or (pictures == "both" and self._count % 2):
            return number, self._shared[number]
        jpeg = self.jpegs[number]
        comment = f"{os.getpid()} {time.time()} {self._count}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        return number, self._body(number, jpeg[:2] + segment + jpeg[2:])

    def _body(self, number: int, jpeg: bytes) -> bytes:
        document = {"image": base64.b64encode(jpeg).decode(), "regions": self.regions[number]}
        return json.dumps(document).encode()

    def is_right(self, number: int, document: Any) -> bool:
        found = [region["answers"][0] for region in document["regions"]]
        return len(found) == MASKS and all(
            one["name"] == name and abs(one["prob"] - prob) <= 1e-4
            for one, (name, prob) in zip(found, self.expected[number], strict=True)
        )


def blobs(seed: int) -> np.ndarray:
    """Eight elliptical masks."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    centers, radii = random.uniform(60, SIDE - 60, (MASKS, 2)), random.uniform(25, 90, (MASKS, 2))
    return np.stack(
        [((x - a) / u) ** 2 + ((y - b) / v) ** 2 <= 1 for (a, b), (u, v) in zip(centers, radii, strict=True)]
    )


@dataclass
class Result:
    """What a run has measured."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    wrong: int = 0
    elapsed: float = 0.0

    def add(self, other: Result) -> None:
        self.seconds += other.seconds
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.elapsed += other.elapsed

    def figures(self) -> dict[str, Any]:
        ordered = sorted(self.seconds) or [float("nan")]
        at = {
            f"p{q}_ms": round(1000 * ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))], 1)
            for q in (50, 95, 99)
        }
        refused = sum(count for status, count in self.statuses.items() if status != 200)
        return {
            "requests": self.statuses[200],
            "requests_per_second": round(self.statuses[200] / self.elapsed, 2),
            **at,
            "seconds": round(self.elapsed, 1),
            "refused": refused,
            "statuses": dict(self.statuses),
            "wrong_answers": self.wrong,
        }


async def run(
    one: Server, bodies: Bodies, pictures: str, clients: int, seconds: float = 1e9, requests: int = 0
) -> Result:
    """Requests of several clients at the same time, for some seconds or until so many were sent."""
    result, ends, left = Result(), time.monotonic() + seconds, [requests or 1 << 60]

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < ends and left[0] > 0:
            left[0] -= 1
            number, body = bodies.next(pictures)
            started = time.monotonic()
            async with session.post(
                one.address + "/v1/name", data=body, headers={"Content-Type": "application/json"}
            ) as reply:
                text = await reply.read()
            finished = time.monotonic()
            result.statuses[reply.status] += 1
            if reply.status == 200:
                result.seconds.append(finished - started)
                result.wrong += not bodies.is_right(number, json.loads(text))
            else:
                await asyncio.sleep(min(1.0, float(reply.headers.get("Retry-After", 1))))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
        began = time.monotonic()
        await asyncio.gather(*(client(session) for _ in range(clients)))
    # The elapsed time includes the last requests, which end after the slice: a batch may be as long as a slice.
    result.elapsed = time.monotonic() - began
    return result


@dataclass
class Server:
    """A running `osm serve`."""

    process: subprocess.Popen
    address: str

    def memory(self) -> dict[str, float]:
        """The resident memory of the web server and its worker, in MiB."""
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True).stdout.split()
        return {"resident_mib": round(sum(resident(pid) for pid in (self.process.pid, *map(int, children))) / 2**20, 1)}


def resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextlib.contextmanager
def server(checkpoint: str, flags: list[str]) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "osm",
        "serve",
        f"model={checkpoint}",
        "--port",
        str(port),
        "--segmenter",
        "none",
        *flags,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert "http" in process.stdout.readline(), "the server did not start"
        yield Server(process, f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
