"""Means, bootstrap distributions and calibration, with numpy, scikit-learn and torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, binom
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score
from torchmetrics.classification import BinaryCalibrationError

from verify.checks import EMBEDDED, EXACT, ROUNDED, Checks

BINS = 15
SAMPLES = 16_000
_TAIL = 1e-6
_NUDGE = 1e-6


@dataclass(frozen=True)
class Values:
    """The values of a metric.

    Attributes:
        values: one value per mask.
        images: the image of each mask.
        all_images: every image with a scored mask, from which the bootstrap draws.
    """

    values: list[float]
    images: list[Any]
    all_images: tuple[Any, ...]

    def mean(self, binary: bool = False) -> float:
        """Return the mean, computed by scikit-learn if every value is 0 or 1 (`binary`)."""
        if binary:
            return float(accuracy_score([1] * len(self.values), [int(value) for value in self.values]))
        return float(np.average(np.asarray(self.values, np.float64)))

    def distribution(self) -> np.ndarray:
        """Return the sorted means of bootstrap samples over the images; samples without a mask are left out."""
        order = {image: k for k, image in enumerate(self.all_images)}
        sums, counts = np.zeros(len(order)), np.zeros(len(order))
        for value, image in zip(self.values, self.images, strict=True):
            sums[order[image]] += value
            counts[order[image]] += 1
        weights = _weights(len(order))
        drawn = weights @ counts
        return np.sort((weights @ sums)[drawn > 0] / drawn[drawn > 0])


@lru_cache(maxsize=64)
def _weights(images: int) -> np.ndarray:
    """Return how often each image is drawn, for every bootstrap sample (multinomial, from another generator)."""
    random = np.random.Generator(np.random.Philox(20_260_101 + images))
    return random.multinomial(images, np.full(images, 1 / images), size=SAMPLES).astype(np.float64)


def check_interval(checks: Checks, where: str, rate: dict[str, Any], values: Values, samples: int) -> None:
    """Check a bootstrap interval against a second bootstrap.

    The limit of `samples` bootstrap samples has a random rank in the distribution, which follows a beta distribution.
    The second bootstrap knows this rank up to a binomial error. A limit is wrong if its rank is outside of the ranks
    that both allow; each leaves out a probability of 1e-6 on either side.
    """
    images = len(set(values.images))
    if images < 2 or not samples:
        checks.same("interval: none", where, rate["interval"], None)
        return
    if not rate["interval"]:
        checks.holds("interval: limits", where, False, rate["interval"], "an interval", f"{images} images")
        return
    drawn = values.distribution()
    for limit, level in zip(rate["interval"], (0.025, 0.975), strict=True):
        first, last = _ranks(level, samples, len(drawn))
        least, most = float(drawn[first]), float(drawn[last])
        inside = least - ROUNDED - EMBEDDED <= limit <= most + ROUNDED + EMBEDDED
        note = f"{level:.1%} of {samples} samples: ranks {first / len(drawn):.1%} to {last / len(drawn):.1%}"
        checks.holds("interval: limits", where, inside, limit, (least, most), note)
    rounding = ROUNDED + EMBEDDED
    low, high = rate["interval"]
    inside = samples < 500 or low - rounding <= rate["value"] <= high + rounding
    checks.holds("interval: contains the value", where, inside, rate["interval"], rate["value"], "")


@lru_cache(maxsize=4096)
def _ranks(level: float, samples: int, drawn: int) -> tuple[int, int]:
    """Return the first and last place in the sorted second distribution at which a limit may lie."""
    place = level * (samples - 1)  # numpy's linear interpolation, between two sorted samples
    low = beta.ppf(_TAIL, math.floor(place) + 1, samples - math.floor(place))
    high = beta.isf(_TAIL, math.ceil(place) + 1, samples - math.ceil(place))
    first, last = binom.ppf(_TAIL, drawn, low), binom.isf(_TAIL, drawn, high)
    return max(0, int(first) - 1), min(drawn - 1, int(last) + 1)


def check_calibration(checks: Checks, where: str, table: dict[str, Any], right: list[int], probs: list[float]) -> None:
    """Check ECE and the bins."""
    y, p = np.asarray(right, np.int64), np.asarray(probs, np.float64)
    checks.same("ECE: masks", where, table["masks"], len(probs))
    if not len(p):
        checks.same("ECE (scikit-learn)", where, table["ece"], None)
        return
    bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p, side="left"), 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    acc, mean = calibration_curve(y, p, n_bins=BINS, strategy="uniform")  # of the bins that are not empty
    full = np.flatnonzero(counts)
    checks.same("ECE: bins", where, len(table["bins"]), BINS)
    for k, one in enumerate(table["bins"]):
        at = f"{where}, bin {k}"
        checks.same("ECE: masks per bin", at, one["masks"], int(counts[k]))
        found = np.flatnonzero(full == k)
        for key, source in (("acc", acc), ("prob", mean)):
            checks.same(f"ECE: {key} per bin", at, one[key], float(source[found[0]]) if len(found) else None, ROUNDED)
        checks.same("ECE: limits of bins", at, one["low"], k / BINS, EXACT)
        checks.same("ECE: limits of bins", at, one["high"], (k + 1) / BINS, EXACT)
    ece = float(np.sum(counts[full] / len(p) * np.abs(acc - mean)))
    checks.same("ECE (scikit-learn)", where, table["ece"], ece, ROUNDED)
    checks.same("ECE (torchmetrics)", where, table["ece"], _torchmetrics_ece(y, p), 3 * _NUDGE)


def _torchmetrics_ece(y: np.ndarray, p: np.ndarray) -> float:
    """Return torchmetrics' ECE with the documented bins.

    The bins of torchmetrics are [low, high), in float32. The documented bins are (low, high]. So 1 - p and 1 - y are
    passed, which mirrors the bins and changes no gap. A probability on a limit is moved by 1e-6 into its documented
    bin, so that float32 cannot move it into the other one.
    """
    edges = np.round(p * BINS)
    edge = np.abs(p * BINS - edges) < BINS * _NUDGE
    lower = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], p, side="left") < edges
    moved = np.where(edge, edges / BINS + np.where(lower, -_NUDGE, _NUDGE), p)
    moved = np.where(p <= _NUDGE, _NUDGE, moved)
    metric = BinaryCalibrationError(n_bins=BINS, norm="l1")
    return float(metric(torch.from_numpy(1 - moved), torch.from_numpy(1 - y)))


def most_frequent(categories: Sequence[int]) -> tuple[int, float]:
    """Return the most frequent class (the lowest id of several) and its share of the masks."""
    ids, counts = np.unique(np.asarray(categories), return_counts=True)
    best = int(np.argmax(counts))  # the first maximum; ids are sorted
    return int(ids[best]), float(counts[best] / counts.sum())
