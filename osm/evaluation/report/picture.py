"""A picture of some predictions: images side by side, each mask outlined, with the name it was given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from osm.datasets.table import Dataset
from osm.errors import OsmError, write_failed
from osm.evaluation.metrics import is_correct
from osm.evaluation.metrics.evaluate import evaluate_folder
from osm.evaluation.predict.agreement import row_with_files
from osm.evaluation.predict.records import MaskRecord
from osm.evaluation.report.report_pictures import enlarged, masks_by_image
from osm.forms import split_of
from osm.recognition.draw import draw_names

_GAP = 8
_TINT = 0.0  # a thing's colour may be what its name is about


def write_picture(
    path: Path, folder: Path, parts: int, table: Mapping[str, Dataset], set_name: str, images: int = 6, columns: int = 3
) -> Path:
    """Draws images of one set, evenly spread over it, with their names in the set's own mode.

    A wrong name is followed by the right one in brackets. Images are brought to the size of the first.

    Raises:
        OsmError: no predictions for that set, or its images are not there.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        raise OsmError(f"output {path}: a JPEG is written, expected a name that ends in .jpg")
    results = {result.row.name: result for result in evaluate_folder(folder, parts, table)[0]}
    if set_name not in results:
        raise OsmError(f"--set {set_name!r}: {folder} has predictions of {', '.join(results)}")
    row = row_with_files(results[set_name].row, results[set_name].meta)
    records = masks_by_image(results[set_name].records)
    split = split_of(row)
    if len(records) != len(split):
        raise OsmError(f"{folder}: predictions of {len(records)} images, but {split.source} has {len(split)}")
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
