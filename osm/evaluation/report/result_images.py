"""Draws masks and predicted names on images, for the report's numbered images and the mosaic of `osm picture`."""

from __future__ import annotations

import base64
import io
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError, write_failed
from osm.evaluation.metrics import is_correct, normalize
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.predict.alter import resize_nearest
from osm.evaluation.predict.records import MaskRecord, SetRecords, row_with_files
from osm.forms import Split, split_of
from osm.forms.split import Item
from osm.recognition.draw import draw_names, draw_numbered

# Minimum and maximum length of a drawn image's longer side, in pixels.
# Small images are enlarged to keep mask numbers legible, and large images are reduced to keep the page small.
_SMALLEST, _LARGEST = 512, 800
_QUALITY = 85


@dataclass(frozen=True)
class Guess:
    """The name predicted for one mask in one vocabulary mode.

    Attributes:
        name: the predicted name.
        prob: the probability of the name; None if the prediction file has no probability.
        right: whether the predicted name is a name of the class of the mask.
        right_elsewhere: whether the predicted name is wrong in the vocabulary of the dataset, but is one of the
            annotation's `names`.
    """

    name: str
    prob: float | None
    right: bool
    right_elsewhere: bool


@dataclass(frozen=True)
class DrawnImage:
    """One image with its masks drawn on it.

    Attributes:
        file_name: the file name of the image.
        jpeg: the drawn image as a base64-encoded JPEG.
        size: (width, height) of the drawn image.
        masks: for each mask, in the order of the drawn numbers, the name of its class, the prediction in the dataset's
            own mode and the prediction in mode `any`. A missing prediction is None.
    """

    file_name: str
    jpeg: str
    size: tuple[int, int]
    masks: list[tuple[str, Guess | None, Guess | None]]


def choose(records: SetRecords, count: int, seed: int) -> list[int]:
    """Choose up to `count` random images that contain a named mask, and return their indices in dataset order."""
    masks = masks_by_image(records)
    named = [index for index, of_image in enumerate(masks) if any(mask.counted for mask in of_image)]
    return sorted(random.Random(f"{seed} {records.row.name}").sample(named, min(count, len(named))))


def choose_surest(records: SetRecords, count: int) -> tuple[list[int], list[int]]:
    """Choose the images with the most confident wrong names and those with the most confident correct names.

    Up to `count` images of each kind are chosen. The confidence of an image is the mean probability over its masks,
    where probabilities of wrong names count as negative. For each mask, the name predicted in the dataset's own mode is
    used, falling back to the name predicted in mode `any`. Masks without a probability are skipped. Images with
    negative confidence are returned in the first list, and images with positive confidence in the second.

    Returns:
        The indices of the images with wrong names, and of the images with right names, the most confident first.
    """
    found = []
    for index, masks in enumerate(masks_by_image(records)):
        guesses = [own or anyone for _, own, anyone in (_names(records.row, mask) for mask in masks if mask.counted)]
        sure = [guess.prob if guess.right else -guess.prob for guess in guesses if guess and guess.prob is not None]
        if sure:
            found.append((sum(sure) / len(sure), index))
    wrong = [index for _, index in sorted(one for one in found if one[0] < 0)]
    right = [index for _, index in sorted((-mean, index) for mean, index in found if mean > 0)]
    return wrong[:count], right[:count]


def draw_pictures(result: SetResult, chosen: Iterable[int]) -> tuple[dict[int, DrawnImage], list[str]]:
    """Draw images of one dataset.

    Returns:
        The drawn images by index, and for each image that could not be drawn, the reason. A missing image file does not
        stop the report.
    """
    chosen = sorted(set(chosen))
    if not chosen:
        return {}, []
    masks = masks_by_image(result.records)
    row = row_with_files(result.row, result.meta)
    try:
        split = split_of(row)
    except OsmError as error:
        return {}, [str(error)] * len(chosen)
    if result.meta.get("annotations", split.source_hash) != split.source_hash:
        note = f"{split.source} has changed since the predictions were made, so its masks may differ"
        return {}, [note] * len(chosen)
    pictures: dict[int, DrawnImage] = {}
    notes = []
    for index in chosen:
        try:
            pictures[index] = _draw(split, index, masks[index])
        except OsmError as error:
            notes.append(str(error))
    return pictures, notes


def masks_by_image(records: SetRecords) -> list[list[MaskRecord]]:
    """Return the annotations of each image, excluding crowd annotations."""
    return [[mask for mask in image.masks if not mask.crowd] for image in records.images]


def _draw(split: Split, index: int, masks: list[MaskRecord]) -> DrawnImage:
    if index >= len(split):
        raise OsmError(f"{split.source} has {len(split)} images, but the predictions contain image index {index}")
    item = split.load(index)
    masks = [masks[place] for place in item.places if place < len(masks)]
    if [mask.id for mask in masks] != [annotation.get(split.id_key) for annotation in item.annotations]:
        raise OsmError(f"{item.image_path}: the masks in the prediction file differ from the masks in {split.source}")
    rows = [_names(split.row, mask) for mask in masks]
    canvas = draw_numbered(*enlarged(item), [_mark(own, anyone) for _, own, anyone in rows])
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=_QUALITY)
    return DrawnImage(item.image_path.name, base64.b64encode(buffer.getvalue()).decode(), canvas.size, rows)


def enlarged(item: Item) -> tuple[Image.Image, np.ndarray]:
    """Return an image and its bool masks (K, H, W), both resized to the size of a drawn image."""
    image = item.image()
    scale = min(max(max(image.size), _SMALLEST), _LARGEST) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    masks = [resize_nearest(item.mask(k), (height, width)) for k in range(len(item.annotations))]
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized, np.stack(masks) if masks else np.zeros((0, height, width), bool)


def _names(row: Dataset, mask: MaskRecord) -> tuple[str, Guess | None, Guess | None]:
    label = row.label_set[mask.category_id]
    own, anyone = (_guess(mask, mode, label.names) for mode in (row.name, ANY_MODE))
    return label.target, own, anyone


def _guess(mask: MaskRecord, mode: str, names: tuple[str, ...]) -> Guess | None:
    prediction = mask.predictions.get(mode)
    if prediction is None:
        return None
    right = is_correct(prediction.name, names)
    elsewhere = not right and mode == ANY_MODE and is_correct(prediction.name, map(normalize, mask.names or ()))
    return Guess(prediction.name, prediction.prob, right, elsewhere)


def _mark(own: Guess | None, anyone: Guess | None) -> bool | None:
    guess = own or anyone
    return None if guess is None else guess.right


_GAP = 8
_TINT = 0.0  # masks are not tinted, because a name may refer to a color


def write_picture(
    path: Path, folder: Path, parts: int, table: Mapping[str, Dataset], set_name: str, images: int = 6, columns: int = 3
) -> Path:
    """Draw a mosaic of images from one dataset, with the names predicted in the dataset's own vocabulary mode.

    The images are evenly spaced in the dataset and resized to the size of the first image. In the mosaic, a wrong name
    is followed by the correct name in brackets.

    Args:
        path: the JPEG file to write.
        folder: the folder of the prediction files.
        parts: number of parts of the predictions.
        table: the table of datasets.
        set_name: name of the dataset whose images are drawn.
        images: maximum number of images.
        columns: maximum number of images per row.

    Raises:
        OsmError: There are no predictions for the dataset, or its images are missing.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        raise OsmError(f"output {path}: expected a file name that ends in .jpg, because the output is a JPEG")
    results = {result.row.name: result for result in evaluate_folder(folder, parts, table)[0]}
    if set_name not in results:
        raise OsmError(f"--set {set_name!r}: {folder} only has predictions for {', '.join(results)}")
    row = row_with_files(results[set_name].row, results[set_name].meta)
    records = masks_by_image(results[set_name].records)
    split = split_of(row)
    if len(records) != len(split):
        raise OsmError(
            f"{folder} contains predictions for {len(records)} images, but {split.source} has {len(split)} images"
        )
    count = min(images, len(split))
    drawn = []
    for number in range(count):
        index = number * len(split) // count
        item = split.load(index)
        image, masks = enlarged(item)
        of_image = [records[index][place] for place in item.places]
        named = [k for k, mask in enumerate(of_image) if mask.counted and set_name in mask.predictions]
        texts = [_text(row, of_image[k]) for k in named]
        drawn.append(draw_names(image, masks[named], texts, _TINT))
    if not drawn:
        raise OsmError(f"{folder}: no image of {set_name}")
    _save(path, _tiled(drawn, min(columns, count)))
    return path


def _text(row: Dataset, mask: MaskRecord) -> str:
    name, label = mask.predictions[row.name].name, row.label_set[mask.category_id]
    return name if is_correct(name, label.names) else f"{name} [{label.target}]"


def _tiled(images: list[Image.Image], columns: int) -> Image.Image:
    width, height = images[0].size
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, image in enumerate(images):
        place = (number % columns * (width + _GAP), number // columns * (height + _GAP))
        canvas.paste(image.resize((width, height)), place)
    return canvas


def _save(path: Path, image: Image.Image) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(temporary, "JPEG", quality=88, optimize=True)
        os.replace(temporary, path)
    except OSError as error:
        raise write_failed(error, f"output {path}", "a file that can be written") from None
