"""Prediction files as plain records: the one reader that scores, metrics, report, pictures and comparison share."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from osm.benchmark.files import prediction_path
from osm.benchmark.items import FIELD, SPLITS, Split
from osm.benchmark.parts import Seen, check_all_there, common_meta
from osm.data.datasets import Dataset
from osm.errors import OsmError, shown
from osm.files import read_json

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
        area: in pixels, where it has a prediction and the file tells.
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

    Raises:
        OsmError: a part is missing, parts overlap or are of different runs, or a value is not what the format has; it
            names the file, the annotation, the field and the value.
    """
    check_all_there(row.name, paths)
    meta = common_meta(paths)
    seen = Seen(row.name)
    split = SPLITS[row.form]
    images = []
    for path in paths:
        document, _ = read_json(path, "predictions")
        try:
            for key, annotations in split.entries_in(document):
                seen.add(key, path)
                masks = tuple(_mask(row, split, annotation, path) for annotation in annotations)
                images.append(ImageRecord(key, path, masks))
        except OsmError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OsmError(f"predictions {path}: not in the format of form {row.form} ({error!r})") from None
    return SetRecords(row, tuple(images), meta)


def _mask(row: Dataset, split: type[Split], annotation: Mapping[str, Any], path: Path) -> MaskRecord:
    own_id, category_id = annotation.get(split.id_key), annotation.get(split.category_key)
    crowd, given = bool(annotation.get("iscrowd")), annotation.get(FIELD)
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
            f"{where}: {split.category_key} {shown(category_id)} is not in the label set {row.label_set.source}"
        )
    area, names = _area(annotation.get("area"), where), _names(annotation, where)
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
