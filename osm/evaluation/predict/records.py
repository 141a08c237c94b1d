"""Prediction files as plain records: the one reader that scores, metrics, report, pictures and comparison share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset
from osm.errors import OsmError, shown
from osm.evaluation.predict.agreement import Entry, check_masks, row_with_names, split_at_hand
from osm.evaluation.predict.meta import Content, check_content
from osm.evaluation.predict.parts import UniqueImages, check_all_there, read_metas
from osm.evaluation.predict.prediction_files import prediction_path
from osm.files import read_json
from osm.forms import Form, form_class
from osm.forms.base import countable, is_crowd
from osm.forms.instances import read_box
from osm.forms.split import FIELD

NAMES = "names"
"""The field of an annotation that lists every name that is right for it, in any vocabulary."""

# A product of probabilities in float32 may end a rounding error above 1.
_ROUNDING = 1e-4
_MOST_PIXELS = 1e300  # what a float holds, and json's integers need not


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one mode named a mask: the name as the file has it, and its probability (0 to 1) where the file has one."""

    name: str
    prob: float | None


@dataclass(frozen=True, slots=True)
class MaskRecord:
    """One annotation of a prediction file.

    Attributes:
        id: its own id (of a semantic map: the class's).
        category_id: a key of the set's labels, where it has a prediction and its class is not ignored.
        area: in pixels, where it has a prediction and the file tells; of a box without an `area`, width by height.
        names: every name that is right in any vocabulary, where it has a prediction and the file tells.
        predictions: by mode; empty = it was not named.
        ignored: it has a prediction, but its class is one of the row's `ignored_ids`.
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
        """Whether it is scored."""
        return bool(self.predictions) and not self.ignored


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One entry of a prediction file; `key` identifies the image (None: nothing does)."""

    key: Hashable
    path: Path
    masks: tuple[MaskRecord, ...]


@dataclass(frozen=True)
class SetRecords:
    """All parts of one set; `meta` is the first meta file's content, empty where there is none."""

    row: Dataset
    images: tuple[ImageRecord, ...]
    meta: Mapping[str, Any]

    def counted(self) -> Iterator[tuple[int, MaskRecord]]:
        """The masks that are scored, each with the number of its image; entries of equal key are one image."""
        for number, entry in zip(self.numbers, self.images, strict=True):
            for mask in entry.masks:
                if mask.counted:
                    yield number, mask

    @cached_property
    def image_count(self) -> int:
        """How many images the numbers of `counted` are of."""
        return max(self.numbers, default=-1) + 1

    @cached_property
    def numbers(self) -> list[int]:
        """The number of each entry's image."""
        numbers: dict[Hashable, int] = {}
        return [
            numbers.setdefault(place if entry.key is None else ("key", entry.key), len(numbers))
            for place, entry in enumerate(self.images)
        ]


def read_set(row: Dataset, folder: Path, parts: int) -> SetRecords:
    """Reads all parts of one set of a folder; see `read_files`."""
    return read_files(row, [prediction_path(folder, row.name, part, parts) for part in range(parts)])


def read_files(row: Dataset, paths: Sequence[Path]) -> SetRecords:
    """Reads the prediction files of one set, all its parts.

    Each file is compared with its meta file, where there is one, and with the set's own annotations, where they are at
    hand: a file that is cut short, empty or another set's is refused.

    Raises:
        OsmError: a part is missing, parts overlap or are of different runs, a file does not hold what its meta file or
            the set says, or a value is not what the format has; it names the file, and the annotation, field and value.
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
        of_path: dict[Path, list[Entry]] = {path: [] for path in paths}
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
        raise OsmError(f"predictions {path}: not in the format of form {row.form} ({error!r})") from None


def content_of(images: Sequence[ImageRecord]) -> Content:
    """What there is in the entries of a prediction file."""
    masks = [mask for image in images for mask in image.masks]
    named = [mask for mask in masks if mask.predictions and not mask.crowd]
    crowd = sum(mask.crowd for mask in masks)
    return Content(len(images), len(masks) - crowd, len(named), crowd, [frozenset(mask.predictions) for mask in named])


def _entry(image: ImageRecord) -> Entry:
    masks = ((countable(mask.id), countable(mask.category_id)) for mask in image.masks if not mask.crowd)
    return Entry(image.key, Counter(masks))


def _check_not_empty(
    row: Dataset, paths: Sequence[Path], images: Sequence[ImageRecord], metas: Mapping[Path, Mapping[str, Any]]
) -> None:
    """Raises OsmError where the files hold nothing to score, unless meta files say that there was nothing."""
    if any(mask.predictions for image in images for mask in image.masks):
        return
    names = ", ".join(path.name for path in paths)
    if not images:
        raise OsmError(f"set {row.name!r}: no image in {names} (in {paths[0].parent}); make the predictions anew")
    if len(metas) < len(paths):
        raise OsmError(
            f"set {row.name!r}: no mask of the {len(images)} images of {names} (in {paths[0].parent}) is named; "
            "expected files that generate_pred.py wrote"
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
    """What a file has of one mode. Raises OsmError where it is not in the format."""
    if not isinstance(value, Mapping) or "class" not in value:
        raise OsmError(f"{where}: {shown(value)}: not in the format, expected {{class: a name, prob: 0 to 1}}")
    name, prob = value["class"], value.get("prob")
    if not isinstance(name, str):
        raise OsmError(f"{where}: class {shown(name)}: expected a text, the name that was predicted")
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
        raise OsmError(f"{where}: {NAMES} {shown(names)} is not a list of texts, every name that is right for it")
    return tuple(names)
