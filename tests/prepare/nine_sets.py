"""Small samples of every set of the table, in the plain layout and the published one, with the set's own classes."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stream_sets import bands, panoptic_png, png, rectangle, write_shard

from osm.datasets.table import Dataset

KEYS = {
    "jpg": "image_base64",
    "image.png": "image_base64",
    "png": "pan_base64",
    "tif": "seg_base64",
    "part.png": "part_seg_base64",
    "whole.png": "whole_seg_base64",
}


def tif(ids: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(ids.astype(np.uint16)).save(stream, "TIFF")
    return stream.getvalue()


def jpg(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def grey(ids: np.ndarray) -> bytes:
    return png(ids.astype(np.uint8))


def published(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The same sample in the published layout."""
    document = json.loads(members["json"])
    for name, data in members.items():
        if name != "json":
            document[KEYS[name]] = base64.b64encode(data).decode()
    return {"json": json.dumps(document).encode()}


def record(members: dict[str, bytes], width: int, height: int, **fields: Any) -> dict[str, bytes]:
    return {**members, "json": json.dumps({"width": width, "height": height, **fields}).encode()}


def semantic(ids: np.ndarray) -> dict[str, bytes]:
    height, width = ids.shape
    return record({"jpg": jpg(width, height), "tif": tif(ids)}, width, height)


def boxes(width: int, height: int, found: list[tuple[Any, int]]) -> dict[str, bytes]:
    entries = [{"bbox": bbox, "category_id": category} for bbox, category in found]
    return record({"jpg": jpg(width, height)}, width, height, segments_info=entries)


def parts(part: np.ndarray, whole: np.ndarray, coding: str = "grey") -> dict[str, bytes]:
    height, width = part.shape
    code = panoptic_png if coding == "rgb" else grey
    return record({"jpg": jpg(width, height), "part.png": code(part), "whole.png": code(whole)}, width, height)


def sample(row: Dataset, number: int, width: int = 64, height: int = 48) -> dict[str, bytes]:
    """Three bands of classes of the set, another three for every number."""
    classes = [i for i in sorted(row.label_set.classes) if i not in row.ignored_ids]
    chosen = [classes[(7 * number + 3 * i) % len(classes)] for i in range(3)]
    ids, third = bands(width, height, (0, 1, 2)), width // 3
    lookup = np.array(chosen)
    spans = [(third * i, 0, third, height) for i in range(3)]
    if row.form == "coco_panoptic":
        entries = [{"id": i + 1, "category_id": c, "iscrowd": 0} for i, c in enumerate(chosen)]
        return record({"jpg": jpg(width, height), "png": panoptic_png(ids + 1)}, width, height, segments_info=entries)
    if row.form == "coco_instances":
        entries = [
            {"bbox": list(span), "category_id": c, "segmentation": rectangle(span[0], 0, span[0] + third, height)}
            for span, c in zip(spans, chosen, strict=True)
        ]
        return record({"jpg": jpg(width, height)}, width, height, segments_info=entries)
    if row.form == "boxes":
        return boxes(width, height, [(list(span), c) for span, c in zip(spans, chosen, strict=True)])
    if row.form == "semantic":
        return semantic(lookup[ids])
    return parts(lookup[ids], np.full_like(ids, 5), row.id_coding)


def shards(folder: Path, row: Dataset, count: int, samples: int = 3) -> None:
    """`count` shards, the even ones in the plain layout, the odd ones in the published one; all but two are links."""
    for layout in range(2):
        found = {f"{row.name}{layout}{i}": sample(row, 3 * layout + i) for i in range(samples)}
        if layout:
            found = {key: published(members) for key, members in found.items()}
        write_shard(folder / f"{layout:09d}.tar", found)
    for number in range(2, count):
        os.link(folder / f"{number % 2:09d}.tar", folder / f"{number:09d}.tar")
