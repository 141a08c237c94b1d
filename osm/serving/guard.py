"""ASGI middleware in front of gradio, which checks the origin, type and size of every request to the demo page.

Any website that the user visits can send requests to a server on this machine. A malicious site can also read the
responses if its host name is made to resolve to this machine (DNS rebinding). To block requests from other websites,
the middleware checks the host names in the Host and Origin headers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from osm.documents import parse_json
from osm.serving.page_files import Uploads, UploadsFull
from osm.terminal import message_logger

logger = message_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
JOIN, UPLOAD, PAINT = "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/component_server"
# The demo page sends POST requests only to these endpoints, so POST requests to any other endpoint are blocked.
_POSTS = (JOIN, UPLOAD, PAINT, "/gradio_api/reset", "/gradio_api/cancel")
_JSON_BYTES = 1 << 20
_FORM_BYTES = 1 << 16  # maximum size of a form without its file
_MAX_FILES = 8
_SECONDS_WITHOUT_DATA = 30
_MAX_LAYERS = 4
_MAX_CONCURRENT_UPLOADS = 16


class RequestRefused(Exception):
    """Raised to reject a request with an HTTP error status and a sentence that gives the reason."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class HostNames:
    """The host names allowed in the Host header of requests to the page.

    The port in a Host header is ignored, because a tunnel or container may change it.

    Args:
        host: the address on which the page listens.
        more: additional allowed host names.
    """

    def __init__(self, host: str, more: Collection[str] = ()) -> None:
        self.is_local = host in LOOPBACK_NAMES
        self.known = {*LOOPBACK_NAMES, host.lower(), *(name.lower() for name in more)}
        if not self.is_local:
            own = socket.gethostname().lower()
            self.known |= {own, f"{own}.local"}

    def __contains__(self, name: str) -> bool:
        if name in self.known:
            return True
        # A public page may be accessed by IP address, because a DNS rebinding attack always uses a host name.
        return not self.is_local and _is_address(name)


class Guard:
    """ASGI middleware that checks each request before passing it on to gradio's application.

    The middleware stores uploads itself, because gradio would store uploads with identical content as one file shared
    by several visitors.

    Args:
        app: gradio's application.
        names: allowed host names.
        inputs: for each function that the page can call, by function number, its number of input values.
        uploads: storage for uploads.
        file_bytes: maximum size of an upload in bytes.
    """

    def __init__(self, app: App, names: HostNames, inputs: dict[int, int], uploads: Uploads, file_bytes: int) -> None:
        self.app, self.names, self.inputs = app, names, inputs
        self.uploads, self.file_bytes = uploads, file_bytes
        self._uploading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the page uses no websocket
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            try:
                await self._answer(scope, receive, send)
            except RequestRefused as refusal:
                await _respond(send, refusal.status, f"{refusal}\n".encode(), "text/plain; charset=utf-8")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_caller(scope)
        method, path = scope["method"], scope["path"].rstrip("/")
        if method == "POST":
            if path not in _POSTS:
                raise RequestRefused(404, f"the page has no endpoint {path[:80]!r}")
            length = _content_length(scope)
            max_bytes = self.file_bytes + _FORM_BYTES if path in (UPLOAD, PAINT) else _JSON_BYTES
            if length > max_bytes:
                raise RequestRefused(
                    413, f"the request body of {length} bytes exceeds the maximum allowed size of {max_bytes} bytes"
                )
            if path == UPLOAD:
                await self._upload(scope, receive, send)
                return
            body = await _body(receive, max_bytes)
            if path == PAINT:
                await _check_painting(scope, body)
            else:
                self._check_json(path, body)
            receive = _replayed(body, receive)
        elif method not in ("GET", "HEAD"):
            raise RequestRefused(405, f"method {method[:20]} is not allowed")
        await self._pass_on(scope, receive, send)

    def _check_caller(self, scope: Scope) -> None:
        hosts = _values(scope, b"host")
        host = _name(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None or host not in self.names:
            raise RequestRefused(
                403,
                f"Host {', '.join(hosts)[:80]!r} is not an allowed host name; use --allow_host NAME to allow it",
            )
        for origin in _values(scope, b"origin"):
            parts = _origin_parts(origin)
            if parts is None or parts != _origin_parts(f"{parts[0]}://{hosts[0]}"):
                raise RequestRefused(403, f"Origin {origin[:80]!r} does not match this page's host {hosts[0]!r}")

    def _check_json(self, path: str, body: bytes) -> None:
        """Raise RequestRefused unless a JSON call refers to a page function and has the right number of values."""
        try:
            call = parse_json(body)
        except ValueError:
            raise RequestRefused(400, "the call is not JSON") from None
        if not isinstance(call, dict):
            raise RequestRefused(422, "the call is not a JSON object")
        if path != JOIN:
            return
        number, values = call.get("fn_index"), call.get("data")
        if type(number) is not int or number not in self.inputs:
            raise RequestRefused(422, f"fn_index {str(number)[:40]} does not refer to a function of the page")
        if not isinstance(values, list) or len(values) != self.inputs[number]:
            raise RequestRefused(422, f"the data for function {number} must be a list of {self.inputs[number]} values")
        if not isinstance(call.get("session_hash"), str) or not 1 <= len(call["session_hash"]) <= 64:
            raise RequestRefused(422, "session_hash must be a string of 1 to 64 characters")
        event = call.get("event_data")
        if event is not None and not isinstance(event, dict):
            raise RequestRefused(422, "event_data must be an object or null")

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Store each file in an upload form in its own folder, and respond with the file paths, as gradio does."""
        if self._uploading >= _MAX_CONCURRENT_UPLOADS:
            raise RequestRefused(503, "too many simultaneous uploads; try again later")
        self._uploading += 1
        try:
            with self.uploads.arriving() as count:
                form = await _form(scope, _counted(receive, self.uploads, count))
                try:
                    paths = [await self._store(file) for file in form.getlist("files")]
                finally:
                    await form.close()
        except UploadsFull as full:
            raise RequestRefused(507, f"{full}; try again in a minute") from None
        finally:
            self._uploading -= 1
        await _respond(send, 200, json.dumps([str(path) for path in paths]).encode(), "application/json")

    async def _store(self, file: Any) -> Path:
        if isinstance(file, str):
            raise RequestRefused(422, "the form's 'files' field contains text instead of a file")
        if (file.size or 0) > self.file_bytes:
            raise RequestRefused(413, f"File size exceeded maximum allowed size of {self.file_bytes} bytes.")
        path = self.uploads.new_path(file.filename or "")
        with path.open("xb") as stored:
            while data := await file.read(1 << 20):
                stored.write(data)
        return path

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to gradio. If gradio fails, log one line and respond with status 400.

        Gradio responds to a malformed request with status 500 or raises an exception.
        """
        started = failed = False

        async def relay(message: Message) -> None:
            nonlocal started, failed
            if message["type"] == "http.response.start":
                failed = message["status"] == 500
                started = not failed
            if not failed:
                await send(message)

        reason = "an error"
        try:
            await self.app(scope, receive, relay)
        except Exception as error:
            if started:  # part of the response was already sent, so it can only be ended
                logger.warning(f"{scope['method']} {scope['path']}: broken off ({error!r:.200})")
                await send({"type": "http.response.body", "body": b""})
                return
            failed, reason = True, repr(error)
        if failed:
            logger.warning(f"{scope['method']} {scope['path']}: malformed call ({reason[:200]})")
            raise RequestRefused(400, "the call is malformed")


async def _check_painting(scope: Scope, body: bytes) -> None:
    """Validate an uploaded painting. The layer number is bounded, because gradio allocates a list of that length."""
    form = await _form(scope, _replayed(body, None))
    await form.close()
    index = str(form.get("index") or "0")
    if index != "null" and not (index.isascii() and index.isdigit() and int(index[:9]) < _MAX_LAYERS):
        raise RequestRefused(422, f"layer index {index[:40]!r} must be an integer from 0 to {_MAX_LAYERS - 1}")
    if form.get("type") not in ("layer", "background", "composite"):
        raise RequestRefused(422, "the form field 'type' must be layer, background or composite")
    if form.get("fn_name") != "accept_blobs" or not str(form.get("component_id")).isdigit():
        raise RequestRefused(422, "the form does not describe a painted mask")


async def _form(scope: Scope, receive: Receive) -> Any:
    """Parse a multipart form with starlette, which stores the files in the form as unnamed temporary files."""
    from starlette.datastructures import Headers
    from starlette.formparsers import MultiPartException, MultiPartParser

    headers = Headers(scope=scope)
    if not headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestRefused(400, "the request body is not multipart/form-data")

    async def stream() -> Any:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestRefused(400, "the connection ended early")
            yield message.get("body", b"")
            if not message.get("more_body"):
                return

    try:
        return await MultiPartParser(headers, stream(), max_files=_MAX_FILES, max_fields=_MAX_FILES * 2).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestRefused(400, f"the form cannot be read ({str(error)[:80]})") from None


def _counted(receive: Receive, uploads: Uploads, count: list[int]) -> Receive:
    """Wrap an ASGI `receive` callable to count received bytes, because uploads in progress count toward the limit."""

    async def counted() -> Message:
        message = await _in_time(receive)
        uploads.take(count, len(message.get("body", b"")))
        return message

    return counted


async def _body(receive: Receive, max_bytes: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await _in_time(receive)
        if message["type"] == "http.disconnect":
            raise RequestRefused(400, "the connection ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise RequestRefused(413, f"more than {max_bytes} bytes")
        if not message.get("more_body"):
            return b"".join(parts)


async def _in_time(receive: Receive) -> Message:
    try:
        return await asyncio.wait_for(receive(), _SECONDS_WITHOUT_DATA)
    except TimeoutError:
        raise RequestRefused(408, f"nothing arrived for {_SECONDS_WITHOUT_DATA} seconds") from None


def _replayed(body: bytes, receive: Receive | None) -> Receive:
    """Return an ASGI `receive` callable that first returns the body that was already read, and then calls `receive`."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if not replayed:
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive() if receive is not None else {"type": "http.disconnect"}

    return replay


async def _respond(send: Send, status: int, body: bytes, kind: str) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(b"x-content-type-options", b"nosniff")]
    if status >= 400:
        headers += [(b"connection", b"close")]  # because the request body may not have been read completely
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _content_length(scope: Scope) -> int:
    lengths = _values(scope, b"content-length")
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 15:
        raise RequestRefused(411, "Content-Length is needed")
    return int(lengths[0])


def _name(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname


def _origin_parts(origin: str) -> tuple[str, str, int] | None:
    """Return the (scheme, host name, port) of an Origin header, or None if it is malformed. The port is optional."""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname or "", port) if _name(f"//{parts.netloc}{parts.path}") else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
