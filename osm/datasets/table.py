"""THE table of datasets: training flags, readers, converters and the evaluation all read it.

A new set is one row (here, or in a user's YAML) and a label file. A set whose annotations have phrases needs no labels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from osm.datasets.category_names import CATEGORY_NAMES, spoken_labels
from osm.datasets.labels import LabelSet, load_labels
from osm.errors import OsmError, shown
from osm.files import read_yaml
from osm.io.paths import IMAGE_NAMES
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote, join, public, sibling, suffix_of

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
FORMS = ("coco_panoptic", "coco_instances", "boxes", "semantic", "parts", "regions")
PHRASE_FORMS = ("regions",)
"""Forms whose annotations have phrases of their own: their sets have no labels."""
ID_CODINGS = ("grey", "rgb")
EXIF = ("auto", "raw", "upright")
KEYS = ("name", "id", "cityscapes")
"""`name`: the picture's file name; `id`: the image's id; `cityscapes`: city, sequence and frame."""


@dataclass(frozen=True)
class Rules:
    """What the sets of one form differ in, as their reader wants it.

    Attributes:
        ignored_ids: ids of a label map that are never asked about, in the label file or not.
        id_coding: how the PNGs of the form `parts` hold ids: `grey` (a pixel = id) or `rgb` (R + 256 G + 65536 B).
        whole_labels: the classes of the whole objects; None = their maps are not used.
        exif: see `Dataset`.
    """

    ignored_ids: frozenset[int] = frozenset()
    id_coding: str = "grey"
    whole_labels: LabelSet | None = None
    exif: str = "auto"


@dataclass(frozen=True)
class Dataset:
    """One row.

    Attributes:
        name: the set's name in flags and files, and its mode.
        form: how its annotations are stored, one of `FORMS`.
        title: how evaluation prints it (`<title> evaluation:`).
        labels: a table of the project, or the path of a json with `categories`, or of a csv (see `load_labels`). Empty:
            the names are those of `json_file`, or (training) of the `categories.json` beside the shards.
        image_dir, mask_dir, json_file: what to predict on: the images; panoptic PNGs (panoptic form), label maps
            (semantic form), label maps or .mat files of parts, or mask PNGs (instances form, of a csv); annotations
            (the forms with a json, or a csv).
        refs_file, split: of the form `regions`, what is said of the masks of `json_file`, and which part of it counts.
            `split` is also the subfolder of the form `parts`.
        image_names: where the json says what an image is called, one of `IMAGE_NAMES`.
        ignored_ids, id_coding, whole_labels: see `Rules`; `whole_labels` is a label file as `labels` is.
        exif: whether annotations were drawn on the picture as it is stored (`raw`, as in the published sets) or turned
            by its EXIF orientation (`upright`); `auto` = whichever has the size that the annotations state, upright
            where the size does not tell.
        keys: what a shard's sample is called after, one of `KEYS`.
        exact_names: files have the very names of the json; else other spellings of tools are understood (see
            `osm.forms.locate`).
        category_names: how the names of the classes are spelt, one of `CATEGORY_NAMES`.
    """

    name: str
    form: str
    title: str
    labels: str = ""
    image_dir: str | None = None
    mask_dir: str | None = None
    json_file: str | None = None
    image_names: str = "file_name"
    ignored_ids: tuple[int, ...] = ()
    id_coding: str = "grey"
    whole_labels: str | None = None
    exif: str = "auto"
    keys: str = "name"
    exact_names: bool = False
    category_names: str = "plain"
    refs_file: str | None = None
    split: str | None = None

    @cached_property
    def label_set(self) -> LabelSet:
        """The classes. Raises OsmError where they cannot be read, or nothing tells which they are."""
        if self.labels:
            labels = load_labels(self.labels)
        else:
            from osm.forms import labels_of  # it needs this module

            labels = labels_of(self)
        return labels if self.category_names == "plain" else spoken_labels(labels, self.category_names)

    @cached_property
    def rules(self) -> Rules:
        whole = None if self.whole_labels is None else load_labels(self.whole_labels)
        return Rules(frozenset(self.ignored_ids), self.id_coding, whole, self.exif)

    @property
    def cache_name(self) -> str:
        """Its folder in a feature cache: a crop with no segment to ask about is drawn anew, so ignored ids count."""
        ids = ",".join(map(str, sorted(set(self.ignored_ids))))
        return f"{self.name}-{hashlib.sha256(ids.encode()).hexdigest()[:8]}" if ids else self.name


_UNLABELLED = 65535  # in a 16-bit label map


def _published(name: str, form: str, title: str, **fields: Any) -> Dataset:
    """A row of a set as its authors publish it; its label file has its name."""
    return Dataset(name, form, title, name, exif="raw", exact_names=True, **fields)


BUILTIN = (
    _published("coco", "coco_panoptic", "COCO Panoptic"),
    _published("lvis", "coco_instances", "LVIS Instance", image_names="coco_url"),
    _published("v3det", "boxes", "V3Det Detection", keys="id"),
    _published("a847", "semantic", "A-847 Semantic", ignored_ids=(_UNLABELLED,)),
    # 430 is the class "unknown": part of the vocabulary, but nothing to be learnt.
    _published("pc459", "semantic", "PC-459 Semantic", ignored_ids=(_UNLABELLED, 430)),
    _published("partimagenet", "parts", "PartImageNet Semantic", whole_labels="partimagenet_whole"),
    _published("pascal_part", "parts", "Pascal-Part Semantic", id_coding="rgb"),
    _published("ade20k", "coco_panoptic", "ADE20K Panoptic"),
    _published("cityscapes", "coco_panoptic", "Cityscapes Panoptic", image_names="cityscapes", keys="cityscapes"),
    # What follows has no mode in the published checkpoints. Browsers did not turn pictures when Visual Genome was made.
    Dataset("visual_genome", "regions", "Visual Genome", exif="raw"),
    Dataset("objects365", "boxes", "Objects365 Detection", category_names="alternatives"),
    Dataset("openimages", "coco_instances", "Open Images Instance", exif="raw"),
    Dataset("paco", "coco_instances", "PACO Parts", exif="raw", category_names="object:part"),
)

_NAMED = (("image_names", IMAGE_NAMES), ("exif", EXIF), ("keys", KEYS), ("category_names", CATEGORY_NAMES))
_USER_FIELDS = tuple(f.name for f in fields(Dataset) if f.name != "name")
_PATHS = ("image_dir", "mask_dir", "json_file", "refs_file")


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

    def with_row(self, row: Dataset) -> DatasetTable:
        """The table with a row in the place of that of its name."""
        return DatasetTable(tuple({**self._rows, row.name: row}.values()))

    def with_yaml(self, path: str | Path) -> DatasetTable:
        """The table with the rows of a YAML file added, or with the fields it names changed.

        The file is `datasets: {<name>: {form:, title:, labels:, image_dir:, ...}}` with the fields of a row. Relative
        paths are relative to the YAML file (with `relative_to: working_folder` beside `datasets`: to the working
        folder), but a table's own name may stand in `labels` and `whole_labels`. A new set needs a `form`, and `labels`
        or a `json_file` (whose `categories` are then its labels); one of the form `regions` has no labels.

        Raises:
            OsmError: the file cannot be read, or a row is not right.
        """
        local = localize(path, "dataset table")
        given = check_location(path, "dataset table") if is_remote(path) else str(local)
        document = read_yaml(local, "dataset table")
        path = public(given)
        rows = document.get("datasets") if isinstance(document, dict) else None
        if not isinstance(rows, dict) or not rows:
            raise OsmError(f"dataset table {path}: expected a mapping 'datasets: {{<name>: {{form: ...}}}}'")
        relative_to = document.get("relative_to", "this_file")
        if relative_to not in ("this_file", "working_folder"):
            raise OsmError(f"dataset table {path}: relative_to {shown(relative_to)} is not this_file or working_folder")
        root = sibling(given, "") if relative_to == "this_file" else ""
        changed = dict(self._rows)
        for name, entry in rows.items():
            changed[name] = self._row(f"dataset table {path}, set {shown(name)}", root, name, entry)
        return DatasetTable(tuple(changed.values()))

    def _row(self, where: str, root: str, name: object, entry: object) -> Dataset:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == ANY_MODE:
            raise OsmError(f"{where}: a set's name is lower-case letters, digits and _, and not '{ANY_MODE}'")
        if not isinstance(entry, dict):
            raise OsmError(f"{where}: expected a mapping, found {shown(entry)}")
        unknown = [key for key in entry if key not in _USER_FIELDS]
        if unknown:
            raise OsmError(f"{where}: unknown field {shown(unknown[0])}; the fields are {', '.join(_USER_FIELDS)}")
        for key, value in entry.items():
            if key == "exact_names":
                if not isinstance(value, bool):
                    raise OsmError(f"{where}: exact_names {shown(value)} is not true or false")
            elif key != "ignored_ids" and isinstance(value, (dict, list, tuple, set, bytes)):
                raise OsmError(f"{where}: {key} {shown(value)} is not a text")
        values: dict[str, Any] = {key: str(value) for key, value in entry.items() if value is not None}
        for key in (*_PATHS, "labels", "whole_labels"):
            value = check_location(values.get(key, ""), f"{where}: {key}")
            if key in values and (key in _PATHS or suffix_of(value)):  # else the name of a table
                values[key] = value if is_remote(value) or Path(value).is_absolute() else join(root, value)
        if "exact_names" in values:
            values["exact_names"] = entry["exact_names"]
        if "ignored_ids" in values:
            ids = entry["ignored_ids"]
            if not isinstance(ids, list) or not all(type(value) is int for value in ids):
                raise OsmError(f"{where}: ignored_ids {shown(ids)} is not a list of integers")
            values["ignored_ids"] = tuple(ids)
        if name in self._rows:
            row = replace(self._rows[name], **values)
        else:
            phrased = values.get("form") in PHRASE_FORMS
            labels = values.get("labels", "" if phrased else values.get("json_file"))
            if "form" not in values or labels is None:
                raise OsmError(f"{where}: a new set needs 'form', and 'labels' or 'json_file'")
            row = Dataset(**{"title": name, **values, "name": name, "labels": labels})
        if row.form not in FORMS:
            raise OsmError(f"{where}: form {row.form!r} is not one of {', '.join(FORMS)}")
        if row.form in PHRASE_FORMS and row.labels:
            raise OsmError(
                f"{where}: labels {row.labels!r}: form {row.form} has none, its names are the phrases of the json_file"
            )
        if row.id_coding not in ID_CODINGS:
            raise OsmError(f"{where}: id_coding {row.id_coding!r} is not one of {', '.join(ID_CODINGS)}")
        for field_name, known in _NAMED:
            value = getattr(row, field_name)
            if value not in known:
                raise OsmError(f"{where}: {field_name} {value!r} is not one of {', '.join(known)}")
        return row
