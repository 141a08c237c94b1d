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
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, quote, urlsplit

from filelock import FileLock

from osm.documents import parse_json
from osm.errors import OsmError, RunStopped, write_failed
from osm.storage import remote
from osm.storage.locations import check_location, is_remote, join, public
from osm.storage.remote import Stat

_OWN = ".osm"  # locks, versions, and files that are being fetched
_LOCKS, _META, _PARTS = "locks", "meta", "parts"
_SIGNATURE = re.compile(r"x-(amz|goog)-|sig|token|expires|policy|key-pair-id|awsaccesskeyid|s[eprtv]$", re.IGNORECASE)
_LONGEST = 200  # of a file's name
_THREADS = 8
_WAIT = 0.1  # seconds


def default_folder() -> Path:
    """Where remote files other than shards are kept: $OSM_CACHE, or osm/ in the user's cache folder."""
    given = os.environ.get("OSM_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osm"


class FileCache:
    """Remote files as local ones.

    Args:
        folder: made where it is missing; several processes of a machine may use it at once.
        limit: bytes that it may hold; None = as many as come.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit
        try:
            for name in (_LOCKS, _META, _PARTS):
                (folder / _OWN / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(error, f"cache {folder}", "a folder that can be written") from None

    def path_of(self, url: str) -> Path:
        """Where a URL's file lies, fetched or not."""
        parts = urlsplit(url)
        names = [part for part in (parts.netloc.rpartition("@")[2], *parts.path.split("/")) if part]
        # What signs a URL is another each time; what else a query holds tells files apart.
        asked = [pair for pair in parse_qsl(parts.query) if not _SIGNATURE.match(pair[0])]
        if asked:
            names.append(hashlib.sha256(repr(sorted(asked)).encode()).hexdigest()[:16])
        return self.folder.joinpath(parts.scheme, *(_quoted(name) for name in names))

    def get(self, url: str, expected: Stat | None = None) -> Path:
        """The local copy of a remote file, fetched if it is not there or not of that version.

        Args:
            expected: of the file; without it the server is asked.

        Raises:
            FileNotFoundError. RunStopped: it cannot be fetched, or is another file than expected.
        """
        path = self.path_of(url)
        wanted = expected or remote.stat(url)
        if self._has(path, wanted):
            self._mark_used(path)
            return path
        with self._lock(path):
            if not self._has(path, wanted):
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
        files = remote.list_files(url)
        self._check_room(url, sum(found.size for found in files.values()))
        root = self.path_of(url)
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(lambda item: self.get(join(url, item[0]), item[1]), files.items()):
                pass
        kept = {self.path_of(join(url, name)) for name in files}
        for path in root.rglob("*"):
            if path.is_file() and path not in kept:  # removed there since it was fetched
                self._meta(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        return root

    def get_many(self, urls: Iterable[str]) -> list[Path]:
        """The local copies of several files, fetched side by side."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.get, urls))

    def _check_room(self, url: str, size: int) -> None:
        if self.limit is not None and size > self.limit:
            raise OsmError(f"cache {self.folder}: {public(url)} has {size} bytes, over its bound of {self.limit}")

    def _has(self, path: Path, wanted: Stat) -> bool:
        try:
            meta = parse_json(self._meta(path).read_bytes())
            size = path.stat().st_size
            kept = Stat(int(meta["size"]), str(meta["version"]))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return kept.size == size and kept.agrees(wanted)

    def _mark_used(self, path: Path) -> None:
        with suppress(OSError):
            os.utime(path)

    def _meta(self, path: Path) -> Path:
        return self.folder / _OWN / _META / f"{_hashed(path)}.json"

    def _fetch(self, url: str, path: Path, wanted: Stat) -> None:
        self._check_room(url, wanted.size)
        part, meta = self.folder / _OWN / _PARTS / _hashed(path), self._meta(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while not self._reserved(path, part, wanted.size):
                time.sleep(_WAIT)  # for others to finish what they are fetching
            found = remote.download(url, part, wanted)
            meta.unlink(missing_ok=True)
            os.replace(part, path)
            record = {"url": public(url), "size": found.size, "version": found.version}
            temporary = meta.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(record), encoding="utf-8")
            os.replace(temporary, meta)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not error.filename:
                raise
            raise write_failed(error, f"cache {self.folder}", "a folder that can be written") from None
        finally:
            part.unlink(missing_ok=True)

    def _reserved(self, path: Path, part: Path, size: int) -> bool:
        """Makes room for a file, by removing what was used longest ago; false while what others fetch fills it."""
        with self._lock(self.folder):
            if self.limit is not None:
                held = sorted(self._held({path}))
                fetching = sum(other.stat().st_size for other in part.parent.iterdir() if other != part)
                total = size + fetching + sum(bytes_ for _, bytes_, _ in held)
                while held and total > self.limit:
                    _, bytes_, oldest = held.pop(0)
                    self._meta(oldest).unlink(missing_ok=True)
                    oldest.unlink(missing_ok=True)
                    total -= bytes_
                if total > self.limit:
                    return False
            with part.open("wb") as file:
                file.truncate(size)  # counted by others before it is there
            return True

    def _held(self, but: set[Path]) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every file here."""
        for root, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name != _OWN]
            for path in (Path(root) / name for name in names):
                with suppress(OSError):
                    if path not in but:
                        about = path.stat()
                        yield about.st_mtime, about.st_size, path

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        with FileLock(self.folder / _OWN / _LOCKS / f"{_hashed(path)}.lock"):
            yield


def _hashed(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def _quoted(name: str) -> str:
    """A part of a URL as a file name of its own: nothing climbs, and nothing is taken for the cache's own files."""
    text = quote(name, safe=" !#$&'()+,;=@[]^_`{}~-.%")
    if not text.strip(".") or text == _OWN:
        text = text.replace(".", "%2E")
    return text if len(text) <= _LONGEST else f"{_hashed(Path(text))}{text[-_LONGEST // 2 :]}"


def localize(location: str | os.PathLike[str], what: str, folder: bool = False) -> Path:
    """A local path for a location: itself, or the copy of a remote file (or folder, with all below it).

    Args:
        what: begins the message, such as "--json_file".

    Raises:
        OsmError: there is no such remote file. RunStopped: it cannot be fetched.
    """
    if not is_remote(location):
        return Path(location)
    url = check_location(location, what)
    cache = FileCache(default_folder() / "files")
    with remote.as_user_error(url, what):
        return cache.get_tree(url) if folder else cache.get(url)


@contextmanager
def open_whole(url: str, expected: Stat | None = None) -> Iterator[BinaryIO]:
    """A remote file, fetched to a temporary one that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="osm_") as folder:
        path = Path(folder) / "file"
        remote.download(url, path, expected)
        with path.open("rb") as file:
            yield file
