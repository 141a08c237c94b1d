"""THE table of datasets: training flags, readers, converters and the evaluation all read it.

A new set is one row (here, or in a user's YAML) and a label file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import yaml

from osm.data.labels import LabelSet, load_labels
from osm.errors import OsmError

ANY_MODE = "any"
# The modes of the published checkpoints: nine sets, and the open one.
PUBLISHED_MODES = (
    "coco",
    "lvis",
    "v3det",
    "a847",
    "pc459",
    "partimagenet",
    "pascal_part",
    "ade20k",
    "cityscapes",
    ANY_MODE,
)
FORMS = ("coco_panoptic", "coco_instances")


@dataclass(frozen=True)
class Dataset:
    """One row.

    Attributes:
        name: the set's name in flags and files, and its mode.
        form: how its annotations are stored, one of `FORMS`.
        title: how evaluation prints it (`<title> evaluation:`).
        labels: a table of the project, or the path of a json with `categories`.
        image_dir, mask_dir, json_file: the images, panoptic PNGs (panoptic form only) and annotations to predict on.
    """

    name: str
    form: str
    title: str
    labels: str
    image_dir: str | None = None
    mask_dir: str | None = None
    json_file: str | None = None

    @cached_property
    def label_set(self) -> LabelSet:
        return load_labels(self.labels)


BUILTIN = (
    Dataset("coco", "coco_panoptic", "COCO Panoptic", "coco"),
    Dataset("ade20k", "coco_panoptic", "ADE20K Panoptic", "ade20k"),
)

_USER_FIELDS = tuple(f.name for f in fields(Dataset) if f.name != "name")
_PATHS = ("image_dir", "mask_dir", "json_file")


class DatasetTable(Mapping[str, Dataset]):
    """The rows by name: the built-in ones, and those a user's YAML adds."""

    def __init__(self, rows: tuple[Dataset, ...] = BUILTIN) -> None:
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> Dataset:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def with_yaml(self, path: str | Path) -> DatasetTable:
        """The table with the rows of a YAML file added, or with the fields it names changed.

        The file is `datasets: {<name>: {form:, title:, labels:, image_dir:, mask_dir:, json_file:}}`. Relative paths
        are relative to the YAML file (with `relative_to: working_folder` beside `datasets`: to the working folder), but
        a table's own name may stand in `labels`. A new set needs a `form`, and `labels` or a `json_file` (whose
        `categories` are then its labels).

        Raises:
            OsmError: the file cannot be read, or a row is not right.
        """
        path = Path(path)
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise OsmError(f"dataset table {path}: {error}") from None
        rows = document.get("datasets") if isinstance(document, dict) else None
        if not isinstance(rows, dict) or not rows:
            raise OsmError(f"dataset table {path}: expected a mapping 'datasets: {{<name>: {{form: ...}}}}'")
        relative_to = document.get("relative_to", "this_file")
        if relative_to not in ("this_file", "working_folder"):
            raise OsmError(f"dataset table {path}: relative_to {relative_to!r} is not this_file or working_folder")
        root = path.parent if relative_to == "this_file" else Path()
        changed = dict(self._rows)
        for name, entry in rows.items():
            changed[name] = self._row(f"dataset table {path}, set {name!r}", root, name, entry)
        return DatasetTable(tuple(changed.values()))

    def _row(self, where: str, root: Path, name: object, entry: object) -> Dataset:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == ANY_MODE:
            raise OsmError(f"{where}: a set's name is lower-case letters, digits and _, and not '{ANY_MODE}'")
        if not isinstance(entry, dict):
            raise OsmError(f"{where}: expected a mapping, found {entry!r}")
        unknown = sorted(set(entry) - set(_USER_FIELDS))
        if unknown:
            raise OsmError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(_USER_FIELDS)}")
        values = {key: str(value) for key, value in entry.items() if value is not None}
        for key in _PATHS:
            if key in values:
                values[key] = str(root / values[key])
        if Path(values.get("labels", "")).suffix:
            values["labels"] = str(root / values["labels"])
        if name in self._rows:
            row = replace(self._rows[name], **values)
        else:
            labels = values.get("labels") or values.get("json_file")
            if "form" not in values or labels is None:
                raise OsmError(f"{where}: a new set needs 'form', and 'labels' or 'json_file'")
            row = Dataset(**{"title": name, **values, "name": name, "labels": labels})
        if row.form not in FORMS:
            raise OsmError(f"{where}: form {row.form!r} is not one of {', '.join(FORMS)}")
        return row
