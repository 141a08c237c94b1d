"""Reads prediction files for the metrics, the report and the comparison of runs.

The contents of a prediction file are checked against its meta file and, if available, the dataset's annotations.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from osm.errors import OsmError, shown
from osm.evaluation.predict.prediction_files import (
    Content,
    UniqueImages,
    check_all_there,
    check_content,
    prediction_path,
    read_metas,
)
from osm.files import read_json
from osm.forms import Form, Split, form_class, split_of
from osm.forms.base import countable, is_crowd
from osm.forms.instances import read_box
from osm.forms.split import FIELD
from osm.storage.locations import is_remote

NAMES = "names"
"""The annotation field that lists every correct name of an object, in any vocabulary."""

# A product of float32 probabilities can exceed 1 because of rounding errors.
_ROUNDING = 1e-4
_MOST_PIXELS = 1e300  # json integers can exceed the range of a float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The name predicted for a mask in one vocabulary mode, and its probability (0 to 1, or None)."""

    name: str
    prob: float | None


@dataclass(frozen=True, slots=True)
class MaskRecord:
    """One annotation of a prediction file.

    Attributes:
        id: id of the annotation. In a semantic map, this is the id of the class.
        category_id: a key of the labels of the dataset, if the annotation has a prediction and its class is not
            ignored.
        crowd: whether the annotation is a crowd.
        area: area in pixels, if the annotation has a prediction and the file contains an area. For a box without
            `area`, this is width times height.
        names: every correct name in any vocabulary, if the annotation has a prediction and the file contains these
            names.
        predictions: the predictions by mode; empty if the annotation was not named.
        ignored: whether the annotation has a prediction but its class is in the `ignored_ids` of the dataset.
    """

    id: Any
    category_id: Any
    crowd: bool
    area: float | None
    names: tuple[str, ...] | None
    predictions: Mapping[str, Prediction]
    ignored: bool

    @property
    def counted(self) -> bool:
        """Whether the annotation is scored: it has a prediction, is not a crowd, and its class is not ignored."""
        return bool(self.predictions) and not self.crowd and not self.ignored


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image entry of a prediction file. `key` identifies the image, or is None if the image is unknown."""

    key: Hashable
    path: Path
    masks: tuple[MaskRecord, ...]


@dataclass(frozen=True)
class SetRecords:
    """The records of one dataset.

    `meta` holds the contents of the first meta file, or is empty if no meta file exists.
    """

    row: Dataset
    images: tuple[ImageRecord, ...]
    meta: Mapping[str, Any]

    def counted(self) -> Iterator[tuple[int, MaskRecord]]:
        """Yield (image index, mask) for every scored mask. Entries with the same image key count as one image."""
        for number, entry in zip(self.numbers, self.images, strict=True):
            for mask in entry.masks:
                if mask.counted:
                    yield number, mask

    @cached_property
    def image_count(self) -> int:
        """The number of distinct images in the prediction files."""
        return max(self.numbers, default=-1) + 1

    @cached_property
    def numbers(self) -> list[int]:
        """The image index of each entry. Entries with the same image key have the same image index."""
        numbers: dict[Hashable, int] = {}
        return [
            numbers.setdefault(place if entry.key is None else ("key", entry.key), len(numbers))
            for place, entry in enumerate(self.images)
        ]


def read_set(row: Dataset, folder: Path, parts: int) -> SetRecords:
    """Read all prediction files of one dataset from a folder (see `read_files`)."""
    return read_files(row, [prediction_path(folder, row.name, part, parts) for part in range(parts)])


def read_files(row: Dataset, paths: Sequence[Path]) -> SetRecords:
    """Read and check all prediction files of one dataset.

    Each prediction file is checked against its meta file and the dataset's annotations, if available. Files that are
    truncated, empty or from a different dataset are rejected.

    Raises:
        OsmError: A part is missing, parts overlap or come from different runs, a file does not contain what its meta
            file or the dataset requires, or a value is invalid. The message names the file, the annotation, the field
            and the value.
    """
    check_all_there(row.name, paths)
    metas = read_metas(row.name, paths)
    meta = next(iter(metas.values()), {})
    row = row_with_names(row, meta)
    seen = UniqueImages(row.name)
    images: list[ImageRecord] = []
    for path in paths:
        of_file = _read_file(row, path)
        for image in of_file:
            seen.add(image.key, path)
        if path in metas:
            check_content(path, metas[path], content_of(of_file))
        images += of_file
    _check_not_empty(row, paths, images, metas)
    if split := split_at_hand(row, meta):
        of_path: dict[Path, list[PredictionEntry]] = {path: [] for path in paths}
        for image in images:
            of_path[image.path].append(_entry(image))
        check_masks(split, [(path, metas.get(path, {}), of_path[path]) for path in paths], meta.get("images"))
    return SetRecords(row, tuple(images), meta)


def _read_file(row: Dataset, path: Path) -> list[ImageRecord]:
    form = form_class(row.form)
    document, _ = read_json(path, "predictions")
    try:
        return [
            ImageRecord(key, path, tuple(_mask(row, form, annotation, path) for annotation in annotations))
            for key, annotations in form.entries_in(document)
        ]
    except OsmError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OsmError(
            f"predictions {path}: the file is not in the format of annotation format {row.form} ({error!r})"
        ) from None


def content_of(images: Sequence[ImageRecord]) -> Content:
    """Count the images, masks and predictions in the records of a prediction file."""
    masks = [mask for image in images for mask in image.masks]
    named = [mask for mask in masks if mask.predictions and not mask.crowd]
    crowd = sum(mask.crowd for mask in masks)
    return Content(len(images), len(masks) - crowd, len(named), crowd, [frozenset(mask.predictions) for mask in named])


def _entry(image: ImageRecord) -> PredictionEntry:
    masks = ((countable(mask.id), countable(mask.category_id)) for mask in image.masks if not mask.crowd)
    return PredictionEntry(image.key, Counter(masks))


def _check_not_empty(
    row: Dataset, paths: Sequence[Path], images: Sequence[ImageRecord], metas: Mapping[Path, Mapping[str, Any]]
) -> None:
    """Raise OsmError if the prediction files contain no predictions.

    Files that list images but contain no predictions are accepted if each file has a meta file, because the meta file
    records that no mask was named.
    """
    if any(mask.predictions for image in images for mask in image.masks):
        return
    names = ", ".join(path.name for path in paths)
    if not images:
        raise OsmError(
            f"dataset {row.name!r}: the prediction files contain no images: {names} (folder {paths[0].parent}); "
            "generate the predictions again"
        )
    if len(metas) < len(paths):
        raise OsmError(
            f"dataset {row.name!r}: none of the masks in the {len(images)} images of {names} (folder "
            f"{paths[0].parent}) has a prediction; expected files written by generate_pred.py"
        )


def _mask(row: Dataset, form: type[Form], annotation: Mapping[str, Any], path: Path) -> MaskRecord:
    own_id, category_id = annotation.get(form.id_key), annotation.get(form.category_key)
    crowd, given = is_crowd(annotation), annotation.get(FIELD)
    if not given:
        return MaskRecord(own_id, category_id, crowd, None, None, {}, False)
    where = f"predictions {path}: annotation {shown(own_id)}"
    if not isinstance(given, Mapping):
        raise OsmError(f"{where}: {FIELD} {shown(given)}: expected {{mode: {{class, prob}}}}")
    predictions = {mode: prediction_in(value, f"{where}: {FIELD} {shown(mode)}") for mode, value in given.items()}
    if category_id in row.ignored_ids:
        return MaskRecord(own_id, category_id, crowd, None, None, predictions, True)
    if type(category_id) is not int or category_id not in row.label_set:
        raise OsmError(
            f"{where}: {form.category_key} {shown(category_id)} is not in the label set {row.label_set.source}"
        )
    if wrong := form.wrong_class(annotation, row.label_set[category_id]):
        raise OsmError(f"{where}: {wrong}")
    area, names = _area(annotation.get("area"), where), _names(annotation, where)
    if area is None and form.boxed and (box := read_box(annotation.get("bbox"))) is not None:
        area = min(float(box[2]) * float(box[3]), _MOST_PIXELS)
    return MaskRecord(own_id, category_id, crowd, area, names, predictions, False)


def prediction_in(value: Any, where: str) -> Prediction:
    """Validate and return the prediction for one vocabulary mode.

    Args:
        value: the value from the prediction file.
        where: start of the error message.

    Raises:
        OsmError: The value is invalid.
    """
    if not isinstance(value, Mapping) or "class" not in value:
        raise OsmError(f"{where}: the prediction {shown(value)} is not in the format {{class: a name, prob: 0 to 1}}")
    name, prob = value["class"], value.get("prob")
    if not isinstance(name, str):
        raise OsmError(f"{where}: class {shown(name)}: expected a string with the predicted name")
    if prob is None:
        return Prediction(name, None)
    if isinstance(prob, bool) or not isinstance(prob, (int, float)) or not 0 <= prob <= 1 + _ROUNDING:
        raise OsmError(f"{where}: prob {shown(prob)}: expected a number from 0 to 1")
    return Prediction(name, min(float(prob), 1.0))


def _area(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_PIXELS:
        raise OsmError(f"{where}: area {shown(value)}: expected a number of pixels, 0 or more")
    return float(value)


def _names(annotation: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    if NAMES not in annotation:
        return None
    names = annotation[NAMES]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OsmError(f"{where}: names is {shown(names)}; expected a list of strings with the correct names")
    return tuple(names)


Masks = Counter[tuple[Hashable, Hashable]]
"""The number of annotations for each pair of (id, category id), without crowd annotations."""


@dataclass(frozen=True)
class PredictionEntry:
    """The masks of one image in a prediction file. `key` identifies the image, or is None if the image is unknown."""

    key: Hashable
    masks: Masks


def row_with_files(row: Dataset, meta: Mapping[str, Any]) -> Dataset:
    """Return the dataset with the paths recorded in the meta file if all of them exist; otherwise return `row`."""
    files = meta.get("files")
    needs = form_class(row.form).needs
    # Unlike os.path.exists, Path.exists raises an error for strings that cannot be paths.
    if isinstance(files, Mapping) and all(isinstance(files.get(f), str) and os.path.exists(files[f]) for f in needs):
        return replace(row, **{f: files[f] for f in needs})
    return row


def row_with_names(row: Dataset, meta: Mapping[str, Any]) -> Dataset:
    """If the dataset table defines no class names, return a copy of `row` that uses the meta file's `json_file`.

    `row` is returned unchanged if the table defines class names, or if the recorded file no longer exists.
    """
    files = meta.get("files")
    path = files.get("json_file") if isinstance(files, Mapping) else None
    if row.labels or row.json_file is not None or not isinstance(path, str) or not os.path.exists(path):
        return row
    return replace(row, json_file=path)


def split_at_hand(row: Dataset, meta: Mapping[str, Any]) -> Split | None:
    """Return the split whose masks were named, or None if the split's files are missing, unreadable or changed."""
    row = row_with_files(row, meta)
    places = [getattr(row, field) for field in form_class(row.form).needs]
    # Only URLs from the dataset table are opened, and never those from meta files, because meta files are untrusted.
    if not all(place and (is_remote(place) or os.path.exists(place)) for place in places):
        return None
    try:
        split = split_of(row, max_bad_annotations=1.0)
    except OsmError:
        return None
    return split if meta.get("annotations", split.source_hash) == split.source_hash else None


def check_masks(
    split: Split, parts: Sequence[tuple[Path, Mapping[str, Any], Sequence[PredictionEntry]]], images: int | None
) -> None:
    """Check that the prediction files of a dataset cover exactly the images and masks of the split.

    Args:
        split: the images and masks of the dataset.
        parts: for each file, its path, the content of its meta file (empty without one) and its entries.
        images: number of images of the split that had to be named; None means all images.

    Raises:
        OsmError: An image or a mask does not belong to the split, or an image of the split is missing.
    """
    count = len(split) if images is None else images
    if count > len(split):
        raise OsmError(f"{parts[0][0]}: made from {count} images, but {split.source} has {len(split)}")
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
            if entry.key is None:  # the file does not identify its images
                return
            _check_place(split, path, meta, entry.key, places.get(entry.key, []))
            found.setdefault(entry.key, (path, Counter()))[1].update(entry.masks)
    for key, expected in wanted.items():
        if key in found:
            if expected is not None and found[key][1] != expected:
                raise OsmError(_other_masks(split, found[key][0], key, found[key][1], expected))
        elif expected is None or expected:
            raise OsmError(
                f"dataset {split.row.name!r}: image {shown(key)} of {split.source} is in none of "
                f"{', '.join(path.name for path, _, _ in parts)}: a file is cut short; generate the file again"
                + ("" if images is not None else " (predictions with --limit need their meta file)")
            )


def _check_place(split: Split, path: Path, meta: Mapping[str, Any], key: Hashable, places: Sequence[int]) -> None:
    """Raise OsmError if an image in a prediction file is not in the split, or is in a different part of the split."""
    if not places:
        raise OsmError(
            f"predictions {path}: image {shown(key)} is not among the images of {split.source} that the run covers; "
            "the predictions belong to a different dataset"
        )
    if "items" in meta:
        start, stop = meta["items"]
        if not any(start <= place < stop for place in places):
            raise OsmError(
                f"predictions {path}: image {shown(key)} has index {places[0]} in {split.source}, but "
                f"according to its meta file, this part contains images {start} to {stop - 1}; generate the part again"
            )


def _other_masks(split: Split, path: Path, key: Hashable, found: Masks, wanted: Masks) -> str:
    """Return an error message about the first mask that differs between a prediction file and the split."""
    strange, lost = found - wanted, wanted - found
    own_id, category = next(iter(strange or lost))
    which = f"mask {shown(own_id)} of category {shown(category)}"
    what = f"has {which}, which is not in {split.source}" if strange else f"lacks {which} of {split.source}"
    return f"predictions {path}: image {shown(key)} {what}: the predictions are for different masks"
