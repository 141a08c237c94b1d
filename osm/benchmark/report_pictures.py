"""The report's pictures: images of a set with their masks, numbered and marked, and the names beside them."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.benchmark.alter import resize_nearest
from osm.benchmark.evaluate import SetResult
from osm.benchmark.files import prediction_path
from osm.benchmark.items import FIELD, SPLITS, Item, Split
from osm.benchmark.metrics import is_correct, normalize
from osm.benchmark.report_counts import NAMES
from osm.data.datasets import ANY_MODE, Dataset
from osm.data.images import read_rgb
from osm.errors import OsmError
from osm.files import read_json
from osm.recognition.draw import draw_numbered

# Long side of a picture: small images are enlarged so that numbers are legible, large ones would make a huge page.
_SMALLEST, _LARGEST = 512, 800
_QUALITY = 85


@dataclass(frozen=True)
class Guess:
    """A mode's prediction for one mask.

    Attributes:
        prob: None where the file has none.
        right: a name of the mask's class.
        right_elsewhere: wrong in the set's vocabulary, but among the annotation's `names`.
    """

    name: str
    prob: float | None
    right: bool
    right_elsewhere: bool


@dataclass(frozen=True)
class Picture:
    """One image, drawn.

    Attributes:
        file_name: of the image.
        jpeg: base64 of the picture, which is `size` = (width, height) large.
        masks: for each mask, in the order of the numbers: the class's name, its predictions in the set's own mode and
            in `any` (None where there is none).
    """

    file_name: str
    jpeg: str
    size: tuple[int, int]
    masks: list[tuple[str, Guess | None, Guess | None]]


def draw_pictures(
    result: SetResult, folder: Path, parts: int, count: int, seed: int
) -> tuple[list[Picture], list[str]]:
    """Draws up to `count` images of one set, chosen by the seed among those with a named mask.

    Returns:
        The pictures in the set's order, and a line for each thing that keeps one from being drawn: images that are not
        there (any more) are no error of the report.
    """
    annotations = annotations_by_image(result.row, folder, parts)
    named = [index for index, entries in enumerate(annotations) if any(entry.get(FIELD) for entry in entries)]
    chosen = sorted(random.Random(f"{seed} {result.row.name}").sample(named, min(count, len(named))))
    if not chosen:
        return [], []
    row = row_with_files(result)
    try:
        split = SPLITS[row.form](row)
    except OsmError as error:
        return [], [str(error)]
    if result.meta.get("annotations", split.source_hash) != split.source_hash:
        return [], [f"{split.source} has changed since the predictions were made; its masks may be others"]
    pictures, notes = [], []
    for index in chosen:
        try:
            pictures.append(_draw(split, index, annotations[index]))
        except OsmError as error:
            notes.append(str(error))
    return pictures, notes


def annotations_by_image(row: Dataset, folder: Path, parts: int) -> list[list[dict[str, Any]]]:
    """The annotations of a set's prediction files, image by image, crowd left out."""
    annotations: list[list[dict[str, Any]]] = []
    for part in range(parts):
        document, _ = read_json(prediction_path(folder, row.name, part, parts), "predictions")
        entries = SPLITS[row.form].entries_in(document)
        annotations += [[a for a in of_image if not a.get("iscrowd")] for _, of_image in entries]
    return annotations


def row_with_files(result: SetResult) -> Dataset:
    """The set with the paths that generation noted where all of them are still there, else as the table has it."""
    files = result.meta.get("files")
    needs = SPLITS[result.row.form].needs
    if isinstance(files, Mapping) and all(isinstance(files.get(f), str) and Path(files[f]).exists() for f in needs):
        return replace(result.row, **{f: files[f] for f in needs})
    return result.row


def _draw(split: Split, index: int, annotations: list[dict[str, Any]]) -> Picture:
    if index >= len(split):
        raise OsmError(f"{split.source}: has {len(split)} images, but predictions are there for image {index}")
    item = split.load(index)
    same = len(annotations) == len(item.annotations) and all(
        theirs.get(split.id_key) == ours.get(split.id_key)
        for theirs, ours in zip(annotations, item.annotations, strict=True)
    )
    if not same:
        raise OsmError(f"{item.image_path}: the predictions are for other masks than {split.source} has")
    rows = [_names(split.row, annotation) for annotation in annotations]
    canvas = draw_numbered(*enlarged(item), [_mark(own, anyone) for _, own, anyone in rows])
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=_QUALITY)
    return Picture(item.image_path.name, base64.b64encode(buffer.getvalue()).decode(), canvas.size, rows)


def enlarged(item: Item) -> tuple[Image.Image, np.ndarray]:
    """Image and masks (K, H, W) at the picture's size."""
    image = read_rgb(item.image_path)
    scale = min(max(max(image.size), _SMALLEST), _LARGEST) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    masks = [resize_nearest(item.mask(k), (height, width)) for k in range(len(item.annotations))]
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized, np.stack(masks) if masks else np.zeros((0, height, width), bool)


def _names(row: Dataset, annotation: Mapping[str, Any]) -> tuple[str, Guess | None, Guess | None]:
    label = row.label_set[annotation[SPLITS[row.form].category_key]]
    own, anyone = (_guess(annotation, mode, label.names) for mode in (row.name, ANY_MODE))
    return label.target, own, anyone


def _guess(annotation: Mapping[str, Any], mode: str, names: tuple[str, ...]) -> Guess | None:
    prediction = (annotation.get(FIELD) or {}).get(mode)
    if prediction is None:
        return None
    prob = prediction.get("prob")
    name, right = prediction["class"], is_correct(prediction["class"], names)
    elsewhere = not right and mode == ANY_MODE and is_correct(name, map(normalize, annotation.get(NAMES) or ()))
    return Guess(name, float(prob) if isinstance(prob, (int, float)) else None, right, elsewhere)


def _mark(own: Guess | None, anyone: Guess | None) -> bool | None:
    guess = own or anyone
    return None if guess is None else guess.right
