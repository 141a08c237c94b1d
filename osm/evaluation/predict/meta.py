"""Meta files: what made a prediction file, and so what that file has to hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.files import read_json

_REQUIRED = ("checkpoint", "set", "part", "parts", "modes", "annotations", "items", "counts")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)) and value[0] <= value[1]


def _is_vocabulary(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and list(map(type, value)) == [str, int, str]


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "checkpoint": (_is_text, "the checkpoint's fingerprint, a text"),
    "set": (_is_text, "the set's name"),
    "part": (_is_count, "a number from 0"),
    "parts": (lambda value: _is_count(value) and value > 0, "a number of parts, 1 or more"),
    "modes": (lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)), "a list of modes"),
    "annotations": (_is_text, "the annotations' hash, a text"),
    "items": (_is_range, "[first image, image after the last]"),
    "counts": (
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())) and "named" in value,
        "the numbers of masks named, empty, ...",
    ),
    "images": (_is_count, "a number of images"),
    "limit": (lambda value: value is None or (_is_count(value) and value > 0), "a number of images, or null"),
    "alter": (_is_text, "the name of an alteration, or none"),
    "seed": (_is_count, "a number, 0 or more"),
    "vocabulary": (lambda value: value is None or _is_vocabulary(value), "[way, number of names, hash], or null"),
    "batch": (_is_count, "a number of images"),
    "seconds": (
        lambda value: type(value) in (int, float) and math.isfinite(value) and value >= 0,
        "a number of seconds",
    ),
    "files": (lambda value: isinstance(value, dict), "{field of the row: path}"),
}
"""What each field of a meta file has to be, and how a message says so."""


def read_meta(path: Path, set_name: str) -> dict[str, Any]:
    """Reads a meta file and checks every field that is known.

    Raises:
        OsmError: the file cannot be read, a field is missing or has a value that generation never writes, or the file
            belongs to another set.
    """
    meta, _ = read_json(path, "meta file")
    if not isinstance(meta, dict):
        raise OsmError(f"meta file {path}: expected an object, found {shown(meta)}")
    missing = [name for name in _REQUIRED if name not in meta]
    if missing:
        raise OsmError(f"meta file {path}: {', '.join(missing)} is missing; generate_pred.py writes it")
    for name, (fits, expected) in _FIELDS.items():
        if name in meta and not fits(meta[name]):
            raise OsmError(f"meta file {path}: {name} {shown(meta[name])}: expected {expected}")
    if meta["set"] != set_name:
        raise OsmError(f"meta file {path}: it belongs to set {shown(meta['set'])}, and is named as one of {set_name!r}")
    images, limit = meta.get("images"), meta.get("limit")
    if images is not None and meta["items"][1] > images:
        raise OsmError(f"meta file {path}: items {meta['items']} reach beyond its {images} images")
    if images is not None and limit is not None and images > limit:
        raise OsmError(f"meta file {path}: images {images} is over its limit {limit}")
    return meta


@dataclass(frozen=True)
class Content:
    """What a prediction file was found to hold.

    Attributes:
        entries: images; of proposals, the images that have some.
        masks: annotations that were to be named. named: those with a prediction. crowd: annotations passed over.
        modes: for each named mask, the modes that it has a name in.
    """

    entries: int
    masks: int
    named: int
    crowd: int
    modes: Sequence[frozenset[str]]


def check_content(path: Path, meta: Mapping[str, Any], found: Content) -> None:
    """Compares a prediction file with what its meta file says that it holds.

    Raises:
        OsmError: the numbers of images or masks differ, or the modes do.
    """
    start, stop = meta["items"]
    counts = meta["counts"]
    expected = {
        "images": (found.entries, stop - start),
        "masks with a prediction": (found.named, counts["named"]),
        "masks": (found.masks, sum(counts.get(key, 0) for key in ("named", "empty", "missing_in_mask", "unusable"))),
        "crowd annotations": (found.crowd, counts.get("crowd", 0)),
    }
    for what, (here, stated) in expected.items():
        if here != stated:
            raise OsmError(
                f"predictions {path}: {here} {what}, but its meta file says {stated}: the file is cut short, or is "
                "another run's; make it anew"
            )
    wanted = frozenset(meta["modes"])
    odd = next((modes for modes in found.modes if modes != wanted), None)
    if odd is not None:
        raise OsmError(
            f"predictions {path}: a mask is named in {shown(sorted(odd))}, but its meta file says "
            f"{shown(sorted(wanted))}; make it anew"
        )
