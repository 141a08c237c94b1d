"""A folder of a node that holds remote files: fetched once, however many processes ask, and bounded.

A file lies at `<folder>/<protocol>/<host>/<path>`, each part percent-encoded; its size and version lie beside it. It is
fetched under a temporary name and renamed when whole. Where the folder would grow over its bound, the files that were
used longest ago are removed; whoever has one open keeps reading it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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

_OWN = ".osm"  # locks, versions, and files that are being fetched
_LOCKS, _META, _PARTS = "locks", "meta", "parts"
_SIGNATURE = re.compile(r"x-(amz|goog)-|sig|token|expires|policy|key-pair-id|awsaccesskeyid", re.IGNORECASE)
_AZURE = re.compile(r"s[eprtv]|sks?t|skoid|sktid|ske|skv|spr")  # beside its `sig`
_LONGEST = 255  # bytes of a file's name
_ILLEGAL = '<>:"|?*\\' if os.name == "nt" else ""  # in a file's name
_QUERY = "query-"  # begins the name of a folder of files by other queries
_THREADS = 8
_WAIT = 0.1  # seconds


def default_folder() -> Path:
    """Where remote files other than shards are kept: $OSM_CACHE, or osm/ in the user's cache folder."""
    given = os.environ.get("OSM_CACHE")
    if given:
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osm"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "osm-cache"


def canonical(url: str) -> str:
    """A URL without what signs it, which is another each time; what else a query holds tells files apart."""
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
    """Remote files as local ones.

    Args:
        folder: made by the first fetch where it is missing; several processes of a machine may use it at once.
        limit: bytes that it may hold; None = as many as come.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = Path(os.path.abspath(folder)), limit

    def make(self) -> None:
        """Makes the folder, if it is not there: not before something is fetched, as its disk may not be writable."""
        try:
            for name in (_LOCKS, _META, _PARTS):
                (self.folder / _OWN / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(error, f"cache {self.folder}", "a folder that can be written") from None

    def path_of(self, url: str) -> Path:
        """Where a URL's file lies, fetched or not."""
        protocol, host, path, query = split_url(url)
        names = [part for part in path.split("/") if part]
        if protocol in HTTP:
            names = [unquote(name) for name in names]
        asked = _asked(query)
        if asked:  # before the name, whose ending says what a file is
            names.insert(-1, f"{_QUERY}{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}")
        return self.folder.joinpath(protocol, quote(host, safe="@"), *(_file_name(name) for name in names))

    def get(self, url: str, expected: Stat | None = None) -> Path:
        """The local copy of a remote file, fetched if it is not there or not of that version.

        Args:
            expected: of the file; without it the server is asked.

        Raises:
            FileNotFoundError. RunStopped: it cannot be fetched, or is another file than expected.
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
        """Opens the local copy; what another process removes meanwhile is fetched again."""
        for _ in range(5):
            with suppress(FileNotFoundError):
                path = self.get(url, expected)
                return path.open("rb")
            if not remote.exists(url):
                raise FileNotFoundError(public(url))
        raise RunStopped(f"cache {self.folder}: {public(url)} is removed as soon as it is fetched: raise the bound")

    def get_tree(self, url: str) -> Path:
        """The local copy of a remote folder, with all files below it, and no others."""
        started, root = time.time(), self.path_of(url)
        files = {join(url, name): found for name, found in remote.list_files(url).items()}
        there = set(self.get_all(files, url))
        for _, _, path in self._held(there):  # what is no longer in the folder is not read as if it were
            with suppress(OSError):
                inside = path.is_relative_to(root) and not path.parent.name.startswith(_QUERY)
                if inside and path.stat().st_mtime < started:
                    self._meta(path).unlink(missing_ok=True)
                    path.unlink()
        return root

    def get_all(self, files: Mapping[str, Stat | None], where: str, missing: bool = False) -> list[Path]:
        """The local copies of several files, fetched side by side; many of them are told of, with their progress.

        Args:
            files: URLs, and what is expected of each. where: they are of, for messages.
            missing: files that are not there are left out; else they are an error.
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
            raise OsmError(f"cache {self.folder}: {public(url)} has {size} bytes, over its bound of {self.limit}")

    def _check_disk(self, url: str, size: int) -> None:
        self.make()
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise RunStopped(
                f"{public(url)}: {size} bytes are to be fetched, but the disk of {self.folder} has {free} free; make "
                "room, or choose another folder (OSM_CACHE)"
            )

    def _has(self, path: Path, url: str, wanted: Stat) -> bool:
        try:
            meta = parse_json(self._meta(path).read_bytes())
            size = path.stat().st_size
            kept, of = Stat(int(meta["size"]), str(meta["version"])), meta["of"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        # Two URLs may have one path, where the disk does not tell A from a.
        return of == _digest(url) and kept.size == size and kept.agrees(wanted)

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
                time.sleep(_WAIT)  # for others to finish what they are fetching
            found = remote.download(url, part, wanted)
            meta.unlink(missing_ok=True)
            os.replace(part, path)
            record = {
                "url": public(url),
                "of": _digest(url),
                "path": path.relative_to(self.folder).as_posix(),
                "size": found.size,
                "version": found.version,
            }
            temporary = meta.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(record), encoding="utf-8")
            os.replace(temporary, meta)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not error.filename:  # of the server, not of this disk
                raise
            raise write_failed(error, f"cache {self.folder}", "a folder that can be written") from None
        finally:
            part.unlink(missing_ok=True)

    def _reserved(self, path: Path, part: Path, size: int) -> bool:
        """Makes room for a file, by removing what was used longest ago; false while what others fetch fills it."""
        with self._lock(self.folder):
            fetching = sum(self._parts(but=part))
            if self.limit is not None:
                held = sorted(self._held({path}))
                total = size + fetching + sum(bytes_ for _, bytes_, _ in held)
                while held and total > self.limit:
                    _, bytes_, oldest = held.pop(0)
                    self._meta(oldest).unlink(missing_ok=True)
                    with suppress(PermissionError):  # Windows removes nothing that is open
                        oldest.unlink(missing_ok=True)
                        total -= bytes_
                if total > self.limit:
                    return False
            with part.open("wb") as file:
                file.truncate(size)  # counted by others before it is there
            return True

    def _parts(self, but: Path) -> Iterator[int]:
        """The bytes of every file that others are fetching; removes what killed processes have left."""
        for part in (self.folder / _OWN / _PARTS).iterdir():
            if part == but:
                continue
            lock = FileLock(self._lock_file(part.name))
            with suppress(OSError):  # it is finished or removed at this moment
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
        """(time of last use, bytes, path) of every file that was fetched; others in the folder are not the cache's."""
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
                f"cache {self.folder}: {reason}; expected a folder of a disk of this machine (OSM_CACHE)"
            ) from None
        try:
            yield
        finally:
            lock.release()


def _digest(url: str) -> str:
    """Of what a URL names. It is not the URL itself: a query may hold a credential that no rule knows."""
    return hashlib.sha256(canonical(url).encode(errors="surrogatepass")).hexdigest()[:32]


def _file_name(name: str) -> str:
    """A part of a URL as a file name: itself, wherever a disk can have a file that is called so."""
    text = "".join(quote(letter, safe="") if letter in _ILLEGAL or letter < " " else letter for letter in name)
    if not text.strip("."):
        text = text.replace(".", "%2E")
    text = text.replace("/", "%2F")  # what was percent-encoded
    if os.name == "nt":
        text = text.rstrip(" .") or "%20"
    try:
        length = len(os.fsencode(text))
    except UnicodeEncodeError:  # half a letter
        text, length = quote(text, errors="surrogatepass"), 3 * len(text)
    return text if length <= _LONGEST else f"{hashlib.sha256(repr(text).encode()).hexdigest()[:32]}{Path(text).suffix}"


def user_cache() -> FileCache:
    """The cache of this user's files: those of a data set, checkpoints, and what else a flag names."""
    return FileCache(default_folder() / "files")


def localize(location: str | os.PathLike[str], what: str, folder: bool = False) -> Path:
    """A local path for a location: itself, or the copy of a remote file (or folder, with all below it).

    Args:
        what: begins the message, such as "--json_file".

    Raises:
        OsmError: there is no such remote file, or it is no location. RunStopped: it cannot be fetched.
    """
    if not is_remote(location):
        return Path(location) if os.path.lexists(location) else Path(check_location(location, what))
    url = check_location(location, what)
    cache = user_cache()
    with remote.as_user_error(url, what):
        return cache.get_tree(url) if folder else cache.get(url)


@contextmanager
def open_whole(url: str, expected: Stat | None = None) -> Iterator[BinaryIO]:
    """A remote file, fetched to a temporary one that is gone afterwards."""
    found = expected or remote.stat(url)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="osm_")
        free = shutil.disk_usage(temporary.name).free
    except OSError as error:
        raise write_failed(error, f"temporary folder {tempfile.gettempdir()}", "one that can be written") from None
    with temporary as folder:
        if found.size > free:
            told = f"{found.size} bytes are to be fetched, but {folder} has {free} free"
            raise RunStopped(f"{public(url)}: {told}; make room, or choose another folder (TMPDIR)")
        path = Path(folder) / "file"
        remote.download(url, path, found)
        with path.open("rb") as file:
            yield file
