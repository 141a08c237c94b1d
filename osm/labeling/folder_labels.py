"""The results of `osm folder` in the formats of `osm label`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.labeling.folder import ImageTask
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelFormat, LabelShape
from osm.labeling.label_output import grown_names


class _FolderImages:
    """The named images of a folder, read from their JSON files one after another."""

    def __init__(self, tasks: Sequence[ImageTask]) -> None:
        self.tasks = tasks
        self.root = Path(os.path.commonpath([task.image.absolute().parent for task in tasks]))

    def __iter__(self) -> Iterator[LabeledImage]:
        for number, task in enumerate(self.tasks):
            file = task.file(".json")
            if file.is_file():
                document = parse_json(file.read_bytes(), nesting=None)
                name = task.image.absolute().relative_to(self.root).as_posix()
                shapes = tuple(shape for row in document["segments"] if (shape := _shape(row)) is not None)
                yield LabeledImage(number, name, str(task.image), tuple(document["size"]), shapes)


def _shape(row: dict[str, Any]) -> LabelShape | None:
    """Return a segment as a shape, or None if it has no name."""
    if not row.get("name"):
        return None
    prob = round(float(row.get("calibrated_prob", row["prob"])), 6)
    unsure, number = bool(row.get("unsure")), row.get("class_id")
    return LabelShape(row["segmentation"], name=row["name"], prob=prob, class_id=number, unsure=unsure)


def write_folder_labels(
    tasks: Sequence[ImageTask], formats: Sequence[type[LabelFormat]], out: Path, model: str
) -> None:
    """Write the names of all segments, whether or not they are in the label map, in each format."""
    out.mkdir(parents=True, exist_ok=True)
    images = _FolderImages(tasks)
    names = dict.fromkeys(shape.name for image in images for shape in image.shapes)
    labels = LabeledImages(images, grown_names(out / "names.txt", names), model)
    for one in formats:
        one.write(labels, out)
