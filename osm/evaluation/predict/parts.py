"""Whether the parts of a set belong together: of one run, each image in one of them, none missing."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.evaluation.predict.meta import read_meta
from osm.evaluation.predict.prediction_files import meta_path, partial_path

_SAME_IN_ALL_PARTS = ("annotations", "modes", "limit", "alter", "seed", "vocabulary")


def check_all_there(name: str, paths: Sequence[Path]) -> None:
    """Raises OsmError where the file of a part is missing."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        names = ", ".join(path.name for path in missing)
        unfinished = [path.name for path in missing if partial_path(path).exists()]
        hint = f" (unfinished, go on with generate_pred.py: {', '.join(unfinished)})" if unfinished else ""
        raise OsmError(f"set {name!r}: {len(missing)} of {len(paths)} parts are missing: {names}{hint}")


def read_metas(name: str, paths: Sequence[Path], kind: str = "pred") -> dict[Path, dict[str, Any]]:
    """The meta files of a set's prediction files, as far as they are there, after a check that they come from one run.

    Args:
        name: of the set. kind: of the prediction files (see `osm.evaluation.predict.prediction_files`).

    Raises:
        OsmError: a meta file is not right, or they are of different runs, or their ranges of images do not follow one
            another.
    """
    there = {path: meta_path(path, kind) for path in paths}
    found = {path: read_meta(beside, name) for path, beside in there.items() if os.path.lexists(beside)}
    _check_one_run(paths, {path.name: meta for path, meta in found.items()})
    return found


def _check_one_run(paths: Sequence[Path], metas: Mapping[str, Mapping[str, Any]]) -> None:
    checkpoints = {str(meta.get("checkpoint")): name for name, meta in metas.items()}
    if len(checkpoints) > 1:
        raise OsmError(f"parts of different checkpoints: {listing(checkpoints)}")
    first_name, first = next(iter(metas.items()), ("", {}))
    for name, meta in metas.items():
        changed = [key for key in _SAME_IN_ALL_PARTS if meta.get(key) != first.get(key)]
        if changed:
            raise OsmError(
                f"{name} and {first_name} were made with another {', '.join(changed)}; make one of them anew"
            )
    _check_ranges(paths, metas)


def _check_ranges(paths: Sequence[Path], metas: Mapping[str, Mapping[str, Any]]) -> None:
    """The ranges of images that the meta files state have to follow one another."""
    stop: int | None = 0
    before = ""
    for part, path in enumerate(paths):
        meta = metas.get(path.name, {})
        stated = (meta.get("part", part), meta.get("parts", len(paths)))
        if stated != (part, len(paths)):
            raise OsmError(
                f"{path.name} is part {stated[0]} of {stated[1]}, as its meta file says; make part {part} of "
                f"{len(paths)} anew"
            )
        start, end = meta.get("items", (None, None))
        if start is not None and stop is not None and start != stop:
            after = f" and {before} ends at {stop}" if before else ""
            wrong = "the parts overlap" if start < stop else f"images {stop} to {start - 1} are missing"
            raise OsmError(f"{path.name} starts at image {start}{after}: {wrong}; make one of them anew")
        stop, before = end, path.name
    count = next((meta["images"] for meta in metas.values() if "images" in meta), None)
    if count is not None and stop is not None and stop != count:
        raise OsmError(f"{before} ends at image {stop}, but {count} were to be named; make it anew")


def made_with(meta: Mapping[str, Any]) -> list[str]:
    """What a meta file tells that makes scores incomparable with those of the whole set, named freely."""
    notes = []
    if meta.get("alter", "none") != "none":
        notes.append(f"made with --alter {shown(meta['alter'])}")
    if meta.get("limit") is not None:
        notes.append(f"made with --limit {shown(meta['limit'])}: not the whole set")
    if vocabulary := meta.get("vocabulary"):
        notes.append(f"named with --vocabulary ({shown(vocabulary[1])} names, {shown(vocabulary[0])})")
    return notes


class UniqueImages:
    """The images of a set's prediction files, so that one that is in two of them is found."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._files: dict[Hashable, Path] = {}

    def add(self, key: Hashable, path: Path) -> None:
        """Raises OsmError where another file has the image, too."""
        other = path if key is None else self._files.setdefault(key, path)
        if other != path:
            raise OsmError(
                f"set {self._name!r}: image {shown(key)} is in {other.name} and in {path.name}: the parts overlap; "
                "make one of them anew"
            )


def listing(checkpoints: Mapping[str, str]) -> str:
    """`a.json of <checkpoint>, b.json of <checkpoint>`."""
    return ", ".join(f"{name} of {checkpoint}" for checkpoint, name in checkpoints.items())
