"""Synthetic shards for `loader.py`: three datasets in both layouts, with the same images."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.datasets.table import DatasetTable
from osm.synthetic.scenes.compose import draw_scene
from osm.synthetic.scenes.scene_names import choose_pairs

SETS = ("coco", "lvis", "a847")


def make_shards(folder: Path, width: int, height: int, images: int) -> dict[tuple[str, str], str]:
    """Write a shard for each (dataset, layout), all with the same images. Return their paths."""
    found = {}
    pictures = [draw(width, height, number) for number in range(images)]
    for name in SETS:
        for layout in ("webdataset", "published"):
            path = folder / f"{name}_{layout}_{width}x{height}.tar"
            with tarfile.open(path, "w") as tar:
                for number, (image, ids) in enumerate(pictures):
                    for extension, data in packed(members(name, image, ids, number), layout).items():
                        info = tarfile.TarInfo(f"{number:06d}.{extension}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            found[name, layout] = str(path)
    return found


def draw(width: int, height: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of two synthetic scenes side by side, and the ids of its segments."""
    side = max((width + 1) // 2, height)
    pairs = choose_pairs("all")
    halves = [draw_scene(side, pairs, 0, 2 * number + i) for i in range(2)]
    image = np.concatenate([half.image[:height, : width // 2] for half in halves], 1)
    left, right = (half.ids[:height, : width // 2] for half in halves)
    return image, np.concatenate([left, np.where(right > 0, right + left.max(), 0)], 1)


def members(name: str, image: np.ndarray, ids: np.ndarray, number: int) -> dict[str, bytes]:
    """Return a sample of the plain layout. The classes of its segments are random."""
    rng = np.random.default_rng(number)
    height, width = ids.shape
    classes = sorted(DatasetTable()[name].label_set.classes)
    class_of = {int(i): int(rng.choice(classes)) for i in np.unique(ids) if i}
    document: dict[str, Any] = {"width": width, "height": height}
    parts = {"jpg": saved(Image.fromarray(image), "JPEG", quality=92)}
    if name == "coco":
        rgb = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], -1).astype(np.uint8)
        parts["png"] = saved(Image.fromarray(rgb), "PNG")
        document["segments_info"] = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in class_of.items()]
    elif name == "lvis":
        document["segments_info"] = [
            {"category_id": c, "bbox": [0, 0, 1, 1], "segmentation": outline(ids == i)} for i, c in class_of.items()
        ]
    else:
        table = np.full(int(ids.max()) + 1, 65535, np.uint16)
        for i, c in class_of.items():
            table[i] = c
        parts["tif"] = saved(Image.fromarray(table[ids]), "TIFF")
    parts["json"] = json.dumps(document).encode()
    return parts


def outline(mask: np.ndarray) -> list[list[float]]:
    """Return a polygon around a mask: the extent of the mask in each of up to 60 rows."""
    rows = np.flatnonzero(mask.any(1))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), 60)).astype(int)]
    spans = [(int(np.argmax(mask[y])), mask.shape[1] - int(np.argmax(mask[y, ::-1])), int(y)) for y in rows]
    spans.append((*spans[-1][:2], spans[-1][2] + 1))  # A mask of a single row then has four corners.
    points = [(left, y) for left, _, y in spans] + [(right, y) for _, right, y in reversed(spans)]
    return [[float(value) for point in points for value in point]]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def packed(parts: dict[str, bytes], layout: str) -> dict[str, bytes]:
    if layout == "webdataset":
        return parts
    document = json.loads(parts["json"])
    for extension, key in (("jpg", "image_base64"), ("png", "pan_base64"), ("tif", "seg_base64")):
        if extension in parts:
            document[key] = base64.b64encode(parts[extension]).decode()
    return {"json": json.dumps(document).encode()}
