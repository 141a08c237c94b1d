"""ASGI middleware that checks the caller, the size and the rate of every request before its body is parsed.

Any website that the user visits can send requests to a server on this machine. A malicious site can also read the
responses if its host name is made to resolve to this machine (DNS rebinding). To block requests from other websites,
the middleware checks the host names in the Host and Origin headers.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from osm.terminal import message_logger, printable

logger = message_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
PUBLIC_PATHS = ("/", "/health", "/ready", "/openapi.json")
"""The paths that need no API key; neither do the files of the page."""
PAGE_FILES = "/page/"
_MAX_CLIENTS = 10_000  # how many clients the rate limit remembers
_METHODS = ("GET", "HEAD", "POST")
_READ_FIRST = (401, 403, 429, 503)  # refusals of bodies that are not too large; the client has to be able to read them
_DISCARD_SECONDS = 5.0
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class RequestRefused(Exception):
    """Raised to reject a request with an HTTP error status and a sentence that gives the reason.

    Attributes:
        status: the HTTP status.
        code: a word for programs.
        retry_after: after how many seconds the client may try again; 0 if that would not help.
    """

    def __init__(self, status: int, code: str, sentence: str, retry_after: int = 0) -> None:
        super().__init__(sentence)
        self.status, self.code, self.retry_after = status, code, retry_after


def error_document(code: str, sentence: str, parameter: str | None = None, details: Any = None) -> dict[str, Any]:
    """Return the JSON object of an error, which holds what clients of OpenAI's and X-AnyLabeling's protocol read."""
    error = {"code": code, "message": sentence, "type": code, "param": parameter, "details": details}
    return {"success": False, "error": error}


class HostNames:
    """The host names allowed in the Host header of requests.

    The port in a Host header is ignored, because a tunnel or container may change it.

    Args:
        host: the address on which the server listens.
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
        # A public server may be accessed by IP address, because a DNS rebinding attack always uses a host name.
        return not self.is_local and _is_address(name)


@dataclass(frozen=True)
class GuardLimits:
    """The limits that the guard enforces.

    Attributes:
        max_body: maximum size of a request body in bytes.
        max_bodies: maximum size of all bodies in memory, until their answers are sent.
        max_requests: maximum number of requests in progress, including those that wait for a model.
        requests_per_minute: maximum number of POST requests per minute of each client address. 0: no limit.
        seconds_without_data: a request whose body does not arrive for this long is ended.
        body_seconds: a request whose body has not arrived completely after this time is ended.
    """

    max_body: int = 32 << 20
    max_bodies: int = 512 << 20
    max_requests: int = 1024
    requests_per_minute: int = 0
    seconds_without_data: float = 15.0
    body_seconds: float = 120.0


class RateLimit:
    """A token bucket for each client. A client that was idle may send a minute's requests at once.

    Args:
        per_minute: number of requests per minute. 0: no limit.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def check(self, client: str, now: float) -> None:
        """Count a request. Raises RequestRefused if the client has sent too many."""
        if not self.per_minute:
            return
        tokens, before = self._buckets.pop(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - before) * self.per_minute / 60)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        while len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = math.ceil((1 - tokens) * 60 / self.per_minute)
            sentence = f"more than {self.per_minute} requests per minute; try again in {wait} seconds"
            raise RequestRefused(429, "rate_limit_exceeded", sentence, wait)


class Guard:
    """ASGI middleware that checks each request, reads its body, and passes it on.

    Args:
        app: the application.
        names: allowed host names.
        limits: sizes and times.
        api_key: the key that requests must present. Empty: no key is needed.
        origins: further origins whose pages may call the server, such as `https://tool.example.org`.
        on_refusal: is called with the code of each refusal.
        on_response: is called with the route's path, the status and the seconds of each request.
    """

    def __init__(
        self,
        app: App,
        names: HostNames,
        limits: GuardLimits | None = None,
        api_key: str = "",
        origins: Collection[str] = (),
        on_refusal: Callable[[str], None] = lambda code: None,
        on_response: Callable[[Scope, int, float], None] = lambda scope, status, seconds: None,
    ) -> None:
        self.app, self.names, self.limits = app, names, limits or GuardLimits()
        self._key = api_key.encode()
        self._origins = {_origin_parts(origin) for origin in origins}
        self._rate = RateLimit(self.limits.requests_per_minute)
        self._on_refusal, self._on_response = on_refusal, on_response
        self._body_bytes = self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no websocket
            await send({"type": "websocket.close", "code": 1008})
            return
        started, status, answered = time.monotonic(), 500, False
        more = _HEADERS + self._origin_headers(scope)

        async def with_headers(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                own = {name for name, _ in message.get("headers", [])}
                new = [header for header in more if header[0] not in own]
                message = {**message, "headers": [*message.get("headers", []), *new]}
            await send(message)

        self._requests += 1
        try:
            await self._answer(scope, receive, with_headers)
        except RequestRefused as refusal:
            self._on_refusal(refusal.code)
            if scope["method"] == "POST" and refusal.status in _READ_FIRST:
                await self._discard(receive)
            await respond(with_headers, refusal)
        except Exception as error:  # a fault of the application, which it has answered and logged in most cases
            if not answered:
                logger.error(f"{scope['method'][:10]} {scope['path'][:120]!r}: {type(error).__name__}: {error!s:.300}")
                await respond(with_headers, RequestRefused(500, "internal_error", "the server failed on this request"))
        finally:
            self._requests -= 1
            self._on_response(scope, status, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed = self._check_caller(scope)
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" and allowed:
            await _preflight(send)
            return
        if method not in _METHODS:
            raise RequestRefused(405, "method_not_allowed", f"method {method[:20]} is not allowed")
        if method == "POST" or not (path in PUBLIC_PATHS or path.startswith(PAGE_FILES)):
            self._check_key(scope)
        if method != "POST":
            await self.app(scope, _empty(receive), send)
            return
        if self._requests > self.limits.max_requests:
            raise RequestRefused(503, "overloaded", "too many requests are in progress; try again later", 1)
        client = (scope.get("client") or ("",))[0]
        self._rate.check(client, time.monotonic())
        most = self.limits.max_body
        length = _content_length(scope)
        if length is not None and length > most:
            raise too_large(length, most)
        count = [0]
        try:
            body = await self._body(receive, most, count)
            await self.app(scope, _replayed(body, receive), send)
        finally:
            self._body_bytes -= count[0]

    def _origin_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return the headers that allow pages of an allowed origin to read the response."""
        origins = _values(scope, b"origin")
        if len(origins) != 1 or _origin_parts(origins[0]) not in self._origins:
            return []
        allowed = (b"access-control-allow-origin", origins[0].encode("latin-1"))
        return [allowed, (b"access-control-expose-headers", b"retry-after, content-disposition"), (b"vary", b"origin")]

    async def _discard(self, receive: Receive) -> None:
        """Read the rest of a refused body without keeping it, because a client that is still sending reads nothing."""
        left, deadline = self.limits.max_body, time.monotonic() + _DISCARD_SECONDS
        while left > 0:
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    def _check_caller(self, scope: Scope) -> bool:
        """Check the Host and Origin headers. Return whether the origin is another one that a flag allows."""
        hosts = _values(scope, b"host")
        host = _name(f"//{hosts[0]}") if len(hosts) == 1 else None
        if host is None or host not in self.names:
            sentence = f"Host {', '.join(hosts)[:80]!r} is not an allowed host name; use --allow_host NAME to allow it"
            raise RequestRefused(403, "host_not_allowed", sentence)
        foreign = False
        for origin in _values(scope, b"origin"):
            parts = _origin_parts(origin)
            if parts is not None and parts in self._origins:
                foreign = True
            elif parts is None or parts != _origin_parts(f"{parts[0]}://{hosts[0]}"):
                sentence = f"Origin {origin[:80]!r} does not match this server's host {hosts[0]!r}"
                raise RequestRefused(403, "origin_not_allowed", sentence)
        return foreign

    def _check_key(self, scope: Scope) -> None:
        if not self._key:
            return
        # All given keys are compared, so that the time does not depend on which of them is right.
        matches = [hmac.compare_digest(key, self._key) for key in _keys(scope)]
        if not any(matches):
            sentence = "an API key is needed: send it as 'Authorization: Bearer KEY', 'X-API-Key: KEY' or 'Token: KEY'"
            raise RequestRefused(401, "invalid_api_key", sentence)

    async def _body(self, receive: Receive, most: int, count: list[int]) -> bytes:
        limits = self.limits
        deadline = time.monotonic() + limits.body_seconds
        parts: list[bytes] = []
        while True:
            wait = min(limits.seconds_without_data, deadline - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(wait, 0.001))
            except TimeoutError:
                raise RequestRefused(408, "timeout", "the request body did not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise RequestRefused(400, "disconnected", "the connection ended early")
            part = message.get("body", b"")
            if count[0] + len(part) > most:
                raise too_large(count[0] + len(part), most)
            if self._body_bytes + len(part) > limits.max_bodies:
                raise RequestRefused(503, "overloaded", "too many uploads are in progress; try again later", 1)
            count[0] += len(part)
            self._body_bytes += len(part)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)


def too_large(size: int, most: int) -> RequestRefused:
    """Return the refusal of a request body of `size` bytes or more."""
    sentence = f"the request body has {size} bytes or more, but the maximum is {most} bytes (--max_body_mb)"
    return RequestRefused(413, "request_too_large", sentence)


async def respond(send: Send, refusal: RequestRefused) -> None:
    """Send the response for a refusal."""
    body = json.dumps(error_document(refusal.code, str(refusal))).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))  # because the request body may not have been read completely
    if refusal.retry_after:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log one line for a request: the client, the method, the path without its query, the status and the time."""
    client = (scope.get("client") or ("-",))[0]
    path = printable(scope["path"][:120])
    logger.info(f"{client} {scope['method'][:10]} {path} {status} {seconds * 1000:.0f} ms")


async def _preflight(send: Send) -> None:
    """Answer the request that a browser sends before a request from another allowed origin."""
    headers = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type, token, x-api-key"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _empty(receive: Receive) -> Receive:
    """Return an ASGI `receive` callable for a request whose body is ignored."""
    return _replayed(b"", receive)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return an ASGI `receive` callable that first returns the body that was already read, and then calls `receive`."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if not replayed:
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _keys(scope: Scope) -> list[bytes]:
    """Return the keys that a request presents in any of the supported headers."""
    found = [value.encode() for name in (b"x-api-key", b"token") for value in _values(scope, name)]
    for value in _values(scope, b"authorization"):
        kind, _, rest = value.partition(" ")
        if kind.lower() in ("bearer", "token"):
            found.append(rest.strip().encode())
        elif kind.lower() == "basic":  # Label Studio sends a user and a password
            try:
                found.append(base64.b64decode(rest, validate=True).partition(b":")[2])
            except (ValueError, binascii.Error):
                continue
    return found


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _content_length(scope: Scope) -> int | None:
    lengths = _values(scope, b"content-length")
    if not lengths:  # a chunked body is counted while it arrives
        return None
    if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()) or len(lengths[0]) > 15:
        raise RequestRefused(400, "bad_request", "Content-Length is not a number")
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


def is_origin(text: str) -> bool:
    """Return whether a text is an origin, such as `https://tool.example.org`."""
    return _origin_parts(text) is not None


def is_host_name(text: str) -> bool:
    """Return whether a text is a host name or an address, without a port."""
    return bool(text) and _name(f"//{text}") == text.lower().strip("[]") and ":" not in text.rsplit("]", 1)[-1]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
