#!/usr/bin/env python3
"""Measures the mean IoU of a segmenter's masks with all ground-truth masks of the val images of a dataset.

The mask of the segmenter is the best of all segments (`everything`), the answer to a click on the mask's innermost
pixel (`point`), or the answer to the mask's box (`box`). For comparison, there are a disc around the click (2 % of the
longer side), the whole box, the ellipse in the box, and OpenCV's GrabCut of the box. Masks are compared at the size of
the image. Prints one JSON document.

`recall` is the share of the masks whose IoU with one of the N best-scored segments is at least 0.5. `duplicates` is the
share of all segments whose IoU with a better-scored segment is over 0.7. `segmented and encoded` is the time for all
segments and for encoding the same image with the recognizer. The intervals are 95 % bootstrap intervals over images.

    python3 benchmarks/segmenters.py CHECKPOINT --datasets sets.yaml [--set coco] [--segmenter embedded] [--images N]
    python3 benchmarks/segmenters.py CHECKPOINT --folder DATA/coco_panoptic/val
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the recognizer, whose tower `embedded` sees with")
    parser.add_argument("--datasets", help="YAML of the sets, with their val files")
    parser.add_argument("--folder", type=Path, help="instead: a folder with images/, panoptic/ and panoptic.json")
    parser.add_argument("--set", default="coco")
    parser.add_argument("--segmenter", default="auto")
    parser.add_argument("--sam_checkpoint")
    parser.add_argument("--segments", type=int, action="append", help="of `embedded`, as many at most; several may do")
    parser.add_argument("--images", type=int, help="the first so many")
    args = parser.parse_args()

    import osm
    from osm.datasets.table import DatasetTable

    try:
        recognizer = osm.load_recognizer(args.checkpoint)
        row = from_folder(args.folder) if args.folder else DatasetTable().with_yaml(args.datasets)[args.set]
        results = measured(row, recognizer, args)
    except osm.OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    document = {
        "benchmark": "segmenters",
        "checkpoint": "/".join(Path(args.checkpoint).parts[-2:]),
        "set": args.set,
        **results,
    }
    print(json.dumps(document, indent=2))
    return 0


def from_folder(folder: Path) -> Any:
    """A row for a folder in COCO panoptic format."""
    from dataclasses import replace

    from osm.datasets.table import DatasetTable

    files = {"image_dir": str(folder / "images"), "mask_dir": str(folder / "panoptic")}
    return replace(DatasetTable()["coco"], json_file=str(folder / "panoptic.json"), **files)


def measured(row: Any, recognizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one set."""
    from osm.forms import split_of
    from osm.recognition.segmenters import load_segmenter

    limits = sorted(args.segments or [60, 100])
    options = {} if args.sam_checkpoint else {"segments": max(limits)}
    segmenter = load_segmenter(args.segmenter, args.sam_checkpoint, recognizer, **options)
    split = split_of(row)
    ious: dict[str, list[float]] = defaultdict(list)
    images: list[int] = []  # the image of each mask
    duplicates: list[float] = []
    seconds: dict[str, list[float]] = defaultdict(list)
    count = min(len(split), args.images or len(split))
    for index in range(count):
        item = split.load(index)
        image = item.image()
        found, took = timed(lambda image=image: (segmenter.set_image(image), segmenter.everything())[1])
        seconds["everything"].append(took)
        again = image.copy()  # nothing about it is cached
        recognizer.set_image(image.resize((8, 8)))
        _, took = timed(
            lambda again=again: (segmenter.set_image(again), segmenter.everything(), recognizer.set_image(again))
        )
        seconds["segmented and encoded"].append(took)
        duplicates.append(duplicate_share(found))
        for k in range(len(item.annotations)):
            mask = item.mask(k)
            if mask.any():
                images.append(index)
                one_mask(segmenter, found, mask, limits, ious, seconds)
                plain_ways(np.asarray(image), mask, ious, seconds)
        print(f"{index + 1} of {count} images", file=sys.stderr)
    return {
        "segmenter": segmenter.name,
        "images": count,
        "masks": len(ious["point"]),
        "mean_iou": {name: with_interval(values, images) for name, values in ious.items()},
        "recall_at_0.5": {
            name.removeprefix("everything, "): with_interval([value >= 0.5 for value in values], images)
            for name, values in ious.items()
            if name.startswith("everything")
        },
        "duplicates": round(float(np.mean(duplicates)), 4),
        "median_seconds": {name: round(float(np.median(values)), 4) for name, values in seconds.items()},
    }


def with_interval(values: list, images: list[int]) -> dict[str, float]:
    """The mean, and its 95 % interval over images by bootstrap."""
    numbers, of = np.array(values, float), np.array(images)
    sums = np.array([[numbers[of == k].sum(), (of == k).sum()] for k in np.unique(of)])
    drawn = np.random.default_rng(0).integers(0, len(sums), (2000, len(sums)))
    means = sums[drawn].sum(1)
    low, high = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    return {"mean": round(float(numbers.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def duplicate_share(found: list) -> float:
    """The share of the segments whose IoU with a better-scored segment is over 0.7."""
    best = np.stack([s.mask.ravel()[::7] for s in sorted(found, key=lambda s: -s.score)]).astype(np.float32)
    common, areas = best @ best.T, best.sum(1)
    ious = common / np.maximum(areas[:, None] + areas[None] - common, 1)
    return float((np.tril(ious, -1).max(1) > 0.7).mean())


def one_mask(segmenter: Any, found: list, mask: np.ndarray, limits: list[int], ious: dict, seconds: dict) -> None:
    """One ground-truth mask's figures."""
    best = sorted(found, key=lambda segment: -segment.score)
    of_each = [iou(segment.mask, mask) for segment in best]
    for limit in limits:
        ious[f"everything, best of {limit}"].append(max(of_each[:limit]))
    x, y = inmost(mask)
    segment, took = timed(lambda: segmenter.at_points([(x, y)]))
    ious["point"].append(iou(segment.mask, mask))
    seconds["point"].append(took)
    ys, xs = np.nonzero(mask)
    left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    segment, took = timed(lambda: segmenter.in_box([left, top, right - left, bottom - top]))
    ious["box"].append(iou(segment.mask, mask))
    seconds["box"].append(took)


def plain_ways(pixels: np.ndarray, mask: np.ndarray, ious: dict, seconds: dict) -> None:
    """What is had without a segmenter."""
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    x, y = inmost(mask)
    disc = (columns - x) ** 2 + (rows - y) ** 2 <= (0.02 * max(mask.shape)) ** 2
    ious["point, a disc"].append(iou(disc, mask))
    ys, xs = np.nonzero(mask)
    whole = np.zeros_like(mask)
    whole[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    ious["box, all of it"].append(iou(whole, mask))
    half_x, half_y = (np.ptp(xs) + 1) / 2, (np.ptp(ys) + 1) / 2
    across, down = (columns - xs.min() + 0.5) / half_x - 1, (rows - ys.min() + 0.5) / half_y - 1
    ious["box, the ellipse in it"].append(iou(across**2 + down**2 <= 1, mask))
    cut, took = timed(lambda: grab_cut(pixels, whole))
    ious["box, GrabCut"].append(iou(cut, mask))
    seconds["box, GrabCut"].append(took)


def grab_cut(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """OpenCV's, three rounds at 448 pixels; the whole box where it finds less than a tenth of it."""
    import cv2

    factor = min(1.0, 448 / max(inside.shape))
    size = (max(1, round(inside.shape[1] * factor)), max(1, round(inside.shape[0] * factor)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    state = cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) * cv2.GC_PR_FGD
    if (state == 0).sum() < 5 or (state > 0).sum() < 5:  # it must know something of both
        return inside
    cv2.grabCut(small, state, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    found = (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
    full = cv2.resize(found.astype(np.uint8), inside.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
    full &= inside
    return full if full.sum() >= 0.1 * inside.sum() else inside


def inmost(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from all outside of it."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return int(x), int(y)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
