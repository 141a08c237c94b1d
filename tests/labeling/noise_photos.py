"""Photos of noise with masks in COCO's form, for the tests of `osm label`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from osm.io.segmentation import encode_rle

COUNT = 12


def noise_photos(folder: Path) -> Path:
    """Write `images/` and `masks.json`: twelve photos with three masks each. One file is no image.

    Image 1 also has a box, and a mask that cannot be read.
    """
    rng = np.random.default_rng(0)
    images, rows = [], []
    for number in range(COUNT):
        name = f"sub/{number}.png"
        (folder / "images" / "sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        for k in range(3):
            mask = np.zeros((48, 64), bool)
            mask[4 * k : 20 + 4 * k, 3 * number : 3 * number + 20 + k] = True
            rows.append({"id": len(rows), "image_id": number, "category_id": 1, "segmentation": encode_rle(mask)})
    rows.append({"id": 900, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]})
    rows.append({"id": 901, "image_id": 1, "category_id": 1, "segmentation": []})
    (folder / "images" / "sub" / "3.png").write_bytes(b"no image")
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "masks.json").write_text(json.dumps(document))
    return folder
