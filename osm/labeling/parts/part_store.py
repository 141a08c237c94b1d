"""The folder of the parts, which is local or on `s3://` or `gs://`. Files appear whole or not at all."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from osm.errors import OsmError, write_failed
from osm.files import remove_abandoned, replacing
from osm.storage import remote
from osm.storage.locations import is_remote, join, public

_THREADS = 32  # that remove files
MAX_BYTES = 1 << 30  # the maximum size of a file that is read


class PartStore:
    """A local or remote folder of small files. Several processes may write to it at the same time.

    Args:
        folder: the path or URL of the folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.remote = folder, is_remote(folder)

    def where(self, name: str) -> str:
        """Return the location of a file, for messages."""
        return public(join(self.folder, name))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a subfolder, sorted."""
        if self.remote:
            try:
                return sorted(name for name in remote.list_files(join(self.folder, folder)) if "/" not in name)
            except FileNotFoundError:
                return []
        path = Path(self.folder, folder)
        return sorted(one.name for one in path.iterdir() if not one.name.startswith(".")) if path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        try:
            if self.remote:
                return remote.read_whole(join(self.folder, name), MAX_BYTES)
            return Path(self.folder, name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OsmError(f"{self.where(name)}: cannot be read ({error.strerror or error})") from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, which replaces one with the same name.

        Raises:
            OsmError: the file cannot be written.
            RunStopped: the disk is full, or the server does not respond.
        """
        if self.remote:
            remote.write(join(self.folder, name), data)
            return
        path = Path(self.folder, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, shared=True) as file:
                file.write(data)
        except OSError as error:
            raise write_failed(error, f"out {path}", "a file that can be written") from None

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        if self.remote:
            remote.remove(join(self.folder, name))
        else:
            Path(self.folder, name).unlink(missing_ok=True)

    def remove_abandoned(self, folder: str) -> None:
        """Remove the temporary files that killed processes left in a subfolder."""
        if not self.remote:  # an object store has no temporary files
            remove_abandoned(Path(self.folder, folder))

    def clear(self, folder: str) -> None:
        """Remove a subfolder with all its files."""
        if self.remote:
            try:
                listed = list(remote.list_files(join(self.folder, folder)))
            except FileNotFoundError:
                return
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda name: remote.remove(join(self.folder, f"{folder}/{name}")), listed))
        elif Path(self.folder, folder).is_dir():
            try:
                shutil.rmtree(Path(self.folder, folder))
            except OSError as error:
                raise OsmError(f"out {self.folder}/{folder}: cannot be removed ({error.strerror})") from None
