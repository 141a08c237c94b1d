"""Runs the web application with uvicorn until a signal. Requests in progress may complete first."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from osm.errors import OsmError

HEADER_SECONDS = 15.0
"""How long a client may take to send the head of a request."""
_KEEP_ALIVE_SECONDS = 15
_BACKLOG = 1024


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with a time limit for the head of each request.

    Without the limit, a client that sends a head slowly, or not at all, keeps its connection for ever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        """Start the timer if the next head is not complete, and stop it if it is."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


class SignalledServer(uvicorn.Server):
    """uvicorn's server, whose signals are handled by `serve_until_signal`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    It does not listen yet, so connections are refused until the models are loaded.

    Raises:
        OsmError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise OsmError(f"--host {host} --port {port}: the server cannot listen on this address ({error})") from None


def configured_server(app: Any, drain_seconds: float) -> SignalledServer:
    """Return a uvicorn server for an ASGI application. The server is not started yet."""
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        backlog=_BACKLOG,
    )
    return SignalledServer(config)


async def serve_until_signal(
    app: Any,
    sock: socket.socket,
    drain_seconds: float,
    on_start: Callable[[], None],
    on_end: Callable[[], None],
) -> None:
    """Serve an ASGI application until SIGTERM, SIGHUP or Ctrl+C.

    After the signal, no connection is accepted any more, and requests in progress may complete. A second signal ends
    them.

    Args:
        app: the application.
        sock: a bound socket.
        drain_seconds: requests that take longer than this after the signal are ended.
        on_start: is called when the application has started.
        on_end: is called at the signal.
    """
    server = configured_server(app, drain_seconds)
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(server.serve([sock]))

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
        elif server.started:
            on_end()
            server.should_exit = True
        else:  # the models are being loaded
            serving.cancel()

    with on_signals(loop, stop):
        starting = asyncio.create_task(_started(server))
        await asyncio.wait([serving, starting], return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if server.started:
            on_start()
        try:
            await serving
        except asyncio.CancelledError:
            pass
        except OSError as error:  # another server started to listen on the port after the socket was bound
            raise OsmError(f"the server cannot listen on port {sock.getsockname()[1]} ({error})") from None


async def _started(server: uvicorn.Server) -> None:
    while not server.started:
        await asyncio.sleep(0.02)


@contextlib.contextmanager
def on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGINT, SIGTERM and SIGHUP inside the context."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = []
    for number in numbers:
        if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            continue  # as under nohup
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not on Windows or in threads
            loop.add_signal_handler(number, stop)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
