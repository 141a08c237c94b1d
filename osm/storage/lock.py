"""A lock of a remote output: a small object beside it that says who writes there, and when it was last seen to."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from osm.documents import parse_json
from osm.errors import OsmError, RunStopped
from osm.storage import remote
from osm.storage.locations import public

STALE_SECONDS = 600.0
"""A lock that has not been renewed for so long is nobody's."""
_RENEWED_EVERY = 60.0
_LAST_RENEWAL = 5.0  # seconds that one on its way may take
_MOST_BYTES = 4096
_TAKEN_TRIES = 5


@dataclass(frozen=True)
class Owner:
    """Who has a lock.

    Attributes:
        host: for people. machine: of the system that has the process: a process id means nothing in another.
        started: of the process, as the system counts: another process may have its id by now.
        token: of this lock alone. time: when it was renewed, in seconds since 1970.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str
    time: float

    @classmethod
    def here(cls) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _started(pid) or "", uuid.uuid4().hex, time.time())

    @classmethod
    def read(cls, data: bytes) -> Owner:
        """Raises ValueError where the bytes are no lock."""
        try:
            value = parse_json(data)
            texts = [value[name] for name in ("host", "machine", "started", "token")]
            if not all(isinstance(text, str) for text in texts) or type(value["pid"]) is not int:
                raise ValueError("not the fields of a lock")
            host, machine, started, token = texts
            return cls(host, machine, value["pid"], started, token, float(value["time"]))
        except (KeyError, TypeError) as error:
            raise ValueError(repr(error)) from None

    def is_gone(self) -> bool:
        """Whether it is a process of this machine that has ended."""
        if self.machine != _machine() or os.name != "posix":
            return False
        now = _started(self.pid)
        return now is None or now != self.started


def _machine() -> str:
    """What is the same for processes that see each other's ids, and for no others: also two containers differ."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


def _started(pid: int) -> str | None:
    """When a process was started, in the system's own count (empty where it does not say); None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if os.name != "posix":
        return ""  # os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):
        pass
    return ""


class Lock:
    """Keeps two runs from writing one remote output; use it in a `with` block.

    The lock is an object that is only made where there is none, on services that know that (others: it is written and
    read again). A thread renews it. The lock of a process that has ended is taken over: at once on its own machine,
    elsewhere after `STALE_SECONDS`; the clocks of the machines have to agree as well as that.

    Args:
        url: of the lock itself.
        where: what it keeps; begins the messages.

    Raises:
        OsmError: another process has it, or there is no such bucket. RunStopped: the server does not answer.
    """

    def __init__(self, url: str, where: str, renewed_every: float = _RENEWED_EVERY) -> None:
        self.url, self.where = url, where
        self._owner = Owner.here()
        self._renewed_every = renewed_every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives it back. Where the server is gone, it stays, and is nobody's once this process has ended."""
        self._ended.set()
        self._thread.join(_LAST_RENEWAL)
        with suppress(Exception):  # one try: an error that is on its way out must not wait for another
            filesystem = remote.filesystem(self.url)
            if Owner.read(filesystem.cat_file(self.url)).token == self._owner.token:
                filesystem.rm_file(self.url)

    def check(self) -> None:
        """Raises RunStopped where the lock is no longer this process's, as after a pause of the whole machine."""
        found = self._read(whole=False)
        if found is None or found.token != self._owner.token:
            taken = "was removed" if found is None else f"was taken over by process {found.pid} of {found.host}"
            raise RunStopped(f"{self.where}: the lock {public(self.url)} {taken} while this run was writing there")

    def _take(self) -> None:
        for _ in range(_TAKEN_TRIES):
            found = self._read()
            if found is not None and found.token == self._owner.token:
                return  # made by a request whose answer was lost
            if found is not None:
                self._check_abandoned(found)
                remote.remove(self.url)
            if self._create():
                break
        found = self._read()
        if found is None or found.token != self._owner.token:  # two took it at once: the last one has it
            raise self._refusal(found)

    def _check_abandoned(self, found: Owner) -> None:
        """Raises OsmError where the owner of a lock lives, as far as one can tell from here."""
        if not found.is_gone() and time.time() - found.time < STALE_SECONDS:
            raise self._refusal(found)

    def _refusal(self, found: Owner | None) -> OsmError:
        if found is None:
            return OsmError(f"{self.where}: another process is writing there")
        seconds = max(0, round(time.time() - found.time))
        return OsmError(
            f"{self.where}: another process is writing there: {found.pid} on {found.host}, last seen {seconds} s ago; "
            f"wait for it or end it (if it has ended: wait {STALE_SECONDS / 60:g} minutes, or remove "
            f"{public(self.url)})"
        )

    def _read(self, whole: bool = True) -> Owner | None:
        """Who has the lock. `whole`: its size is asked for first; once it was our own, that would be a request more."""
        try:
            if whole:
                return Owner.read(remote.read_whole(self.url, _MOST_BYTES))
            return Owner.read(remote.retried(self.url, lambda: remote.filesystem(self.url).cat_file(self.url)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            if isinstance(error, OsmError):
                raise
            raise OsmError(
                f"{self.where}: {public(self.url)} is in the way: it has the name of a lock and is none; remove it"
            ) from None

    def _create(self) -> bool:
        """Creates the lock object. Returns False if another process has created one meanwhile."""
        data = json.dumps(asdict(self._owner)).encode()

        def create() -> bool:
            filesystem = remote.filesystem(self.url)
            try:
                filesystem.pipe_file(self.url, data, mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):
                filesystem.pipe_file(self.url, data)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                filesystem.pipe_file(self.url, data)  # a service without conditions; what is there is read again
            return True

        try:
            return remote.retried(self.url, create)
        except FileNotFoundError:
            raise OsmError(f"{self.where}: there is no such bucket") from None

    def _renew(self) -> None:
        filesystem = remote.filesystem(self.url)
        while not self._ended.wait(self._renewed_every):
            # One try: a server that is gone, and a lock that is lost, end the run at its next upload.
            with suppress(Exception):
                held = Owner.read(filesystem.cat_file(self.url)).token == self._owner.token
                if held and not self._ended.is_set():
                    renewed = asdict(self._owner) | {"time": time.time()}
                    filesystem.pipe_file(self.url, json.dumps(renewed).encode())
