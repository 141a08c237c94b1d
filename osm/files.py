"""Files that survive a kill: json read with errors that name it, texts written whole or not at all, and the unfinished
list of records that a run goes on from."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two runs that write one file are then not kept apart
    fcntl = None  # type: ignore[assignment]

from osm.documents import MAX_NESTING, MAX_YAML_BYTES, parse_json, parse_yaml
from osm.errors import OsmError, write_failed
from osm.terminal import message_logger

logger = message_logger(__name__)

MAX_TEXT_BYTES = 64 << 20
"""Of a text file that a person wrote; lists of names and files have a few hundred KB."""
_MARKS = (  # UTF-32's begins as UTF-16's does
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
    """Refuses a path that is something other than a regular file (or a link to one), without opening it.

    Opening a FIFO waits for its writer for ever, and a device has no end. A path that cannot be looked up, a missing
    one for instance, passes: opening it gives the reason.

    Args:
        what: begins the message, such as "checkpoint" or "--masks".

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
    """A text file of somebody's, with lines that end in a line feed: UTF-8 with or without a byte order mark, or UTF-16
    or UTF-32 with one, as Windows' editors write them.

    Args:
        what: begins the message, such as "--vocabulary". most: bytes that it may have.

    Raises:
        OsmError: the file cannot be read, is larger, or is in none of these; a faulty byte is named with its line.
    """
    check_regular_file(path, what)
    where = f"{what} {os.fspath(path)}"
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise OsmError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most:
        raise OsmError(f"{where}: over {most} bytes")
    coding = next((coding for mark, coding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].decode(coding, "replace").count("\n")
        byte, kind = error.object[error.start], coding.removesuffix("-sig").upper()
        raise OsmError(f"{where}: line {line}: the byte 0x{byte:02x} is not {kind}: save it as UTF-8") from None
    if "\0" in text:
        line = 1 + text[: text.index("\0")].count("\n")
        raise OsmError(f"{where}: line {line}: a NUL, which no text has (UTF-16 without its mark?): save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, what: str, nesting: int | None = MAX_NESTING) -> tuple[Any, str]:
    """A json file's document and the SHA-256 of its bytes.

    Raises:
        OsmError: the file cannot be read or is no json; `what` says what it should have been.
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
    """The document of a YAML file.

    Raises:
        OsmError: the file cannot be read, is too large or is no YAML of plain values; `what` begins the message.
    """
    text = read_text(path, what, MAX_YAML_BYTES)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise OsmError(f"{what} {path}: not valid YAML ({error})") from None


def write_atomically(path: Path, chunks: Iterable[str]) -> None:
    """Writes a text file so that its name never stands for half of it."""
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
    """Makes new and renamed entries of a folder survive a power failure, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network disks
        pass
    finally:
        os.close(handle)


def write_output(path: Path, flag: str, chunks: Iterable[str]) -> None:
    """Writes what a flag asks for, into a folder that is made where it is missing.

    Raises:
        OsmError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, chunks)
    except OSError as error:
        raise write_failed(error, f"{flag} {path}", "a file that can be written") from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name once it is whole: after an error, what stood there still does."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def lock(file: IO[Any]) -> bool:
    """Takes a file for this process, until it ends or closes it; False where another one has it.

    Where the system has no locks (some network disks), the file counts as taken.
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
    """The finished records of a job, one json line each after a header line: what a killed run leaves behind.

    Opening it keeps what a run with the same header left, up to its last whole line; with another header it says so
    and starts again.

    Attributes:
        done: how many records there are.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.done = 0
        self._header = dict(header)
        self._file = path.open("a+b")
        if not lock(self._file):  # two runs that write the same file would tear each other's lines
            self._file.close()
            raise OsmError(f"{path}: another running process writes it; wait for it or end it")
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
                logger.info(f"{self.path}: made with another {', '.join(changed)}; starting again")
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
        """Adds one finished record."""
        self._write({"index": self.done, **record})
        self.done += 1

    def records(self) -> Iterator[dict[str, Any]]:
        """The records in order, read from the file."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield parse_json(line)

    def close(self) -> None:
        """Closes the file and lets other runs have it."""
        with suppress(OSError):  # after a write that failed, what is left of it fails once more
            self._file.close()


def _whole_line(line: bytes) -> dict[str, Any] | None:
    """The line's object, or None where a kill or a full disk cut it off."""
    try:
        record = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
