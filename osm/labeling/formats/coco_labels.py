"""COCO's instances and results, SA-1B's files, and dumps of SAM's automatic mask generator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from osm.errors import OsmError, SampleError, shown
from osm.files import read_json, write_atomically
from osm.io.segmentation import decode_segmentation
from osm.io.values import whole
from osm.labeling.formats.label_format import (
    Holds,
    LabeledImages,
    LabelFormat,
    LabelShape,
    MaskSource,
    Size,
    box_shape,
    category_names,
    filled_ids,
    shape_of,
)
from osm.labeling.outlines import corner_polygons


def coco_shape(row: Any, size: Size, where: str, label: str = "") -> LabelShape:
    """Read an object with a `segmentation`, or with a `bbox` alone. Raises SampleError if neither is usable."""
    if not isinstance(row, Mapping):
        raise SampleError("annotation_malformed", f"{where}: {shown(row)} is not an object")
    found = row.get("id")
    facts = {"id": found if isinstance(found, int | str) and not isinstance(found, bool) else None, "label": label}
    if not row.get("segmentation") and row.get("bbox"):
        return box_shape(row["bbox"], size, where, **facts)
    return shape_of(decode_segmentation(row.get("segmentation"), size[::-1], where), where, **facts)


class CocoLabels(LabelFormat):
    """A COCO instances json (images, annotations, categories) with RLE masks."""

    name, title = "coco", "COCO instances"
    output = "labels.json"
    holds = Holds(parents=True)
    fills = True
    polygons = False

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        document = json_document(path)
        rows = document.get("annotations") if isinstance(document, dict) else None
        return isinstance(rows, list) and isinstance(document.get("images"), list) and not is_panoptic(rows)

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        document, _ = read_json(path, "--masks", nesting=None)
        images, rows = document.get("images"), document.get("annotations")
        if not isinstance(images, list) or not isinstance(rows, list):
            raise OsmError(f"--masks {path}: has no lists 'images' and 'annotations'")
        names = category_names(document)
        of_image = _by_image(rows, path)
        known = {_id(image.get("id")) for image in images if isinstance(image, dict)}
        strays = [image_id for image_id in of_image if image_id not in known]
        if strays:
            raise OsmError(
                f"--masks {path}: annotations belong to image_id {shown(strays[0])}, which is not in 'images'"
            )
        for number, image in enumerate(images):
            name = image.get("file_name") or image.get("coco_url") if isinstance(image, dict) else None
            if not isinstance(name, str) or not name:
                raise OsmError(f"--masks {path}: images[{number}] has no file_name")
            stated = whole(image.get("width")), whole(image.get("height"))
            size = (stated[0], stated[1]) if stated[0] and stated[1] else None
            own = tuple(of_image.get(_id(image.get("id")), ()))
            yield MaskSource(name, f"{path}: image {shown(name)}, annotation", own, size, names)

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        label = source.data.get(row.get("category_id"), "") if isinstance(row, dict) else ""
        return [coco_shape(row, size, where, label)]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        document, _ = read_json(path, "--masks", nesting=None)
        of_image = _by_image(document["annotations"], path)
        ids = filled_ids(document.setdefault("categories", []), labels.categories)
        for image in labels.images:
            rows = of_image.get(_id(document["images"][image.number].get("id")), [])
            for shape in image.shapes:
                rows[shape.row or 0] |= {"category_id": ids[shape.name], "score": shape.prob}
        write_atomically(out / path.name, json.JSONEncoder().iterencode(document))

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        write_atomically(out / "labels.json", cls._chunks(labels))

    @classmethod
    def _chunks(cls, labels: LabeledImages) -> Iterator[str]:
        info = {"description": f"names predicted by {labels.model}"}
        yield f'{{"info": {json.dumps(info)},\n"images": ['
        comma = ""
        for image in labels.images:
            row = {
                "id": image.number + 1,
                "file_name": image.file_name,
                "width": image.size[0],
                "height": image.size[1],
            }
            yield f"{comma}\n{json.dumps(row)}"
            comma = ","
        yield '\n],\n"annotations": ['
        comma, number = "", 0
        for image in labels.images:
            first = number + 1
            for shape in image.shapes:
                number += 1
                row = cls._row(shape, number, image.number + 1, labels)
                if shape.parent is not None:
                    row["parent_id"] = first + shape.parent
                yield f"{comma}\n{json.dumps(row)}"
                comma = ","
        categories = [{"id": number, "name": name} for name, number in labels.categories.items()]
        listed = ",\n".join(json.dumps(row) for row in categories)
        yield f'\n],\n"categories": [\n{listed}\n]}}\n'

    @classmethod
    def _row(cls, shape: LabelShape, number: int, image_id: int, labels: LabeledImages) -> dict[str, Any]:
        segmentation: Any = dict(shape.rle)
        if cls.polygons:
            segmentation = corner_polygons(shape.mask)
        row: dict[str, Any] = {"id": number, "image_id": image_id, "category_id": labels.categories[shape.name]}
        row |= {"segmentation": segmentation, "area": shape.area, "bbox": shape.bounds, "iscrowd": 0}
        row["score"] = shape.prob
        return row if shape.id is None else row | {"source_id": shape.id}


class CocoPolygonLabels(CocoLabels):
    """A COCO instances json with polygons, for tools that do not read RLE masks."""

    name, title, polygons = "coco_polygons", "COCO instances with polygons", True
    output = "labels_polygons.json"
    holds = Holds(holes=False, parents=True)
    reads = fills = False

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return False

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        write_atomically(out / "labels_polygons.json", cls._chunks(labels))


class SamMasks(LabelFormat):
    """One json for each image: SA-1B's, or the list of SAM's automatic mask generator with RLE masks."""

    name, title = "sam", "SA-1B and SAM's automatic masks"
    writes, fills = False, True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        files = sorted(path.glob("*.json"))[:1] if path.is_dir() else [path]
        return bool(files) and _sam_rows(json_document(files[0])) is not None

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        for file in _json_files(path):
            document, rows = cls._read(file)
            image = document.get("image") if isinstance(document, dict) else None
            stated = image.get("file_name") if isinstance(image, dict) else None
            name = stated if isinstance(stated, str) and stated else file.stem
            yield MaskSource(name, f"{file}: mask", data=file, stated_count=len(rows))

    @classmethod
    def _read(cls, file: Path) -> tuple[Any, list[Any]]:
        document, _ = read_json(file, "--masks", nesting=None)
        rows = _sam_rows(document)
        if rows is None:
            raise OsmError(f"--masks {file}: is not SA-1B's json, nor a list of SAM's masks")
        return document, rows

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        return replace(source, rows=tuple(cls._read(source.data)[1]))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        return [coco_shape(row, size, where)]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        files = list(_json_files(path))
        for image in labels.images:
            file = files[image.number]
            document, rows = cls._read(file)
            for shape in image.shapes:
                rows[shape.row or 0] |= {"name": shape.name, "name_prob": shape.prob}
            place = out / (file.relative_to(path) if path.is_dir() else file.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, json.JSONEncoder().iterencode(document))


class CocoResults(LabelFormat):
    """A list of COCO results or proposals: `image_id`, and `segmentation` or `bbox`. Results have no file names.

    An `image_id` such as 139 refers to the image file with this number as its name, such as `000000000139.jpg`. An
    `image_id` that is a text is the name of the file.
    """

    name, title = "coco_results", "COCO results"
    writes, fills = False, True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        document = json_document(path)
        first = document[0] if isinstance(document, list) and document else None
        return isinstance(first, dict) and "image_id" in first and ("segmentation" in first or "bbox" in first)

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        document, _ = read_json(path, "--masks", nesting=None)
        if not isinstance(document, list):
            raise OsmError(f"--masks {path}: is not a list of results")
        for image_id, rows in _by_image(document, path, "").items():
            named = rows[0].get("file_name")
            name = named if isinstance(named, str) else ""
            where = f"{path}: image_id {shown(image_id)}, result"
            yield MaskSource(name or str(image_id), where, tuple(rows), by_id=not name)

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        return [coco_shape(row, size, where)]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        document, _ = read_json(path, "--masks", nesting=None)
        of_image = list(_by_image(document, path, "").values())
        for image in labels.images:
            for shape in image.shapes:
                facts = {"category_id": labels.categories[shape.name], "category_name": shape.name}
                of_image[image.number][shape.row or 0] |= facts | {"name_prob": shape.prob}
        write_atomically(out / path.name, json.JSONEncoder().iterencode(document))


def _by_image(rows: list[Any], path: Path, field: str = "annotations") -> dict[Any, list[dict[str, Any]]]:
    """Return the rows of each image id, in the order of their first rows. Raises OsmError if a row is no object."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise OsmError(f"--masks {path}: {field}[{number}] {shown(row)} is not an object")
        found.setdefault(_id(row.get("image_id")), []).append(row)
    return found


def _json_files(path: Path) -> Iterator[Path]:
    yield from sorted(path.rglob("*.json")) if path.is_dir() else [path]


def _sam_rows(document: Any) -> list[Any] | None:
    rows = document
    if isinstance(document, dict):
        rows = document.get("annotations") if isinstance(document.get("image"), dict) else None
    marks = {"predicted_iou", "stability_score"}
    if isinstance(rows, list) and all(isinstance(row, dict) and "segmentation" in row for row in rows):
        return rows if isinstance(document, dict) or (rows and marks & set(rows[0])) else None
    return None


def json_document(path: Path) -> Any:
    """Return the content of a json file, or None if the path is not a json file."""
    if not path.is_file() or path.suffix.lower() != ".json":
        return None
    return read_json(path, "--masks", nesting=None)[0]


def is_panoptic(rows: Any) -> bool:
    """Return whether rows are the `annotations` of a COCO panoptic json."""
    return isinstance(rows, list) and any(isinstance(row, dict) and "segments_info" in row for row in rows[:1])


def _id(value: Any) -> Any:
    number = whole(value)
    return value if number is None else number
