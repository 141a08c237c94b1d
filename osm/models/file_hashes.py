"""Remembers the hashes and checks of weight files until the files change, because reading large files takes seconds.

A file is taken to be unchanged if its path, size, modification times and inode are the same. The hashes are stored in
the cache folder. If the folder is not writable, the hashes are computed every time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from osm.documents import parse_json
from osm.files import write_atomically


def cache_folder() -> Path:
    """Return the folder for converted weights: `$OSM_CACHE` if it is set, or else `~/.cache/osm`."""
    return Path(os.environ.get("OSM_CACHE") or Path.home() / ".cache" / "osm")


def installed_version(package: str) -> str:
    """Return the version of an installed package, or an empty text if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file. The hash is remembered until the file changes."""

    def compute() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered_hash([path], "content", compute)


def remembered_hash(files: Sequence[Path], what: str, compute: Callable[[], str]) -> str:
    """Return a hash that depends on nothing but some files and a description.

    Args:
        files: the files.
        what: everything else that the hash depends on, such as the versions of libraries.
        compute: computes the hash (SHA-256, hexadecimal) if it is not known, or if one of the files has changed.
    """
    key = hashlib.sha256("\n".join([what, *(str(path.resolve()) for path in files)]).encode()).hexdigest()[:32]
    note = cache_folder() / ".hashes" / f"{key}.json"
    states = [_file_state(path) for path in files]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = parse_json(note.read_bytes())
        if known.get("files") == states and re.fullmatch("[0-9a-f]{64}", str(known.get("hash"))):
            return str(known["hash"])
    found = compute()
    if [_file_state(path) for path in files] == states:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(note, [json.dumps({"files": states, "hash": found})])
    return found


def remembered_check(files: Sequence[Path], what: str, check: Callable[[], None]) -> None:
    """Run a check of some files, unless it has passed before and none of the files has changed since.

    Args:
        files: the files; if there are none, the check always runs.
        what: what is checked, and everything else that the result depends on.
        check: raises an error if the check fails.
    """

    def compute() -> str:
        check()
        return hashlib.sha256(what.encode()).hexdigest()

    if files:
        remembered_hash(files, f"check: {what}", compute)
    else:
        check()


def _file_state(path: Path) -> list[int]:
    """Return a file's size, modification times and inode, which reveal any change to the file."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
