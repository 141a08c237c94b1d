"""Rates with 95% confidence intervals: the Wilson interval and a bootstrap over images.

The bootstrap resamples whole images with all their masks, because masks in the same image are not independent samples:
they share the scene, the lighting and often the class. Resampling whole images is known as the cluster bootstrap
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Each bootstrap interval extends from
the 2.5th to the 97.5th percentile of the resampled rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWN_AT_ONCE = 2**20  # images per block of bootstrap samples; bounds the memory for a dataset of 20,000 images
_COLUMNS_AT_ONCE = 256
# Rates are rounded to 9 digits, because the last bits of a sum depend on the order of summation.
# The order of summation differs between machines and depends on the number of columns.
_DIGITS = 9


def ratio(count: int, total: int) -> float:
    """Return count / total, or NaN if total is 0."""
    return count / total if total else float("nan")


def auroc(higher: Sequence[float] | np.ndarray, lower: Sequence[float] | np.ndarray) -> float:
    """Return the AUROC: the probability that a value of `higher` exceeds a value of `lower`; ties count as 0.5.

    Neither sequence may be empty.
    """
    a, b = np.asarray(higher)[:, None], np.asarray(lower)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def wilson_interval(count: int, total: int) -> tuple[float, float] | None:
    """Return the 95% Wilson confidence interval for a proportion, or None if total is 0.

    Unlike the normal approximation, the Wilson interval remains valid for small totals and for proportions near 0 or 1.
    """
    if not total:
        return None
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    share, spread = count / total, z * z / total
    middle = share + spread / 2
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


@dataclass(frozen=True)
class Bootstrap:
    """The parameters of the bootstrap over images.

    Attributes:
        samples: the number of bootstrap samples. 0 disables intervals.
        seed: the seed of the random generator that draws the samples.
    """

    samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Rate:
    """The mean of a metric's column over all masks to which the metric applies.

    Attributes:
        value: the mean; None if the metric applies to no mask.
        masks: the number of masks to which the metric applies.
        images: the number of images with such masks.
        interval: the 95 % bootstrap interval over images. None for fewer than two images or zero bootstrap samples.
    """

    value: float | None
    masks: int
    images: int
    interval: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the rate as JSON-compatible values."""
        return {"value": self.value, "masks": self.masks, "images": self.images, "interval": self.interval}


class ImageSums:
    """Per-image sums and mask counts of every column.

    Args:
        images: int (masks,), the index of each mask's image.
        image_count: the number of images. Images without masks are not resampled.
        columns: name -> float (masks,), with nan for masks to which the column does not apply.
        split: the name of a column, and str (masks,), the group of each mask. For each distinct group, a column is
            added that has the named column's values for the masks of that group.
    """

    def __init__(
        self,
        images: np.ndarray,
        image_count: int,
        columns: Mapping[str, np.ndarray],
        split: tuple[str, np.ndarray] | None = None,
    ) -> None:
        groups, places = np.unique(split[1], return_inverse=True) if split else (np.zeros(0, str), np.zeros(0, int))
        self.keys = [*columns, *groups.tolist()]
        used = np.bincount(images, minlength=image_count) > 0
        self.sums = np.zeros((int(used.sum()), len(self.keys)))
        self.counts = np.zeros_like(self.sums)
        if split and len(groups):
            # With a thousand classes, a dense column per class over all masks would take gigabytes of memory.
            cells, of_groups = (int(used.sum()), len(groups)), slice(len(columns), None)
            flat = np.ravel_multi_index(((np.cumsum(used) - 1)[images], places), cells)
            sums = np.bincount(flat, weights=columns[split[0]], minlength=cells[0] * cells[1])
            self.sums[:, of_groups] = sums.reshape(cells)
            self.counts[:, of_groups] = np.bincount(flat, minlength=cells[0] * cells[1]).reshape(cells)
        for place, values in enumerate(columns.values()):
            there = ~np.isnan(values)
            sums = np.bincount(images[there], weights=values[there], minlength=image_count)
            self.sums[:, place] = sums[used]
            self.counts[:, place] = np.bincount(images[there], minlength=image_count)[used]

    def rates(self, bootstrap: Bootstrap) -> dict[str, Rate]:
        """Return the mean of every column over all masks, with its bootstrap interval."""
        sums, counts, images = self.sums.sum(0), self.counts.sum(0), (self.counts > 0).sum(0)
        intervals = self._intervals(bootstrap)
        return {
            key: Rate(
                _rounded(sums[k] / counts[k]) if counts[k] else None, int(counts[k]), int(images[k]), intervals[k]
            )
            for k, key in enumerate(self.keys)
        }

    def resampled(self, bootstrap: Bootstrap) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the rates in each bootstrap sample, one block of columns at a time.

        A given seed always draws the same images, so the differences between two runs are paired.

        Yields:
            A slice of `keys`, and float (samples, columns in the slice), nan where a sample has no mask of the column.
        """
        for first in range(0, len(self.keys), _COLUMNS_AT_ONCE):
            block = slice(first, first + _COLUMNS_AT_ONCE)
            both = np.concatenate([self.sums[:, block], self.counts[:, block]], 1)
            drawn = np.concatenate([weights @ both for weights in draws(len(both), bootstrap)])
            sums, counts = np.split(drawn, 2, axis=1)
            with np.errstate(invalid="ignore"):
                yield block, sums / counts

    def _intervals(self, bootstrap: Bootstrap) -> list[tuple[float, float] | None]:
        if not bootstrap.samples:
            return [None] * len(self.keys)
        found: list[tuple[float, float] | None] = []
        enough = (self.counts > 0).sum(0) > 1
        for block, rates in self.resampled(bootstrap):
            found += [middle(rates[:, k]) if enough[block][k] else None for k in range(rates.shape[1])]
        return found


def draws(images: int, bootstrap: Bootstrap) -> Iterator[np.ndarray]:
    """Yield blocks of bootstrap samples as float arrays (samples, images) that count how often each image is drawn."""
    random = np.random.default_rng(bootstrap.seed)
    some = max(1, _DRAWN_AT_ONCE // max(images, 1))
    for first in range(0, bootstrap.samples, some):
        count = min(some, bootstrap.samples - first)
        if not images:
            yield np.zeros((count, 0))
            continue
        chosen = random.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        yield np.bincount(chosen.ravel(), minlength=count * images).reshape(count, images).astype(float)


def middle(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 2.5th and 97.5th percentiles of the values, ignoring NaN, or None if all values are NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


@dataclass(frozen=True)
class Difference:
    """The difference in a rate between runs A and B (B - A), measured on the same masks.

    Attributes:
        value: the difference; None if the rate of A or of B has no value.
        interval: the 95 % interval of the paired bootstrap.
        p: the two-sided p-value under the null hypothesis of no difference. It is twice the smaller tail (the share of
            bootstrap samples at or beyond 0), at most 1. One sample is added to the count and to the total (Davison and
            Hinkley, section 4.2.3).
    """

    value: float | None
    interval: tuple[float, float] | None
    p: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the difference as JSON-compatible values."""
        return {"value": self.value, "interval": self.interval, "p": self.p}


def differences(a: ImageSums, b: ImageSums, bootstrap: Bootstrap) -> dict[str, Difference]:
    """Return the difference B - A between two runs for every column, using the same bootstrap samples for both runs.

    Raises:
        ValueError: A and B have different columns or different images.
    """
    if a.keys != b.keys or a.sums.shape != b.sums.shape:
        raise ValueError(
            f"A has columns {a.keys} of shape {a.sums.shape}, but B has columns {b.keys} of shape {b.sums.shape}; "
            "expected the same columns and shapes"
        )
    first, second = a.rates(Bootstrap(0)), b.rates(Bootstrap(0))
    drawn: list[np.ndarray] = []
    if bootstrap.samples:
        for (_, one), (_, other) in zip(a.resampled(bootstrap), b.resampled(bootstrap), strict=True):
            drawn += list(np.round(other - one, _DIGITS).T)
    found = {}
    for place, key in enumerate(a.keys):
        one_value, other_value = first[key].value, second[key].value
        value = None if one_value is None or other_value is None else _rounded(other_value - one_value)
        enough = bool(drawn) and min(first[key].images, second[key].images) > 1
        samples = drawn[place][~np.isnan(drawn[place])] if enough else np.zeros(0)
        found[key] = Difference(value, middle(samples), _p(samples))
    return found


def _p(samples: np.ndarray) -> float | None:
    if not len(samples):
        return None
    tail = min(int((samples <= 0).sum()), int((samples >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(samples) + 1))
