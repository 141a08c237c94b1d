"""A few images in the layout of COCO: panoptic annotations and instances of the same masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from osm.io.segmentation import encode_rle, rle_box

PERSON, CAT, GRASS = 1, 17, 193
SIZE = (30, 40)


def segments() -> dict[int, tuple[int, np.ndarray]]:
    """The class and the mask of each segment: a person, a cat, and grass below them."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 2:14, 3:15], masks[1, 4:20, 20:38], masks[2, 22:, :] = True, True, True
    return {10: (PERSON, masks[0]), 20: (CAT, masks[1]), 30: (GRASS, masks[2])}


def write_coco(root: Path, images: int = 3) -> Path:
    """Write the layout into a new folder. The last image has no cat."""
    for folder in ("val2017", "panoptic_val2017", "annotations"):
        (root / folder).mkdir(parents=True)
    listed, panoptic, instances = [], [], []
    for number in range(images):
        Image.new("RGB", SIZE[::-1], (60 * number, 90, 10)).save(root / "val2017" / f"{number}.jpg")
        listed.append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
        found = {i: one for i, one in segments().items() if number < images - 1 or one[0] != CAT}
        ids = np.zeros((*SIZE, 3), np.uint8)
        for i, (category_id, mask) in found.items():
            ids[mask, 0] = i
            if category_id != GRASS:
                rle = encode_rle(mask)
                more = {"bbox": rle_box(rle), "area": int(mask.sum()), "iscrowd": 0, "id": len(instances) + 1}
                instances.append({"image_id": number, "category_id": category_id, "segmentation": rle, **more})
        Image.fromarray(ids).save(root / "panoptic_val2017" / f"{number}.png")
        infos = [{"id": i, "category_id": one, "iscrowd": 0, "area": int(m.sum())} for i, (one, m) in found.items()]
        panoptic.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    categories = [
        {"id": PERSON, "name": "person", "isthing": 1},
        {"id": CAT, "name": "cat", "isthing": 1},
        {"id": GRASS, "name": "grass", "isthing": 0},
    ]
    things = [row for row in categories if row["isthing"]]
    documents = {
        "panoptic_val2017": {"images": listed, "annotations": panoptic, "categories": categories},
        "instances_val2017": {"images": listed, "annotations": instances, "categories": things},
    }
    for name, document in documents.items():
        (root / "annotations" / f"{name}.json").write_text(json.dumps(document))
    return root
