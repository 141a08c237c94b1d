"""Prediction files in the published layout, written by hand: segments of panoptic entries of COCO's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def segment(
    own_id: int,
    category_id: int,
    any_name: str | None = None,
    own_name: str | None = None,
    prob: float | None = 0.5,
    **more: Any,
) -> dict[str, Any]:
    """A segment; its `open_end_pred` has the modes that are given a name."""
    names = {"any": any_name, "coco": own_name}
    fields = {} if prob is None else {"prob": prob}
    predictions = {mode: {"class": name, **fields} for mode, name in names.items() if name is not None}
    found = {"id": own_id, "category_id": category_id, **more}
    return {**found, "open_end_pred": predictions} if predictions else found


def write_parts(folder: Path, *parts: list[list[dict[str, Any]]], name: str = "coco") -> Path:
    """Writes the parts of a set, each a list of images, each a list of segments; images are numbered from 1."""
    folder.mkdir(exist_ok=True)
    image_id = 0
    for number, images in enumerate(parts):
        document = []
        for segments in images:
            image_id += 1
            document.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments})
        (folder / f"{name}_pred_{number}_of_{len(parts)}.json").write_text(json.dumps(document))
    return folder


# COCO: 1 person (woman, ...), 10 traffic light, 16 bird(s), 18 dog(s), 22 elephant(s), 49 knife, knives. Noted: own
# mode; any.
FIRST = [
    [
        segment(1, 1, "Woman", "person", 0.9, area=1023),  # right, right
        segment(2, 18, " Dogs ", "DOG", 0.8, area=1024),  # right, right
        segment(3, 1, iscrowd=1),  # not counted
    ],
    [
        segment(1, 16, "", "bird", 0.1, area=9215),  # right; wrong and not in the vocabulary
        segment(2, 10, "light", "red traffic light", 0.4, area=9216),  # both wrong and not in it
    ],
]
SECOND = [
    [
        segment(1, 49, "knives", "blade", 0.6, area=40000),  # wrong and not in it; right
        segment(2, 22, "animal", "elephants", 0.7),  # right; wrong and not in it
        segment(3, 22),  # not counted
    ],
]


def whole_meta(name: str, part: int = 0, parts: int = 1, **changes: Any) -> dict[str, Any]:
    """A meta file's content with every field that one has to have; `changes` replace fields."""
    return {
        "checkpoint": "a",
        "set": name,
        "part": part,
        "parts": parts,
        "modes": [name, "any"],
        "annotations": "0" * 64,
        "items": [0, 0],
        "counts": {"named": 0},
        **changes,
    }
