#!/usr/bin/env python3
"""Draws docs/images/named_masks.jpg: hand-drawn masks on scikit-image's photos, with the names a checkpoint gives them.

    python3 scripts/draw_readme_picture.py CHECKPOINT [--output docs/images/named_masks.jpg]

The photos are public domain or CC0 (NASA's astronaut, Rachel Michetti's coffee, Stefan van der Walt's chelsea).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Photo -> (mode, corners "x,y x,y ..." in pixels) of each mask.
MASKS = {
    "astronaut": [
        (
            "any",
            "150,130 150,85 165,40 220,14 280,28 300,75 292,128 270,150 275,190 345,275 372,350 362,511 110,511 30,420 "
            "45,300 115,175 175,150",
        ),
        (
            "clothing",
            "152,130 150,85 165,40 220,14 280,28 300,75 292,128 276,125 266,75 245,55 205,62 190,85 185,130 170,138",
        ),
        ("clothing", "192,85 210,66 250,62 267,85 266,140 243,182 222,186 200,160"),
    ],
    "coffee": [
        (
            "any",
            "176,120 178,70 215,32 285,18 355,32 405,85 400,150 370,215 340,265 295,288 238,282 210,310 192,282 "
            "200,230 182,180",
        ),
        (
            "any",
            "418,70 428,80 412,150 385,232 408,265 400,305 362,326 328,308 326,262 360,228 378,150",
        ),
        ("any", "484,110 599,60 599,399 430,399 480,300 490,200"),
    ],
    "chelsea": [("any", "70,299 60,180 85,60 150,0 340,0 350,60 372,130 350,200 300,270 310,299")],
}
HEIGHT = 420


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--output", default="docs/images/named_masks.jpg")
    args = parser.parse_args()

    from skimage import data

    import osm
    from osm.recognition.draw import draw_names

    try:
        namer = osm.load_namer(args.checkpoint)
    except osm.OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    panels, said = [], {}
    for photo, entries in MASKS.items():
        image = Image.fromarray(getattr(data, photo)()).convert("RGB")
        masks = np.stack([polygon_mask(corners, image.size) for _, corners in entries])
        found = namer.name_image(image, masks, sorted({mode for mode, _ in entries}))
        names = [answers[mode] for (mode, _), answers in zip(entries, found, strict=True)]
        said[photo] = [{"name": name.text, "prob": round(name.prob, 3)} for name in names]
        drawn = draw_names(image, masks, [f"{name.text} {name.prob:.2f}" for name in names])
        panels.append(drawn.resize((round(drawn.width * HEIGHT / drawn.height), HEIGHT), Image.Resampling.LANCZOS))
    picture = Image.new("RGB", (sum(p.width for p in panels) + 8 * (len(panels) - 1), HEIGHT), "white")
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + 8
    picture.save(args.output, quality=88, optimize=True)
    print(json.dumps(said, indent=2))
    return 0


def polygon_mask(corners: str, size: tuple[int, int]) -> np.ndarray:
    """The filled polygon, bool (H, W)."""
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).polygon([tuple(map(int, corner.split(","))) for corner in corners.split()], fill=1)
    return np.asarray(mask)


if __name__ == "__main__":
    sys.exit(main())
