"""Reads the ground truth of proposals in the standard layouts, with Pillow, numpy and pycocotools."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from osm.datasets.table import Dataset

VOID = 0


@dataclass
class Truth:
    """The ground truth of an image.

    Attributes:
        key: the id of the image in its JSON file, or the name of the file without its ending.
        file_name: the name of the image file.
        size: height and width.
        map_HW: the segment of every pixel, 0 for void; None if masks may overlap.
        segments: segment -> (class, crowd).
        instances: (mask, class, crowd) of every mask that AP compares.
    """

    key: Any
    file_name: str
    size: tuple[int, int]
    map_HW: np.ndarray | None = None
    segments: dict[int, tuple[int, bool]] = field(default_factory=dict)
    instances: list[tuple[np.ndarray, int, bool]] = field(default_factory=list)


def things_of(row: Dataset) -> set[int]:
    """Return the classes whose masks are instances."""
    classes = row.label_set.classes
    if row.form in ("semantic", "parts"):
        return set()
    every = {i for i, label in classes.items() if i not in row.ignored_ids}
    return {i for i in every if classes[i].isthing} if row.form == "coco_panoptic" else every


def read_truths(row: Dataset) -> list[Truth]:
    """Return the ground truth of every image of a dataset."""
    if row.form in ("semantic", "parts"):
        return _maps(row)
    assert row.json_file
    document = json.loads(Path(row.json_file).read_text(encoding="utf-8"))
    images = {image["id"]: image for image in document["images"]}
    return _panoptic(row, document, images) if row.form == "coco_panoptic" else _instances(row, document, images)


def _panoptic(row: Dataset, document: Any, images: dict[Any, Any]) -> list[Truth]:
    things, found = things_of(row), []
    for entry in document["annotations"]:
        rgb = np.asarray(Image.open(Path(str(row.mask_dir)) / entry["file_name"]).convert("RGB")).astype(np.int64)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        one = Truth(entry["image_id"], images[entry["image_id"]]["file_name"], ids.shape[:2])
        one.map_HW = np.zeros_like(ids)
        for segment in entry["segments_info"]:
            category_id, mask = segment["category_id"], ids == segment["id"]
            if category_id in row.ignored_ids or not mask.any():
                continue
            crowd = bool(segment.get("iscrowd"))
            one.map_HW[mask] = segment["id"]
            one.segments[segment["id"]] = category_id, crowd
            if category_id in things:
                one.instances.append((mask, category_id, crowd))
        found.append(one)
    return found


def _instances(row: Dataset, document: Any, images: dict[Any, Any]) -> list[Truth]:
    found = {i: Truth(i, image["file_name"], (image["height"], image["width"])) for i, image in images.items()}
    for annotation in document["annotations"]:
        if annotation["category_id"] in row.ignored_ids:
            continue
        one = found[annotation["image_id"]]
        if row.form == "boxes":
            mask = filled(annotation["bbox"], one.size)
        else:
            mask = decoded(annotation["segmentation"], one.size)
        if mask.any():
            one.instances.append((mask, annotation["category_id"], bool(annotation.get("iscrowd"))))
    return list(found.values())


def _maps(row: Dataset) -> list[Truth]:
    found = []
    for path in sorted(Path(str(row.mask_dir)).iterdir()):
        ids = np.asarray(Image.open(path)).astype(np.int64)
        classes = [i for i in np.unique(ids) if i in row.label_set.classes and i not in row.ignored_ids]
        one = Truth(path.stem, path.name, ids.shape[:2], np.zeros_like(ids))
        assert one.map_HW is not None
        for number, category_id in enumerate(classes, 1):  # a class may have the id 0
            one.map_HW[ids == category_id] = number
            one.segments[number] = int(category_id), False
        found.append(one)
    return found


def decoded(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask of polygons or of an RLE."""
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *size)
    return coco_mask.decode(segmentation).astype(bool)


def filled(box: list[float], size: tuple[int, int]) -> np.ndarray:
    """Return a filled box, rounded outwards to pixels and clipped at the image border."""
    x, y, width, height = box
    mask = np.zeros(size, bool)
    rows = slice(max(0, math.floor(y)), max(0, math.ceil(y + height)))
    mask[rows, max(0, math.floor(x)) : max(0, math.ceil(x + width))] = True
    return mask
