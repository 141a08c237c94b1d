"""COCO panoptic: a PNG of segment ids for each image, and one json with their categories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import OsmError, SampleError, shown
from osm.files import read_json, replacing, write_atomically
from osm.io.images import panoptic_pixels, read_panoptic
from osm.io.paths import safe_join
from osm.io.values import whole
from osm.labeling.formats.coco_labels import is_panoptic, json_document
from osm.labeling.formats.label_format import (
    Holds,
    LabeledImage,
    LabeledImages,
    LabelFormat,
    LabelShape,
    MaskSource,
    Size,
    category_names,
    check_map_size,
    filled_ids,
    shape_of,
)


class PanopticLabels(LabelFormat):
    """COCO panoptic. The PNGs are in the folder of the same name as the json, as in COCO's releases."""

    name, title = "coco_panoptic", "COCO panoptic"
    output = "panoptic.json"
    holds = Holds(overlaps=False, ids=False)
    fills = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        document = json_document(path)
        return isinstance(document, dict) and is_panoptic(document.get("annotations"))

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        document, _ = read_json(path, "--masks", nesting=None)
        images, rows = document.get("images"), document.get("annotations")
        if not isinstance(images, list) or not is_panoptic(rows):
            raise OsmError(f"--masks {path}: has no lists 'images' and 'annotations' with segments_info")
        names = category_names(document)
        known = {row["id"]: row for row in images if isinstance(row, dict) and "id" in row}
        folder = path.with_suffix("")
        for number, row in enumerate(rows):
            image = known.get(row.get("image_id")) if isinstance(row, dict) else None
            if image is None or not isinstance(image.get("file_name"), str):
                raise OsmError(f"--masks {path}: annotations[{number}] belongs to no image that has a file_name")
            png = safe_join(folder, str(row.get("file_name")))
            segments = row.get("segments_info")
            rows_of = tuple(segments) if isinstance(segments, list) else ()
            name = image["file_name"]
            yield MaskSource(name, f"{path}: image {shown(name)}, segment", rows_of, None, (png, names))

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        png, names = source.data
        ids = read_panoptic(png)
        check_map_size(ids, size, str(png))
        return replace(source, data=(ids, names))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        ids, names = source.data
        return [segment_shape(row, ids, names, where)]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        document, _ = read_json(path, "--masks", nesting=None)
        ids = filled_ids(document.setdefault("categories", []), labels.categories)
        for image in labels.images:
            segments = document["annotations"][image.number]["segments_info"]
            for shape in image.shapes:
                segments[shape.row or 0] |= {"category_id": ids[shape.name], "score": shape.prob}
        for row in document["annotations"]:
            png = out / path.stem / row["file_name"]
            png.parent.mkdir(parents=True, exist_ok=True)
            with replacing(png) as file:
                file.write(safe_join(path.with_suffix(""), row["file_name"]).read_bytes())
        write_atomically(out / path.name, json.JSONEncoder().iterencode(document))

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        (out / "panoptic").mkdir(exist_ok=True)
        rows = []
        for image in labels.images:
            ids, segments = cls._painted(image, labels)
            name = f"{image.number:09d}.png"
            with replacing(out / "panoptic" / name) as file:
                Image.fromarray(panoptic_pixels(ids)).save(file, "PNG")
            rows.append({"image_id": image.number + 1, "file_name": name, "segments_info": segments})
        write_atomically(out / "panoptic.json", cls._chunks(labels, rows))

    @classmethod
    def _painted(cls, image: LabeledImage, labels: LabeledImages) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Paint the shapes, so that each pixel belongs to its most probable shape, or the smallest one of these."""
        ids = np.zeros(image.size[::-1], np.int32)
        order = sorted(range(len(image.shapes)), key=lambda k: (-image.shapes[k].prob, image.shapes[k].area))
        for k in order:
            free = image.shapes[k].mask & (ids == 0)
            ids[free] = k + 1
        segments = []
        for k, shape in enumerate(image.shapes):
            y, x = np.nonzero(ids == k + 1)
            if not len(x):
                continue
            box = [int(x.min()), int(y.min()), int(x.max() - x.min() + 1), int(y.max() - y.min() + 1)]
            row = {"id": k + 1, "category_id": labels.categories[shape.name], "area": len(x), "bbox": box}
            segments.append(row | {"iscrowd": 0, "score": shape.prob})
        return ids, segments

    @classmethod
    def _chunks(cls, labels: LabeledImages, rows: list[dict[str, Any]]) -> Iterator[str]:
        images = [
            {"id": image.number + 1, "file_name": image.file_name, "width": image.size[0], "height": image.size[1]}
            for image in labels.images
        ]
        categories = [{"id": number, "name": name, "isthing": 1} for name, number in labels.categories.items()]
        for key, listed in (("images", images), ("annotations", rows), ("categories", categories)):
            yield ("{" if key == "images" else ",") + f'\n"{key}": [\n'
            yield ",\n".join(json.dumps(row) for row in listed) + "\n]"
        yield "}\n"


def segment_shape(row: Any, ids: np.ndarray, names: Mapping[Any, str], where: str) -> LabelShape:
    """Return a row of `segments_info` as a shape. Raises SampleError if it has no id or no pixel.

    Args:
        ids: the ids of the panoptic PNG (H, W).
        names: the names of the category ids.
    """
    segment = whole(row.get("id")) if isinstance(row, dict) else None
    if segment is None:
        raise SampleError("annotation_malformed", f"{where}: {shown(row)} has no id")
    return shape_of(ids == segment, where, id=segment, label=names.get(row.get("category_id"), ""))
