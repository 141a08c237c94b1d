"""Builds shard samples from the entries in a dataset's listing, and assigns a key to each sample."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from osm.data.shard_writer import MAX_NAME_BYTES
from osm.errors import SampleError, shown
from osm.forms.base import Entry, Form, Losses, SetFiles
from osm.forms.picture import Picture, Size
from osm.forms.set_files import naming_file, read_file
from osm.forms.split import entry_size
from osm.io.images import decode, open_image, to_rgb

SEED = 20230731
_LONGEST_EXTENSION = ".whole.png"
_KEPT_AS_THEY_ARE = {"JPEG": "jpg", "MPO": "jpg", "PNG": "image.png"}
_HASH = 12  # the number of characters in a key's hash


@dataclass
class BuiltSample:
    """A sample, or the reason why it could not be built.

    Attributes:
        members: (extension, bytes) of each member.
        losses: the skipped annotations.
        annotations: the number of annotations in the sample.
        reason, message: why the sample could not be built; empty if it was built.
    """

    members: list[tuple[str, bytes]] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    annotations: int = 0
    reason: str = ""
    message: str = ""


def build(item: tuple[str, Entry], form: type[Form], files: SetFiles, layout: str) -> BuiltSample:
    """Check an entry's files and build its sample. The argument `item` is the pair (key, entry)."""
    built, entry = BuiltSample(), item[1]
    try:
        image, extension, picture = _image(form, files, entry, built.losses)
        members, segments, kept = form.check(files, entry, picture.size, built.losses)
        record = {**entry.record, "width": picture.size[0], "height": picture.size[1]}
        if segments is not None:
            if not segments:
                _nothing_usable(form, entry, built.losses)
            record["segments_info"] = segments
        if picture.upright:
            record["upright"] = True  # tells training to apply the EXIF orientation too
        built.annotations = len(kept)
        if layout == "published":
            names = (*form.published, *(["upright"] if picture.upright else []))
            parts = {"image_base64": image, **{form.mask_members[name]: data for name, data in members.items()}}
            coded = {name: base64.b64encode(data).decode() for name, data in parts.items()}
            built.members = [("json", _json(coded | {name: record[name] for name in names}, entry))]
        else:
            built.members = [(extension, image), *members.items(), ("json", _json(record, entry))]
    except SampleError as error:
        return BuiltSample(losses=built.losses, reason=error.reason, message=str(error))
    return built


def _nothing_usable(form: type[Form], entry: Entry, losses: Losses) -> None:
    raise SampleError(
        form.nothing_usable,
        f"image {entry.image}: none of its annotations are usable; the first error: {losses.first}",
    )


def _image(form: type[Form], files: SetFiles, entry: Entry, losses: Losses) -> tuple[bytes, str, Picture]:
    """Return an image's bytes, file extension and `Picture`, after checking that the file is complete.

    Images in formats that shards do not support are converted to PNG.
    """
    path = entry.image

    def undecided() -> None:
        message = (
            f"image {path}: has an EXIF orientation, but the sizes do not show whether its annotations were drawn on "
            f"the upright image; upright is assumed (if not, add a dataset row with `exif: raw`)"
        )
        losses.add("exif_undecided", message)

    with naming_file(path, "image"):
        data = read_file(path)
        picture = Picture.by_rule(data, files.row.exif, lambda: entry_size(form, entry), undecided)
        _check_stated(entry, picture)
        image = open_image(data)
        extension = _KEPT_AS_THEY_ARE.get(str(image.format))
        if extension is not None:
            width, height = image.size
            image.draft(None, (max(1, width // 8), max(1, height // 8)))  # a cheap way to detect a truncated JPEG
            decode(image)
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                to_rgb(image)  # raises an error for values that cannot be scaled
            return data, extension, picture
        written = io.BytesIO()
        picture.rgb().save(written, "PNG")
        upright = Picture(written.getvalue())
        return written.getvalue(), "image.png", upright


def _check_stated(entry: Entry, picture: Picture) -> None:
    size: Size = picture.size
    if entry.stated is not None and entry.stated != size:
        stated = " x ".join(map(shown, entry.stated))
        raise SampleError("size_mismatch", f"is {size[0]} x {size[1]}, but the JSON file states {stated}")


def keyed(entries: Sequence[Entry], root: Path) -> list[tuple[str, Entry]]:
    """Assign a unique key to each entry, and return (key, entry) pairs in the order in which shards store them.

    The result is deterministic. The key is the image's file name. If several images have the same file name, the key is
    the image's path relative to `root`. If several entries have the same image, the image id is appended to the key. A
    key that is too long for a tar member name is truncated, and a hash is appended.
    """
    kinds: tuple[Callable[[Entry], str], ...] = (
        lambda entry: entry.key_hint or entry.image.stem,
        lambda entry: _path_key(entry, root),
        lambda entry: f"{_path_key(entry, root)}_{_plain(entry.record.get('image_id', ''))}",
        lambda entry: _hashed(f"{_path_key(entry, root)} {entry.record!r}"),
    )
    keys: list[str] = [""] * len(entries)
    open_places = list(range(len(entries)))
    taken: set[str] = set()
    for kind in kinds:
        tried = {place: _fitting(kind(entries[place]).replace(".", "_")) for place in open_places}
        counts = Counter(tried.values())
        fine = [place for place in open_places if counts[tried[place]] == 1 and tried[place] not in taken]
        for place in fine:
            keys[place] = tried[place]
            taken.add(tried[place])
        open_places = [place for place in open_places if not keys[place]]
        # If several entries share a candidate key, none of them gets it, so keys do not depend on the order of entries.
        taken |= set(counts)
    for place in open_places:  # the remaining entries are duplicates
        keys[place] = _hashed(f"{place} {entries[place].record!r}")
    order = sorted(zip(keys, entries, strict=True), key=lambda one: one[0])
    random.Random(SEED).shuffle(order)
    return order


def _path_key(entry: Entry, root: Path) -> str:
    try:
        relative = PurePosixPath(entry.image.relative_to(root).as_posix())
    except ValueError:
        relative = PurePosixPath(entry.image.name)
    return "_".join(relative.with_suffix("").parts)


def _plain(value: Any) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in str(value))


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[: 2 * _HASH]


def _fitting(key: str) -> str:
    """Shorten a key so that it can be used as a tar member name."""
    room = MAX_NAME_BYTES - len(_LONGEST_EXTENSION)
    data = key.encode(errors="replace")
    if len(data) <= room:
        return key
    return f"{data[: room - _HASH - 1].decode(errors='ignore')}_{_hashed(key)[:_HASH]}"


def _json(value: dict[str, Any], entry: Entry) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        message = f"image {entry.image}: {error} (NaN, infinity, or nested too deeply)"
        raise SampleError("annotation_malformed", message) from None
