"""Names that a person has confirmed, typed or removed on the review page.

The file is JSON: `{"corrections": [{"file_name": ..., "shape": ..., "predicted": ..., "name": ...}, ...]}`. `shape` is
the position of the object among the image's objects, from 0; `predicted` is the name that the person saw; `name` is the
correct name, which may be the predicted one, or null if the object is not to be written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from osm.errors import OsmError, shown
from osm.files import read_json, write_atomically
from osm.io.values import whole
from osm.labeling.formats.label_format import LabeledImage, LabelShape

REMOVED = "removed by a person"
_LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class Correction:
    """What a person says about an object.

    Attributes:
        predicted: the name that the person saw.
        name: the correct name, or None if the object is not to be written.
    """

    predicted: str
    name: str | None


@dataclass
class Corrections:
    """The corrections of a labeling run.

    Attributes:
        entries: (file name of the image, position of the object) -> correction.
        applied_to: the entries that were applied so far.
    """

    entries: dict[tuple[str, int], Correction] = field(default_factory=dict)
    applied_to: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path, what: str) -> Corrections:
        """Read a file of corrections.

        Args:
            what: the beginning of error messages, such as "--corrections".

        Raises:
            OsmError: the file cannot be read, or an entry is malformed.
        """
        document, _ = read_json(path, what)
        rows = document.get("corrections") if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise OsmError(f"{what} {path}: has no list 'corrections'")
        found = cls()
        for number, row in enumerate(rows):
            found.entries.update([_entry(row, f"{what} {path}: corrections[{number}]")])
        return found

    def add(self, others: Corrections) -> None:
        """Add corrections. They replace earlier corrections of the same objects."""
        self.entries.update(others.entries)

    def write(self, path: Path) -> None:
        """Write all corrections to a file."""
        rows = [
            {"file_name": name, "shape": shape, "predicted": one.predicted, "name": one.name}
            for (name, shape), one in sorted(self.entries.items())
        ]
        write_atomically(path, [json.dumps({"corrections": rows}, indent=1, ensure_ascii=False), "\n"])

    def applied(self, image: LabeledImage) -> Iterator[LabelShape]:
        """Yield the objects of an image with their corrections. Corrections of other predictions have no effect."""
        for number, shape in enumerate(image.shapes):
            key = image.file_name, number
            one = self.entries.get(key)
            if one is None or one.predicted != shape.name:
                yield shape
                continue
            self.applied_to.add(key)
            if one.name is None:
                yield replace(shape, skipped=REMOVED)
            else:
                yield replace(shape, name=one.name, prob=1.0, unsure=False, skipped="", corrected=True)


def _entry(row: Any, where: str) -> tuple[tuple[str, int], Correction]:
    if not isinstance(row, Mapping):
        raise OsmError(f"{where} {shown(row)} is not an object")
    file_name, shape, predicted = row.get("file_name"), whole(row.get("shape")), row.get("predicted", "")
    if not isinstance(file_name, str) or shape is None or shape < 0 or not isinstance(predicted, str):
        raise OsmError(
            f"{where} {shown(row)}: expected the fields file_name (text), shape (a zero-based index) and predicted "
            "(text)"
        )
    name = row.get("name")
    if name is not None:
        if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST or not name.isprintable():
            raise OsmError(f"{where}: name {shown(name)} is not a name of at most {_LONGEST} characters, or null")
        name = name.strip()
    return (file_name, shape), Correction(predicted, name)
