"""Whether the files of a split's items are there, before they are named and while they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from osm.errors import OsmError, RunStopped
from osm.files import check_regular_file
from osm.forms.split import Split


def check_files(split: Split, indices: range) -> None:
    """Raises OsmError where files are missing; known before hours of naming, not after them."""
    split.fetch(indices)
    read = [path for index in indices for path in split.paths(index)]
    missing = [path for path in read if not os.path.exists(path)]  # Path.exists fails for a name that is too long
    if missing:
        raise OsmError(
            f"set {split.row.name!r}: {len(missing)} of the {len(read)} files that are to be read are missing, the "
            f"first is {missing[0]}"
        )
    for path in read:
        check_regular_file(path, f"set {split.row.name!r}:")


@contextmanager
def files_stay(split: Split, indices: range) -> Iterator[None]:
    """Tells files that are gone in mid-run from those that were never right.

    Raises:
        RunStopped: a file of these items can no longer be opened.
    """
    try:
        yield
    except OsmError:
        for path in (path for index in indices for path in split.paths(index)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise RunStopped(
                    f"{path}: {error.strerror}; it was there when the run began: put it back, and the same command "
                    "goes on"
                ) from None
        raise
