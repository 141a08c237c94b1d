"""A page on loopback, and a visitor of it without a browser: raw HTTP, with whatever headers."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from osm.serving import web
from osm.serving.engine import Engine
from osm.serving.page_files import sample_images

MIB = 1 << 20
FILE = {"_type": "gradio.FileData"}


class Visitor:
    """Speaks to a page on loopback.

    Attributes:
        session: by which gradio knows one tab.
    """

    def __init__(self, port: int, connect_to: str = "127.0.0.1") -> None:
        self.port, self.connect_to = port, connect_to
        self.session = uuid.uuid4().hex[:12]
        self._config: dict[str, Any] = {}

    def ask(
        self, method: str, path: str, body: bytes | None = None, host: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in small letters) and body of the answer."""
        connection = http.client.HTTPConnection(self.connect_to, self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
            if body is not None:
                headers = {"Content_Length": str(len(body)), **headers}
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            if body:
                with contextlib.suppress(BrokenPipeError):  # refused before all of it was sent
                    connection.send(body)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, document: Any, **headers: str) -> tuple[int, bytes]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status, _, answer = self.ask("POST", f"/gradio_api/{path}", body, Content_Type="application/json", **headers)
        return status, answer

    def send(self, path: str, fields: dict[str, str], file: tuple[str, bytes], **headers: Any) -> tuple[int, bytes]:
        """Posts a form; `file` is the name of its field, and what is in it, under the name `headers["name"]`."""
        name = headers.pop("name", "a.png")
        parts = [
            f'--edge\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in fields.items()
        ]
        head = f'--edge\r\nContent-Disposition: form-data; name="{file[0]}"; filename="{name}"\r\n\r\n'
        body = "".join(parts).encode() + head.encode() + file[1] + b"\r\n--edge--\r\n"
        kind = "multipart/form-data; boundary=edge"
        status, _, answer = self.ask("POST", f"/gradio_api/{path}", body, Content_Type=kind, **headers)
        return status, answer

    def upload(self, data: bytes, name: str = "a.png", **headers: Any) -> tuple[int, bytes]:
        return self.send("upload", {}, ("files", data), name=name, **headers)

    def function(self, event: str, part: str) -> int:
        """The number of the function that an event of a part of the page calls."""
        if not self._config:
            self._config = json.loads(self.ask("GET", "/config")[2])
        ids = {c["id"] for c in self._config["components"] if c["props"].get("elem_id") == part}
        return next(
            one["id"]
            for one in self._config["dependencies"]
            if any(t[0] in ids and t[1] == event for t in one["targets"])
        )

    def component(self, part: str) -> int:
        self.function("upload", "osm-upload")
        return next(c["id"] for c in self._config["components"] if c["props"].get("elem_id") == part)

    def call(self, number: int, values: list[Any], **more: Any) -> dict[str, Any]:
        """The last message of a call through the queue."""
        call = {"fn_index": number, "data": values, "session_hash": self.session, **more}
        status, answer = self.post("queue/join", call)
        assert status == 200, answer
        event = json.loads(answer)["event_id"]
        connection = http.client.HTTPConnection(self.connect_to, self.port, timeout=60)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
            stream = connection.getresponse()
            while line := stream.readline():
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message.get("event_id") == event and message["msg"] == "process_completed":
                        return message
        finally:
            connection.close()
        raise AssertionError("the stream ended before the call did")

    def read(self, path: str) -> str:
        """What the page says of an uploaded file."""
        number = self.function("upload", "osm-upload")
        done = self.call(number, [None, {"path": path, "orig_name": "a.png", "meta": FILE}])
        return str(done["output"]["data"][0]) if done["success"] else f"failed: {done['output']}"

    def show(self, data: bytes, name: str = "a.png") -> str:
        """Uploads a file and has it read, as a browser does."""
        status, answer = self.upload(data, name)
        return self.read(json.loads(answer)[0]) if status == 200 else answer.decode()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def picture(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(stream, "PNG")
    return stream.getvalue()


@contextlib.contextmanager
def served(engine: Engine, host: str = "127.0.0.1", names: tuple[str, ...] = ()) -> Iterator[tuple[Any, int]]:
    """A page that takes files of 1 MiB, and 3 MiB in all."""
    web.import_gradio()
    from osm.serving.page import Limits, Page

    page, port = Page(engine, sample_images(), Limits(file_mb=1, megapixels=1, uploads_mb=3)), free_port()
    with contextlib.closing(web.PageServer(page, host, port, names)):
        yield page, port


def stored(page: Any) -> list[Path]:
    return [path for path in page.folder.uploads.rglob("*") if path.is_file()]
