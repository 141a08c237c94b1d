"""Rates, and how sure they are: Wilson's interval, and the bootstrap over images.

Masks of one image are no independent draws (the same scene, the same light, often the same class), so it is images that
are drawn again, each with all its masks: the cluster bootstrap (Davison and Hinkley, Bootstrap Methods and their
Application, 1997, section 3.8). An interval is the middle 95 % of the resampled rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWN_AT_ONCE = 2**20  # images, so that memory stays small for a set of 20,000
_COLUMNS_AT_ONCE = 256
_DIGITS = 9  # how sums are ordered, and so their last bits, depends on the machine and on how many columns there are


def ratio(count: int, total: int) -> float:
    """count / total, and nan where nothing was counted."""
    return count / total if total else float("nan")


def auroc(higher: Sequence[float] | np.ndarray, lower: Sequence[float] | np.ndarray) -> float:
    """How often one of the first is above one of the second; ties count half. Neither is empty."""
    a, b = np.asarray(higher)[:, None], np.asarray(lower)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def wilson_interval(count: int, total: int) -> tuple[float, float] | None:
    """The 95 % interval of a share (Wilson's, which holds for few masks and near 0 and 1); None of nothing."""
    if not total:
        return None
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile
    share, spread = count / total, z * z / total
    middle = share + spread / 2
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


@dataclass(frozen=True)
class Bootstrap:
    """How often images are drawn anew, and by which seed; 0 samples = no intervals."""

    samples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Rate:
    """A mean over masks.

    Attributes:
        value: None where no mask counts.
        masks, images: how many count, and in how many images.
        interval: the 95 % interval over images; None where it cannot be had (fewer than two images, or no samples).
    """

    value: float | None
    masks: int
    images: int
    interval: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "masks": self.masks, "images": self.images, "interval": self.interval}


class ImageSums:
    """Sums and counts of every column by image.

    Args:
        images: int (masks,), the number of each mask's image.
        image_count: how many images there are; those without any mask are left out of the draws.
        columns: name -> float (masks,); nan = the mask does not count in it.
        split: a column, and str (masks,): one more column for each of these names, over the masks that have it.
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
            # A column of all masks for each of a thousand classes would take gigabytes.
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
        """Every column's mean over all masks, with its interval."""
        sums, counts, images = self.sums.sum(0), self.counts.sum(0), (self.counts > 0).sum(0)
        intervals = self._intervals(bootstrap)
        return {
            key: Rate(
                _rounded(sums[k] / counts[k]) if counts[k] else None, int(counts[k]), int(images[k]), intervals[k]
            )
            for k, key in enumerate(self.keys)
        }

    def resampled(self, bootstrap: Bootstrap) -> Iterator[tuple[slice, np.ndarray]]:
        """The columns' rates (samples, columns of the slice) in images drawn anew; nan where none of a column's was.

        The same seed draws the same images whatever the columns are, which makes differences of two runs paired ones.
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
    """How often each image is in a sample, float (some samples, images), until all samples are there."""
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
    """The middle 95 % of values, nan left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, (0.025, 0.975))
    return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS)


@dataclass(frozen=True)
class Difference:
    """B less A over the same masks.

    Attributes:
        interval: the paired bootstrap's 95 %.
        p: two-sided, of no difference: twice the smaller share of samples at or beyond 0, the drawn ones and one more
            (Davison and Hinkley, section 4.2.3), at most 1.
    """

    value: float | None
    interval: tuple[float, float] | None
    p: float | None

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": self.interval, "p": self.p}


def differences(a: ImageSums, b: ImageSums, bootstrap: Bootstrap) -> dict[str, Difference]:
    """B less A of every column, images drawn for both alike; both have the same columns and images.

    Raises:
        ValueError: they have not.
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
