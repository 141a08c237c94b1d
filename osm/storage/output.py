"""Where a program writes: a folder of this machine, or one on `s3://` or `gs://` that is staged here.

A remote file is made in a staging folder of this machine and uploaded when it is whole, so that none is ever half
there. The staging folder's name follows from the URL: a killed run, started again on this machine, finds it.
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
except ImportError:  # Windows: two runs that write into one folder are then not kept apart
    fcntl = None  # type: ignore[assignment]

from osm.errors import OsmError, write_failed
from osm.files import check_regular_file, write_atomically, write_output
from osm.storage import remote
from osm.storage.cache import default_folder
from osm.storage.locations import check_location, check_writable, is_remote, join, public
from osm.storage.lock import Lock

LOCK = ".osm.lock"
MAX_JSON_BYTES = 1 << 30  # of what is read back: the record of a conversion has a few hundred bytes a shard
_NO_KEY = re.compile(r"[?#*\[\]]|[\0-\x1f]")  # of a URL: what a library takes for a version, a pattern or an end


class Output(Protocol):
    """A folder that files are written into.

    Attributes:
        path: a folder of this machine: a file is made there, whole, and then `put`.
        where: the folder as messages call it.
    """

    path: Path
    where: str

    def location(self, name: str) -> str:
        """A file's place as messages call it."""

    def sizes(self) -> dict[str, int]:
        """What is there, without what is in subfolders, and its bytes; -1 of what is no file."""

    def read(self, name: str, what: str) -> bytes | None:
        """A file's content; None where it is not there. Raises OsmError, which begins with `what`."""

    def put(self, *names: str) -> None:
        """What is to be done with files that are whole, in this order.

        Raises:
            RunStopped: one cannot be uploaded; all of them are still staged.
        """

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    def lock(self, seconds: float) -> None:
        """Keeps other processes out, until `unlock`. Raises OsmError where one is writing there after so long."""

    def unlock(self) -> None:
        """Lets others in."""

    def forget(self, pattern: str) -> None:
        """Removes what an earlier run has staged and not uploaded, by its name."""


class LocalOutput:
    """A folder of this machine, which is made where it is missing."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.where, self._what = path, str(path), what
        self._lock: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OsmError(f"{what} {path}: cannot be made ({error})") from None

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
        pass  # they are where they belong

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
                    raise OsmError(f"{self._what} {self.path}: another process is writing shards there") from None
                time.sleep(0.05)
                continue
            except OSError:
                pass  # a file system without locks
            self._lock = folder
            return

    def unlock(self) -> None:
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # not by closing alone: forked workers hold a copy of the descriptor
            os.close(self._lock)
            self._lock = None

    def forget(self, pattern: str) -> None:
        pass  # nothing is staged


class RemoteOutput:
    """A folder on `s3://` or `gs://`, staged at `path`."""

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
        return {name: found.size for name, found in own.items() if found is not None}  # stores tell all sizes

    def read(self, name: str, what: str) -> bytes | None:
        try:
            return remote.read_whole(join(self.url, name), MAX_JSON_BYTES)
        except FileNotFoundError:
            return None

    def put(self, *names: str) -> None:
        """Uploads files, then removes the staged ones. Raises RunStopped also where the lock is another's by now."""
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
        """Takes the lock of the folder, or of a file in it. Files that an earlier run has staged stay."""
        self._held = self._locks.enter_context(Lock(join(self.url, name), f"{self._what} {self.where}"))

    def unlock(self) -> None:
        """Gives the lock back; the staging folder goes where nothing is left in it."""
        self._held = None
        self._locks.close()
        with suppress(OSError):
            self.path.rmdir()

    def forget(self, pattern: str) -> None:
        for path in self.path.glob(pattern):
            path.unlink()


def open_output(location: str | os.PathLike[str], what: str) -> Output:
    """A folder to write into.

    Args:
        what: begins the messages, such as "--output_dir".

    Raises:
        OsmError: nothing can be written there.
    """
    text = check_output(location, what)
    return RemoteOutput(text, what) if is_remote(text) else LocalOutput(Path(text), what)


def check_output(location: str | os.PathLike[str], what: str) -> str:
    """As `check_writable`; a URL is also refused with a letter in it that would make another name of it."""
    text = check_writable(location, what)
    if is_remote(text) and (found := _NO_KEY.search(text)):
        raise OsmError(f"{what} {public(text)}: {found[0]!r} in the URL of an output; expected a name without it")
    return text


def check_here(location: str | os.PathLike[str], what: str) -> None:
    """Raises OsmError for a URL, where a program writes many small files that it reads again."""
    if is_remote(location):
        raise OsmError(
            f"{what} {public(check_location(location, what))}: it is written on this machine; expected a local path "
            "(osm prepare writes its shards to s3:// and gs://)"
        )


def staging_folder(url: str) -> Path:
    """The folder of this machine where a remote output is made, by its URL; made where it is missing.

    Raises:
        OsmError: it cannot be made.
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
    """How a message calls the folder of this machine that is full or cannot be written."""
    if not is_remote(location):
        return f"{what} {location}"
    return f"{what} {public(location)}: its staging folder {_staging_path(check_output(location, what))}"


def write_text(location: str | os.PathLike[str], flag: str, chunks: Iterable[str]) -> None:
    """Writes what a flag asks for to a local file, as `osm.files.write_output` does, or to a remote one.

    Raises:
        OsmError: the file cannot be written. RunStopped: the server does not answer.
    """
    text = check_output(location, flag)
    if not is_remote(text):
        write_output(Path(text), flag, chunks)
        return
    with remote_file(text, flag) as path, staging(path.parent):
        write_atomically(path, chunks)


@contextmanager
def remote_file(url: str, what: str) -> Iterator[Path]:
    """A staged file, which is uploaded once the block has ended well; meanwhile other processes are kept out."""
    folder, _, name = check_output(url, what).rpartition("/")
    if not name or folder.endswith(":/"):
        raise OsmError(f"{what} {public(url)}: expected the URL of a file: bucket, and a name in it")
    output = RemoteOutput(folder, what)
    with locked(output, f"{name}.lock"):
        yield output.path / name
        output.put(name)


@contextmanager
def locked(output: Output, name: str = LOCK) -> Iterator[None]:
    """Keeps other processes out of a remote output; `name` is that of the lock. Local ones have locks of their own."""
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
    """An error of the disk in the block becomes one that names the staging folder."""
    try:
        yield
    except OSError as error:
        raise write_failed(error, f"staging folder {folder}", "a folder that can be written (OSM_CACHE)") from None
