"""LabelMe and X-AnyLabeling: one json for each image, beside the image."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import OsmError, SampleError, shown
from osm.files import read_json, write_atomically
from osm.io.images import read_mask
from osm.io.values import finite, whole
from osm.labeling.formats.coco_labels import json_document
from osm.labeling.formats.label_format import (
    Holds,
    LabeledImages,
    LabelFormat,
    LabelShape,
    MaskSource,
    Size,
    box_shape,
    check_points,
    shape_of,
)
from osm.labeling.outlines import center_polygon, center_polygons, draw_centers, outlines

_MAX_MASK_BYTES = 64 << 20


class LabelMeFiles(LabelFormat):
    """LabelMe. A mask that has holes or several parts is written as a shape of the type `mask`, which supports both."""

    name, title = "labelme", "LabelMe"
    output = "labelme"
    holds = Holds(scores=False, ids=False)
    fills = True
    version = "5.5.0"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        files = sorted(path.rglob("*.json"))[:1] if path.is_dir() else [path]
        return bool(files) and _is_labelme(json_document(files[0]))

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            document = cls._read(file)
            width, height = whole(document.get("imageWidth")), whole(document.get("imageHeight"))
            stated = document.get("imagePath")
            name = stated.replace("\\", "/") if isinstance(stated, str) and stated else file.stem
            folder = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
            full = name if folder == "." else f"{folder}/{name}"
            size = (width, height) if width and height else None
            count = len(list(_grouped(document["shapes"])))
            yield MaskSource(full, f"{file}: shapes", size=size, data=file, stated_count=count)

    @classmethod
    def _read(cls, file: Path) -> dict[str, Any]:
        document, _ = read_json(file, "--masks", nesting=None)
        if not _is_labelme(document):
            raise OsmError(f"--masks {file}: has no 'shapes', so it is not a json of LabelMe or X-AnyLabeling")
        return document

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        return replace(source, rows=tuple(_grouped(cls._read(source.data)["shapes"])))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        label = str(row[0].get("label", "")) if isinstance(row[0], dict) else ""
        if len(row) == 1 and isinstance(row[0], dict) and row[0].get("shape_type") == "rectangle":
            return [_rectangle(row[0].get("points"), size, where, label)]
        mask = np.zeros(size[::-1], bool)
        for shape in row:
            mask |= _drawn(shape, size, where)
        return [shape_of(mask, where, label=label)]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        for image in labels.images:
            file = files[image.number]
            document = cls._read(file)
            groups = list(_grouped(document["shapes"]))
            for shape in image.shapes:
                for row in groups[shape.row or 0]:
                    row |= {"label": shape.name} | ({"score": shape.prob} if "score" in row else {})
            place = out / (file.relative_to(path) if path.is_dir() else file.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, [json.dumps(document, indent=2, ensure_ascii=False), "\n"])

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        for image in labels.images:
            document: dict[str, Any] = {
                "version": cls.version,
                "flags": {},
                "shapes": [row for k, one in enumerate(image.shapes) for row in cls.rows_of(one, k)],
                "imagePath": Path(image.file_name).name,
                "imageData": None,
                "imageHeight": image.size[1],
                "imageWidth": image.size[0],
            }
            file = (out / cls.name / image.file_name).with_suffix(".json")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, [json.dumps(document, indent=2, ensure_ascii=False), "\n"])

    @classmethod
    def rows_of(cls, shape: LabelShape, group: int) -> list[dict[str, Any]]:
        """Return an object as the format's shapes. Several shapes of one object have `group` as their `group_id`."""
        if shape.box is not None:
            x, y, w, h = shape.box
            return [cls._row(shape, "rectangle", [[x, y], [x + w, y + h]])]
        lines = outlines(shape.mask)
        if len(lines) == 1:
            return [cls._row(shape, "polygon", [list(map(float, point)) for point in center_polygon(lines[0])])]
        x, y, w, h = (int(value) for value in shape.bounds)
        buffer = io.BytesIO()
        Image.fromarray(shape.mask[y : y + h, x : x + w]).save(buffer, "PNG")
        row = cls._row(shape, "mask", [[float(x), float(y)], [float(x + w - 1), float(y + h - 1)]])
        return [row | {"mask": base64.b64encode(buffer.getvalue()).decode("ascii")}]

    @classmethod
    def _row(cls, shape: LabelShape, kind: str, points: list[list[float]], group: int | None = None) -> dict[str, Any]:
        return {
            "label": shape.name,
            "points": points,
            "group_id": group,
            "description": "",
            "shape_type": kind,
            "flags": {},
            "mask": None,
        }


class XAnyLabelingFiles(LabelMeFiles):
    """X-AnyLabeling. The parts of a mask are polygons with one `group_id`, and the shapes have scores."""

    name, title = "xanylabeling", "X-AnyLabeling"
    output = "xanylabeling"
    reads = fills = False  # It is read as LabelMe, which it extends.
    holds = Holds(holes=False, ids=False)
    version = "3.0.0"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return False

    @classmethod
    def rows_of(cls, shape: LabelShape, group: int) -> list[dict[str, Any]]:
        if shape.box is not None:
            x, y, w, h = shape.box
            corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
            return [cls._row(shape, "rectangle", corners)]
        polygons = center_polygons(shape.mask)
        number = group if len(polygons) > 1 else None
        return [cls._row(shape, "polygon", [list(map(float, p)) for p in one], number) for one in polygons]

    @classmethod
    def _row(cls, shape: LabelShape, kind: str, points: list[list[float]], group: int | None = None) -> dict[str, Any]:
        row = super()._row(shape, kind, points, group)
        del row["mask"]
        return row | {"score": shape.prob, "difficult": False, "attributes": {}, "kie_linking": []}


def _is_labelme(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("shapes"), list) and "imagePath" in document


def _grouped(shapes: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the shapes of each object: shapes with one `group_id` and one label are parts of one object."""
    groups: dict[Any, list[Any]] = {}
    for number, shape in enumerate(shapes):
        group = shape.get("group_id") if isinstance(shape, dict) else None
        alone = not isinstance(group, int | str) or isinstance(group, bool)
        key: Any = number if alone else (group, str(shape.get("label", "")))
        groups.setdefault(key, []).append(shape)
    yield from map(tuple, groups.values())


def _rectangle(points: Any, size: Size, where: str, label: str) -> LabelShape:
    found = np.array(check_points(points, size, where, 2))
    (left, top), (right, bottom) = found.min(0), found.max(0)
    return box_shape([left, top, right - left, bottom - top], size, where, label=label)


def _drawn(shape: Any, size: Size, where: str) -> np.ndarray:
    """Draw one shape as a bool mask (H, W). Raise SampleError if the shape cannot be drawn."""
    if not isinstance(shape, dict):
        raise SampleError("annotation_malformed", f"{where}: {shown(shape)} is not an object")
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind in ("polygon", "rotation", "quadrilateral"):
        return draw_centers([check_points(points, size, where)], size[::-1])
    if kind == "rectangle":
        return _rectangle(points, size, where, "").mask
    if kind == "circle":
        (x, y), (u, v) = check_points(points, size, where, 2)[:2]
        rows, columns = np.ogrid[: size[1], : size[0]]
        return (columns - x) ** 2 + (rows - y) ** 2 <= math.hypot(u - x, v - y) ** 2
    if kind == "mask":
        return _pasted(shape, check_points(points, size, where, 2), size, where)
    raise SampleError("shape_without_area", f"{where}: a shape of the type {shown(kind)} is not a mask")


def _pasted(shape: dict[str, Any], points: list[tuple[float, float]], size: Size, where: str) -> np.ndarray:
    text = shape.get("mask")
    try:
        if not isinstance(text, str) or len(text) > _MAX_MASK_BYTES:
            raise ValueError("not a text, or too long")
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise SampleError("mask_unreadable", f"{where}: mask is not a base64 PNG ({error})") from None
    patch = read_mask(data)
    left, top = (round(value) for value in points[0])
    if finite(left) is None or left < 0 or top < 0:
        raise SampleError("mask_size", f"{where}: the mask begins outside its image, at {points[0]}")
    if left + patch.shape[1] > size[0] or top + patch.shape[0] > size[1]:
        found = f"{patch.shape[1]} x {patch.shape[0]} pixels at ({left}, {top})"
        raise SampleError("mask_size", f"{where}: the mask has {found}, beyond its image ({size[0]} x {size[1]})")
    mask = np.zeros(size[::-1], bool)
    mask[top : top + patch.shape[0], left : left + patch.shape[1]] = patch > 0
    return mask
