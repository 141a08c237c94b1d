"""A local cache of remote files, which is shared by all processes on a machine.

A file is stored at `<folder>/<protocol>/<host>/<path>`, with each path component percent-encoded. The size and version
of each cached file are stored in a separate file. Each file is fetched only once. While a file is being downloaded,
it has a temporary name. When a new file would exceed the cache's size limit, the least recently used files are
removed. A process that has opened a cached file can still read the file after its removal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode

from filelock import FileLock, Timeout

from osm.documents import parse_json
from osm.errors import OsmError, RunStopped, write_failed
from osm.storage import remote
from osm.storage.locations import HTTP, check_location, is_remote, join, public, split_url
from osm.storage.remote import Stat
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

_OWN = ".osm"  # The folder for locks, file versions, and files being fetched.
_LOCKS, _META, _PARTS = "locks", "meta", "parts"
_SIGNATURE = re.compile(r"x-(amz|goog)-|sig|token|expires|policy|key-pair-id|awsaccesskeyid", re.IGNORECASE)
_AZURE = re.compile(r"s[eprtv]|sks?t|skoid|sktid|ske|skv|spr")  # Query parameters of Azure signatures, besides `sig`.
_LONGEST = 255  # The maximum length of a file name in bytes.
_ILLEGAL = '<>:"|?*\\' if os.name == "nt" else ""  # Characters that are not allowed in Windows file names.
_QUERY = "query-"  # If a file's URL has a query, the file's folder in the cache is named with this prefix.
_THREADS = 8
_WAIT = 0.1  # seconds
_LISTED_FROM = 64  # If at least this many files are needed, list the folder instead of requesting each file.


def default_folder() -> Path:
    """Return the cache folder for all remote files except shards: $OSM_CACHE, or osm/ in the user's cache folder."""
    given = os.environ.get("OSM_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osm"
    except RuntimeError:  # In some containers, the user has no home directory.
        return Path(tempfile.gettempdir()) / "osm-cache"


def canonical(url: str) -> str:
    """Return a URL without its signature, because each signed URL of a file has a different signature.

    Query parameters that are not part of the signature are kept, because they identify the file.
    """
    protocol, host, path, query = split_url(url)
    asked = _asked(query)
    return f"{protocol}://{host}/{path}" + (f"?{urlencode(asked)}" if asked else "")


def _asked(query: str) -> list[tuple[str, str]]:
    pairs = parse_qsl(query, keep_blank_values=True)
    azure = any(name.lower() == "sig" for name, _ in pairs)
    return sorted(
        pair for pair in pairs if not (_SIGNATURE.match(pair[0]) or (azure and _AZURE.fullmatch(pair[0].lower())))
    )


class FileCache:
    """A folder that holds local copies of remote files.

    Args:
        folder: the folder of the cache, which is created when the first file is fetched. Several processes may use the
            same folder at the same time.
        limit: the maximum total size of the files in bytes. None means no limit.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = Path(os.path.abspath(folder)), limit

    def make(self) -> None:
        """Create the cache folder if it does not exist.

        The cache folder is created on the first fetch rather than in the constructor, because the disk may be
        read-only.
        """
        try:
            for name in (_LOCKS, _META, _PARTS):
                (self.folder / _OWN / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(error, f"cache {self.folder}", "a folder that can be written") from None

    def path_of(self, url: str) -> Path:
        """Return the path at which a URL's file is cached, whether or not it has been fetched."""
        protocol, host, path, query = split_url(url)
        names = [part for part in path.split("/") if part]
        if protocol in HTTP:
            names = [unquote(name) for name in names]
        asked = _asked(query)
        if asked:  # The query hash precedes the file name, so that the path ends in the file's suffix.
            names.insert(-1, f"{_QUERY}{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}")
        return self.folder.joinpath(protocol, quote(host, safe="@"), *(_file_name(name) for name in names))

    def get(self, url: str, expected: Stat | None = None) -> Path:
        """Return the path of the local copy of a remote file.

        The file is fetched if its local copy is missing or outdated.

        Args:
            expected: the expected size and version of the file. By default, they are requested from the server.

        Raises:
            FileNotFoundError: there is no such remote file.
            RunStopped: the file cannot be fetched, or its size or version is not as expected.
        """
        path = self.path_of(url)
        wanted = expected or remote.stat(url)
        if self._has(path, url, wanted):
            self._mark_used(path)
            return path
        with self._lock(path):
            if not self._has(path, url, wanted):
                self._fetch(url, path, wanted)
        return path

    def open(self, url: str, expected: Stat | None = None) -> BinaryIO:
        """Open the local copy of a remote file.

        If another process removes the copy before it is opened, the file is fetched again.
        """
        for _ in range(5):
            with suppress(FileNotFoundError):
                path = self.get(url, expected)
                return path.open("rb")
            if not remote.exists(url):
                raise FileNotFoundError(public(url))
        raise RunStopped(
            f"cache {self.folder}: {public(url)} is removed as soon as it is fetched, because the cache is too small; "
            "increase its size limit"
        )

    def get_tree(self, url: str) -> Path:
        """Return the path of a remote folder's local copy.

        Cached files that no longer exist on the server are removed.
        """
        started, root = time.time(), self.path_of(url)
        files = {join(url, name): found for name, found in remote.list_files(url).items()}
        there = set(self.get_all(files, url))
        for _, _, path in self._held(there):  # Remove files that are no longer in the remote folder.
            with suppress(OSError):
                inside = path.is_relative_to(root) and not path.parent.name.startswith(_QUERY)
                if inside and path.stat().st_mtime < started:
                    self._meta(path).unlink(missing_ok=True)
                    path.unlink()
        return root

    def get_all(self, files: Mapping[str, Stat | None], where: str, missing: bool = False) -> list[Path]:
        """Fetch several files in parallel and return the paths of their local copies.

        Args:
            files: URL -> the expected size and version of its file.
            where: the remote folder that contains the files, for messages.
            missing: whether files that do not exist are skipped. Otherwise, FileNotFoundError is raised for a missing
                file.
        """
        lacking = {
            url: found for url, found in files.items() if found is None or not self._has(self.path_of(url), url, found)
        }
        size = sum(found.size for found in lacking.values() if found is not None)
        self._check_room(where, sum(found.size for found in files.values() if found is not None))
        self._check_disk(where, size)
        several = len(lacking) > 1
        if several:
            amount = f" ({size / 1e9:.3g} GB)" if size else ""
            logger.info(f"{public(where)}: fetching {len(lacking)} files{amount} to {self.folder}")

        def fetch(item: tuple[str, Stat | None]) -> Path | None:
            try:
                return self.get(*item)
            except FileNotFoundError:
                if missing:
                    return None
                raise FileNotFoundError(public(item[0])) from None

        with (
            ProgressBar(public(where), len(lacking), "files", enabled=several) as progress,
            ThreadPoolExecutor(_THREADS) as pool,
        ):
            for _ in pool.map(fetch, lacking.items()):
                progress.step()
        return [path for path in map(self.path_of, files) if path.is_file()]

    def _check_room(self, url: str, size: int) -> None:
        if self.limit is not None and size > self.limit:
            raise OsmError(f"cache {self.folder}: {public(url)} has {size} bytes, over the size limit of {self.limit}")

    def _check_disk(self, url: str, size: int) -> None:
        self.make()
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise RunStopped(
                f"{public(url)}: {size} bytes must be fetched, but the disk of {self.folder} has only {free} bytes "
                "free; free up space or choose a different folder (OSM_CACHE)"
            )

    def _has(self, path: Path, url: str, wanted: Stat) -> bool:
        try:
            meta = parse_json(self._meta(path).read_bytes())
            size = path.stat().st_size
            kept, of = Stat(int(meta["size"]), str(meta["version"])), meta["of"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        # On a case-insensitive disk, the files of two URLs may have the same path.
        return of == _digest(url) and kept.size == size and kept.agrees(wanted)

    def forget(self, url: str) -> None:
        """Remove the local copy of a remote file, if there is one, so that its room is free for other files."""
        path = self.path_of(url)
        with self._lock(path), self._lock(self.folder):
            path.unlink(missing_ok=True)
            self._meta(path).unlink(missing_ok=True)

    def _mark_used(self, path: Path) -> None:
        with suppress(OSError):
            os.utime(path)

    def _meta(self, path: Path) -> Path:
        return self.folder / _OWN / _META / f"{self._hashed(path)}.json"

    def _hashed(self, path: Path) -> str:
        return hashlib.sha256(os.fsencode(path.relative_to(self.folder))).hexdigest()[:32]

    def _fetch(self, url: str, path: Path, wanted: Stat) -> None:
        self._check_room(url, wanted.size)
        part, meta = self.folder / _OWN / _PARTS / self._hashed(path), self._meta(path)
        try:
            self._check_disk(url, wanted.size)
            path.parent.mkdir(parents=True, exist_ok=True)
            while not self._reserved(path, part, wanted.size):
                time.sleep(_WAIT)  # Wait for other processes to finish fetching files.
            found = remote.download(url, part, wanted)
            record = {
                "url": public(url),
                "of": _digest(url),
                "path": path.relative_to(self.folder).as_posix(),
                "size": found.size,
                "version": found.version,
            }
            temporary = meta.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(record), encoding="utf-8")
            # The record precedes the file, and both are written under the folder's lock: a file without a record would
            # not be counted towards the size limit, and a new record would match an old file of the same size.
            with self._lock(self.folder):
                meta.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                os.replace(temporary, meta)
                os.replace(part, path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not error.filename:  # The file is missing on the server.
                raise
            raise write_failed(error, f"cache {self.folder}", "a folder that can be written") from None
        finally:
            part.unlink(missing_ok=True)

    def _reserved(self, path: Path, part: Path, size: int) -> bool:
        """Make room for a file by removing the least recently used files, and reserve the space.

        Returns:
            False if there is not enough space because other processes are fetching files.
        """
        with self._lock(self.folder):
            fetching = sum(self._parts(but=part))
            if self.limit is not None:
                held = sorted(self._held({path}))
                total = size + fetching + sum(bytes_ for _, bytes_, _ in held)
                while held and total > self.limit:
                    _, bytes_, oldest = held.pop(0)
                    self._meta(oldest).unlink(missing_ok=True)
                    with suppress(PermissionError):  # Windows does not remove open files.
                        oldest.unlink(missing_ok=True)
                        total -= bytes_
                if total > self.limit:
                    return False
            with part.open("wb") as file:
                file.truncate(size)  # Give the file its final size, so that other processes count it as used space.
            return True

    def _parts(self, but: Path) -> Iterator[int]:
        """Yield the size of each file that another process is fetching.

        Partial files left behind by killed processes are removed.
        """
        for part in (self.folder / _OWN / _PARTS).iterdir():
            if part == but:
                continue
            lock = FileLock(self._lock_file(part.name))
            with suppress(OSError):  # The fetching process may rename or remove the file at any time.
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    yield part.stat().st_size
                    continue
                try:
                    part.unlink(missing_ok=True)
                finally:
                    lock.release()

    def _held(self, but: set[Path]) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of last use, size in bytes, path) for each cached file whose path is not in `but`."""
        for meta in (self.folder / _OWN / _META).glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                path = self.folder / parse_json(meta.read_bytes())["path"]
                if path not in but and self._meta(path) == meta:
                    about = path.stat()
                    yield about.st_mtime, about.st_size, path

    def _lock_file(self, name: str) -> Path:
        return self.folder / _OWN / _LOCKS / f"{name}.lock"

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        self.make()
        lock = FileLock(self._lock_file(self._hashed(path)))
        try:
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or "its disk has no locks"
            raise OsmError(
                f"cache {self.folder}: {reason}; set OSM_CACHE to a folder on a local disk of this machine"
            ) from None
        try:
            yield
        finally:
            lock.release()


def _digest(url: str) -> str:
    """Return a hash of a URL. The hash is stored instead of the URL, because the URL may contain credentials."""
    return hashlib.sha256(canonical(url).encode(errors="surrogatepass")).hexdigest()[:32]


def _file_name(name: str) -> str:
    """Convert one component of a URL's path to a file name. A valid file name is returned unchanged."""
    text = "".join(quote(letter, safe="") if letter in _ILLEGAL or letter < " " else letter for letter in name)
    if not text.strip("."):
        text = text.replace(".", "%2E")
    text = text.replace("/", "%2F")  # The slash was percent-encoded in the URL.
    if os.name == "nt":
        text = text.rstrip(" .") or "%20"
    try:
        length = len(os.fsencode(text))
    except UnicodeEncodeError:  # The text has a lone surrogate.
        text, length = quote(text, errors="surrogatepass"), 3 * len(text)
    return text if length <= _LONGEST else f"{hashlib.sha256(repr(text).encode()).hexdigest()[:32]}{Path(text).suffix}"


def user_cache() -> FileCache:
    """Return the cache for remote files passed with flags, such as checkpoints and dataset files."""
    return FileCache(default_folder() / "files")


def localize(location: str | os.PathLike[str], what: str, folder: bool = False) -> Path:
    """Return the local path of a location. A remote file is fetched first.

    Args:
        location: a local path or a URL.
        what: the beginning of error messages, such as "--json_file".
        folder: whether a URL is that of a folder. All files inside the folder are fetched.

    Raises:
        OsmError: there is no such remote file, or the location is invalid.
        RunStopped: the file cannot be fetched.
    """
    if not is_remote(location):
        return Path(location) if os.path.lexists(location) else Path(check_location(location, what))
    url = check_location(location, what)
    cache = user_cache()
    with remote.as_user_error(url, what):
        return cache.get_tree(url) if folder else cache.get(url)


@contextmanager
def open_whole(url: str, expected: Stat | None = None) -> Iterator[BinaryIO]:
    """Fetch a remote file into a temporary file and yield the open file. The file is removed when the context exits."""
    found = expected or remote.stat(url)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="osm_")
        free = shutil.disk_usage(temporary.name).free
    except OSError as error:
        raise write_failed(error, f"temporary folder {tempfile.gettempdir()}", "one that can be written") from None
    with temporary as folder:
        if found.size > free:
            told = f"{found.size} bytes must be fetched, but the disk of {folder} has only {free} bytes free"
            raise RunStopped(f"{public(url)}: {told}; free up space or choose a different folder (TMPDIR)")
        path = Path(folder) / "file"
        remote.download(url, path, found)
        with path.open("rb") as file:
            yield file


class RemoteFolder:
    """A remote folder and its local copy, which contains only the files fetched so far.

    Args:
        url: the URL of the folder. Servers that cannot list the folder are supported.
        cache: the cache that stores the local copy.

    Attributes:
        root: the local folder, which the constructor creates.
    """

    def __init__(self, url: str, cache: FileCache) -> None:
        self.url, self._cache, self.root = url, cache, cache.path_of(url)
        self._asked: set[str] = set()
        self.root.mkdir(parents=True, exist_ok=True)

    @cached_property
    def _listing(self) -> dict[str, Stat | None] | None:
        try:
            return remote.list_files(self.url)
        except FileNotFoundError:
            return None
        except RunStopped:
            raise
        except OsmError:
            if self.url.partition(":")[0] in HTTP:  # Many HTTP servers do not list folders.
                return None
            raise

    @property
    def names(self) -> list[str] | None:
        """The paths of all files in the remote folder, or None if the server cannot list it."""
        return None if self._listing is None else list(self._listing)

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetch the remote files for the given local paths. Files that do not exist on the server are skipped.

        Raises:
            OsmError: access is denied, or the file is larger than the limit of the cache.
            RunStopped: the server fails.
        """
        wanted = {os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths} - self._asked
        listed: dict[str, Stat | None] | None = None
        if "_listing" in self.__dict__ or (
            len(wanted) >= _LISTED_FROM and self.url.partition(":")[0] not in HTTP  # An HTTP listing has no sizes.
        ):
            listed = self._listing
        there = sorted(name for name in wanted if listed is None or name in listed)
        files = {join(self.url, name): None if listed is None else listed[name] for name in there}
        self._cache.get_all(files, self.url, missing=True)
        self._asked |= wanted
