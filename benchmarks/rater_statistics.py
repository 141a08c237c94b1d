"""Agreement between raters, and between raters and metrics, with intervals by the bootstrap over images.

Every statistic here is a function of item weights, because a bootstrap sample is a weight for each item: how often its
image was drawn. The weights of the sample itself are all 1. A statistic takes weights (S, N) for S bootstrap samples of
N items, and returns values (S,), NaN where it is undefined. Counts of items are whole numbers, so that a kappa whose
chance agreement is 1 is found exactly, and not by a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from osm.evaluation.metrics.statistics import Bootstrap, draws, middle

ItemStatistic = Callable[[np.ndarray], np.ndarray]
_DIGITS = 9  # the last bits of a sum depend on the order of summation


@dataclass(frozen=True)
class Figure:
    """A statistic of rated items.

    Attributes:
        value: None if the statistic is undefined.
        interval: the 95 % interval of the bootstrap over images; None without a value or with fewer than two images.
        items: the number of items.
        images: the number of images that show these items.
        undefined: why there is no value, or None.
        undefined_samples: the number of bootstrap samples in which the statistic is undefined; they are left out of
            the interval.
    """

    value: float | None
    interval: tuple[float, float] | None
    items: int
    images: int
    undefined: str | None = None
    undefined_samples: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return dict(vars(self))


def estimate(statistic: ItemStatistic, images: np.ndarray, reason: str, bootstrap: Bootstrap | None = None) -> Figure:
    """Return a statistic with its bootstrap interval.

    Args:
        statistic: of the items.
        images: int (items,), the image of each item.
        reason: why the statistic has no value if it is NaN.
        bootstrap: the number of samples, and the seed.
    """
    bootstrap = bootstrap or Bootstrap()
    kinds, places = np.unique(images, return_inverse=True)
    if not len(images):
        return Figure(None, None, 0, 0, "no item has the verdicts that it needs")
    value = float(statistic(np.ones((1, len(images))))[0])
    if np.isnan(value):
        return Figure(None, None, len(images), len(kinds), reason)
    value = round(value, _DIGITS)
    if len(kinds) < 2 or not bootstrap.samples:
        return Figure(value, None, len(images), len(kinds))
    values = np.concatenate([statistic(weights[:, places]) for weights in draws(len(kinds), bootstrap)])
    return Figure(value, middle(values), len(images), len(kinds), None, int(np.isnan(values).sum()))


def pair_tables(one: np.ndarray, other: np.ndarray, kinds: int, weights: np.ndarray) -> np.ndarray:
    """Count how often two raters gave each pair of verdicts.

    Args:
        one: int (N,), the verdicts of one rater, from 0 to kinds - 1.
        other: int (N,), the verdicts of the other rater.
        kinds: the number of different verdicts.
        weights: (S, N).

    Returns:
        (S, kinds, kinds): rows are the verdicts of `one`.
    """
    cells = np.eye(kinds * kinds)[one.astype(int) * kinds + other.astype(int)]
    return (weights @ cells).reshape(-1, kinds, kinds)


def equal_share(tables: np.ndarray) -> np.ndarray:
    """Return the share of equal verdicts in each table (S, K, K), as (S,)."""
    return _divided(np.trace(tables, axis1=1, axis2=2), tables.sum((1, 2)))


def table_kappa(tables: np.ndarray, linear: bool = False) -> np.ndarray:
    """Return Cohen's kappa of each table (S, K, K), as (S,).

    Args:
        tables: how often each pair of verdicts was given.
        linear: whether a disagreement counts by the distance of the two verdicts in their order (Cohen 1968), so that
            "right" against "wrong" counts twice as much as "right" against "acceptable". Otherwise all disagreements
            count the same (Cohen 1960).
    """
    places = np.arange(tables.shape[1])
    apart = np.abs(places[:, None] - places[None]).astype(float)
    cost = apart if linear else np.sign(apart)
    by_chance = np.einsum("sij,ij->s", tables.sum(2)[:, :, None] * tables.sum(1)[:, None, :], cost)
    observed = tables.sum((1, 2)) * np.einsum("sij,ij->s", tables, cost)
    return 1 - _divided(observed, by_chance)


def fleiss_kappa(counts: np.ndarray) -> ItemStatistic:
    """Return Fleiss' kappa (1971) as a statistic.

    Args:
        counts: (N, K), how many raters gave each verdict to each item. Every item has the same number of raters, two
            or more.
    """
    raters = int(counts[0].sum()) if len(counts) else 2
    assert raters > 1 and (counts.sum(1) == raters).all()
    pairs = (counts * (counts - 1)).sum(1).astype(float)  # ordered pairs of raters that agree on an item

    def statistic(weights: np.ndarray) -> np.ndarray:
        items, of_verdict = weights.sum(1), weights @ counts
        observed = _divided(weights @ pairs, items * raters * (raters - 1))
        total = items * raters
        differ = total**2 - (of_verdict**2).sum(1)  # 0 exactly if all verdicts are the same
        return 1 - _divided((1 - observed) * total**2, differ)

    return statistic


def krippendorff_alpha(counts: np.ndarray) -> ItemStatistic:
    """Return Krippendorff's alpha for nominal verdicts as a statistic. Items may have different numbers of verdicts.

    Args:
        counts: (N, K), how many raters gave each verdict to each item. An item with fewer than two verdicts does not
            count.
    """
    raters = counts.sum(1)
    kept = np.where((raters > 1)[:, None], counts, 0)
    pairs = (kept * (kept - 1)).sum(1) / np.maximum(raters - 1, 1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        of_verdict = weights @ kept
        total = of_verdict.sum(1)
        differ = total**2 - (of_verdict**2).sum(1)
        return 1 - _divided((total - 1) * (total - weights @ pairs), differ)

    return statistic


def weighted_auroc(scores: np.ndarray, true: np.ndarray) -> ItemStatistic:
    """Return the AUROC as a statistic: how probably a true item's score exceeds a wrong one's; ties count as 0.5.

    Args:
        scores: float (N,).
        true: bool (N,).
    """
    higher, lower = scores[true][:, None], scores[~true][None]
    above = (higher > lower) + 0.5 * (higher == lower)

    def statistic(weights: np.ndarray) -> np.ndarray:
        of_true, of_wrong = weights[:, true], weights[:, ~true]
        return _divided(((of_true @ above) * of_wrong).sum(1), of_true.sum(1) * of_wrong.sum(1))

    return statistic


def lower_median(grades: np.ndarray) -> np.ndarray:
    """Return the median verdict of each item. Of two middle verdicts, the lower (stricter) one counts.

    Args:
        grades: int (N, R), the verdicts in ascending order of quality.

    Returns:
        int (N,).
    """
    return np.sort(grades, axis=1)[:, (grades.shape[1] - 1) // 2]


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)
