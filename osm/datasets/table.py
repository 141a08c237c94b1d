"""The dataset table. Each row defines one dataset's training flags, reader, converter and evaluation.

To add a dataset, add a row to the dataset table or to your own YAML file, and add a label file. A dataset whose
annotations contain phrases instead of classes needs no label file.
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
from osm.datasets.form_registry import FORMS
from osm.datasets.labels import LabelSet, load_labels
from osm.errors import OsmError, did_you_mean, not_one_of, shown
from osm.files import read_yaml
from osm.io.paths import IMAGE_NAMES
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote, join, public, sibling, suffix_of

ANY_MODE = "any"
# The vocabulary modes of the published checkpoints: one for each of nine datasets, plus the open-vocabulary mode `any`.
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
ID_CODINGS = ("grey", "rgb")
EXIF = ("auto", "raw", "upright")
KEYS = ("name", "id", "cityscapes")
"""What a sample's key in a shard is made of: the image's file name (`name`), the image's id (`id`), or the city,
sequence and frame (`cityscapes`)."""


@dataclass(frozen=True)
class Rules:
    """The fields of a dataset's row that are needed to read its annotations.

    Attributes:
        ignored_ids: category ids that are never used in training or named, even if the label file contains them.
        id_coding: how PNGs of the annotation format `parts` store ids: `grey` (the gray value is the id) or `rgb`
            (R + 256 G + 65536 B).
        whole_labels: the classes of whole objects in a dataset of parts; None: maps of whole objects are not used.
        exif: see `Dataset`.
    """

    ignored_ids: frozenset[int] = frozenset()
    id_coding: str = "grey"
    whole_labels: LabelSet | None = None
    exif: str = "auto"


@dataclass(frozen=True)
class Dataset:
    """A row of the dataset table.

    Attributes:
        name: the dataset's name in flags and files, which is also the name of its mode.
        form: the annotation format: a name in `FORMS`, or `module:Class` of a subclass of `Form`.
        title: the dataset's name in the output of the evaluation (`<title> evaluation:`).
        labels: a table of the project, or the path of a json with `categories` or of a csv (see `load_labels`). If
            empty, the names come from `json_file`, or in training from the `categories.json` next to the shards.
        image_dir: the folder of the images to predict on.
        mask_dir: the folder of panoptic PNGs (annotation format `coco_panoptic`), of label maps (`semantic`), of label
            maps or .mat files of parts (`parts`), or of mask PNGs (`coco_instances` with a csv).
        json_file: the json or csv of the annotations.
        refs_file: the file of the phrases that describe the masks in `json_file` (annotation format `regions`).
        split: the split of `refs_file` that is used (annotation format `regions`), or the subfolder (`parts`).
        image_names: which field of the json contains an image's file name, one of `IMAGE_NAMES`.
        ignored_ids, id_coding: see `Rules`.
        whole_labels: see `Rules`. The value is a label file as in `labels`.
        exif: `raw` if annotations were drawn on the stored image, as in the published datasets; `upright` if they were
            drawn on the image after applying its EXIF orientation; `auto` to choose for each image: `raw` if the
            annotations state the size of the stored image and a rotation would change this size, else `upright`.
        keys: what a sample's key in a shard is made of, one of `KEYS`.
        exact_names: True if the file names match the names in the json exactly. Otherwise, common differences in
            spelling are accepted (see `osm.forms.locate`).
        category_names: how class names are spelled, one of `CATEGORY_NAMES`.
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
        """The classes of the dataset.

        Raises:
            OsmError: The classes cannot be read, or neither the row nor the annotations contain them.
        """
        labels = load_labels(self.labels) if self.labels else FORMS.get(self.form).labels_of(self)
        return labels if self.category_names == "plain" else spoken_labels(labels, self.category_names)

    @cached_property
    def rules(self) -> Rules:
        """The fields needed to read the dataset's annotations, with label files already loaded."""
        whole = None if self.whole_labels is None else load_labels(self.whole_labels)
        return Rules(frozenset(self.ignored_ids), self.id_coding, whole, self.exif)

    @property
    def cache_name(self) -> str:
        """The name of the dataset's folder in a feature cache.

        The folder name contains a hash of `ignored_ids`, because these ids affect the cached crops: a random crop that
        contains only ignored classes is redrawn.
        """
        ids = ",".join(map(str, sorted(set(self.ignored_ids))))
        return f"{self.name}-{hashlib.sha256(ids.encode()).hexdigest()[:8]}" if ids else self.name


_UNLABELLED = 65535  # the id of pixels without a class in a 16-bit label map


def _published(name: str, form: str, title: str, **fields: Any) -> Dataset:
    """Return the table row of a published dataset, whose label file has the same name as the dataset."""
    return Dataset(name, form, title, name, exif="raw", exact_names=True, **fields)


BUILTIN = (
    _published("coco", "coco_panoptic", "COCO Panoptic"),
    _published("lvis", "coco_instances", "LVIS Instance", image_names="coco_url"),
    _published("v3det", "boxes", "V3Det Detection", keys="id"),
    _published("a847", "semantic", "A-847 Semantic", ignored_ids=(_UNLABELLED,)),
    # Class 430 of PC-459 ("unknown") is in the vocabulary but is not used in training.
    _published("pc459", "semantic", "PC-459 Semantic", ignored_ids=(_UNLABELLED, 430)),
    _published("partimagenet", "parts", "PartImageNet Semantic", whole_labels="partimagenet_whole"),
    _published("pascal_part", "parts", "Pascal-Part Semantic", id_coding="rgb"),
    _published("ade20k", "coco_panoptic", "ADE20K Panoptic"),
    _published("cityscapes", "coco_panoptic", "Cityscapes Panoptic", image_names="cityscapes", keys="cityscapes"),
    # The published checkpoints have no vocabulary mode for the following datasets.
    # Visual Genome uses the EXIF setting `raw`, because it was annotated in browsers that ignored EXIF orientation.
    Dataset("visual_genome", "regions", "Visual Genome", exif="raw"),
    Dataset("objects365", "boxes", "Objects365 Detection", category_names="alternatives"),
    Dataset("openimages", "coco_instances", "Open Images Instance", exif="raw"),
    Dataset("paco", "coco_instances", "PACO Parts", exif="raw", category_names="object:part"),
)

_NAMED = (("image_names", IMAGE_NAMES), ("exif", EXIF), ("keys", KEYS), ("category_names", CATEGORY_NAMES))
_USER_FIELDS = tuple(f.name for f in fields(Dataset) if f.name != "name")
_PATHS = ("image_dir", "mask_dir", "json_file", "refs_file")


class DatasetTable(Mapping[str, Dataset]):
    """Mapping from dataset names to rows of the dataset table, both built-in rows and rows from user YAML files."""

    def __init__(self, rows: tuple[Dataset, ...] = BUILTIN) -> None:
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> Dataset:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def require(self, name: str, flag: str) -> Dataset:
        """Return a dataset's row. Raises OsmError if the dataset is unknown; the message names the flag."""
        if name not in self._rows:
            known, meant = ", ".join(self), did_you_mean(name, self)
            raise OsmError(
                f"{flag}: unknown dataset {name!r}; known datasets: {known} (add your own with --datasets){meant}"
            )
        return self._rows[name]

    def with_row(self, row: Dataset) -> DatasetTable:
        """Return a copy of the table with a row added. An existing row with the same name is replaced."""
        return DatasetTable(tuple({**self._rows, row.name: row}.values()))

    def with_yaml(self, path: str | Path) -> DatasetTable:
        """Return a copy of the table, extended by the rows of a YAML file.

        The YAML file has the structure `datasets: {<name>: {form:, title:, labels:, image_dir:, ...}}`, with the fields
        of `Dataset`. If a dataset is already in the table, the fields in the YAML file replace the fields of its row.
        Relative paths are resolved against the folder of the YAML file, or against the working directory if the file
        contains `relative_to: working_folder`. `labels` and `whole_labels` may be paths or the names of built-in label
        tables. A new dataset needs a `form`, and either `labels` or a `json_file` with `categories`. A dataset with the
        annotation format `regions` must not define `labels`.

        Raises:
            OsmError: The file cannot be read, or a row is invalid.
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
            raise OsmError(
                f"dataset table {path}: relative_to {shown(relative_to)} is neither this_file nor working_folder"
            )
        root = sibling(given, "") if relative_to == "this_file" else ""
        changed = dict(self._rows)
        for name, entry in rows.items():
            changed[name] = self._row(f"dataset table {path}, set {shown(name)}", root, name, entry)
        return DatasetTable(tuple(changed.values()))

    def _row(self, where: str, root: str, name: object, entry: object) -> Dataset:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == ANY_MODE:
            raise OsmError(f"{where}: the name of a dataset must match [a-z][a-z0-9_]* and cannot be '{ANY_MODE}'")
        if not isinstance(entry, dict):
            raise OsmError(f"{where}: expected a mapping, found {shown(entry)}")
        unknown = [key for key in entry if key not in _USER_FIELDS]
        if unknown:
            meant = did_you_mean(str(unknown[0]), _USER_FIELDS)
            raise OsmError(
                f"{where}: unknown field {shown(unknown[0])}; the fields are {', '.join(_USER_FIELDS)}{meant}"
            )
        for key, value in entry.items():
            if key == "exact_names":
                if not isinstance(value, bool):
                    raise OsmError(f"{where}: exact_names {shown(value)} is not true or false")
            elif key != "ignored_ids" and isinstance(value, (dict, list, tuple, set, bytes)):
                raise OsmError(f"{where}: {key} {shown(value)} is not a text")
        values: dict[str, Any] = {key: str(value) for key, value in entry.items() if value is not None}
        for key in (*_PATHS, "labels", "whole_labels"):
            value = check_location(values.get(key, ""), f"{where}: {key}")
            if key in values and (key in _PATHS or suffix_of(value)):  # otherwise the value is the name of a table
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
            phrased = "form" in values and _form(where, values["form"]).phrased
            labels = values.get("labels", "" if phrased else values.get("json_file"))
            if "form" not in values or labels is None:
                raise OsmError(f"{where}: a new dataset needs 'form', and either 'labels' or 'json_file'")
            row = Dataset(**{"title": name, **values, "name": name, "labels": labels})
        if _form(where, row.form).phrased and row.labels:
            raise OsmError(
                f"{where}: the annotation format {row.form} does not support labels ({row.labels!r}); its names come "
                "from the phrases in json_file"
            )
        if row.id_coding not in ID_CODINGS:
            raise not_one_of(f"{where}: id_coding", row.id_coding, ID_CODINGS)
        for field_name, known in _NAMED:
            value = getattr(row, field_name)
            if value not in known:
                raise not_one_of(f"{where}: {field_name}", value, known)
        return row


def _form(where: str, name: str) -> Any:
    try:
        return FORMS.get(name)
    except OsmError as error:
        raise OsmError(f"{where}: {error}") from None
