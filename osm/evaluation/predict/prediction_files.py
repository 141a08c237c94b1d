"""File names of prediction and meta files, and checks that all prediction files in a folder come from one run.

A meta file records how a prediction file was made, and therefore what the prediction file must contain. A prediction
run divides a dataset into parts and writes one prediction file for each part. The finished images of an unfinished part
are stored in a separate file, from which the prediction run can be resumed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.files import read_json

_PREDICTIONS = re.compile(r"(?P<set>[a-z][a-z0-9_]*)_pred_(?P<part>\d+)_of_(?P<parts>\d+)\.json")


def prediction_path(out_dir: Path, name: str, part: int, parts: int, kind: str = "pred") -> Path:
    """Return the path of one part's predictions. `kind` is `pred`, or `proposals` for the names of proposal masks."""
    return out_dir / f"{name}_{kind}_{part}_of_{parts}.json"


def meta_path(predictions: Path, kind: str = "pred") -> Path:
    """Return the path of the meta file that belongs to a prediction file."""
    name, _, part = predictions.name.rpartition(f"_{kind}_")
    return predictions.with_name(f"{name}_meta_{part}" if kind == "pred" else f"{name}_meta_{kind}_{part}")


def partial_path(predictions: Path) -> Path:
    """Return the path of the file in which an unfinished part stores its finished images."""
    return predictions.with_suffix(".partial.jsonl")


def list_predictions(out_dir: Path) -> Iterator[tuple[str, int]]:
    """For each prediction file in a folder, yield the dataset name and number of parts parsed from its file name."""
    for path in sorted(out_dir.iterdir()):
        if match := _PREDICTIONS.fullmatch(path.name):
            yield match["set"], int(match["parts"])


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
"""For each field of a meta file, the check of its value, and the description of a valid value for error messages."""


def read_meta(path: Path, set_name: str) -> dict[str, Any]:
    """Read a meta file and check every known field.

    Raises:
        OsmError: The file cannot be read, a field is missing or has a value that generate_pred.py never writes, or the
            file belongs to a different dataset.
    """
    meta, _ = read_json(path, "meta file")
    if not isinstance(meta, dict):
        raise OsmError(f"meta file {path}: expected a JSON object, found {shown(meta)}")
    missing = [name for name in _REQUIRED if name not in meta]
    if missing:
        raise OsmError(
            f"meta file {path}: required fields missing: {', '.join(missing)}; expected a file written by "
            "generate_pred.py"
        )
    for name, (fits, expected) in _FIELDS.items():
        if name in meta and not fits(meta[name]):
            raise OsmError(f"meta file {path}: {name} {shown(meta[name])}: expected {expected}")
    if meta["set"] != set_name:
        raise OsmError(
            f"meta file {path}: the file was written for dataset {shown(meta['set'])}, but its name belongs to "
            f"dataset {set_name!r}"
        )
    images, limit = meta.get("images"), meta.get("limit")
    if images is not None and meta["items"][1] > images:
        raise OsmError(f"meta file {path}: the range of items {meta['items']} exceeds the number of images ({images})")
    if images is not None and limit is not None and images > limit:
        raise OsmError(f"meta file {path}: the number of images ({images}) exceeds the limit ({limit})")
    return meta


@dataclass(frozen=True)
class Content:
    """The numbers of images and masks that a prediction file actually contains.

    Attributes:
        entries: number of images. In a file of proposals, this is the number of images with proposals.
        masks: number of annotations, without crowd annotations.
        named: number of annotations with a prediction.
        crowd: number of crowd annotations, which are not named.
        modes: for each named mask, the modes in which it has a name.
    """

    entries: int
    masks: int
    named: int
    crowd: int
    modes: Sequence[frozenset[str]]


def check_content(path: Path, meta: Mapping[str, Any], found: Content) -> None:
    """Check that the contents of a prediction file match its meta file.

    Raises:
        OsmError: The numbers of images or masks differ, or the modes differ.
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
                f"predictions {path}: the number of {what} is {here} in the file, but {stated} in its meta file; the "
                "file is cut short or belongs to a different run; generate the file again"
            )
    wanted = frozenset(meta["modes"])
    odd = next((modes for modes in found.modes if modes != wanted), None)
    if odd is not None:
        raise OsmError(
            f"predictions {path}: a mask has names in the modes {shown(sorted(odd))}, but the meta file lists "
            f"the modes {shown(sorted(wanted))}; generate the file again"
        )


_SAME_IN_ALL_PARTS = ("annotations", "modes", "limit", "alter", "seed", "vocabulary")


def check_all_there(name: str, paths: Sequence[Path]) -> None:
    """Raise OsmError if the prediction file of any part is missing."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        names = ", ".join(path.name for path in missing)
        unfinished = [path.name for path in missing if partial_path(path).exists()]
        hint = f" (unfinished, resume with generate_pred.py: {', '.join(unfinished)})" if unfinished else ""
        raise OsmError(f"dataset {name!r}: {len(missing)} of {len(paths)} parts are missing: {names}{hint}")


def read_metas(name: str, paths: Sequence[Path], kind: str = "pred") -> dict[Path, dict[str, Any]]:
    """Read the meta files of a dataset's prediction files, and check that they all come from one run.

    Prediction files without a meta file are skipped.

    Args:
        name: name of the dataset.
        paths: the prediction files of all parts, in order.
        kind: `pred`, or `proposals` for named proposals.

    Raises:
        OsmError: A meta file is invalid, the meta files come from different runs, or their ranges of images are not
            consecutive.
    """
    there = {path: meta_path(path, kind) for path in paths}
    found = {path: read_meta(beside, name) for path, beside in there.items() if os.path.lexists(beside)}
    _check_one_run(paths, {path.name: meta for path, meta in found.items()})
    return found


def _check_one_run(paths: Sequence[Path], metas: Mapping[str, Mapping[str, Any]]) -> None:
    checkpoints = {str(meta.get("checkpoint")): name for name, meta in metas.items()}
    if len(checkpoints) > 1:
        raise OsmError(f"the prediction files come from different checkpoints: {listing(checkpoints)}")
    first_name, first = next(iter(metas.items()), ("", {}))
    for name, meta in metas.items():
        changed = [key for key in _SAME_IN_ALL_PARTS if meta.get(key) != first.get(key)]
        if changed:
            raise OsmError(
                f"{name} and {first_name} were made with different values of {', '.join(changed)}; generate one of "
                "the two files again"
            )
    _check_ranges(paths, metas)


def _check_ranges(paths: Sequence[Path], metas: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise OsmError unless the image ranges in the meta files of all parts are consecutive."""
    stop: int | None = 0
    before = ""
    for part, path in enumerate(paths):
        meta = metas.get(path.name, {})
        stated = (meta.get("part", part), meta.get("parts", len(paths)))
        if stated != (part, len(paths)):
            raise OsmError(
                f"{path.name} is part {stated[0]} of {stated[1]} according to its meta file, but part {part} of "
                f"{len(paths)} according to its name; generate the file again"
            )
        start, end = meta.get("items", (None, None))
        if start is not None and stop is not None and start != stop:
            wrong = "the parts overlap" if start < stop else f"images {stop} to {start - 1} are missing"
            raise OsmError(
                f"{path.name} starts at image {start} instead of image {stop}: {wrong}; regenerate this file or the "
                "file of the previous part"
            )
        stop, before = end, path.name
    count = next((meta["images"] for meta in metas.values() if "images" in meta), None)
    if count is not None and stop is not None and stop != count:
        raise OsmError(f"{before} ends at image {stop}, but the run covers {count} images; generate the file again")


def made_with(meta: Mapping[str, Any]) -> list[str]:
    """Return a note on each non-default setting (altered input, image limit, vocabulary) recorded in a meta file."""
    notes = []
    if meta.get("alter", "none") != "none":
        notes.append(f"made with --alter {shown(meta['alter'])}")
    if meta.get("limit") is not None:
        notes.append(f"made with --limit {shown(meta['limit'])}: not the whole set")
    if vocabulary := meta.get("vocabulary"):
        notes.append(f"named with --vocabulary ({shown(vocabulary[1])} names, {shown(vocabulary[0])})")
    return notes


class UniqueImages:
    """Detects images that occur in more than one prediction file of a dataset."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._files: dict[Hashable, Path] = {}

    def add(self, key: Hashable, path: Path) -> None:
        """Record that a prediction file contains an image. Raise OsmError if two files contain the same image."""
        other = path if key is None else self._files.setdefault(key, path)
        if other != path:
            raise OsmError(
                f"dataset {self._name!r}: image {shown(key)} is in both {other.name} and {path.name}: the parts "
                "overlap; generate one of the two files again"
            )


def listing(checkpoints: Mapping[str, str]) -> str:
    """Return a string such as `a.json from <checkpoint>, b.json from <checkpoint>` for an error message."""
    return ", ".join(f"{name} from {checkpoint}" for checkpoint, name in checkpoints.items())
