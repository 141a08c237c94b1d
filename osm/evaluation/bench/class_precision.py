"""Average precision of named ground-truth masks, with intervals over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osm.evaluation.bench.benchmark import GROUPS, set_rates
from osm.evaluation.bench.true_masks import NamedTruth
from osm.evaluation.metrics.statistics import Rate
from osm.evaluation.scoring.mask_precision import MaskPrecision, mean_precision

ImageDetections = list[tuple[Mapping[str, Any], int, float]]
"""The detections of an image: the RLE, the class id and the score of each."""
_MASKS_WITH_INTERVAL = 1000
"""The interval computes AP again without each group of images, so it is only computed for fewer masks than this."""


def precision_rates(named: NamedTruth, detections: Sequence[ImageDetections]) -> dict[str, Rate]:
    """Return the AP of the detections as the rate `ap`.

    The interval is None for 1,000 masks or more.

    Args:
        named: the ground truth.
        detections: the detections of each image.
    """
    things = named.split.things
    true: list[ImageDetections] = [[] for _ in named.images]
    for mask in named.masks:
        if mask.category_id in things:
            true[mask.image].append((mask.rle, mask.category_id, 1.0))
    ordered = [sorted(one, key=lambda detection: -detection[2]) for one in detections]

    def score(weights: np.ndarray) -> dict[str, float | None]:
        precision = MaskPrecision(named.split.federated)
        for number in np.repeat(np.arange(len(named.images)), weights.astype(int)).tolist():
            image = named.images[number]
            precision.add_image(image.size, image.federated)
            for rle, category_id, _ in true[number]:
                precision.add_truth(rle, category_id)
            for category_id, rle in image.crowds:
                precision.add_truth(rle, category_id, crowd=True)
            for rle, category_id, confidence in ordered[number]:
                precision.add_found(rle, category_id, confidence)
        return {"ap": mean_precision(precision.by_class())["ap"]}

    groups = GROUPS if len(named.masks) < _MASKS_WITH_INTERVAL else 0
    return set_rates(score, len(named.images), len(named.masks), groups)
