"""Reads prediction files in the documented layouts, without the project's readers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osm.datasets.table import Dataset

FORMS = ("coco_panoptic", "coco_instances", "boxes", "semantic", "parts")
_MAPS = ("semantic", "parts")


@dataclass(frozen=True)
class Mask:
    """One annotation of a prediction file.

    Attributes:
        where: the file, the image and the annotation, for messages.
        place: (number of the file, number of the image in it, number of the annotation in the image).
        image: what identifies the image.
        category_id: the class.
        crowd: whether the annotation is a crowd.
        ignored: whether the dataset ignores the class.
        area: pixels, or None.
        names: every correct name in any vocabulary, or None.
        predictions: mode -> (predicted name, probability or None).
    """

    where: str
    place: tuple[int, int, int]
    image: Any
    category_id: int
    crowd: bool
    ignored: bool
    area: float | None
    names: tuple[str, ...] | None
    predictions: Mapping[str, tuple[str, float | None]]

    @property
    def scored(self) -> bool:
        """Whether the mask can be scored: it has a prediction, is not a crowd, and its class is not ignored."""
        return bool(self.predictions) and not self.crowd and not self.ignored


def paths_of(folder: Path, name: str, parts: int) -> list[Path]:
    """Return the prediction files of a dataset."""
    return [folder / f"{name}_pred_{part}_of_{parts}.json" for part in range(parts)]


def annotations_of(form: str, document: Any) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Yield (image, annotations) for every image of a prediction file."""
    if form == "coco_panoptic":
        for entry in document:
            yield entry["image_id"], entry["segments_info"]
    elif form in _MAPS:
        for entry in document["pred"]:
            yield entry["file_name"], entry["pred"]
    else:
        for image, annotations in document["pred"]:
            yield image["id"], annotations


def read_masks(row: Dataset, paths: list[Path]) -> list[Mask]:
    """Read every annotation of the prediction files of a dataset."""
    masks: list[Mask] = []
    for number, path in enumerate(paths):
        document = json.loads(path.read_text(encoding="utf-8"))
        for place, (image, listed) in enumerate(annotations_of(row.form, document)):
            for k, annotation in enumerate(listed):
                masks.append(_mask(row, annotation, path, (number, place, k), image))
    return masks


def _mask(row: Dataset, annotation: dict[str, Any], path: Path, place: tuple[int, int, int], image: Any) -> Mask:
    own_id = annotation["mask_unique_id" if row.form in _MAPS else "id"]
    category_id = own_id if row.form in _MAPS else annotation["category_id"]
    area, names = annotation.get("area"), annotation.get("names")
    if area is None and row.form == "boxes":
        area = annotation["bbox"][2] * annotation["bbox"][3]
    given = annotation.get("open_end_pred") or {}
    return Mask(
        f"{path.name}, image {image!r}, annotation {own_id!r}",
        place,
        image,
        category_id,
        bool(annotation.get("iscrowd")),
        category_id in row.ignored_ids,
        area,
        None if names is None else tuple(names),
        {mode: (one["class"], _prob(one.get("prob"))) for mode, one in given.items()},
    )


def _prob(value: float | None) -> float | None:
    """Return a probability; rounding may have made it a little larger than 1."""
    return None if value is None else min(float(value), 1.0)


def with_only(row: Dataset, path: Path, number: int, kept: set[tuple[int, int, int]]) -> Any:
    """Return a prediction file's content in which only some of the masks have predictions."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for place, (_, listed) in enumerate(annotations_of(row.form, document)):
        for k, annotation in enumerate(listed):
            if (number, place, k) not in kept:
                annotation.pop("open_end_pred", None)
    return document
