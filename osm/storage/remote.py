"""Read and write remote files with retries: byte ranges, whole files, listings and uploads.

Credentials come from the libraries' usual sources (AWS_* variables and files, gcloud, HF_TOKEN, ~/.netrc). Credentials
are never taken from a URL or a flag, so they cannot appear in a log.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from osm.errors import OsmError, RunStopped
from osm.storage import http
from osm.storage.locations import HTTP, public
from osm.storage.stats import NoRanges, Stat, WrongLength, check_unchanged

T = TypeVar("T")
BLOCK = 16 << 20
"""The number of bytes that a download reads with each request."""
MAX_FILES = 2_000_000  # The maximum number of files in a listing.
_ETAGS = ("ETag", "etag", "md5Hash", "sha256", "blob_id", "generation", "Last-Modified", "LastModified", "mtime")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_MISSING = (FileNotFoundError, IsADirectoryError)


def _seconds(name: str, default: str) -> list[float]:
    try:
        return [float(part) for part in os.environ.get(name, default).split(",") if part.strip()]
    except ValueError:
        raise OsmError(
            f"{name}={os.environ[name]!r}: expected a comma-separated list of seconds, such as {default}"
        ) from None


def retry_delays() -> list[float]:
    """Return the seconds to wait before each retry: OSM_RETRY_SECONDS, or by default 0.5, 1, 2, 4 and 8."""
    return _seconds("OSM_RETRY_SECONDS", "0.5,1,2,4,8")


def read_timeout() -> float:
    """Return the number of seconds without data after which a request times out: OSM_READ_TIMEOUT, or 60 by default."""
    return (_seconds("OSM_READ_TIMEOUT", "60") or [60.0])[0]


def _by_http(url: str) -> bool:
    return url.partition(":")[0] in HTTP


def _sync(fs: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a coroutine function of `osm.storage.http` in the filesystem's event loop and return its result."""
    from fsspec.asyn import sync

    return sync(fs.loop, function, fs, *arguments)


def filesystem(url: str) -> Any:
    """Return the fsspec filesystem for a URL. The filesystem is shared by all threads in this process.

    Raises:
        OsmError: the package that reads files of the URL's protocol is not installed.
    """
    import fsspec  # Importing fsspec is slow, and local paths do not need it.

    protocol = url.partition(":")[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in HTTP:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=read_timeout())
        # Compression is disabled, so that byte ranges refer to the file itself.
        options["client_kwargs"] = {
            "timeout": limits,
            "headers": {"Accept-Encoding": "identity"},
            "trust_env": True,
        }
    elif protocol == "s3":
        # The S3 library's retries are disabled, because `retried` counts retries and reports the last failure.
        settings = {"read_timeout": read_timeout(), "connect_timeout": 30, "retries": {"max_attempts": 0}}
        options["config_kwargs"] = settings
    try:
        fs = fsspec.filesystem(protocol, **options)
        if protocol == "s3":
            fs.retries = 1  # By default, s3fs retries five times on its own.
        return fs
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs"}.get(protocol, "")
        hint = f"pip install {package}" if package else str(error)
        raise OsmError(f"{public(url)}: the package for {protocol}:// URLs is not installed: {hint}") from None


def retried(url: str, action: Callable[[], T], missing: bool = True) -> T:
    """Call `action` and return its result. A failed action is retried after each of the delays in `retry_delays()`.

    Args:
        url: the URL that the action reads or writes, for messages.
        missing: whether a missing file raises an error immediately. Otherwise, the action is retried.

    Raises:
        FileNotFoundError: there is no such file.
        NoRanges: the server does not support range requests.
        OsmError: access was denied.
        RunStopped: the last retry failed too.
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
        except Exception as error:  # Each protocol's library raises its own error types.
            status = _status(error)
            if status in (401, 403):
                raise OsmError(f"{public(url)}: access is refused (HTTP {status})") from None
            if status in (404, 410):
                raise FileNotFoundError(public(url)) from None
            if type(error).__name__ in _NO_CREDENTIALS:
                raise OsmError(
                    f"{public(url)}: no credentials were found (AWS_* variables, gcloud, HF_TOKEN)"
                ) from None
            failure = error
        if attempt < len(delays):
            time.sleep(delays[attempt])
    raise RunStopped(
        f"{public(url)}: {_reason(failure)} (tried {len(delays) + 1} times); run the same command "
        "again to resume once the server is available"
    )


def _status(error: BaseException) -> int:
    """Return the HTTP status of an error from aiohttp, gcsfs or huggingface_hub, or 0 if it has none."""
    if hasattr(error, "status"):
        number = error.status
    else:
        number = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return int(number) if str(number).isdigit() and 100 <= int(str(number)) < 600 else 0


def _reason(error: BaseException) -> str:
    """Return a short description of an error without any URLs, because a URL may contain a signature."""
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no byte came for {read_timeout():g} s"
    if isinstance(error, WrongLength):
        return str(error)
    if status := _status(error):
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
    """Return the size and version of a remote file.

    Raises:
        FileNotFoundError: there is no such file.
        RunStopped: the server does not respond, or does not report the size.
    """

    def ask() -> Stat:
        fs = filesystem(url)
        if _by_http(url):
            return _sync(fs, http.stat, url)
        # The Hugging Face Hub reports a file's hash only with `expand_info`.
        found = fs.info(url, expand_info=True) if url.startswith("hf:") else fs.info(url)
        if found.get("type") == "directory":
            raise FileNotFoundError(f"{public(url)} is a folder")
        return _stat_of(found)

    return retried(url, ask)


def _stat_of(found: dict[str, Any]) -> Stat:
    size = found.get("size")
    if not isinstance(size, int):
        raise WrongLength("the server does not report the size of the file")
    version = next((str(found[key]) for key in _ETAGS if found.get(key)), "")
    return Stat(size, version.removeprefix("W/").strip('"'))


def exists(url: str) -> bool:
    """Return whether a remote file exists."""
    try:
        stat(url)
    except FileNotFoundError:
        return False
    return True


def read_range(url: str, start: int, end: int, expected: Stat | None = None) -> bytes:
    """Return the bytes of a remote file from `start` to `end` (exclusive).

    Args:
        expected: the size and version that the file had before. Only the responses of HTTP servers are compared with
            this size and version.

    Raises:
        FileNotFoundError: there is no such file.
        NoRanges: the server does not support range requests.
        RunStopped: the server does not respond or sends a different number of bytes, or the file has changed.
    """

    def get() -> bytes:
        fs = filesystem(url)
        if _by_http(url):
            return _sync(fs, http.read_range, url, start, end, expected)
        data = fs.cat_file(url, start=start, end=end)
        if len(data) != end - start:
            raise WrongLength(f"{end - start} bytes were requested, but the server sent {len(data)} bytes")
        return data

    return b"" if end <= start else retried(url, get)


def read_whole(url: str, most: int) -> bytes:
    """Return the content of a remote file. Raise OsmError if the file has more than `most` bytes."""
    found = stat(url)
    if found.size > most:
        raise OsmError(f"{public(url)}: the file has {found.size} bytes, which exceeds the limit of {most} bytes")
    try:
        return read_range(url, 0, found.size, found)
    except NoRanges:
        with tempfile.TemporaryDirectory(prefix="osm_") as folder:
            path = Path(folder) / "file"
            download(url, path, found)
            return path.read_bytes()


def download(url: str, path: Path, expected: Stat | None = None) -> Stat:
    """Download a remote file to a local path in blocks, so that a retry has to repeat only one block.

    Returns:
        The size and version of the file.

    Raises:
        FileNotFoundError: there is no such file.
        RunStopped: the server does not respond or sends a different number of bytes, or the file changes meanwhile.
    """
    found = expected or stat(url)
    try:
        with path.open("r+b" if path.exists() else "wb") as file:
            for start in range(0, found.size, BLOCK):
                file.write(read_range(url, start, min(start + BLOCK, found.size), found))
            file.truncate()
    except NoRanges:  # Only HTTP servers can lack support for range requests.
        fs = filesystem(url)
        retried(url, lambda: _sync(fs, http.fetch_whole, url, path, found))
    check_still(url, found)
    return found


def check_still(url: str, expected: Stat) -> None:
    """Raise RunStopped if a remote file has changed.

    Files on HTTP servers are skipped here, because `read_range` already checks their version.
    """
    if not _by_http(url):
        check_unchanged(url, expected, stat(url))


def list_files(url: str) -> dict[str, Stat | None]:
    """Map the path of each file in a remote folder to its size and version, or to None for an HTTP folder.

    Raises:
        FileNotFoundError: there is no such folder.
        OsmError: the folder has more than `MAX_FILES` files.
    """

    def ask() -> dict[str, Stat | None]:
        fs = filesystem(url)
        if _by_http(url):
            return dict.fromkeys(_sync(fs, http.list_names, url, MAX_FILES))
        root = fs._strip_protocol(url).rstrip("/") + "/"
        found = fs.find(url, detail=True)
        if len(found) > MAX_FILES:
            raise OsmError(f"{public(url)}: over {MAX_FILES} files")
        files: dict[str, Stat | None] = {}
        for name, about in found.items():
            relative = name.removeprefix(root)
            # Skip keys that end with a slash, which represent folders, and names that point outside the folder.
            if not name.startswith(root) or not set(relative.split("/")).isdisjoint(("", ".", "..")):
                continue
            files[relative] = _stat_of(about) if isinstance(about.get("size"), int) else None
        if not files:
            raise FileNotFoundError(public(url))
        return files

    return retried(url, ask)


def glob(url: str) -> list[str]:
    """Return the URLs that match a pattern containing `*`, `?` or `[`, in alphabetical order."""

    def ask() -> list[str]:
        fs, protocol = filesystem(url), url.partition(":")[0]
        if _by_http(url):
            folder, _, pattern = url.rpartition("/")
            names = _sync(fs, http.list_page, folder)
            return sorted(f"{folder}/{name}" for name in names if fnmatch.fnmatchcase(unquote(name), unquote(pattern)))
        found = sorted(fs.glob(url))
        return [name if "://" in name else f"{protocol}://{name}" for name in found]

    try:
        return retried(url, ask)
    except FileNotFoundError:
        return []


def upload(path: Path, url: str) -> None:
    """Upload a local file to a URL. An existing remote file is kept until the upload is complete.

    Raises:
        RunStopped: the server does not respond, or the remote file has a different size after the upload.
    """
    size = path.stat().st_size

    def put() -> None:
        filesystem(url).put_file(str(path), url)
        there = stat(url)
        if there.size != size:
            raise WrongLength(f"{size} bytes were uploaded, but the remote file has {there.size} bytes")

    retried(url, put, missing=False)


def write(url: str, data: bytes) -> None:
    """Write a small file to a URL in one request."""

    def put() -> None:
        filesystem(url).pipe_file(url, data)

    retried(url, put, missing=False)


def remove(url: str) -> None:
    """Remove a remote file if it exists."""

    def delete() -> None:
        try:
            filesystem(url).rm_file(url)
        except _MISSING:
            return

    retried(url, delete)


@contextmanager
def as_user_error(url: str, what: str) -> Iterator[None]:
    """Prefix error messages raised in the context with `what`. A missing file raises OsmError."""
    try:
        yield
    except FileNotFoundError:
        raise OsmError(f"{what} {public(url)}: there is no such file") from None
    except OsmError as error:
        kind = RunStopped if isinstance(error, RunStopped) else OsmError
        raise kind(f"{what} {error}") from None
