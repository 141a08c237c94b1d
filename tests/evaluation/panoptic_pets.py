"""A small set in COCO-panoptic form, with a fault of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from osm.datasets.table import Dataset


def write_panoptic(root: Path, images: int = 5) -> Dataset:
    """Images of 8 x 6; in each: a cat (id 1, left half), a dog (id 300, right half but for its last column), a crowd
    (id 70000, the last column but for its lowest pixel), a cat that the PNG lacks (id 9), and a pixel of id 5 that the
    json lacks."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    panoptic = np.full((6, 8), 300)
    panoptic[:, :4] = 1
    panoptic[:, 7] = 70000
    panoptic[5, 7] = 5
    rgb = np.stack([panoptic % 256, panoptic // 256 % 256, panoptic // 65536], axis=-1).astype(np.uint8)
    document: dict = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": 1, "name": "Cat", "synonyms": ["kitty"]},
            {"id": 2, "name": "dog", "synonyms": ["hound"]},
        ],
    }
    for i in range(images):
        Image.new("RGB", (8, 6), (10 * i, 100, 200)).save(root / "images" / f"{i}.png")
        Image.fromarray(rgb).save(root / "masks" / f"{i}.png")
        document["images"].append({"id": 100 + i, "file_name": f"{i}.png", "width": 8, "height": 6})
        segments = [
            {"id": 1, "category_id": 1, "iscrowd": 0, "area": 24},
            {"id": 300, "category_id": 2, "iscrowd": 0},
            {"id": 70000, "category_id": 1, "iscrowd": 1},
            {"id": 9, "category_id": 1},
        ]
        # From last to first: an item is an entry of `annotations`, whatever the order of `images` is.
        document["annotations"].insert(0, {"image_id": 100 + i, "file_name": f"{i}.png", "segments_info": segments})
    json_file = root / "panoptic.json"
    json_file.write_text(json.dumps(document))
    return Dataset(
        "pets", "coco_panoptic", "Pets", str(json_file), str(root / "images"), str(root / "masks"), str(json_file)
    )
