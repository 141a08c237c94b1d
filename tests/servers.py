"""Servers on loopback that hold real files, count what they send, and misbehave when a test says so."""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import os
import re
import socket
import sys
import tempfile
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote

import fsspec
from fsspec.registry import _registry  # only it can take a protocol out again
from fsspec.spec import AbstractFileSystem

if TYPE_CHECKING:
    import pytest

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
UPLOADS = ".uploads"  # no bucket's name begins with a dot


class FileServer:
    """Serves a folder by plain HTTP: HEAD, GET, one range of bytes, pages that list folders.

    A name is a path below the folder, such as "shards/a.tar"; a folder's ends with "/", and the folder itself is "".
    Files are read again for every request, so a test may replace them. A child process needs the url only.
    The attributes below may be set while the server runs. They take effect with the next request.

    Attributes:
        drop_after: Closes the connection after so many bytes of a body that is longer.
        drop_times: The next so many of those bodies are cut, later ones are not; None cuts all.
        stall: Sends the headers and half the body; waits with `stalling` set; `resume` lets it go on.
        stall_times: The next so many bodies stall; None for all.
        status: Answers of these names: an error's number, without a body.
        status_times: The next so many requests of those names are refused; None for all.
        delay: Seconds before each block of a body.
        slow: Bytes of such a block.
        lie: The sizes told are larger than the file by so many bytes (smaller if negative). The body is the file's.
        lie_methods: The methods that lie: {"HEAD"} makes HEAD tell another size than GET.
        ranges: False: Range is ignored, the whole file comes with status 200.
        etag: False: no ETag is sent.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        self.drop_after: int | None = None
        self.drop_times: int | None = None
        self.stall = False
        self.stall_times: int | None = None
        self.resume = threading.Event()
        self.stalling = threading.Event()
        self.status: dict[str, int] = {}
        self.status_times: int | None = None
        self.delay = 0.0
        self.slow = 1 << 16
        self.lie = 0
        self.lie_methods = {"HEAD", "GET"}
        self.ranges = True
        self.etag = True
        self._changed = threading.Condition()
        self._sent: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._sockets: set[socket.socket] = set()
        self._closed = threading.Event()
        self._http = _HTTPServer(self)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections and waits for the threads that serve them: the counts change no more."""
        self._closed.set()
        self.resume.set()
        self._http.shutdown()
        # A forked child holds the socket too: shutdown reaches those connections, close would not.
        _shut_down(self._http.socket)
        with self._changed:
            for each in self._sockets:
                _shut_down(each)
        self._http.server_close()
        self._thread.join()

    def url(self, name: str = "") -> str:
        return f"{self.address}/{quote(name)}"

    def sent(self, name: str | None = None) -> int:
        """Bytes of bodies sent: of one name, or of all."""
        with self._changed:
            return self._sent.total() if name is None else self._sent[name]

    def requests(self, name: str | None = None, method: str | None = None) -> int:
        """Counts the requests for one name (None = all names) by one method (None = all methods)."""
        with self._changed:
            return sum(n for (m, p), n in self._requests.items() if name in (None, p) and method in (None, m))

    def forget(self) -> None:
        """Sets the counts to zero."""
        with self._changed:
            self._sent.clear()
            self._requests.clear()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 30) -> bool:
        """Waits until a condition on the counts holds, such as `lambda: server.sent("a.tar") >= 100`."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    # For the handlers.

    def count(self, name: str, method: str | None = None, sent: int = 0) -> None:
        with self._changed:
            if method is not None:
                self._requests[method, name] += 1
            self._sent[name] += sent
            self._changed.notify_all()

    def take(self, fault: str) -> bool:
        """Whether a fault that is limited in number still applies; this use counts."""
        with self._changed:
            left: int | None = getattr(self, f"{fault}_times")
            if left:
                setattr(self, f"{fault}_times", left - 1)
            return left is None or left > 0

    def pause(self) -> bool:
        """Waits for the delay before a block; False when the server closes."""
        return not (self._closed.wait(self.delay) if self.delay else self._closed.is_set())

    def wait_in_stall(self) -> None:
        self.stalling.set()
        self.resume.wait()

    @contextlib.contextmanager
    def connection(self, connected: socket.socket) -> Iterator[None]:
        with self._changed:
            self._sockets.add(connected)
            if self._closed.is_set():  # accepted while the server closed: close() did not see it
                _shut_down(connected)
        try:
            yield
        finally:
            with self._changed:
                self._sockets.discard(connected)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = False  # server_close then waits for them
    request_queue_size = 128

    def __init__(self, files: FileServer) -> None:
        self.files = files
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self.files.connection(request):
            super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may leave at any time
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # small blocks leave at once
    server: _HTTPServer

    def log_message(self, format: str, *values: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        files = self.server.files
        name = unquote(self.path.partition("?")[0]).lstrip("/")
        files.count(name, self.command)
        if name in files.status and files.take("status"):
            return self._head(files.status[name], 0)
        path = (files.folder / name).resolve()
        if not path.is_relative_to(files.folder) or not path.exists():
            return self._head(404, 0)
        if path.is_dir():
            if name and not name.endswith("/"):
                return self._head(301, 0, {"Location": f"/{quote(name)}/"})
            body = _page(path)
            self._head(200, len(body), {"Content-Type": "text/html; charset=utf-8"})
            return self._body(name, body, len(body))
        self._file(name, path)

    def _file(self, name: str, path: Path) -> None:
        files = self.server.files
        content = path.read_bytes()
        told = max(0, len(content) + (files.lie if self.command in files.lie_methods else 0))
        headers = {"Content-Type": "application/octet-stream"}
        headers["Last-Modified"] = formatdate(path.stat().st_mtime, usegmt=True)
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"' if files.etag else None
        if tag:
            headers["ETag"] = tag
        if files.ranges:
            headers["Accept-Ranges"] = "bytes"
        if self.headers.get("If-Match", tag or "*") not in ("*", tag):
            return self._head(412, 0, headers)
        bounds = RANGE.fullmatch(self.headers.get("Range", "")) if files.ranges else None
        if bounds and any(bounds.groups()) and self.headers.get("If-Range", tag) == tag:
            first, last = bounds.groups()
            start = int(first) if first else max(0, told - int(last))
            end = min(told, int(last) + 1) if first and last else told
            if start >= told or start >= end:
                return self._head(416, 0, {"Content-Range": f"bytes */{told}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{told}"
            self._head(206, end - start, headers)
            self._body(name, content[start:end], end - start)
        else:
            self._head(200, told, headers)
            self._body(name, content, told)

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _body(self, name: str, body: bytes, told: int) -> None:
        """Sends a body with the faults that are on; the connection ends if it is not as long as told."""
        if self.command == "HEAD":
            return
        files = self.server.files
        cut = files.drop_after
        dropped = cut is not None and cut < len(body) and files.take("drop")
        stalled = files.stall and files.take("stall")
        pauses = {len(body) // 2} if stalled else set()
        stop = cut if dropped and cut is not None else len(body)
        at = 0
        while True:
            if at in pauses:
                files.wait_in_stall()
                pauses = set()
            if at >= stop or not files.pause():
                break
            end = min(stop, at + max(1, files.slow), *(pause for pause in pauses if pause > at))
            files.count(name, sent=end - at)  # before the client can have them: it may look at the count at once
            self.wfile.write(body[at:end])
            at = end
        if at != told:
            self.close_connection = True
            _shut_down(self.connection)


class S3Server:
    """An S3 service on loopback (moto), empty at the start and at the end; one at a time in a process.

    A name is "bucket/key". The attributes may be set while the server runs, as those of FileServer.

    Attributes:
        environment: The variables by which the AWS libraries find the server and its credentials. SECRET is among them.
        drop_after, drop_times: Closes the connection after so many bytes of an object.
        status: Answers of these names: the number of an error; status_times limits them.
        methods: The methods that `status` is about.
    """

    SECRET = "QX7-the-secret-key-of-the-tests-7XQ"

    def __init__(self) -> None:
        self.drop_after: int | None = None
        self.drop_times: int | None = None
        self.status: dict[str, int] = {}
        self.status_times: int | None = None
        self.methods = {"HEAD", "GET", "PUT", "POST", "DELETE"}
        self._lock = threading.Lock()
        self._sent: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Self:
        # Here, for moto is slow to import and most tests need the other servers.
        import boto3
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        class Quiet(MotoRequestHandler):
            def log(self, type: str, message: str, *values: object) -> None:
                pass

        self._app = DomainDispatcherApplication(create_backend_app)
        self._http = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "the-access-key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": self.SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nothing of the machine's own: no files of a user, no service of a cloud.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self._client = boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id="the-access-key-of-the-tests",
            aws_secret_access_key=self.SECRET,
        )
        self._reset()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reset()
        self._client.close()
        self._http.shutdown()
        _shut_down(self._http.socket)
        self._http.server_close()
        self._thread.join()

    def _reset(self) -> None:
        """moto keeps its buckets for the process, s3fs its clients: neither may reach the next test."""
        import s3fs

        urllib.request.urlopen(urllib.request.Request(f"{self.address}/moto-api/reset", method="POST")).close()
        s3fs.S3FileSystem.clear_instance_cache()
        self.forget()

    def use(self, monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
        """Sets the environment of a client, and further variables, for the time of a test."""
        for name, value in {**self.environment, **more}.items():
            monkeypatch.setenv(name, value)

    def bucket(self, name: str) -> str:
        """Makes a bucket; returns its url."""
        self._client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def clear(self, bucket: str) -> None:
        """Removes all objects of a bucket, and the faults: for tests that share a server."""
        self.status, self.status_times, self.methods = {}, None, {"HEAD", "GET", "PUT", "POST", "DELETE"}
        self.drop_after = self.drop_times = None
        for name in self.names(bucket):
            self._client.delete_object(Bucket=bucket, Key=name)
        self.forget()

    def put(self, bucket: str, key: str, content: bytes) -> str:
        """Stores an object; returns its url."""
        self._client.put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"

    def put_folder(self, bucket: str, folder: Path | str, prefix: str = "") -> None:
        """Stores each file of a folder under its path below it, after a prefix such as "shards/"."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                self.put(bucket, prefix + path.relative_to(folder).as_posix(), path.read_bytes())

    def names(self, bucket: str) -> list[str]:
        """Keys of all objects, sorted."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sorted(each["Key"] for page in pages for each in page.get("Contents", []))

    def unfinished(self, bucket: str) -> list[str]:
        """Keys of the uploads in parts that were begun, and neither completed nor aborted."""
        return [each["Key"] for each in self._client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    def read(self, bucket: str, key: str) -> bytes:
        return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def sent(self, name: str | None = None) -> int:
        """Bytes of answers to GET: of one name, or of all. What read() reads counts too."""
        with self._lock:
            return self._sent.total() if name is None else self._sent[name]

    def requests(self, name: str | None = None, method: str | None = None) -> int:
        """Counts the requests for one name (None = all names) by one method (None = all methods)."""
        with self._lock:
            return sum(n for (m, p), n in self._requests.items() if name in (None, p) and method in (None, m))

    def forget(self) -> None:
        """Sets the counts to zero."""
        with self._lock:
            self._sent.clear()
            self._requests.clear()

    def _take(self, fault: str) -> bool:
        with self._lock:
            left: int | None = getattr(self, f"{fault}_times")
            if left:
                setattr(self, f"{fault}_times", left - 1)
            return left is None or left > 0

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        """The WSGI application: moto's, with counts and faults."""
        name, method = environ["PATH_INFO"].lstrip("/"), environ["REQUEST_METHOD"]
        with self._lock:
            self._requests[method, name] += 1
        if name in self.status and method in self.methods and self._take("status"):
            status = self.status[name]
            code = {403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}.get(status, "InternalError")
            body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
            headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} {code}", headers)
            yield b"" if method == "HEAD" else body
            return
        body = b"".join(self._app(environ, start_response))
        cut = self.drop_after
        if method == "GET" and cut is not None and cut < len(body) and "/" in name and self._take("drop"):
            body = body[:cut]  # the length was told already: the client sees the connection end too early
        if method == "GET":
            with self._lock:
                self._sent[name] += len(body)
        yield body


class StandInFileSystem(AbstractFileSystem):
    """A store of objects in a local folder: gs://bucket/key is folder/bucket/key.

    It does what the stores do and folders do not: an object needs no folder made before it, and appears, whole, when
    its writer closes. info() holds what gcsfs and huggingface_hub give: an "etag" for gs, a "blob_id" for hf if
    expand_info=True asks for it, and no tag else. Made by `registered`.
    """

    root: Path
    cachable = False

    def _local(self, path: str) -> Path:
        path = self._strip_protocol(path)
        local = (self.root / path).resolve()
        if not local.is_relative_to(self.root):
            raise FileNotFoundError(path)
        return local

    def info(self, path: str, expand_info: bool = False, **options: Any) -> dict[str, Any]:
        local = self._local(path)
        name = self._strip_protocol(path)
        if local.is_dir():
            return {"name": name, "size": 0, "type": "directory"}
        if not local.is_file():
            raise FileNotFoundError(path)
        content = local.read_bytes()
        found = {"name": name, "size": len(content), "type": "file"}
        if "gs" in self.protocol:
            found["etag"] = hashlib.sha256(content).hexdigest()[:32]
        elif expand_info:
            found["blob_id"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        local, name = self._local(path), self._strip_protocol(path)
        if local.is_dir():
            names = [f"{name}/{entry.name}".lstrip("/") for entry in sorted(local.iterdir())]
        else:
            names = [self.info(path)["name"]]
        names = [name for name in names if not name.startswith(UPLOADS)]
        return [self.info(name) for name in names] if detail else names

    def _open(self, path: str, mode: str = "rb", **options: Any) -> IO[bytes]:
        local = self._local(path)
        if mode == "rb":
            return local.open("rb")
        if mode in ("wb", "xb"):
            if mode == "xb" and local.exists():
                raise FileExistsError(path)
            return _Upload(self.root / UPLOADS, local)
        raise NotImplementedError(mode)

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        pass  # a store has no folders

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        self.pipe_file(path2, self.cat_file(path1))

    def _rm(self, path: str) -> None:
        local = self._local(path)
        local.unlink()
        for folder in local.parents:  # nor do empty ones remain
            if folder == self.root or any(folder.iterdir()):
                break
            folder.rmdir()

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        for each in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
            if self.isfile(each):
                self._rm(each)

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._local(path).stat().st_mtime, UTC)


class _Upload(io.FileIO):
    """Writes beside the objects, and becomes one when it is closed."""

    def __init__(self, folder: Path, target: Path) -> None:
        folder.mkdir(exist_ok=True)
        handle, self._path = tempfile.mkstemp(dir=folder)
        self._target = target
        super().__init__(handle, "wb")

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._path, self._target)


@contextlib.contextmanager
def registered(protocol: str, folder: Path | str) -> Iterator[type[StandInFileSystem]]:
    """Lets fsspec find the objects of a protocol, "gs" or "hf", in a folder, in this process and those it forks."""
    # A class for each use: fsspec makes instances without arguments, and keeps them by class.
    names = {"gs": ("gs", "gcs"), "hf": ("hf",)}[protocol]
    made = type("StandIn", (StandInFileSystem,), {"protocol": names, "root": Path(folder).resolve()})
    before = dict(_registry)
    for name in names:
        fsspec.register_implementation(name, made, clobber=True)
    try:
        yield made
    finally:
        for name in names:
            _registry.pop(name, None)
            if name in before:
                _registry[name] = before[name]


def _page(folder: Path) -> bytes:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    links = "".join(f'<li><a href="{quote(name)}">{html.escape(name)}</a></li>\n' for name in names)
    return f"<!DOCTYPE HTML>\n<html><body>\n<ul>\n{links}</ul>\n</body></html>\n".encode()


def _shut_down(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connected.shutdown(socket.SHUT_RDWR)
