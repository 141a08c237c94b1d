"""Read text, JSON and YAML files, write files atomically, and keep the finished records of an unfinished job."""

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
except ImportError:  # On Windows nothing prevents two runs from writing the same file.
    fcntl = None  # type: ignore[assignment]

from osm.documents import MAX_NESTING, MAX_YAML_BYTES, parse_json, parse_yaml
from osm.errors import OsmError, write_failed
from osm.terminal import message_logger

logger = message_logger(__name__)

MAX_TEXT_BYTES = 64 << 20
"""The largest text file that is read. Lists of names and of files have a few hundred KB."""
_MARKS = (  # UTF-32 comes first because its byte order mark begins with the mark of UTF-16.
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
    """Raise an error if a path is not a regular file or a link to one, without opening it.

    Opening a FIFO would wait for its writer forever, and a device has no end. A path that does not exist or cannot be
    accessed passes this check because opening it raises an error with the reason.

    Args:
        what: the beginning of the message, such as "checkpoint" or "--masks".

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
    """Return the text of a user's file, with all line breaks as line feeds.

    The encoding is UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with a byte order mark, as editors on
    Windows write them.

    Args:
        what: the beginning of the message, such as "--vocabulary".
        most: the largest allowed size in bytes.

    Raises:
        OsmError: the file cannot be read, is too large, or has another encoding. The message names a faulty byte and
            its line.
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
    """Return the document of a JSON file, and the SHA-256 of the file's bytes in hexadecimal.

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
    """Return the document of a YAML file.

    Raises:
        OsmError: the file cannot be read, is too large, or is not YAML of plain values. The message begins with `what`.
    """
    text = read_text(path, what, MAX_YAML_BYTES)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise OsmError(f"{what} {path}: not valid YAML ({error})") from None


def write_atomically(path: Path, chunks: Iterable[str]) -> None:
    """Write a text file under a temporary name, and rename it when it is complete."""
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
    """Make new and renamed entries of a folder survive a power failure, if the system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders.
        return
    try:
        os.fsync(handle)
    except OSError:  # Some network disks do not support it.
        pass
    finally:
        os.close(handle)


def write_output(path: Path, flag: str, chunks: Iterable[str]) -> None:
    """Write the file that a flag names. Its folder is created if it is missing.

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
    """Yield a binary file that replaces `path` when it is complete. After an error, the old file is unchanged."""
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
    """Lock a file for this process until the process ends or closes the file.

    Returns:
        False if another process holds the lock. On systems without locks (some network disks) the result is True.
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
    """The finished records of a job in a file, so that a killed run can be resumed.

    The file has a header line, and then one JSON line per record. If an earlier run wrote the same header, its records
    up to the last complete line are kept. If the header differs, a message names the difference and the file is
    emptied.

    Attributes:
        done: the number of records.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.done = 0
        self._header = dict(header)
        self._file = path.open("a+b")
        if not lock(self._file):  # Two runs that write the same file would mix their lines.
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
        """Add one finished record."""
        self._write({"index": self.done, **record})
        self.done += 1

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the records in order, read from the file."""
        with self.path.open("rb") as file:
            file.readline()
            for line in file:
                yield parse_json(line)

    def close(self) -> None:
        """Close the file and release its lock."""
        with suppress(OSError):  # After a failed write, closing tries to write the rest again.
            self._file.close()


def _whole_line(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None if the line is incomplete after a kill or on a full disk."""
    try:
        record = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
