"""Reads text, JSON and YAML files, writes files atomically, and stores records so that killed runs can resume."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no fcntl, so files are not locked on Windows.
    fcntl = None  # type: ignore[assignment]

from osm.documents import MAX_NESTING, MAX_YAML_BYTES, parse_json, parse_yaml
from osm.errors import OsmError, write_failed
from osm.terminal import message_logger

logger = message_logger(__name__)

MAX_TEXT_BYTES = 64 << 20
"""The maximum size of a text file in bytes. Typical lists of names or files take up a few hundred KB."""
ABANDONED_S = 3600
"""The age in seconds at which a temporary file counts as abandoned. Writing a file takes far less time."""
_SHARED_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)
# UTF-32 is checked before UTF-16, because a UTF-32 byte order mark may begin with the UTF-16 byte order mark.
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular_file(path: str | os.PathLike[str], what: str) -> None:
    """Raise OsmError if a path leads to a folder, FIFO, device or socket. The path is not opened.

    Opening a FIFO could block forever, and reading from a device may never end. If the path does not exist or cannot be
    accessed, no error is raised here; opening the path later raises an error that gives the reason.

    Args:
        what: the beginning of the error message, such as "checkpoint" or "--masks".

    Raises:
        OsmError: the path is a folder, FIFO, device or socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return
    if not stat.S_ISREG(mode):
        found = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        raise OsmError(f"{what} {os.fspath(path)} is not a regular file, but {found}")


def read_text(path: str | os.PathLike[str], what: str, most: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a user's file, with all line breaks converted to line feeds.

    The file may be encoded in UTF-8, with or without a byte order mark. UTF-16 and UTF-32 files, which some Windows
    editors write, must begin with a byte order mark.

    Args:
        what: the beginning of the error message, such as "--vocabulary".
        most: the maximum size in bytes.

    Raises:
        OsmError: the file cannot be read, is too large, or has a different encoding. The message names the first
            invalid byte and its line.
    """
    check_regular_file(path, what)
    where = f"{what} {os.fspath(path)}"
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise OsmError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most:
        raise OsmError(f"{where}: the file exceeds the maximum size of {most} bytes")
    coding = next((coding for mark, coding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].decode(coding, "replace").count("\n")
        byte, kind = error.object[error.start], coding.removesuffix("-sig").upper()
        raise OsmError(
            f"{where}: line {line}: the byte 0x{byte:02x} is not valid {kind}; save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = 1 + text[: text.index("\0")].count("\n")
        raise OsmError(
            f"{where}: line {line} contains a NUL character (UTF-16 without a byte order mark?); save the file as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, what: str, nesting: int | None = MAX_NESTING) -> tuple[Any, str]:
    """Return the parsed content of a JSON file, and the SHA-256 of its bytes as a hexadecimal string.

    Raises:
        OsmError: the file cannot be read or is not JSON. The message begins with `what`.
    """
    check_regular_file(path, what)
    try:
        data = path.read_bytes()
        return parse_json(data, nesting), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise OsmError(f"{what} {path}: {error.strerror}") from None
    except ValueError as error:
        raise OsmError(f"{what} {path}: not valid json ({error})") from None


def read_yaml(path: Path, what: str) -> Any:
    """Return the parsed content of a YAML file.

    Raises:
        OsmError: the file cannot be read, is too large, or is not YAML with plain values only. The message begins with
            `what`.
    """
    text = read_text(path, what, MAX_YAML_BYTES)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise OsmError(f"{what} {path}: not valid YAML ({error})") from None


def write_atomically(path: Path, chunks: Iterable[str]) -> None:
    """Write a text file under a temporary name, and rename it once it is complete."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if temporary.is_file():
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk so that new and renamed files survive a power failure.

    Does nothing if syncing is unsupported.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders.
        return
    try:
        os.fsync(handle)
    except OSError:  # Some network file systems do not support syncing a folder.
        pass
    finally:
        os.close(handle)


def write_output(path: Path, flag: str, chunks: Iterable[str]) -> None:
    """Write a file to a path given by a flag. If the file's folder does not exist, the folder is created.

    Raises:
        OsmError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, chunks)
    except OSError as error:
        raise write_failed(error, f"{flag} {path}", "a file that can be written") from None


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[IO[bytes]]:
    """Yield a temporary binary file that replaces `path` when the context exits without an error.

    Args:
        shared: whether other processes may write the same file at the same time. Each process then has a hidden
            temporary file with a unique name. Later runs do not overwrite the file of a killed process, and therefore
            have to call `remove_abandoned`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp" if shared else path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder (`replacing` with `shared`).

    A process that is still running may be writing a temporary file, so files that were changed within the last hour are
    kept. A missing folder is no error.
    """
    try:
        found = [path for path in folder.iterdir() if _SHARED_TEMPORARY.fullmatch(path.name)]
    except OSError:
        return
    for path in found:
        with suppress(OSError):  # another process may have removed the file
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                path.unlink()


def lock(file: IO[Any]) -> bool:
    """Lock a file for this process until the process ends or closes the file.

    Returns:
        whether the lock was acquired: False if another process holds the lock. On systems without locks (some network
            disks), the result is True.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class PartialFile:
    """A file that stores the finished records of a long-running command, so that a killed run can be resumed.

    The file consists of a header line followed by one JSON line per record. If the file already exists with the same
    header, its records up to the last complete line are kept. If an existing file has a different header, the differing
    fields are logged and the file is emptied.

    Attributes:
        done: the number of finished records.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.done = 0
        self._header = dict(header)
        self._file = path.open("a+b")
        if not lock(self._file):  # Without a lock, two runs writing to the same file would interleave their lines.
            self._file.close()
            raise OsmError(f"{path}: another process is writing to this file; wait for it to finish, or stop it")
        self._recover()

    def _recover(self) -> None:
        self._file.seek(0)
        end = 0
        header = _whole_line(self._file.readline())
        if header is not None:
            changed = [key for key in sorted({*header, *self._header}) if header.get(key) != self._header.get(key)]
            if not changed:
                end = self._file.tell()
                for line in self._file:
                    record = _whole_line(line)
                    if record is None or record.get("index") != self.done:
                        break
                    self.done += 1
                    end += len(line)
            else:
                logger.info(f"{self.path}: written with a different {', '.join(changed)}; starting over")
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)
        if not end:
            self._write(self._header)

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise write_failed(error, str(self.path), "a file that can be written") from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one finished record to the file."""
        self._write({"index": self.done, **record})
        self.done += 1

    def records(self) -> Iterator[dict[str, Any]]:
        """Read the records from the file and yield them in order."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield parse_json(line)

    def close(self) -> None:
        """Close the file and release its lock."""
        # After a failed write, `close` retries writing the remaining bytes, and may fail again.
        with suppress(OSError):
            self._file.close()


def _whole_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object on a line, or None if a killed run or a full disk left the line incomplete."""
    try:
        record = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
