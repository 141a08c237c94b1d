"""Small pictures, samples and shards for the tests of the stream: what is where can be read off the colours."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny import tiny_tokenizer

from osm.data.processor import Processor
from osm.datasets.labels import LabelSet
from osm.datasets.table import Dataset
from osm.forms import Form, read_sample

SIZE = 56  # S of these tests
CATEGORIES = [
    {"id": 1, "name": "sky", "isthing": 0},
    {"id": 2, "name": "car", "isthing": 1},
    {"id": 3, "name": "dog", "isthing": 1},
]
LABELS = LabelSet.from_categories(CATEGORIES, "the test's categories")
# Colours by category; 0 is what no segment covers.
COLOURS = np.array([(0, 0, 0), (40, 40, 250), (250, 40, 40), (40, 250, 40)], np.uint8)


def processor(folder: Path, size: int = SIZE) -> Processor:
    return Processor(tiny_tokenizer(folder), None, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def panoptic_png(ids: np.ndarray) -> bytes:
    return png(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


def bands(width: int, height: int, categories: tuple[int, ...] = (1, 2, 3)) -> np.ndarray:
    """Vertical bands of equal width; a pixel is its category."""
    return np.array(categories)[np.arange(width) * len(categories) // width][None].repeat(height, 0)


def panoptic(categories: np.ndarray, segments: list[dict[str, Any]] | None = None) -> dict[str, bytes]:
    """A sample of the plain layout whose picture has each category's colour; a segment's id is 1000 x its category."""
    present = [int(value) for value in np.unique(categories) if value]
    found = [{"id": 1000 * value, "category_id": value, "iscrowd": 0} for value in present]
    return {
        "image.png": png(COLOURS[categories]),
        "png": panoptic_png(categories * 1000),
        "json": json.dumps({"segments_info": found if segments is None else segments}).encode(),
    }


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A polygon."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def instances(width: int, height: int, annotations: list[dict[str, Any]], /, **document: Any) -> dict[str, bytes]:
    pixels = np.zeros((height, width, 3), np.uint8)
    record = {"width": width, "height": height, "segments_info": annotations, **document}
    return {"image.png": png(pixels), "json": json.dumps(record).encode()}


def published(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same sample in the published layout."""
    document = json.loads(members["json"])
    for name, key in (("image.png", "image_base64"), ("png", "pan_base64")):
        if name in members:
            document[key] = base64.b64encode(members[name]).decode()
    return {"json": json.dumps(document).encode()}


def scene(members: Mapping[str, bytes], form: str = "coco_panoptic") -> Form:
    return read_sample(form, members, LABELS)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    return write_tar(path, ((f"{key}.{name}", data) for key, parts in samples.items() for name, data in parts.items()))


def shards(folder: Path, sizes: tuple[int, ...], shape: tuple[int, int] = (64, 48)) -> tuple[str, ...]:
    """Shards of that many samples each, keys s000, s001, ...; each picture has bands of its own order."""
    paths, number = [], 0
    orders = [(1, 2, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (2, 1, 3), (1, 3, 2)]
    for index, size in enumerate(sizes):
        samples = {}
        for _ in range(size):
            samples[f"s{number:03d}"] = panoptic(bands(*shape, orders[number % len(orders)]))
            number += 1
        paths.append(str(write_shard(folder / f"{index:03d}.tar", samples)))
    return tuple(paths)


def dataset(folder: Path, name: str = "blocks", form: str = "coco_panoptic") -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    labels = folder / "categories.json"
    labels.write_text(json.dumps({"categories": CATEGORIES}))
    return Dataset(name, form, name, str(labels))
