"""The files of a set: listed by name, read, and checked to be whole and of the right size."""

from __future__ import annotations

import hashlib
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from osm.errors import OsmError, SampleError
from osm.files import check_regular_file
from osm.forms.base import Size
from osm.io.images import open_image, read_ids

MAPS = (".tif", ".tiff", ".png")


def check_folder(flag: str, folder: str | Path) -> Path:
    """Raises OsmError where there is no such folder."""
    if not Path(folder).is_dir():
        raise OsmError(f"--{flag} {folder}: there is no such folder")
    return Path(folder)


def files_by_stem(where: str, folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder with one of the endings (in lower or upper case), by name without it.

    Raises:
        OsmError: there is none, or two have one stem; `where` begins the message.
    """
    if not folder.is_dir():
        raise OsmError(f"{where}: there is no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in endings or path.name.startswith("."):
            continue
        stem = unicodedata.normalize("NFC", path.stem)  # macOS writes letters and their marks apart
        if stem in found:
            raise OsmError(f"{where}: {found[stem].name} and {path.name} are one image; remove one")
        found[stem] = path
    if not found:
        raise OsmError(f"{where}: holds no {', '.join(endings)} file")
    return found


def digest(names: Iterable[str]) -> str:
    """Of a listing: other files are another set."""
    return hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()


@contextmanager
def about(path: Path, kind: str) -> Iterator[None]:
    """Names the file in an error, and says `mask_...` for a mask's."""
    try:
        yield
    except SampleError as error:
        raise SampleError(error.reason.replace("image_", f"{kind}_"), f"{kind} {path}: {error}") from None
    except (IndexError, struct.error, zlib.error) as error:  # on some broken .mat files
        raise SampleError(f"{kind}_unreadable", f"{kind} {path}: broken data ({error})") from None


def read(path: Path) -> bytes:
    """A file's bytes. Raises SampleError where it is missing, not a regular file, or cannot be read."""
    try:
        check_regular_file(path, "file")
        return path.read_bytes()
    except FileNotFoundError:
        raise SampleError("image_missing", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise SampleError("image_unreadable", f"cannot be read ({error})") from None


def check_size(image: Path, found: Size, size: Size) -> None:
    """Raises SampleError if a mask's size differs from its image's."""
    if found != size:
        raise SampleError("size_mismatch", f"is {found[0]} x {found[1]}, its image {image} is {size[0]} x {size[1]}")


def read_label_map(path: Path, image: Path, size: Size) -> tuple[bytes, str, set[int]]:
    """A label map's bytes, its format (`PNG` or `TIFF`) and the ids in it, once it is known to fit the image."""
    with about(path, "mask"):
        data = read(path)
        opened = open_image(data)
        if opened.format not in ("PNG", "TIFF"):
            raise SampleError("mask_format", f"is a {opened.format}; a PNG or TIFF of ids is needed")
        check_size(image, opened.size, size)
        return data, str(opened.format), set(distinct(read_ids(data)))


def distinct(ids: np.ndarray) -> list[int]:
    """The ids of a label map, in order."""
    flat = ids.ravel()
    # Of runs of one id the first pixel: far fewer to sort than there are pixels.
    starts = np.concatenate([[True], flat[1:] != flat[:-1]]) if len(flat) else np.zeros(0, bool)
    return np.unique(flat[starts]).tolist()
