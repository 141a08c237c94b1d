"""Whether prediction files hold the masks of their set: compared with the split, where its files are at hand."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from osm.errors import OsmError, shown
from osm.forms import Split, form_class, split_of
from osm.storage.locations import is_remote

Masks = Counter[tuple[Hashable, Hashable]]
"""How often each (id, category id) occurs; crowd is left out."""


@dataclass(frozen=True)
class Entry:
    """One entry of a prediction file; `key` identifies the image (None: nothing does)."""

    key: Hashable
    masks: Masks


def row_with_files(row: Dataset, meta: Mapping[str, Any]) -> Dataset:
    """The set with the paths that generation noted where all of them are still there, else as the table has it."""
    files = meta.get("files")
    needs = form_class(row.form).needs
    # Not Path.exists, which fails for texts that can be no path.
    if isinstance(files, Mapping) and all(isinstance(files.get(f), str) and os.path.exists(files[f]) for f in needs):
        return replace(row, **{f: files[f] for f in needs})
    return row


def row_with_names(row: Dataset, meta: Mapping[str, Any]) -> Dataset:
    """A set whose names nothing in the table tells, with the json that generation noted, if that is still there."""
    files = meta.get("files")
    path = files.get("json_file") if isinstance(files, Mapping) else None
    if row.labels or row.json_file is not None or not isinstance(path, str) or not os.path.exists(path):
        return row
    return replace(row, json_file=path)


def split_at_hand(row: Dataset, meta: Mapping[str, Any]) -> Split | None:
    """The split that the predictions were made of; None where its files are missing, unreadable or have changed."""
    row = row_with_files(row, meta)
    places = [getattr(row, field) for field in form_class(row.form).needs]
    # A URL is the table's: those that generation noted are never asked for.
    if not all(place and (is_remote(place) or os.path.exists(place)) for place in places):
        return None
    try:
        split = split_of(row, max_bad_annotations=1.0)
    except OsmError:
        return None
    return split if meta.get("annotations", split.source_hash) == split.source_hash else None


def check_masks(
    split: Split, parts: Sequence[tuple[Path, Mapping[str, Any], Sequence[Entry]]], images: int | None
) -> None:
    """Compares the entries of a set's prediction files with the split's own.

    Args:
        parts: each file with its meta file's content (empty where there is none) and its entries.
        images: so many images of the split were to be named; None = all of them.

    Raises:
        OsmError: an image or a mask is not the split's, or an image of the split is missing.
    """
    count = len(split) if images is None else images
    if count > len(split):
        raise OsmError(f"{parts[0][0]}: made of {count} images, but {split.source} has {len(split)}")
    places: dict[Hashable, list[int]] = {}
    wanted: dict[Hashable, Masks | None] = {}
    for index in range(count):
        key, named = split.outline(index)
        places.setdefault(key, []).append(index)
        before = wanted.get(key)
        wanted[key] = None if named is None else Counter(named) + (before or Counter())
    found: dict[Hashable, tuple[Path, Masks]] = {}
    for path, meta, entries in parts:
        for entry in entries:
            if entry.key is None:  # nothing tells which image it is
                return
            _check_place(split, path, meta, entry.key, places.get(entry.key, []))
            found.setdefault(entry.key, (path, Counter()))[1].update(entry.masks)
    for key, expected in wanted.items():
        if key in found:
            if expected is not None and found[key][1] != expected:
                raise OsmError(_other_masks(split, found[key][0], key, found[key][1], expected))
        elif expected is None or expected:
            raise OsmError(
                f"set {split.row.name!r}: image {shown(key)} of {split.source} is in none of "
                f"{', '.join(path.name for path, _, _ in parts)}: a file is cut short; make it anew"
                + ("" if images is not None else " (what was made with --limit needs its meta file)")
            )


def _check_place(split: Split, path: Path, meta: Mapping[str, Any], key: Hashable, places: Sequence[int]) -> None:
    """Raises OsmError where an image is not the split's, or belongs to another part."""
    if not places:
        raise OsmError(
            f"predictions {path}: image {shown(key)} is not among the images of {split.source} that were to be named: "
            "the predictions are for another set"
        )
    if "items" in meta:
        start, stop = meta["items"]
        if not any(start <= place < stop for place in places):
            raise OsmError(
                f"predictions {path}: image {shown(key)} is number {places[0]} of {split.source}, but its meta file "
                f"says that it holds {start} to {stop - 1}; make it anew"
            )


def _other_masks(split: Split, path: Path, key: Hashable, found: Masks, wanted: Masks) -> str:
    """Which mask of an image is not the split's."""
    strange, lost = found - wanted, wanted - found
    own_id, category = next(iter(strange or lost))
    which = f"mask {shown(own_id)} of category {shown(category)}"
    what = f"has {which}, which {split.source} has not" if strange else f"lacks {which} of {split.source}"
    return f"predictions {path}: image {shown(key)} {what}: the predictions are for other masks"
