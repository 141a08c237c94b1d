#!/usr/bin/env python3
"""Measures the accuracy of a linear classifier on simple features of a mask, compared with the most frequent class.

The classifier is trained on all masks of the shards, and scored on the val files of the datasets. With `--features
tower`, the features of a mask are the mean of the frozen tower's tokens under the mask (weighted by coverage), at the
input size of prediction, and the same in its zoom window and its cut-out if the config has them. With `--features
statistics`, they are the mean and the standard deviation of its color, its area, and the seven Hu moments of its
outline, without a network. The features are standardized, and ridge regression maps them to the classes. Prints one
JSON document.

    python3 benchmarks/linear_probe.py --datasets sets.yaml --shards coco=... --shards camvid=... [--config osm_small]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# (image, masks (K, H, W)) -> (K, F)
Describe = Callable[[Any, np.ndarray], np.ndarray]
ALPHAS = (10.0, 100.0, 1000.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", required=True, help="YAML of the sets, with their val files")
    parser.add_argument("--shards", action="append", required=True, metavar="SET=PATTERN")
    parser.add_argument("--config", default="osm_small", help="whose tower")
    parser.add_argument("--features", choices=("tower", "statistics"), default="tower")
    args = parser.parse_args()

    from osm import OsmError
    from osm.data.shard_lists import existing_shards
    from osm.datasets.table import DatasetTable

    results = {}
    try:
        table = DatasetTable().with_yaml(args.datasets)
        patterns = dict(item.split("=", 1) for item in args.shards)
        describe: Describe = statistics
        if args.features == "tower":
            from osm import create_model_and_transforms

            model, processor = create_model_and_transforms(args.config)
            describe = partial(pooled_tokens, model, processor)
        for name, pattern in patterns.items():
            started = time.monotonic()
            shards = existing_shards(pattern, f"--shards {name}")
            train = features(describe, training_scenes(table[name], shards), name)
            val = features(describe, val_scenes(table[name]), name)
            results[name] = {**score(*train, *val), "seconds": round(time.monotonic() - started, 1)}
            print(f"{name}: {results[name]}", file=sys.stderr)
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        json.dumps(
            {"benchmark": "linear_probe", "features": args.features, "config": args.config, "sets": results}, indent=2
        )
    )
    return 0


def training_scenes(row, shards: list[str]) -> Iterator[tuple]:
    """Yield (image, masks, category ids) of every sample, for masks of over 100 pixels that are not crowds."""
    from osm.data.whole_images import whole_images
    from osm.errors import SampleError

    for scene in whole_images(row, shards):
        if isinstance(scene, SampleError):
            raise scene
        yield scene.image, np.stack([s.mask for s in scene.segments]), [s.category_id for s in scene.segments]


def val_scenes(row) -> Iterator[tuple]:
    """Yield (image, masks, category ids) of every val image, with the masks that are named in evaluation."""
    from osm.forms import split_of

    split = split_of(row)
    for index in range(len(split)):
        item = split.load(index)
        if not item.annotations:
            continue
        masks = np.stack([item.mask(k) for k in range(len(item.annotations))])
        kept = masks.any((1, 2))
        categories = [a[split.form.category_key] for a, keep in zip(item.annotations, kept, strict=True) if keep]
        yield item.image(), masks[kept], categories


def features(describe: Describe, scenes: Iterator[tuple], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (M, F) of all masks, and their classes."""
    xs, ys = [], []
    for number, (image, masks, categories) in enumerate(scenes):
        xs.append(describe(image, masks))
        ys.extend(categories)
        if number % 50 == 0:
            print(f"{name}: {number} images", file=sys.stderr)
    return np.concatenate(xs), np.array(ys)


def pooled_tokens(model: Any, processor: Any, image: Any, masks: np.ndarray) -> np.ndarray:
    """Return the mean token under each mask (K, H, W), weighted by coverage, and those in its windows if any."""
    import torch
    import torch.nn.functional as F

    pixels, padded = processor.pixel_values(processor.canvas(image)[None]), processor.canvas_masks(masks)
    tokens = model.tower_tokens(pixels)[0, model.prefix_tokens :]
    cover = F.avg_pool2d(padded.float(), model.tower.patch).flatten(1)
    means = cover @ tokens / cover.sum(1, keepdim=True).clamp(min=1e-6)
    if model.zoom:
        images = torch.zeros(len(masks), dtype=torch.long)
        means = torch.cat([means, model.mask_features(padded, padded, pixels, images).zoom_RUC.flatten(1)], 1)
    return means.numpy()


def statistics(image: Any, masks: np.ndarray) -> np.ndarray:
    """Return the mean and standard deviation of the color, the area and the Hu moments of each mask (K, H, W).

    The Hu moments are signed logarithms.
    """
    from skimage.measure import moments_central, moments_hu, moments_normalized

    pixels = np.asarray(image, np.float64) / 255
    rows = []
    for mask in masks:
        inside = pixels[mask]
        hu = moments_hu(moments_normalized(moments_central(mask.astype(np.float64))))
        signed = np.sign(hu) * np.log10(np.abs(hu) + 1e-12)
        rows.append(np.concatenate([inside.mean(0), inside.std(0), [mask.mean()], signed]))
    return np.stack(rows)


def score(train_x, train_y, val_x, val_y) -> dict[str, float]:
    """Return the accuracy of ridge regression and of the most frequent class.

    The strength of the regularization is chosen on a fifth of the training images.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_x)
    x, v = scaler.transform(train_x), scaler.transform(val_x)
    cut = len(x) * 4 // 5
    best = max(ALPHAS, key=lambda a: RidgeClassifier(alpha=a).fit(x[:cut], train_y[:cut]).score(x[cut:], train_y[cut:]))
    commonest = Counter(train_y.tolist()).most_common(1)[0][0]
    return {
        "train_masks": len(train_y),
        "val_masks": len(val_y),
        "classes": len(set(train_y.tolist())),
        "majority": round(100 * float((val_y == commonest).mean()), 1),
        "ridge": round(100 * RidgeClassifier(alpha=best).fit(x, train_y).score(v, val_y), 1),
        "alpha": best,
    }


if __name__ == "__main__":
    sys.exit(main())
