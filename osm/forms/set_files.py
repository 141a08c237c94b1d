"""A dataset's files: where they are stored and how they are downloaded, listed, read and checked."""

from __future__ import annotations

import hashlib
import os
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError
from osm.files import check_regular_file
from osm.io.images import open_image, read_ids
from osm.storage import remote
from osm.storage.cache import RemoteFolder, localize, user_cache
from osm.storage.locations import check_location, is_remote, public

LABEL_MAP_SUFFIXES = (".tif", ".tiff", ".png")


# -- where the files are stored ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SetFiles:
    """The locations of a dataset's files and the settings that determine how they are read.

    Attributes:
        name: the name of the dataset, for error messages.
        image_dir: the folder of the images.
        ann_dir: the folder of the label maps, panoptic PNGs or .mat files.
        json_file: the file of the annotations.
        labels: the class names of the ids, as a table of the project or a JSON file; None = the names in `json_file`.
        flag: the template for a field's name in error messages; `{}` is replaced by the field.
        row: the row of the dataset table, which determines file naming, EXIF handling and ignored ids.
        filter_lvis_val: whether to skip COCO train images that are in LVIS val. It has no effect on datasets whose
            categories are not COCO's.
        extra_fields: the values of further fields that an annotation format defines, by field.
        flag_names: the user-visible name of each field whose flag or YAML key differs from the field's name.
        folders: the remote folders by field. The field itself then holds the path of the local copy.
        urls: the original URL of each field that holds a local copy.
    """

    name: str
    image_dir: str | Path
    row: Dataset
    ann_dir: str | Path | None = None
    json_file: str | Path | None = None
    labels: str | None = None
    flag: str = "--{}"
    filter_lvis_val: bool = False
    extra_fields: Mapping[str, Any] = field(default_factory=dict)
    flag_names: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, RemoteFolder] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)

    def flag_of(self, field_name: str) -> str:
        """Return the flag or YAML key that sets a field."""
        return self.flag.format(self.flag_names.get(field_name, field_name))

    def _value(self, field_name: str) -> Any:
        return self.extra_fields[field_name] if field_name in self.extra_fields else getattr(self, field_name)

    def where(self, field_name: str) -> str:
        """Return a field's flag and value, for use at the start of error messages."""
        return f"{self.flag_of(field_name)} {self.urls.get(field_name, self._value(field_name))}"

    def recorded(self, field_name: str) -> str:
        """Return a field's location in the form stored in metadata files: an absolute path or a URL."""
        return self.urls.get(field_name) or str(Path(self._value(field_name)).resolve())

    def listed(self, field_name: str) -> list[str] | None:
        """Return the paths of the files in a remote folder, or None if the server cannot list them."""
        return self.folders[field_name].names

    def fetch(self, paths: Iterable[Path]) -> None:
        """Download the files at `paths` that belong to remote folders; see `RemoteFolder.fetch`."""
        paths = list(paths) if self.folders else []
        for folder in self.folders.values():
            folder.fetch(path for path in paths if path.is_relative_to(folder.root))

    def folder(self, field_name: str) -> Path:
        """Return the folder specified by a field such as `image_dir`. Raises OsmError if the folder does not exist."""
        value = getattr(self, field_name)
        if value is None or not Path(value).is_dir():
            raise OsmError(f"{self.where(field_name)}: there is no such folder")
        return Path(value)


class FetchesWholeFolders(Protocol):
    """The interface that `localize_files` requires of an annotation format."""

    def whole_folders(self, files: SetFiles) -> list[str]:
        """Return the remote folders that must be downloaded in full."""


def localize_files(files: SetFiles, form: FetchesWholeFolders) -> SetFiles:
    """Return a copy of `files` in which every location is a local path.

    Files that describe the whole dataset are downloaded immediately. If a JSON file lists the files in a remote folder,
    `SetFiles.fetch` downloads each of them on demand.

    Raises:
        OsmError: a location is malformed, or a file or folder does not exist.
        RunStopped: the server fails.
    """
    files = _with_plain_paths(files)
    values: dict[str, Any] = {name: getattr(files, name) for name in ("json_file", "labels")}
    values["refs_file"] = files.extra_fields.get("refs_file")
    urls: dict[str, str] = {name: public(value) for name, value in values.items() if value and is_remote(value)}
    local: dict[str, Any] = {name: str(localize(values[name], files.flag_of(name))) for name in urls}
    extra = {**files.extra_fields, **{name: local.pop(name) for name in list(local) if name in files.extra_fields}}
    files = replace(files, **local, extra_fields=extra, urls=urls)
    cache, whole = user_cache(), form.whole_folders(files)
    for url in whole:
        with remote.as_user_error(url, files.flag_of("image_dir")):
            cache.get_tree(check_location(url, files.flag_of("image_dir")))
    folders: dict[str, RemoteFolder] = {}
    for name in ("image_dir", "ann_dir"):
        value = getattr(files, name)
        if value and is_remote(value):
            url = check_location(value, files.flag_of(name))
            urls[name] = public(url)
            local[name] = str(cache.path_of(url))
            if value not in whole:
                folders[name] = RemoteFolder(url, cache)
    return replace(files, **local, folders=folders, urls=urls)


def _with_plain_paths(files: SetFiles) -> SetFiles:
    """Remove the `file://` prefix from all locations.

    Raises OsmError if a location is a command or has an unsupported protocol.
    """
    changes: dict[str, Any] = {}
    for name in ("image_dir", "ann_dir", "json_file", "labels"):
        value = getattr(files, name)
        if value and not os.path.lexists(value) and (path := check_location(value, files.flag_of(name))) != str(value):
            changes[name] = path
    return replace(files, **changes)


# -- listing -----------------------------------------------------------------------------------------------------------


def check_folder(flag: str, folder: str | Path) -> Path:
    """Return the path of a folder. Raises OsmError if the folder does not exist."""
    if not Path(folder).is_dir():
        raise OsmError(f"--{flag} {folder}: there is no such folder")
    return Path(folder)


def files_by_stem(where: str, folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Map file names without extension to paths, for those files in a folder that have one of the given extensions.

    Args:
        where: the flag and value of the folder, with which error messages begin.
        folder: the folder.
        endings: the extensions in lower case. Letter case does not matter in file names.

    Raises:
        OsmError: no file has one of the extensions, or two files have the same name without extension.
    """
    if not folder.is_dir():
        raise OsmError(f"{where}: there is no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in endings or path.name.startswith("."):
            continue
        stem = unicodedata.normalize("NFC", path.stem)  # macOS stores a letter and its accent as two characters
        if stem in found:
            raise OsmError(f"{where}: {found[stem].name} and {path.name} are one image; remove one")
        found[stem] = path
    if not found:
        raise OsmError(f"{where}: holds no {', '.join(endings)} file")
    return found


def names_digest(names: Iterable[str]) -> str:
    """Return a SHA-256 hash of file names, which changes when files are added, removed or renamed."""
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """Add a file's kind (such as `mask`) and path to error messages, and the kind to error reasons.

    For example, the reason `image_unreadable` becomes `mask_unreadable`.
    """
    try:
        yield
    except SampleError as error:
        raise SampleError(error.reason.replace("image_", f"{kind}_"), f"{kind} {path}: {error}") from None
    except (IndexError, struct.error, zlib.error) as error:  # some broken .mat files raise these
        raise SampleError(f"{kind}_unreadable", f"{kind} {path}: broken data ({error})") from None


def read_file(path: Path) -> bytes:
    """Return a file's content. Raises SampleError if the file is missing, not a regular file, or unreadable."""
    try:
        check_regular_file(path, "file")
        return path.read_bytes()
    except FileNotFoundError:
        raise SampleError("image_missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise SampleError("image_unreadable", f"cannot be read ({error})") from None


def check_mask_size(image: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise SampleError if a mask and its image differ in size. Sizes are (width, height)."""
    if found != size:
        raise SampleError("size_mismatch", f"is {found[0]} x {found[1]}, its image {image} is {size[0]} x {size[1]}")


def read_label_map(path: Path, image: Path, size: tuple[int, int]) -> tuple[bytes, str, set[int]]:
    """Read a label map and check that it has the same size as the image.

    Args:
        path: the file of the label map.
        image: the file of the image, for error messages.
        size: (width, height) of the image.

    Returns:
        the file's bytes, its format (`PNG` or `TIFF`), and the ids that occur in it.

    Raises:
        SampleError: the file cannot be read, is neither a PNG nor a TIFF, or differs from the image in size.
    """
    with naming_file(path, "mask"):
        data = read_file(path)
        opened = open_image(data)
        if opened.format not in ("PNG", "TIFF"):
            raise SampleError("mask_format", f"is a {opened.format}; a PNG or TIFF of ids is needed")
        check_mask_size(image, opened.size, size)
        return data, str(opened.format), set(distinct_ids(read_ids(data)))


def distinct_ids(ids: np.ndarray) -> list[int]:
    """Return the ids that occur in a label map, in ascending order."""
    flat = ids.ravel()
    # Sort only one pixel per run of equal ids, because a label map has far fewer runs than pixels.
    starts = np.concatenate([[True], flat[1:] != flat[:-1]]) if len(flat) else np.zeros(0, bool)
    return np.unique(flat[starts]).tolist()
