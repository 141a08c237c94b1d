"""A remote folder whose files come to the cache when they are needed, by the names that a json has for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from osm.errors import OsmError, RunStopped
from osm.storage import remote
from osm.storage.cache import FileCache
from osm.storage.locations import HTTP, join
from osm.storage.remote import Stat

_LISTED_FROM = 64  # files that are wanted; of fewer each is asked for by itself


class RemoteFolder:
    """A remote folder and its local copy, which holds what was fetched.

    Args:
        url: of the folder. It need not be one that can be listed.

    Attributes:
        root: the local folder; made here.
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
            if self.url.partition(":")[0] in HTTP:  # whose servers often list nothing
                return None
            raise

    @property
    def names(self) -> list[str] | None:
        """The paths of all files in it; None where the server does not list them."""
        return None if self._listing is None else list(self._listing)

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetches the files that have these paths below `root`; what is not there stays away.

        Raises:
            OsmError: access is refused, or the disk has too little room. RunStopped: the server fails.
        """
        wanted = {os.path.relpath(path, self.root).replace(os.sep, "/") for path in paths} - self._asked
        listed: dict[str, Stat | None] | None = None
        if "_listing" in self.__dict__ or (
            len(wanted) >= _LISTED_FROM and self.url.partition(":")[0] not in HTTP  # an HTTP listing tells no sizes
        ):
            listed = self._listing
        there = sorted(name for name in wanted if listed is None or name in listed)
        files = {join(self.url, name): None if listed is None else listed[name] for name in there}
        self._cache.get_all(files, self.url, missing=True)
        self._asked |= wanted
