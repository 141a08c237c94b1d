"""Servers in threads of the test's process: real HTTP on loopback, with a worker that runs in a thread as well."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from processes import PATIENCE_S, wait_until

from osm.io.segmentation import encode_rle
from osm.serving.app import AccessRules, create_app
from osm.serving.engine import Engine
from osm.serving.guard import Guard
from osm.serving.http_images import ImageLimits, RequestImages
from osm.serving.http_server import bound_socket, configured_server
from osm.serving.jobs import EngineStats, JobResult, ModelInfo, NamingJob
from osm.serving.page_samples import PageSamples
from osm.serving.scheduler import BatchLimits, ModelQueue
from osm.serving.services import ListLimits, Services
from osm.serving.url_fetch import UrlFetcher, UrlRules
from osm.serving.worker import WorkerDied


class ThreadWorker:
    """A worker in a thread. It dies as a process would if `dies` is set; `held` makes it wait."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.dies, self.closed = engine, False, False
        self.batches: list[int] = []
        self.held = threading.Event()
        self.held.set()

    async def loaded(self) -> ModelInfo:
        return self.engine.info("checkpoint")

    async def run(self, jobs: Sequence[NamingJob]) -> tuple[list[JobResult], EngineStats]:
        self.batches.append(len(jobs))
        await asyncio.to_thread(self.held.wait)
        if self.dies:
            self.dies = False
            raise WorkerDied("the worker process 1 died (signal 9)")
        return await asyncio.to_thread(self.engine.run, jobs), self.engine.stats

    def kill(self) -> None:
        self.dies = True
        self.held.set()

    async def close(self) -> None:
        self.closed = True


@dataclass
class RunningServer:
    """A server that listens on a port of 127.0.0.1."""

    port: int
    services: Services
    guard: Guard
    worker: ThreadWorker

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> tuple[int, Any, dict[str, str]]:
        """Send a request; a body that is not bytes is sent as JSON. Return the status, the body and the headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if data is None or isinstance(body, bytes) else {"Content-Type": "application/json"}
        connection.request(method or ("GET" if data is None else "POST"), path, data, {**kind, **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text, dict(response.headers)

    def form(self, path: str, parts: Sequence[tuple[str, str, bytes]]) -> tuple[int, Any, dict[str, str]]:
        """Send a form of (field, file name, content). A field without a file name is a text."""
        body = b""
        for field, name, content in parts:
            file = f'; filename="{name}"' if name else ""
            body += f'--edge\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'.encode()
            body += content + b"\r\n"
        return self.send(path, body + b"--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"})

    def message(self, path: str, body: Any, status: int = 422, **more: Any) -> str:
        """Send a request that has to fail with a status, and return the sentence of the error."""
        found, document, _ = self.send(path, body, **more)
        assert found == status, (found, document)
        assert document["success"] is False and document["error"]["code"]
        return str(document["error"]["message"])


@contextmanager
def served(
    engine: Engine,
    access: AccessRules | None = None,
    batch: BatchLimits | None = None,
    images: ImageLimits | None = None,
    lists: ListLimits | None = None,
    urls: UrlRules | None = None,
    samples: PageSamples | None = None,
) -> Iterator[RunningServer]:
    """Serve an engine until the context ends."""
    worker = ThreadWorker(engine)
    limits = images or ImageLimits(file_mb=1, megapixels=1)
    reader = RequestImages(limits, UrlFetcher(urls or UrlRules(), limits.file_bytes))
    services = Services({}, reader, lists or ListLimits(), samples=samples)
    started: dict[str, Any] = {}

    async def run() -> None:
        queue = ModelQueue("tiny", lambda: worker, batch, services.metrics.on_batch("tiny"))
        services.models = {"tiny": queue}
        guard = create_app(services, access)
        server = configured_server(guard, 5)
        started.update(server=server, guard=guard, loop=asyncio.get_running_loop())
        await server.serve([sock])

    sock = bound_socket("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        wait_until(lambda: not thread.is_alive() or ("server" in started and started["server"].started))
        assert thread.is_alive(), "the server has ended"
        yield RunningServer(sock.getsockname()[1], services, started["guard"], worker)
    finally:
        worker.held.set()
        if "server" in started:
            started["server"].should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"


def drawn_picture(number: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture with two areas, different for each number."""
    pixels = np.full((size[1], size[0], 3), 40 * (number % 6), np.uint8)
    pixels[10:30, 8:40] = (200, 30 * (number % 8), 255 - 20 * (number % 10))
    return Image.fromarray(pixels)


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def as_base64(image: Image.Image | bytes) -> str:
    return base64.b64encode(image if isinstance(image, bytes) else file_of(image)).decode()


def as_data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + as_base64(image)


def block(size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """The mask of the area in `drawn_picture`."""
    mask = np.zeros((size[1], size[0]), bool)
    mask[10:30, 8:40] = True
    return mask


def rle_region(size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    return {"rle": encode_rle(block(size))}


POLYGONS = [[8, 10, 40, 10, 40, 30, 8, 30]]
"""The mask of `block` as polygons."""
