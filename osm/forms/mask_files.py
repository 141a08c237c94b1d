"""Instance masks that are each stored as a PNG and listed in a CSV file, as in Open Images.

Each row of `<split>-annotations-object-segmentation.csv` has the columns MaskPath, ImageID and LabelName. MaskPath is
the name of a 1-bit PNG, whose size may differ from the image size. The image file is ImageID.jpg, and LabelName is the
id of a class, such as /m/01g317. A second CSV file contains the class names.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.labels import LABEL_NAME, LabelSet, read_categories
from osm.errors import OsmError, SampleError, shown
from osm.forms.base import Entry, SetFiles
from osm.forms.coco_json import Annotation, CocoJson, ImageAnnotations
from osm.forms.picture import Size
from osm.forms.set_files import names_digest, naming_file
from osm.io.csv_rows import csv_records
from osm.io.images import read_mask
from osm.storage.locations import suffix_of

_COLUMNS = ("MaskPath", "ImageID", "LabelName")
_MASK_FILE = "mask_file"
_NAME = re.compile(r"[\w-]{1,100}")


def is_mask_table(path: str | Path | None) -> bool:
    """Return whether the annotation file `path` is a CSV file that lists mask files, rather than a JSON file."""
    return path is not None and suffix_of(path) == ".csv"


class MaskTable(CocoJson):
    """A CSV file that lists mask files, converted to the structure of a COCO JSON file.

    An annotation's id is the name of its mask file without the extension.
    """

    def __init__(self, files: SetFiles, labels: LabelSet | None) -> None:
        path = Path(str(files.json_file))
        if not files.labels:
            flag = files.flag.format("labels")
            raise OsmError(
                f"{flag}: the file {path} contains no class names; pass the class CSV file "
                "(class-descriptions-boxable.csv)"
            )
        categories = [row for row in read_categories(files.labels) if isinstance(row, dict)]
        self._ids = {row[LABEL_NAME]: row.get("id") for row in categories if isinstance(row.get(LABEL_NAME), str)}
        if not self._ids:
            raise OsmError(
                f"{files.where('labels')}: no category has the field {LABEL_NAME}, but the class ids in {path} are "
                "values of this field"
            )
        self._found = _pngs(files.folder("ann_dir"))
        self._lines = array("L")
        super().__init__(files, labels, self._read(path, files, categories))

    def _read(self, path: Path, files: SetFiles, categories: list[Any]) -> tuple[dict[str, Any], str]:
        digest = hashlib.sha256(repr(sorted(self._ids.items())).encode())
        digest.update(names_digest(self._found).encode())  # adding masks later changes the shards
        images: dict[str, dict[str, Any]] = {}
        annotations: list[Any] = []
        for line, row in csv_records(path, files.flag.format("json_file"), _COLUMNS, digest):
            self._lines.append(line)
            if row is None:
                annotations.append(None)
                continue
            mask, image_id, label = (row[name].strip() for name in _COLUMNS)
            if image_id not in images and _NAME.fullmatch(image_id):
                images[image_id] = {"id": image_id, "file_name": f"{image_id}.jpg"}
            image_id = images[image_id]["id"] if image_id in images else image_id  # all lines share one string object
            own_id = mask.removesuffix(".png")
            annotation = {"id": own_id, "image_id": image_id, "category_id": self._ids.get(label), LABEL_NAME: label}
            if annotation["category_id"] is not None:
                del annotation[LABEL_NAME]
            annotations.append(annotation)
        document = {"images": list(images.values()), "annotations": annotations, "categories": categories}
        return document, digest.hexdigest()

    def place(self, number: int) -> str:
        return f"{self.path}, line {self._lines[number]}"

    def category_of(self, annotation: Mapping[str, Any], where: str) -> int:
        if annotation["category_id"] is None:
            message = f"{where}: LabelName {shown(annotation[LABEL_NAME])} is not in {self.files.labels}"
            raise SampleError("category_unknown", message)
        return super().category_of(annotation, where)

    def add_mask(self, where: str, row: Annotation, segment: Annotation, collected: ImageAnnotations) -> None:
        name = f"{row['id']}.png"
        path = self._found.get(name)
        if path is None:
            message = f"{where}: {shown(name)} is neither in {self.files.ann_dir} nor in one of its subfolders"
            raise SampleError("annotation_without_mask", message)
        collected.masks[path] = segment[_MASK_FILE] = path


def with_mask_of_file(entry: Entry, annotation: Annotation, size: Size) -> Annotation:
    """Replace an annotation's mask file with an RLE of the same size as the image.

    Args:
        entry: the entry of the image.
        annotation: the annotation.
        size: (width, height) of the image.

    Raises:
        SampleError: the file is not a mask, or no pixel of the mask is set.
    """
    path = entry.masks[annotation[_MASK_FILE]]
    try:
        with naming_file(path, "mask"):
            mask = read_mask(path, size)
    except SampleError as error:
        raise SampleError("annotation_without_mask", str(error)) from None
    if not mask.any():
        raise SampleError("annotation_without_mask", f"mask {path}: the mask is empty")
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    counts = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode("ascii")
    kept = {name: value for name, value in annotation.items() if name != _MASK_FILE}
    return {**kept, "segmentation": {"size": [size[1], size[0]], "counts": counts}}


def _pngs(folder: Path) -> dict[str, str]:
    """Map the file names of all PNGs in a folder and its immediate subfolders to their relative paths."""
    found: dict[str, str] = {}
    for root, folders, names in os.walk(folder):
        folders.sort()
        relative = Path(root).relative_to(folder)
        if len(relative.parts) >= 2:
            folders.clear()
        for name in names:
            if name.endswith(".png"):
                found.setdefault(name, (relative / name).as_posix())
    return found


__all__ = ["MaskTable", "is_mask_table", "with_mask_of_file"]
