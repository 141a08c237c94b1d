"""The val sets of boxes and of parts, small, in the folders, files and fields of their own releases.

As in `six_sets`: every image is 8 x 6, and what has a mask lies in its left half (24 pixels) or right half, if nothing
else is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import six_sets
from PIL import Image
from six_sets import HEIGHT, WIDTH, said
from source_sets import write_mat

V3DET_JSON = "V3Det/annotations/v3det_2023_v1_val.json"


def picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (90 + number, 100, 200)).save(path)


def area(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A mask of the pixels from left and top up to right and bottom, these excluded."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def write_v3det(root: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Writes the json, and the pictures that it names."""
    for number, image in enumerate(images):
        picture(root / "V3Det" / image["file_name"], number)
    categories = [{"id": 1, "name": "ashtray"}, {"id": 2, "name": "cash_machine"}]
    path = root / V3DET_JSON
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def v3det(root: Path, count: int) -> Any:
    """Not in order of id, one file name in all folders; of each image a box over the left half, whose sides are no
    integers, a box beyond the border and a crowd; of the first a box without an area. The last has no annotation."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    named: list[dict[str, Any]] = []
    for number in range(count, 0, -1):
        name = f"images/n{number:08d}/1_2_3.jpg"
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        boxes = [([0.5, 0, 3.25, 6], 1, 0, 24), ([4, -2, 100, 50.5], 2, 0, 24), ([4, 0, 4, 6], 1, 1, 0)]
        boxes += [([2, 2, 0, 4], 1, 0, 0)] if number == 1 else []
        for box, category, crowd, seen in boxes if number < count else ():
            common = {"id": 70 + len(annotations), "image_id": number, "category_id": category}
            annotations.append({**common, "bbox": box, "iscrowd": crowd, "area": box[2] * box[3]})
            named.append({**annotations[-1], **({"open_end_pred": said("SET", seen)} if seen else {})})
    write_v3det(root, images, annotations)
    return {"pred": [[image, [a for a in named if a["image_id"] == image["id"]]] for image in reversed(images)]}


def partimagenet(root: Path, count: int) -> Any:
    """Grey PNGs: a quadruped's head (0) left, its tail (3) in columns 4 and 5, background (40) right of them."""
    top, entries = root / "PartImageNet", []
    for number in range(count):
        name = f"n0144{number:04d}_1"
        picture(top / "images" / "val" / f"{name}.JPEG", number)
        ids = np.full((HEIGHT, WIDTH), 40, np.uint8)
        ids[:, :4], ids[:, 4:6] = 0, 3
        (top / "annotations" / "val").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(top / "annotations" / "val" / f"{name}.png")
        entries.append(_entry(f"{name}.JPEG", {0: 24, 3: 12}))
    return {"pred": entries}


def pascal_part(root: Path, count: int) -> Any:
    """.mat files: a cow's head (2) in columns 0 to 3, its left ear (3) over their first, and a part of a car that has
    no name to learn over the second. Other images have none: the last .mat has an object without parts."""
    top, entries = root / "pascal_part", []
    images, mats = top / "VOCdevkit" / "VOC2010" / "JPEGImages", top / "Annotations_Part"
    mats.mkdir(parents=True, exist_ok=True)
    picture(images / "2008_000001.jpg")  # half of VOC2010 has no annotation
    for number in range(2, count + 2):
        name = f"2008_{number:06d}"
        picture(images / f"{name}.jpg", number)
        cow = [("head", area(0, 0, 4, 6)), ("lear", area(0, 0, 1, 6))]
        car = [("backside", area(1, 0, 2, 6))]
        bare = number == count + 1
        parts = [] if bare else [("cow", area(0, 0, 8, 6), cow), ("car", area(1, 0, 8, 6), car)]
        write_mat(mats / f"{name}.mat", parts or [("boat", area(0, 0, 8, 6), [])])
        entries.append(_entry(f"{name}.jpg", {} if bare else {2: 12, 3: 6}))
    return {"pred": entries}


def _entry(name: str, areas: dict[int, int]) -> dict[str, Any]:
    pred = [{"mask_unique_id": i, "open_end_pred": said("SET", seen)} for i, seen in areas.items()]
    return {"file_name": name, "pred": pred}


MAKERS = {"v3det": v3det, "partimagenet": partimagenet, "pascal_part": pascal_part}
SETS = (*six_sets.SETS, *MAKERS)


def make(name: str, root: Path, count: int) -> Any:
    """As `six_sets.make`, for all nine sets."""
    if name not in MAKERS:
        return six_sets.make(name, root, count)
    return json.loads(json.dumps(MAKERS[name](root, count)).replace('"SET', f'"{name}'))
