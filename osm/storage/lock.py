"""Lock a remote output folder with a small object that records the writing process and the last renewal time."""

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
"""The number of seconds after which a lock that was not renewed counts as abandoned."""
_RENEWED_EVERY = 60.0
_LAST_RENEWAL = 5.0  # The maximum number of seconds to wait for an ongoing renewal.
_MOST_BYTES = 4096
_TAKEN_TRIES = 5


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: the name of the process's machine, for messages.
        machine: an identifier of the process's system. A process id has no meaning on a different system.
        pid: the process id.
        started: the process's start time in clock ticks since boot. It is recorded because a later process may get the
            same id.
        token: a random identifier of this lock.
        time: the time of the last renewal in seconds since 1970.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str
    time: float

    @classmethod
    def here(cls) -> Owner:
        """Return an `Owner` that describes the current process and has a new random token."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _started(pid) or "", uuid.uuid4().hex, time.time())

    @classmethod
    def read(cls, data: bytes) -> Owner:
        """Parse the content of a lock. Raises ValueError if `data` does not describe the owner of a lock."""
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
        """Return whether the owner is a process on this machine that has ended."""
        if self.machine != _machine() or os.name != "posix":
            return False
        now = _started(self.pid)
        return now is None or now != self.started


def _machine() -> str:
    """Return an identifier that is shared only by processes that can see each other's process ids.

    Two containers on the same machine have different identifiers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode():x}"


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot.

    Returns:
        None if there is no such process, or an empty text if the system does not report the start time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if os.name != "posix":
        return ""  # On Windows, os.kill would terminate the process.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):
        pass
    return ""


class Lock:
    """A context manager that prevents two runs from writing to the same remote output.

    The lock is an object that is created only if it does not exist yet. If the storage service does not support
    conditional writes, the object is written and then read back. A thread renews the lock regularly. After the process
    that holds the lock has ended, another run can take over the lock. On the same machine, the lock can be taken over
    immediately, and on any other machine `STALE_SECONDS` after the last renewal. The machines' clocks must not differ
    by more than `STALE_SECONDS`.

    Args:
        url: the URL of the lock object.
        where: the locked output, for the beginning of error messages.
        renewed_every: the number of seconds between two renewals.

    Raises:
        OsmError: another process holds the lock, or there is no such bucket.
        RunStopped: the server does not respond.
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
        """Release the lock.

        If the server does not respond, the lock object remains and is considered abandoned after `STALE_SECONDS`.
        """
        self._ended.set()
        self._thread.join(_LAST_RENEWAL)
        with suppress(Exception):  # A retry would delay the original error.
            filesystem = remote.filesystem(self.url)
            if Owner.read(filesystem.cat_file(self.url)).token == self._owner.token:
                filesystem.rm_file(self.url)

    def check(self) -> None:
        """Raise RunStopped if this process has lost the lock, for example because the machine was suspended."""
        found = self._read(whole=False)
        if found is None or found.token != self._owner.token:
            taken = "was removed" if found is None else f"was taken over by process {found.pid} of {found.host}"
            raise RunStopped(f"{self.where}: this run has lost its lock: {public(self.url)} {taken}")

    def _take(self) -> None:
        for _ in range(_TAKEN_TRIES):
            found = self._read()
            if found is not None and found.token == self._owner.token:
                return  # This process created the lock, but the response was lost.
            if found is not None:
                self._check_abandoned(found)
                remote.remove(self.url)
            if self._create():
                break
        found = self._read()
        # If two processes write the lock at the same time, the last one wins.
        if found is None or found.token != self._owner.token:
            raise self._refusal(found)

    def _check_abandoned(self, found: Owner) -> None:
        """Raise OsmError unless a lock is abandoned (its owner has ended or has not renewed it for `STALE_SECONDS`)."""
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
        """Return the owner of the lock, or None if there is no lock.

        Args:
            whole: whether the size of the lock object is checked before reading, which takes one more request. This
                check is not needed for a lock that this process wrote.
        """
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
                f"{self.where}: {public(self.url)} is named like a lock but does not contain one; remove it"
            ) from None

    def _create(self) -> bool:
        """Create the lock object. Return False if another process has already created the lock object."""
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
                filesystem.pipe_file(self.url, data)  # Without conditional writes, the caller reads the lock back.
            return True

        try:
            return remote.retried(self.url, create)
        except FileNotFoundError:
            raise OsmError(f"{self.where}: there is no such bucket") from None

    def _renew(self) -> None:
        filesystem = remote.filesystem(self.url)
        while not self._ended.wait(self._renewed_every):
            # A renewal is not retried. If the server is down or the lock is lost, the next upload stops the run.
            with suppress(Exception):
                held = Owner.read(filesystem.cat_file(self.url)).token == self._owner.token
                if held and not self._ended.is_set():
                    renewed = asdict(self._owner) | {"time": time.time()}
                    filesystem.pipe_file(self.url, json.dumps(renewed).encode())
