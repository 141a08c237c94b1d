"""The lists of masks and class names with which Osprey evaluates LVIS and PACO."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osm.errors import OsmError
from osm.files import read_json
from osm.io.values import whole
from osm.labeling.formats.coco_labels import coco_shape, json_document
from osm.labeling.formats.label_format import Holds, LabelFormat, LabelShape, MaskSource, Size


class OspreyLists(LabelFormat):
    """A json list of images, each with `categories` (class names) and `annotations` (masks) in the same order."""

    name, title = "osprey", "Osprey's lists"
    holds = Holds(scores=False, ids=False)
    writes = False

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        document = json_document(path)
        first = document[0] if isinstance(document, list) and document else None
        return isinstance(first, dict) and {"file_name", "categories", "annotations"} <= first.keys()

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        document, _ = read_json(path, "--masks", nesting=None)
        if not isinstance(document, list):
            raise OsmError(f"--masks {path}: expected a list of images with file_name, categories and annotations")
        for number, image in enumerate(document):
            where = f"{path}: image {number}"
            name = image.get("file_name") if isinstance(image, dict) else None
            if not isinstance(name, str) or not name:
                raise OsmError(f"{where}: has no file_name")
            names, rows = image.get("categories"), image.get("annotations")
            if not isinstance(names, list) or not isinstance(rows, list) or len(names) != len(rows):
                raise OsmError(f"{where}: categories and annotations must be lists of the same length")
            stated = whole(image.get("width")), whole(image.get("height"))
            size = (stated[0], stated[1]) if stated[0] and stated[1] else None
            yield MaskSource(name, f"{where}, annotation", tuple(zip(map(str, names), rows, strict=True)), size)

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        label, annotation = row
        return [coco_shape(annotation, size, where, label)]
