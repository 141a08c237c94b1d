#!/usr/bin/env python3
"""Makes training pictures with COCO's names from photos that have a class of ImageNet but no masks.

    python3 scripts/imagenet_mosaics.py REGIONS COCO OUT

REGIONS is what scripts/imagenet_regions.py wrote, and COCO is a folder with COCO's panoptic.json, of which only the
categories are read. Nine photos are scaled down and placed in a grid, and each photo's salient region is a segment. A
photo is used if scripts/coco_names.yaml has a name for its class. At most six photos have the same name, so that
ImageNet's 118 dog breeds do not dominate. OUT is written in COCO panoptic format (images/, panoptic/, panoptic.json).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.everyday_names import everyday_name  # noqa: E402
from osm.errors import OsmError, run_command  # noqa: E402
from osm.evaluation.metrics.wordnet import find_wordnet  # noqa: E402
from osm.files import read_json, read_yaml, write_atomically  # noqa: E402
from osm.io.images import read_rgb  # noqa: E402
from osm.io.resizing import fitted_size  # noqa: E402
from osm.io.segmentation import decode_segmentation  # noqa: E402

NAMES = Path(__file__).with_name("coco_names.yaml")
ROWS, CELL = 3, 320  # a picture has ROWS x ROWS photos, whose longer side is at most CELL pixels
MOST = 6  # photos with the same name
SEED = 0
GRAY = 128


def named_photos(regions: Path, categories: dict[str, int]) -> list[tuple[Path, Any, int]]:
    """Return (file, salient region, category id) for the photos to use, in random order.

    Raises:
        OsmError: a name of the table is not one of COCO's categories.
    """
    table, wordnet = read_yaml(NAMES, "table of names"), find_wordnet()
    unknown = sorted(set(table) - set(categories))
    if unknown:
        raise OsmError(f"{NAMES}: {unknown[0]!r} is not the name of a category of COCO panoptic")
    document, _ = read_json(regions / "regions.json", "regions.json")
    salient: dict[int, Any] = {}
    for row in document["annotations"]:
        if "segmentation" in row:
            salient.setdefault(row["image_id"], row["segmentation"])
    found, uses = [], Counter[str]()
    for number in np.random.default_rng(SEED).permutation(len(document["images"])):
        image = document["images"][number]
        name = everyday_name(wordnet, table, Path(image["file_name"]).stem)
        if name is not None and uses[name] < MOST:
            uses[name] += 1
            found.append((regions / "images" / image["file_name"], salient[image["id"]], categories[name]))
    return found


def draw(photos: list[tuple[Path, Any, int]]) -> tuple[Image.Image, Image.Image, list[dict[str, Any]]]:
    """Return a picture of up to ROWS x ROWS photos, its ids as an image in COCO panoptic format, and its segments."""
    side = ROWS * CELL
    picture, ids_SS = Image.new("RGB", (side, side), (GRAY, GRAY, GRAY)), np.zeros((side, side), np.uint8)
    segments = []
    for place, (path, segmentation, category) in enumerate(photos):
        photo = read_rgb(path)
        mask = decode_segmentation(segmentation, (photo.height, photo.width), str(path))
        width, height = fitted_size(*photo.size, CELL)
        top, left = place // ROWS * CELL + (CELL - height) // 2, place % ROWS * CELL + (CELL - width) // 2
        picture.paste(photo.resize((width, height)), (left, top))
        scaled = np.array(Image.fromarray(mask).resize((width, height)))
        ids_SS[top : top + height, left : left + width][scaled] = place + 1
        rows, columns = np.nonzero(scaled)
        box = [left + columns.min(), top + rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        segments.append(
            {
                **{"id": place + 1, "category_id": category, "iscrowd": 0},
                **{"area": int(scaled.sum()), "bbox": [int(value) for value in box]},
            }
        )
    return picture, Image.fromarray(np.stack([ids_SS, 0 * ids_SS, 0 * ids_SS], -1)), segments


def make(regions: Path, coco: Path, out: Path) -> None:
    categories, _ = read_json(coco / "panoptic.json", "panoptic.json")
    photos = named_photos(regions, {row["name"]: row["id"] for row in categories["categories"]})
    for folder in ("images", "panoptic"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, start in enumerate(range(0, len(photos), ROWS**2)):
        picture, ids, segments = draw(photos[start : start + ROWS**2])
        stem = f"mosaic_{number:04d}"
        picture.save(out / "images" / f"{stem}.jpg", quality=95)
        ids.save(out / "panoptic" / f"{stem}.png")
        images.append({"id": number, "file_name": f"{stem}.jpg", "width": picture.width, "height": picture.height})
        annotations.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
    document = {"images": images, "annotations": annotations, "categories": categories["categories"]}
    write_atomically(out / "panoptic.json", [json.dumps(document)])
    print(f"{len(photos)} photos of {len({category for _, _, category in photos})} names in {len(images)} pictures")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("regions", type=Path)
    parser.add_argument("coco", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    return run_command(lambda _: make(args.regions, args.coco, args.out), args)


if __name__ == "__main__":
    sys.exit(main())
