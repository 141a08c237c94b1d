"""Golden predictions: the names that osm_nano and osm_small give to a few pictures.

`osm_nano/` holds a briefly trained bridge (float16) and two drawn scenes with their masks. The photos that osm_small
names are scikit-image's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

import osm

HERE = Path(__file__).resolve().parent / "osm_nano"
LIST = ("cup", "plate", "spoon", "cat", "dog", "person", "rocket", "coffee mug")
PHOTOS = {
    "coffee": ([[170, 20, 410, 290], [60, 250, 330, 390]], skimage.data.coffee),
    "chelsea": ([[60, 20, 440, 290]], skimage.data.chelsea),
}


def record_nano() -> dict[str, Any]:
    """Returns the names of all masks of the stored scenes, in two modes, and the likeliest three of each."""
    recognizer = osm.load_recognizer(HERE / "model")
    modes = [mode for mode in recognizer.modes if mode.startswith("scenes_")][:1] + ["any"]
    found = {}
    for path in sorted(HERE.glob("*.jpg")):
        ids = np.array(Image.open(path.with_suffix(".png"))).astype(np.int64) @ np.array([1, 256, 65536])
        masks = [ids == value for value in np.unique(ids) if value]
        recognizer.set_image(path)
        found[path.stem] = [_answers(each) for each in recognizer.name(masks, modes=modes, top_k=3)]
    return found


def record_small() -> dict[str, Any]:
    """Returns osm_small's free names and those out of a list, for boxes of two photos."""
    recognizer = osm.load_recognizer("osm_small")
    found: dict[str, Any] = {}
    for name, (boxes, photo) in PHOTOS.items():
        recognizer.set_image(photo())
        found[name] = {"free": [_answers(each) for each in recognizer.name(boxes=boxes, modes=["any", "coco"])]}
        for method in ("constrained", "scored"):
            answers = recognizer.name(boxes=boxes, vocabulary=LIST, method=method, top_k=3)
            found[name][method] = [_answers(each) for each in answers]
    return found


def _answers(each: list[osm.Recognition]) -> list[dict[str, Any]]:
    return [
        {"mode": one.mode, "text": one.text, "prob": one.prob, "top": [[top.text, top.prob] for top in one.top]}
        for one in each
    ]
