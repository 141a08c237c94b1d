"""Bytes of remote files: ranges, whole files, listings and uploads, with retries that end in a sentence.

Credentials come from the libraries' own places (AWS_* variables and files, gcloud, HF_TOKEN, ~/.netrc). They are never
taken from a URL or a flag, so none can reach a log.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from osm.errors import OsmError, RunStopped
from osm.storage.locations import public

T = TypeVar("T")
BLOCK = 16 << 20
"""Bytes of one request of a download."""
MAX_FILES = 2_000_000  # of a listing
_ETAGS = ("ETag", "etag", "md5Hash", "sha256", "blob_id", "generation", "Last-Modified", "LastModified", "mtime")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_MISSING = (FileNotFoundError, IsADirectoryError)


def _seconds(name: str, default: str) -> list[float]:
    try:
        return [float(part) for part in os.environ.get(name, default).split(",") if part.strip()]
    except ValueError:
        raise OsmError(f"{name}={os.environ[name]!r}: expected seconds, separated by commas ({default})") from None


def retry_delays() -> list[float]:
    """Seconds before each further try: OSM_RETRY_SECONDS, or 0.5, 1, 2, 4 and 8."""
    return _seconds("OSM_RETRY_SECONDS", "0.5,1,2,4,8")


def read_timeout() -> float:
    """Seconds without a byte after which a try has failed: OSM_READ_TIMEOUT, or 60."""
    return (_seconds("OSM_READ_TIMEOUT", "60") or [60.0])[0]


@dataclass(frozen=True)
class Stat:
    """A file's bytes, and what names its content (an ETag, a hash or a date; empty where the server has none)."""

    size: int
    version: str = ""

    def agrees(self, other: Stat) -> bool:
        """Whether both can be the same content: what one of them does not know cannot differ."""
        versions = self.version and other.version
        return self.size == other.size and (not versions or self.version == other.version)


class NoRanges(Exception):
    """The server sends whole files only."""


class _WrongLength(Exception):
    """Other bytes came than were announced."""


def filesystem(url: str) -> Any:
    """The fsspec filesystem of a URL, for this process and its thread pool.

    Raises:
        OsmError: the package that reads this protocol is not installed.
    """
    import fsspec

    protocol = url.partition(":")[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=read_timeout())
        # Ranges count the bytes of the file itself, not those of a compressed form.
        options["client_kwargs"] = {
            "timeout": limits,
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,
        }
    elif protocol == "s3":
        # The retries are ours, so that each of them is counted and the last one ends the run.
        settings = {"read_timeout": read_timeout(), "connect_timeout": 30, "retries": {"max_attempts": 0}}
        options["config_kwargs"] = settings
    try:
        fs = fsspec.filesystem(protocol, **options)
        if protocol == "s3":
            fs.retries = 1
        return fs
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gs"}.get(protocol, "")
        hint = f"pip install 'osm-recognition[{extra}]'" if extra else str(error)
        raise OsmError(f"{public(url)}: what reads {protocol}:// is not installed: {hint}") from None


def retried(url: str, action: Callable[[], T], missing: bool = True) -> T:
    """What `action` returns, tried again after each of `retry_delays()`.

    Args:
        missing: a file that is not there is an error at once. Otherwise it is tried again.

    Raises:
        FileNotFoundError: there is no such file. NoRanges: see there.
        OsmError: access was refused. RunStopped: the last try failed too.
    """
    delays = retry_delays()
    for attempt in range(len(delays) + 1):
        try:
            return action()
        except _MISSING:
            if missing:
                raise
            failure: BaseException = FileNotFoundError("there is no such file")
        except (NoRanges, OsmError, MemoryError):
            raise
        except PermissionError as error:
            raise OsmError(f"{public(url)}: access is refused ({_reason(error)})") from None
        except Exception as error:  # each protocol has errors of its own library
            status = getattr(error, "status", None)
            if status in (401, 403):
                raise OsmError(f"{public(url)}: access is refused (HTTP {status})") from None
            if status in (404, 410):
                raise FileNotFoundError(public(url)) from None
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"):
                raise OsmError(
                    f"{public(url)}: no credentials were found (AWS_* variables, gcloud, HF_TOKEN)"
                ) from None
            failure = error
        if attempt < len(delays):
            time.sleep(delays[attempt])
    raise RunStopped(
        f"{public(url)}: {_reason(failure)}, {len(delays) + 1} times; when the server answers again, the same command "
        "goes on"
    )


def _reason(error: BaseException) -> str:
    """An error in a few words, without the addresses that it may quote: they can hold a signature."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no byte came for {read_timeout():g} s"
    if isinstance(error, _WrongLength):
        return str(error)
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return f"HTTP {status}"
    name = type(error).__name__
    known = {
        "ClientPayloadError": "the connection broke off",
        "ServerDisconnectedError": "the connection broke off",
        "IncompleteReadError": "the connection broke off",
        "ResponseStreamingError": "the connection broke off",
        "FSTimeoutError": f"no byte came for {read_timeout():g} s",
        "ReadTimeoutError": f"no byte came for {read_timeout():g} s",
        "FileNotFoundError": "there is no such file",
    }
    if name in known:
        return known[name]
    if isinstance(error, OSError) and error.strerror:
        return f"{name} ({error.strerror})"
    return name


def stat(url: str) -> Stat:
    """Size and version of a remote file.

    Raises:
        FileNotFoundError: there is none. RunStopped: the server does not answer, or does not say how long it is.
    """

    def ask() -> Stat:
        fs = filesystem(url)
        if url.startswith("http"):
            from fsspec.asyn import sync

            return sync(fs.loop, _http_stat, fs, url)
        found = fs.info(url)
        if found.get("type") == "directory":
            raise FileNotFoundError(f"{public(url)} is a folder")
        return _stat_of(found)

    return retried(url, ask)


async def _http_stat(fs: Any, url: str) -> Stat:
    """Size and version by HTTP. Not fsspec's own, for which a server that fails is a file that is not there."""
    session = await fs.set_session()
    async with session.head(fs.encode_url(url), allow_redirects=True) as answer:
        if answer.status not in (403, 405, 501):  # where HEAD is not allowed, and for URLs that are signed for GET
            answer.raise_for_status()
            return _http_answer(answer.headers.get("Content-Length", ""), answer.headers)
    async with session.get(fs.encode_url(url), headers={"Range": "bytes=0-0"}) as answer:
        if answer.status == 416:  # an empty file has no first byte
            return _http_answer(answer.headers.get("Content-Range", "").rpartition("/")[2], answer.headers)
        answer.raise_for_status()
        ranged = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return _http_answer(ranged or answer.headers.get("Content-Length", ""), answer.headers)


def _http_answer(length: str, headers: Any) -> Stat:
    found: dict[str, Any] = {"size": int(length)} if length.isdigit() else {}
    return _stat_of(found | {key: headers[key] for key in ("ETag", "Last-Modified") if key in headers})


def _stat_of(found: dict[str, Any]) -> Stat:
    size = found.get("size")
    if not isinstance(size, int):
        raise _WrongLength("the server does not say how long the file is")
    version = next((str(found[key]) for key in _ETAGS if found.get(key)), "")
    return Stat(size, version.removeprefix("W/").strip('"'))


def exists(url: str) -> bool:
    """Whether there is such a file."""
    try:
        stat(url)
    except FileNotFoundError:
        return False
    return True


def read_range(url: str, start: int, end: int, expected: Stat | None = None) -> bytes:
    """The bytes from `start` to before `end`.

    Args:
        expected: size and version that the file had; by HTTP the answer itself is compared with them.

    Raises:
        FileNotFoundError, NoRanges: the server sends whole files only.
        RunStopped: it does not answer, sends other lengths, or the file has changed.
    """

    def get() -> bytes:
        fs = filesystem(url)
        if url.startswith("http"):
            from fsspec.asyn import sync

            return sync(fs.loop, _http_range, fs, url, start, end, expected)
        data = fs.cat_file(url, start=start, end=end)
        if len(data) != end - start:
            raise _WrongLength(f"{end - start} bytes were asked for, {len(data)} came")
        return data

    return b"" if end <= start else retried(url, get)


async def _http_range(fs: Any, url: str, start: int, end: int, expected: Stat | None) -> bytes:
    """One range by HTTP. Not fsspec's own, which reads whatever comes into memory, however long it is."""
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
        if answer.status == 404:
            raise FileNotFoundError(public(url))
        if answer.status == 416:
            raise _WrongLength(f"the file ends before byte {end}")
        answer.raise_for_status()
        if answer.status != 206:
            raise NoRanges(public(url))
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if expected is not None:
            now = Stat(int(total) if total.isdigit() else expected.size, _answer_version(answer.headers, expected))
            check_unchanged(url, expected, now)
        data = bytearray()
        async for block in answer.content.iter_any():
            data += block
            if len(data) > end - start:
                raise _WrongLength(f"{end - start} bytes were asked for, more came")
        if len(data) != end - start:
            raise _WrongLength(f"{end - start} bytes were asked for, {len(data)} came")
        return bytes(data)


def _answer_version(headers: Any, expected: Stat) -> str:
    """The version that an answer names, if it is of the kind that is expected (some answers lack the ETag)."""
    given = [str(headers[key]).removeprefix("W/").strip('"') for key in ("ETag", "Last-Modified") if key in headers]
    return given[0] if given and expected.version not in given else expected.version


def check_unchanged(url: str, expected: Stat, now: Stat) -> None:
    """Raises RunStopped where a file is not the one that it was when the run began."""
    if expected.agrees(now):
        return
    sizes = f"{expected.size} bytes, now {now.size}" if expected.size != now.size else "another ETag or date"
    raise RunStopped(
        f"{public(url)}: the file was changed while it was in use ({sizes}); put it back, or start a new run"
    )


def read_whole(url: str, most: int) -> bytes:
    """A whole file in memory. Raises OsmError where it has over `most` bytes."""
    found = stat(url)
    if found.size > most:
        raise OsmError(f"{public(url)}: {found.size} bytes, over the {most} that such a file may have")
    try:
        return read_range(url, 0, found.size, found)
    except NoRanges:

        def get() -> bytes:
            data = filesystem(url).cat_file(url)
            if len(data) != found.size:
                raise _WrongLength(f"{found.size} bytes were announced, {len(data)} came")
            return data

        return retried(url, get)


def download(url: str, path: Path, expected: Stat | None = None) -> Stat:
    """Fetches a whole file to a local path, block by block; a try that fails costs one block.

    Raises:
        FileNotFoundError. RunStopped: the server does not answer, sends other lengths, or the file changes meanwhile.
    """
    found = stat(url)
    if expected is not None:
        check_unchanged(url, expected, found)
    try:
        with path.open("r+b" if path.exists() else "wb") as file:
            for start in range(0, found.size, BLOCK):
                file.write(read_range(url, start, min(start + BLOCK, found.size), found))
            file.truncate()
    except NoRanges:

        def get() -> None:
            filesystem(url).get_file(url, str(path))
            if path.stat().st_size != found.size:
                raise _WrongLength(f"{found.size} bytes were announced, {path.stat().st_size} came")

        retried(url, get)
    if url.partition(":")[0] not in ("http", "https"):  # whose answers have been compared
        check_unchanged(url, found, stat(url))
    return found


def list_files(url: str) -> dict[str, Stat]:
    """The files below a folder by their path in it.

    Raises:
        FileNotFoundError: there is no such folder. OsmError: it holds over `MAX_FILES`.
    """

    def ask() -> dict[str, Stat]:
        fs = filesystem(url)
        root = fs._strip_protocol(url).rstrip("/")
        found = fs.find(url, detail=True)
        if len(found) > MAX_FILES:
            raise OsmError(f"{public(url)}: over {MAX_FILES} files")
        if not found:
            raise FileNotFoundError(public(url))
        files = {}
        for name, about in found.items():
            relative = name.removeprefix(root).strip("/")
            if not relative or ".." in relative.split("/"):
                continue
            size = about.get("size")
            files[relative] = _stat_of(about) if isinstance(size, int) else stat(f"{url.rstrip('/')}/{relative}")
        return files

    return retried(url, ask)


def glob(url: str) -> list[str]:
    """The URLs that a pattern with `*`, `?` or `[` fits, in order."""

    def ask() -> list[str]:
        fs, protocol = filesystem(url), url.partition(":")[0]
        if protocol in ("http", "https"):  # the links of an index page
            folder, _, pattern = url.rpartition("/")
            names = fs.ls(folder + "/", detail=False)
            return sorted(name for name in names if fnmatch.fnmatchcase(name.rstrip("/").rpartition("/")[2], pattern))
        found = sorted(fs.glob(url))
        return [name if "://" in name else f"{protocol}://{name}" for name in found]

    try:
        return retried(url, ask)
    except FileNotFoundError:
        return []


def upload(path: Path, url: str) -> None:
    """Writes a local file to a URL, whole: until it is, the old one stays.

    Raises:
        RunStopped: the server does not answer, or does not have all of it afterwards.
    """
    size = path.stat().st_size

    def put() -> None:
        filesystem(url).put_file(str(path), url)
        there = stat(url)
        if there.size != size:
            raise _WrongLength(f"{size} bytes were sent, {there.size} are there")

    retried(url, put, missing=False)


def write(url: str, data: bytes) -> None:
    """Writes a small file to a URL, whole."""

    def put() -> None:
        filesystem(url).pipe_file(url, data)

    retried(url, put, missing=False)


def remove(url: str) -> None:
    """Removes a file, if it is there."""

    def delete() -> None:
        try:
            filesystem(url).rm_file(url)
        except _MISSING:
            return

    retried(url, delete)


@contextmanager
def as_user_error(url: str, what: str) -> Iterator[None]:
    """A file that is not there becomes an OsmError which begins with `what`."""
    try:
        yield
    except FileNotFoundError:
        raise OsmError(f"{what} {public(url)}: there is no such file") from None
