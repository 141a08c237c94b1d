"""Finds the image files listed in a JSON file, even if a file's name in the JSON file differs from its name on disk.

An exact match always has priority. If there is no exact match, the name in the JSON file and the name on disk may
differ in slashes, percent-escapes, Unicode normalization, letter case, extension, leading folders, host or drive. Such
an inexact match is accepted only if a single file is the best match. A file whose exact name appears in the JSON file
is never matched to a different name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from osm.errors import OsmError, shown
from osm.io.images import SUFFIXES
from osm.io.paths import safe_join

_DRIVE = re.compile(r"[A-Za-z]:")
_QUERY = re.compile(r"\?d=")  # Label Studio writes names such as /data/local-files/?d=folder/picture.jpg.
_EXTENSION = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})$", re.IGNORECASE)
_SHOWN = 3  # the largest number of files that a message lists


class FileFinder:
    """Finds the files named in a JSON file within a single folder.

    Args:
        folder: the folder. All files that are found are inside the folder.
        exact: accept only exact names, as for published datasets.
        claimed: every file name in the json. A file with exactly one of these names is not matched to other names.
        listed: the paths of all files, if the folder is the local copy of a remote folder whose files are downloaded
            on demand.
    """

    def __init__(
        self,
        folder: str | Path,
        exact: bool = False,
        claimed: Iterable[Any] = (),
        listed: Iterable[str] | None = None,
    ) -> None:
        self.folder, self.exact = Path(folder), exact
        self._listed = None if listed is None else frozenset(listed)
        self._claimed = [name for name in claimed if isinstance(name, str)]
        self.guessed: list[tuple[str, Path]] = []  # the names without an exact match, each with its accepted file

    def find(self, name: Any, where: str) -> Path:
        """Return the path of the file that a name refers to, or `folder / name` if no file matches.

        Raises:
            OsmError: the name is not a file name or leads out of the folder, and no file in the folder matches.
        """
        try:
            direct = safe_join(self.folder, name)
        except OsmError as error:
            climbs = not isinstance(name, str) or ".." in _plain(name).split("/")
            found = None if self.exact or climbs else self._guess(name)
            if found is None:
                raise OsmError(f"{where}: {error}") from None
            return found
        if self.exact or self._is_there(direct):
            return direct
        return self._guess(name) or direct

    def _is_there(self, path: Path) -> bool:
        return os.path.lexists(path) if self._listed is None else self.relative(path) in self._listed

    def holds(self, path: Path) -> bool:
        """Return whether a path that `find` returned exists in the folder."""
        return path.exists() if self._listed is None else self.relative(path) in self._listed

    def relative(self, path: Path) -> str:
        """Return a path relative to the folder, with forward slashes."""
        return path.relative_to(self.folder).as_posix()

    def what_is_there(self) -> str:
        """Return a short description of the folder's contents, for error messages."""
        files = sorted(self.files)
        if not files:
            return "the folder holds no image"
        first = ", ".join(shown(name) for name in files[:_SHOWN])
        return f"the folder holds {len(files)} images ({first}{', ...' if len(files) > _SHOWN else ''})"

    def settle(self, found: Sequence[tuple[Any, Path]]) -> list[Path]:
        """Undo inexact matches if two different names were matched to the same file.

        Args:
            found: every name with the path that `find` returned for the name.

        Returns:
            the final path of each name, in the order of `found`.
        """
        if not self.guessed:
            return [path for _, path in found]
        guessed = dict(self.guessed)
        of_file: dict[str, set[Any]] = {}
        for name, path in found:  # two paths may be links to the same file
            of_file.setdefault(os.path.realpath(path), set()).add(name)
        doubtful = {name for name, path in guessed.items() if len(of_file[os.path.realpath(path)]) > 1}
        self.guessed = [(name, path) for name, path in self.guessed if name not in doubtful]
        return [self.folder / _harmless(name) if name in doubtful else path for name, path in found]

    def _guess(self, name: str) -> Path | None:
        ending = _EXTENSION.search(_plain(name))
        for key in _spellings(name, self._top_folders):
            fitting = [path for path in self._by_spelling.get(key, ()) if path not in self._taken]
            if len(fitting) > 1 and ending:  # prefer the extension that the JSON file states
                fitting = [path for path in fitting if path.lower().endswith(ending[0])]
            if len(fitting) == 1:
                path = self.folder / fitting[0]
                self.guessed.append((name, path))
                return path
            if fitting:
                return None
        return None

    @cached_property
    def files(self) -> list[str]:
        """The paths of all images in the folder and its subfolders, relative to the folder."""
        if self._listed is not None:
            hidden = (name for name in self._listed if any(part.startswith(".") for part in name.split("/")))
            return sorted(name for name in self._listed - frozenset(hidden) if _EXTENSION.search(name))
        found = []
        for root, folders, names in os.walk(self.folder):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            relative = Path(root).relative_to(self.folder)
            images = [name for name in names if not name.startswith(".") and _EXTENSION.search(name)]
            found += [(relative / name).as_posix() for name in images]
        return found

    @cached_property
    def _top_folders(self) -> frozenset[str]:
        """The names of the immediate subfolders, normalized by `_plain`."""
        if self._listed is not None:
            return frozenset(_plain(name.split("/")[0]) for name in self._listed if "/" in name)
        return frozenset(_plain(path.name) for path in self.folder.iterdir() if path.is_dir())

    @cached_property
    def _by_spelling(self) -> dict[tuple[str, bool], list[str]]:
        """A dict that maps a normalized name to all files with this name.

        Each file has two keys, both without the file's extension: (path, True) and (file name, False).
        """
        found: dict[tuple[str, bool], list[str]] = {}
        for path in self.files:
            plain = _EXTENSION.sub("", _plain(path))
            found.setdefault((plain, True), []).append(path)
            found.setdefault((plain.rsplit("/", 1)[-1], False), []).append(path)
        return found

    @cached_property
    def _taken(self) -> frozenset[str]:
        """The image files whose exact names are listed in the JSON file."""
        files = set(self.files)
        return frozenset(name for name in self._claimed if name in files)


def _plain(name: str) -> str:
    """Normalize a file name's slashes, Unicode characters and letter case, and decode its percent-escapes."""
    text = unicodedata.normalize("NFC", unquote(name.strip()).replace("\\", "/"))
    return unicodedata.normalize("NFC", text.casefold())


def _spellings(name: str, folders: Iterable[str]) -> list[tuple[str, bool]]:
    """Return the keys to look up in `_by_spelling` for a file name, best match first."""
    text = name[2:] if _DRIVE.match(name) else name
    try:
        url = urlsplit(text) if "://" in text else None
    except ValueError:
        url = None
    path = url.path if url else text
    if _QUERY.search(text):
        path = _QUERY.split(text, maxsplit=1)[1]
    elif "?" in path and _EXTENSION.search(path.split("?")[0]):
        path = path.split("?")[0]
    parts = [part for part in _plain(path).split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        return []
    parts[-1] = _EXTENSION.sub("", parts[-1])
    known = set(folders)
    keys = []
    for start in range(len(parts)):
        keys.append(("/".join(parts[start:]), True))
        if parts[start] in known and start < len(parts) - 1:
            return keys  # this folder exists, so a file of the same name in a different folder is not a match
    keys.append((parts[-1], False))
    return keys


def _harmless(name: str) -> str:
    """Remove `..` and empty parts from a file name, so that the path stays inside the folder."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")) or "_"
