#!/usr/bin/env python3
"""Measures how much more accurate a name from several views of an object is (`Recognizer.name_views`).

    python3 benchmarks/several_views.py CHECKPOINT coco=DATA/coco_panoptic/val [--limit 20]

The word before `=` is the mode; the folder contains images/, panoptic/ and panoptic.json (COCO panoptic format). The
first view of a mask is the whole image. Each other view is a crop that contains the whole mask, with random size and
position, flipped in half of the cases. The crops depend only on the seed, the image and the mask. The table
shows the published accuracy for the first 1, 2, 4 and 8 views, with 95% intervals over images. Prints one JSON document
last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from osm.datasets.table import Dataset, DatasetTable  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.evaluation.metrics import accepted_forms, normalize  # noqa: E402
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, differences  # noqa: E402
from osm.forms import split_of  # noqa: E402
from osm.recognition.recognizer import Recognizer, load_recognizer  # noqa: E402
from osm.recognition.several_views import COMBINATIONS  # noqa: E402

COUNTS = (1, 2, 4, 8)


def views_of(image: Image.Image, mask_HW: np.ndarray, rng: np.random.Generator) -> list[tuple[Image.Image, np.ndarray]]:
    """Return the views of a mask: the whole image, and random crops that contain the mask."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    found = [(image, mask_HW)]
    for _ in range(max(COUNTS) - 1):
        bounds = []
        for first, last, side in (
            (columns[0], columns[-1] + 1, mask_HW.shape[1]),
            (rows[0], rows[-1] + 1, mask_HW.shape[0]),
        ):
            length = round(rng.uniform(min(side, 1.5 * (last - first)), side))
            start = rng.integers(max(0, last - length), min(first, side - length) + 1)
            bounds.append((int(start), int(start + length)))
        (left, right), (top, bottom) = bounds
        crop, mask = image.crop((left, top, right, bottom)), mask_HW[top:bottom, left:right]
        if rng.random() < 0.5:
            crop, mask = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask[:, ::-1].copy()
        found.append((crop, mask))
    return found


def measure(recognizer: Recognizer, mode: str, folder: Path, limit: int | None, seed: int) -> dict[str, Any]:
    """Return the accuracy, its interval and the number of masks for every combination and number of views."""
    annotations = str(folder / "panoptic.json")
    files = {"image_dir": str(folder / "images"), "mask_dir": str(folder / "panoptic"), "json_file": annotations}
    if mode in DatasetTable():  # a built-in dataset, whose classes have readable names
        dataset = replace(DatasetTable()[mode], **files)
    else:
        dataset = Dataset(mode, "coco_panoptic", mode, annotations, **files)
    split = split_of(dataset)
    right: dict[tuple[str, int], list[float]] = {(way, n): [] for way in COMBINATIONS for n in COUNTS}
    images: list[int] = []  # the image of each mask
    started = time.monotonic()
    for index in range(min(len(split), limit or len(split))):
        item = split.load(index)
        image = item.image()
        for k, annotation in enumerate(item.annotations):
            mask_HW = item.mask(k)
            if not mask_HW.any():
                continue
            views = views_of(image, mask_HW, np.random.default_rng([seed, index, k]))
            encoded = recognizer.encode_views(views)
            accepted = accepted_forms(dataset.label_set[annotation[split.form.category_key]].names)
            for way, count in right:
                [answer] = recognizer.name_views(encoded.first(count), modes=[mode], combine=way)
                right[way, count].append(normalize(answer.text) in accepted)
            images.append(index)
        print(f"{folder}: {index + 1} images", file=sys.stderr, flush=True)
    sums = {
        key: ImageSums(np.array(images), max(images) + 1, {"acc": np.array(found, float)})
        for key, found in right.items()
    }
    cases = [
        {
            "combine": way,
            "views": count,
            **one.rates(Bootstrap())["acc"].as_json(),
            "gain": differences(sums[way, 1], one, Bootstrap())["acc"].as_json(),
        }
        for (way, count), one in sums.items()
    ]
    seconds = round(time.monotonic() - started, 1)
    return {"folder": folder.parent.name, "mode": mode, "masks": len(images), "seconds": seconds, "cases": cases}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folders", nargs="+", metavar="MODE=FOLDER")
    parser.add_argument("--limit", type=int, help="images of each folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the crops [%(default)s]")
    args = parser.parse_args()
    try:
        recognizer = load_recognizer(args.checkpoint, device="cpu")
        sets = []
        for given in args.folders:
            mode, equals, folder = given.partition("=")
            if not equals or not (Path(folder) / "panoptic.json").is_file():
                raise OsmError(f"{given}: expected MODE=FOLDER, and panoptic.json in the folder")
            sets.append(measure(recognizer, mode, Path(folder).resolve(), args.limit, args.seed))
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| folder | combine | views | Acc | gain over one view |\n|---|---|---|---|---|")
    for one in sets:
        for case in one["cases"]:
            span = " to ".join(f"{100 * value:.1f}" for value in case["interval"] or ())
            gain = " to ".join(f"{100 * value:+.1f}" for value in case["gain"]["interval"] or ())
            print(
                f"| {one['folder']} | {case['combine']} | {case['views']} | {100 * case['value']:.1f} "
                f"({span}) | {gain if case['views'] > 1 else ''} |"
            )
    print(json.dumps({"checkpoint": args.checkpoint, "cores": os.cpu_count(), "sets": sets}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
