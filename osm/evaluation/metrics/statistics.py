"""Rates and their intervals: Wilson's interval, and the bootstrap over images.

Masks of one image are not independent samples, because they share the scene, the light and often the class. Therefore
the bootstrap resamples images, each with all its masks. This is the cluster bootstrap (Davison and Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8). An interval is the middle 95 % of the resampled rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWN_AT_ONCE = 2**20  # images in a block of samples, which bounds the memory for a set of 20,000 images
_COLUMNS_AT_ONCE = 256
# The order of summation depends on the machine and on the number of columns, so the last bits of sums differ. Rates are
# rounded to this many digits.
_DIGITS = 9


def ratio(count: int, total: int) -> float:
    """Return count / total, or nan if total is 0."""
    return count / total if total else float("nan")


def auroc(higher: Sequence[float] | np.ndarray, lower: Sequence[float] | np.ndarray) -> float:
    """Return the probability that a value of `higher` is above a value of `lower`, where ties count half.

    Neither sequence may be empty.
    """
    a, b = np.asarray(higher)[:, None], np.asarray(lower)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def wilson_interval(count: int, total: int) -> tuple[float, float] | None:
    """Return Wilson's 95 % interval of a share, or None if total is 0.

    Unlike the normal approximation, the interval is valid for small totals and for shares near 0 and 1.
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
    """The parameters of the bootstrap.

    Attributes:
        samples: the number of resampled sets of images; 0: no intervals.
        seed: the seed of the resampling.
    """

    samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Rate:
    """A mean over masks.

    Attributes:
        value: the mean; None if no mask counts.
        masks: the number of masks that count.
        images: the number of images with masks that count.
        interval: the 95 % interval over images; None with fewer than two images or without samples.
    """

    value: float | None
    masks: int
    images: int
    interval: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {"value": self.value, "masks": self.masks, "images": self.images, "interval": self.interval}


class ImageSums:
    """The sum and the count of every column over the masks of each image.

    Args:
        images: int (masks,), the number of each mask's image.
        image_count: the number of images. Images without masks are not resampled.
        columns: name -> float (masks,), nan for masks that do not count in the column.
        split: the name of a column, and str (masks,). For each distinct string there is another column with the values
            of the named column at the masks that have this string.
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
            # Dense columns over all masks for a thousand classes would take gigabytes.
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
        """Return the mean of every column over all masks, with its interval."""
        sums, counts, images = self.sums.sum(0), self.counts.sum(0), (self.counts > 0).sum(0)
        intervals = self._intervals(bootstrap)
        return {
            key: Rate(
                _rounded(sums[k] / counts[k]) if counts[k] else None, int(counts[k]), int(images[k]), intervals[k]
            )
            for k, key in enumerate(self.keys)
        }

    def resampled(self, bootstrap: Bootstrap) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the rates of blocks of columns in resampled images.

        The same seed draws the same images for any columns, so differences of two runs are paired.

        Yields:
            A slice of `keys`, and float (samples, columns of the slice), nan where no mask of a column was drawn.
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
    """Yield how often each image is in each sample, in blocks float (samples of the block, images)."""
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
    """Return the bounds of the middle 95 % of values without nan, or None if there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


@dataclass(frozen=True)
class Difference:
    """The difference B - A of a rate over the same masks.

    Attributes:
        value: the difference; None if one of the rates has no value.
        interval: the 95 % interval of the paired bootstrap.
        p: the two-sided p-value of no difference. It is twice the smaller share of samples at or beyond 0, at most 1,
            where one sample is added to the count and to the total (Davison and Hinkley, section 4.2.3).
    """

    value: float | None
    interval: tuple[float, float] | None
    p: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {"value": self.value, "interval": self.interval, "p": self.p}


def differences(a: ImageSums, b: ImageSums, bootstrap: Bootstrap) -> dict[str, Difference]:
    """Return B - A of every column, with the same images resampled for both.

    Raises:
        ValueError: The columns or the images of A and B differ.
    """
    if a.keys != b.keys or a.sums.shape != b.sums.shape:
        raise ValueError(f"columns {a.keys} of {a.sums.shape} and {b.keys} of {b.sums.shape}: expected the same")
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
