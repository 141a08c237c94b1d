"""Output folders: either a local folder, or a folder on `s3://` or `gs://` with a local staging folder.

A remote file is first written to the staging folder and uploaded once it is complete, so remote files are never
partial. The name of the staging folder is derived from the URL, so that a killed run finds its staged files again when
it is restarted on the same machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

try:
    import fcntl
except ImportError:  # On Windows there are no locks, so two runs can write to the same folder.
    fcntl = None  # type: ignore[assignment]

from osm.errors import OsmError, write_failed
from osm.files import check_regular_file, write_atomically, write_output
from osm.storage import remote
from osm.storage.cache import default_folder
from osm.storage.locations import check_location, check_writable, is_remote, join, public
from osm.storage.lock import Lock

LOCK = ".osm.lock"
MAX_JSON_BYTES = 1 << 30  # The maximum size of a file that `read` returns. The record of a conversion is smaller.
_NO_KEY = re.compile(r"[?#*\[\]]|[\0-\x1f]")  # Some libraries give these characters a special meaning in URLs.


class Output(Protocol):
    """An output folder that files are written to.

    Attributes:
        path: a local folder, in which a file is completed before it is published with `put`.
        where: the name of the output folder in messages.
    """

    path: Path
    where: str

    def location(self, name: str) -> str:
        """Return the location of a file, for messages."""

    def sizes(self) -> dict[str, int]:
        """Map the names of all files and subfolders in the folder to their sizes in bytes.

        The size of an entry that is not a file is given as -1.
        """

    def read(self, name: str, what: str) -> bytes | None:
        """Return the content of a file, or None if it is missing. The message of an OsmError begins with `what`."""

    def put(self, *names: str) -> None:
        """Publish finished files in the given order.

        Raises:
            RunStopped: a file cannot be uploaded. In this case, none of the staged files is removed.
        """

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def lock(self, seconds: float) -> None:
        """Lock the folder until `unlock`.

        Raise OsmError if another process still holds the lock after `seconds` seconds.
        """

    def unlock(self) -> None:
        """Release the lock of the folder."""

    def forget(self, pattern: str) -> None:
        """Remove the staged files of an earlier run whose names match the pattern."""


class LocalOutput:
    """A local output folder, which is created if it does not exist."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.where, self._what = path, str(path), what
        self._lock: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OsmError(f"{what} {path}: cannot be created ({error})") from None

    def location(self, name: str) -> str:
        return str(self.path / name)

    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size if path.is_file() else -1 for path in self.path.iterdir()}

    def read(self, name: str, what: str) -> bytes | None:
        check_regular_file(self.path / name, what)
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, *names: str) -> None:
        pass  # There is nothing to upload, because the files are already in the output folder.

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def lock(self, seconds: float) -> None:
        if fcntl is None:
            return
        folder = os.open(self.path, os.O_RDONLY)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(folder)
                    raise OsmError(
                        f"{self._what} {self.path}: another process is writing shards to this folder"
                    ) from None
                time.sleep(0.05)
                continue
            except OSError:
                pass  # The file system has no locks.
            self._lock = folder
            return

    def unlock(self) -> None:
        if self._lock is not None:
            # Closing the file would not release the lock, because forked workers have a copy of the descriptor.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def forget(self, pattern: str) -> None:
        pass  # A local folder has no staged files.


class RemoteOutput:
    """An output folder on `s3://` or `gs://` whose files are staged in the local folder `path`."""

    def __init__(self, url: str, what: str) -> None:
        self.url, self.where, self._what = url, public(url), what
        self.path = staging_folder(url)
        self._locks = ExitStack()
        self._held: Lock | None = None

    def location(self, name: str) -> str:
        return public(join(self.url, name))

    def sizes(self) -> dict[str, int]:
        try:
            files = remote.list_files(self.url)
        except FileNotFoundError:
            return {}
        own = {name: found for name, found in files.items() if "/" not in name and name != LOCK}
        return {name: found.size for name, found in own.items() if found is not None}  # Object stores report all sizes.

    def read(self, name: str, what: str) -> bytes | None:
        try:
            return remote.read_whole(join(self.url, name), MAX_JSON_BYTES)
        except FileNotFoundError:
            return None

    def put(self, *names: str) -> None:
        """Upload files and then remove the staged copies. Raises RunStopped if an upload fails or the lock was lost."""
        for name in names:
            if self._held is not None:
                self._held.check()
            remote.upload(self.path / name, join(self.url, name))
        for name in names:
            (self.path / name).unlink()

    def remove(self, name: str) -> None:
        if self._held is not None:
            self._held.check()
        remote.remove(join(self.url, name))

    def lock(self, seconds: float = 0.0, name: str = LOCK) -> None:
        """Lock the folder, or a file in the folder. The staged files of an earlier run are kept."""
        self._held = self._locks.enter_context(Lock(join(self.url, name), f"{self._what} {self.where}"))

    def unlock(self) -> None:
        """Release the lock, and remove the staging folder if it is empty."""
        self._held = None
        self._locks.close()
        with suppress(OSError):
            self.path.rmdir()

    def forget(self, pattern: str) -> None:
        for path in self.path.glob(pattern):
            path.unlink()


def open_output(location: str | os.PathLike[str], what: str) -> Output:
    """Return the output folder at a location.

    Args:
        location: a local path or a URL.
        what: the beginning of error messages, such as "--output_dir".

    Raises:
        OsmError: the location is invalid or not writable.
    """
    text = check_output(location, what)
    return RemoteOutput(text, what) if is_remote(text) else LocalOutput(Path(text), what)


def check_output(location: str | os.PathLike[str], what: str) -> str:
    """Validate an output location and return the result of `check_writable`.

    Raise OsmError if the location is a URL with special characters, such as `?` or `*`.
    """
    text = check_writable(location, what)
    if is_remote(text) and (found := _NO_KEY.search(text)):
        raise OsmError(f"{what} {public(text)}: the URL of an output must not contain {found[0]!r}")
    return text


def check_here(location: str | os.PathLike[str], what: str) -> None:
    """Raise OsmError if an output location is a URL.

    A folder of many small files that are read repeatedly must be local.
    """
    if is_remote(location):
        raise OsmError(
            f"{what} {public(check_location(location, what))}: this output must be local; expected a local path "
            "(osm prepare can write its shards to s3:// and gs://)"
        )


def staging_folder(url: str) -> Path:
    """Return the local staging folder of a remote output. It is created if it does not exist.

    Raises:
        OsmError: the folder cannot be created.
    """
    path = _staging_path(url)
    with staging(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _staging_path(url: str) -> Path:
    folder = url.rstrip("/")
    hashed = hashlib.sha256(folder.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", public(folder))[-80:]
    return default_folder() / "staging" / f"{readable}-{hashed}"


def disk_of(location: str | os.PathLike[str], what: str) -> str:
    """Return a description of an output's local folder, for error messages about a full or read-only disk."""
    if not is_remote(location):
        return f"{what} {location}"
    return f"{what} {public(location)}: its staging folder {_staging_path(check_output(location, what))}"


def write_text(location: str | os.PathLike[str], flag: str, chunks: Iterable[str]) -> None:
    """Write text to the location that a user passed with `flag`. Local files are written by `write_output`.

    Raises:
        OsmError: the file cannot be written.
        RunStopped: the server does not answer.
    """
    text = check_output(location, flag)
    if not is_remote(text):
        write_output(Path(text), flag, chunks)
        return
    with remote_file(text, flag) as path, staging(path.parent):
        write_atomically(path, chunks)


@contextmanager
def remote_file(url: str, what: str) -> Iterator[Path]:
    """Yield the path of a staged file, which is uploaded if the context exits without an error.

    The remote file is locked until the context exits.
    """
    folder, _, name = check_output(url, what).rpartition("/")
    if not name or folder.endswith(":/"):
        raise OsmError(f"{what} {public(url)}: expected a file URL with a bucket and a file name")
    output = RemoteOutput(folder, what)
    with locked(output, f"{name}.lock"):
        yield output.path / name
        output.put(name)


@contextmanager
def locked(output: Output, name: str = LOCK) -> Iterator[None]:
    """Keep a remote output locked until the context exits.

    A local output is not locked here, because its callers lock it themselves.

    Args:
        name: the name of the lock object.
    """
    if not isinstance(output, RemoteOutput):
        yield
        return
    output.lock(name=name)
    try:
        yield
    finally:
        output.unlock()


@contextmanager
def staging(folder: Path) -> Iterator[None]:
    """Convert a disk error raised in the context to an error that names the staging folder."""
    try:
        yield
    except OSError as error:
        raise write_failed(error, f"staging folder {folder}", "a writable folder (set by OSM_CACHE)") from None
