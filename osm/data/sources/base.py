"""What every source form has in common: from a set's files to samples, in two steps.

`plan` reads what describes the set as a whole (a json, the names in its folders): which samples there will be, in which
order. What is wrong there is wrong with the set, and ends the run before the first shard is written. `build` reads and
checks the files of one sample.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import struct
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from osm.data.images import decode, open_image, read_ids
from osm.data.shard_writer import MAX_NAME_BYTES
from osm.errors import OsmError, SampleError, shown
from osm.files import check_regular_file

SEED = 20230731
_LONGEST_EXTENSION = ".image.png"
# The field of the published layout for each member that holds a mask.
_PUBLISHED = {
    "png": "pan_base64",
    "tif": "seg_base64",
    "part.png": "part_seg_base64",
    "whole.png": "whole_seg_base64",
}

Warnings = list[tuple[str, str, int]]  # (reason, message, count)
Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Item:
    """A sample to be: where its files are, and its json member but for what the files have to tell."""

    key: str
    image: Path
    masks: Mapping[str, Path]
    record: dict[str, Any]


@dataclass
class Built:
    """A sample's members, or the reason why there is none."""

    members: list[tuple[str, bytes]] = field(default_factory=list)
    warnings: Warnings = field(default_factory=list)
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Plan:
    """What a set gives.

    Attributes:
        items: in the order of the shards.
        left_out: by reason, what is no item.
        arguments: whatever decides the content of the shards.
        categories: for `categories.json`; None where the source has no names.
    """

    items: list[Item]
    left_out: Counter[str]
    arguments: dict[str, Any]
    categories: list[dict[str, Any]] | None


class Items:
    """Items by key, which have to differ."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}

    def add(self, where: str, key: str, image: Path, masks: Mapping[str, Path], record: dict[str, Any]) -> None:
        """Adds one; `record` has the image's `file_name`.

        Raises:
            OsmError: the key is too long for a tar member, or there already.
        """
        key = key.replace(".", "_")  # WebDataset takes what follows the first dot for the extension
        if len((key + _LONGEST_EXTENSION).encode(errors="replace")) > MAX_NAME_BYTES:
            raise OsmError(f"{where}: the name {image.name!r} is too long for a tar member, shorten it")
        if key in self._items:
            both = f"{self._items[key].record['file_name']!r} and {record['file_name']!r}"
            raise OsmError(f"{where}: {both} both give the sample key {key!r}; rename one of them")
        self._items[key] = Item(key, image, masks, record)

    def shuffled(self) -> list[Item]:
        """The same order wherever and whenever it is asked for."""
        order = [self._items[key] for key in sorted(self._items)]
        random.Random(SEED).shuffle(order)
        return order


class Source(ABC):
    """A set in one form of storage. The fields of a subclass, a dataclass, are its command line arguments.

    Attributes:
        form: its name.
        what: what it reads, for the help.
        fine: reasons for which a file may give no sample without anything being wrong.
        published: the fields of the json member that the published layout keeps.
    """

    form: ClassVar[str]
    what: ClassVar[str]
    fine: ClassVar[frozenset[str]] = frozenset()
    published: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the form's own arguments."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        return cls(**{one.name: getattr(args, one.name) for one in fields(cls)})  # type: ignore[arg-type]

    @abstractmethod
    def plan(self) -> Plan:
        """Which samples there will be.

        Raises:
            OsmError: an argument is wrong, or what describes the set is.
        """

    @abstractmethod
    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The masks' members, and fields for the json member, once they are known to fit an image of `size`.

        Raises:
            SampleError: they do not.
        """

    def build(self, item: Item, layout: str) -> Built:
        """Checks an item's files and makes its sample."""
        built = Built()
        try:
            image, extension, size = check_image(item)
            masks, more = self.check(item, size, built.warnings)
            record = {**item.record, "width": size[0], "height": size[1], **more}
            if layout == "published":
                files = {"image_base64": image, **{_PUBLISHED[name]: data for name, data in masks.items()}}
                coded = {name: base64.b64encode(data).decode() for name, data in files.items()}
                built.members = [("json", _json(coded | {name: record[name] for name in self.published}, item))]
            else:
                built.members = [(extension, image), *masks.items(), ("json", _json(record, item))]
        except SampleError as error:
            return Built(reason=error.reason, message=str(error))
        return built


def check_folder(flag: str, folder: str | Path) -> Path:
    """Raises OsmError where there is no such folder."""
    if not Path(folder).is_dir():
        raise OsmError(f"--{flag} {folder}: there is no such folder")
    return Path(folder)


def files_by_stem(flag: str, folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder with one of the endings (in lower or upper case), by name without it.

    Raises:
        OsmError: there is none, or two have one stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(check_folder(flag, folder).iterdir()):
        if path.suffix.lower() not in endings or path.name.startswith("."):
            continue
        if path.stem in found:
            raise OsmError(f"--{flag} {folder}: {found[path.stem].name} and {path.name} are one image; remove one")
        found[path.stem] = path
    if not found:
        raise OsmError(f"--{flag} {folder}: holds no {', '.join(endings)} file")
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


def check_image(item: Item) -> tuple[bytes, str, Size]:
    """The image's bytes, extension and size, once it is known to be whole."""
    with about(item.image, "image"):
        data = read(item.image)
        image = open_image(data)
        extension = {"JPEG": "jpg", "MPO": "jpg", "PNG": "image.png"}.get(str(image.format))
        if extension is None:
            raise SampleError("image_format", f"is a {image.format}; a JPEG or PNG is needed")
        size = image.size
        given = (item.record.get("width", size[0]), item.record.get("height", size[1]))
        if given != size:
            stated = " x ".join(map(shown, given))
            raise SampleError("size_mismatch", f"is {size[0]} x {size[1]}, in the json {stated}")
        image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))  # finds a truncated JPEG at little cost
        decode(image)
        return data, extension, size


def check_size(item: Item, found: Size, size: Size) -> None:
    """Raises SampleError where a mask is not as large as the image."""
    if found != size:
        raise SampleError(
            "size_mismatch", f"is {found[0]} x {found[1]}, its image {item.image} is {size[0]} x {size[1]}"
        )


def check_label_map(item: Item, member: str, size: Size) -> tuple[bytes, set[int]]:
    """A label map's bytes and the ids in it, once it is known to fit the image."""
    path = item.masks[member]
    with about(path, "mask"):
        data = read(path)
        image = open_image(data)
        needed = "TIFF" if member == "tif" else "PNG"
        if image.format != needed:
            raise SampleError(f"mask_not_{member[-3:]}", f"is a {image.format}; a {needed} is needed")
        check_size(item, image.size, size)
        return data, set(distinct(read_ids(data)))


def distinct(ids: np.ndarray) -> list[int]:
    """The ids of a label map, in order."""
    flat = ids.ravel()
    # Of runs of one id the first pixel: far fewer to sort than there are pixels.
    starts = np.concatenate([[True], flat[1:] != flat[:-1]]) if len(flat) else np.zeros(0, bool)
    return np.unique(flat[starts]).tolist()


def _json(value: dict[str, Any], item: Item) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        message = f"image {item.image}: {error} (NaN, infinity, or nested too deeply)"
        raise SampleError("annotation_malformed", message) from None
