"""Agreement of raters: figures by hand, other libraries, slow references, and the bootstrap over images."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from rater_statistics import (
    ItemStatistic,
    equal_share,
    estimate,
    fleiss_kappa,
    krippendorff_alpha,
    lower_median,
    pair_tables,
    table_kappa,
    weighted_auroc,
)
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from osm.evaluation.metrics.statistics import Bootstrap

# The worked example of the article "Fleiss' kappa" in Wikipedia: 10 subjects, 14 raters, 5 categories, kappa 0.210.
WORKED = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: 4 observers, 12 units, missing values.
# The page gives alpha 0.743 for nominal values.
OBSERVED = ["123321412000", "123322412503", "033323422510", "123324412510"]


def ones(statistic: ItemStatistic, items: int) -> float:
    return float(statistic(np.ones((1, items)))[0])


def kappa(one: list[int], other: list[int], kinds: int = 3, linear: bool = False) -> float:
    return float(table_kappa(pair_tables(np.array(one), np.array(other), kinds, np.ones((1, len(one)))), linear)[0])


def test_cohens_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.7 agree; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5 would.
    one, other = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert kappa(one, other, 2) == pytest.approx(0.4)
    # Two of four differ, both by one step of two. By chance, each of the 16 pairs is as probable.
    rows, columns = [0, 0, 1, 2], [0, 1, 1, 1]
    by_chance = sum(abs(a - b) / 2 for a in rows for b in columns) / 16
    assert kappa(rows, columns, linear=True) == pytest.approx(1 - (2 / 4 / 2) / by_chance)
    assert kappa([0, 1, 2], [0, 1, 2]) == kappa([0, 1, 2], [0, 1, 2], linear=True) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("linear", [False, True])
def test_cohens_kappa_is_scikit_learns_under_weights(seed: int, linear: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(3, size=(2, 40))
    weights = rng.integers(4, size=(6, 40)).astype(float)
    found = table_kappa(pair_tables(one, other, 3, weights), linear)
    equal = equal_share(pair_tables(one, other, 3, weights))
    for row, value, share in zip(weights, found, equal, strict=True):
        asked = {"labels": [0, 1, 2], "weights": "linear" if linear else None, "sample_weight": row}
        assert value == pytest.approx(cohen_kappa_score(one, other, **asked), abs=1e-12)
        assert share == pytest.approx(np.average(one == other, weights=row))


def slow_fleiss(counts: np.ndarray) -> float:
    """As Fleiss writes it: the mean over items of the share of agreeing pairs of raters, and that of all verdicts."""
    shares = []
    for row in counts.tolist():
        verdicts = [kind for kind, count in enumerate(row) for _ in range(count)]
        shares.append(np.mean([a == b for a, b in permutations(verdicts, 2)]))
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return float((np.mean(shares) - chance) / (1 - chance))


def test_fleiss_kappa_of_a_worked_example() -> None:
    assert ones(fleiss_kappa(WORKED), 10) == pytest.approx(0.210, abs=0.0005)


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_is_the_slow_one_under_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(5, (0.5, 0.2, 0.3), size=20)
    weights = rng.integers(3, size=(4, 20))
    found = fleiss_kappa(counts)(weights.astype(float))
    assert found == pytest.approx([slow_fleiss(np.repeat(counts, row, axis=0)) for row in weights], abs=1e-12)


def test_krippendorffs_alpha_of_a_worked_example() -> None:
    counts = np.array(
        [[[int(row[unit]) for row in OBSERVED].count(kind) for kind in range(1, 6)] for unit in range(12)]
    )
    assert counts.sum() == 41 and ones(krippendorff_alpha(counts), 12) == pytest.approx(0.743, abs=0.0005)
    # A unit with one value has no pair, and does not count.
    assert ones(krippendorff_alpha(counts[:11]), 11) == ones(krippendorff_alpha(counts), 12)


def test_auroc_is_scikit_learns_under_weights() -> None:
    rng = np.random.default_rng(3)
    scores, true = rng.integers(5, size=30) / 4, rng.random(30) < 0.4
    weights = rng.integers(3, size=(5, 30)).astype(float)
    expected = [roc_auc_score(true, scores, sample_weight=row) for row in weights]
    assert weighted_auroc(scores, true)(weights) == pytest.approx(expected)


def test_what_is_undefined_is_none_with_a_reason() -> None:
    same, images = np.zeros(4, int), np.arange(4)
    figure = estimate(lambda weights: table_kappa(pair_tables(same, same, 3, weights)), images, "all are equal")
    assert figure.value is None and figure.interval is None and figure.undefined == "all are equal"
    counts = np.array([[3, 0, 0]] * 4)
    for statistic in (fleiss_kappa(counts), krippendorff_alpha(counts), weighted_auroc(np.ones(4), np.ones(4, bool))):
        assert estimate(statistic, images, "one kind").as_json()["value"] is None
    assert estimate(fleiss_kappa(counts[:0]), images[:0], "").undefined == "no item has the verdicts that it needs"


def test_intervals_resample_images() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(3, size=60)
    other = np.where(rng.random(60) < 0.8, one, rng.integers(3, size=60))

    def statistic(weights: np.ndarray) -> np.ndarray:
        return table_kappa(pair_tables(one, other, 3, weights))

    images = np.repeat(np.arange(20), 3)
    figure = estimate(statistic, images, "", Bootstrap(200, 1))
    # The slow way: whole images are drawn, and scikit-learn computes each kappa.
    drawn = np.random.default_rng(1).integers(20, size=(200, 20))
    places = [np.concatenate([np.flatnonzero(images == image) for image in row]) for row in drawn]
    slow = [cohen_kappa_score(one[place], other[place]) for place in places]
    assert figure.interval == pytest.approx(np.quantile(slow, (0.025, 0.975)))
    assert (figure.items, figure.images, figure.undefined_samples) == (60, 20, 0)
    # If an image's items are copies, more of them say nothing new, and the interval stays.
    repeated = estimate(
        lambda weights: table_kappa(pair_tables(np.repeat(one, 9), np.repeat(other, 9), 3, weights)),
        np.repeat(images, 9),
        "",
        Bootstrap(200, 1),
    )
    assert repeated.value == figure.value and repeated.interval == pytest.approx(figure.interval)
    assert estimate(statistic, np.zeros(60), "").interval is None  # one image


def test_undefined_bootstrap_samples_are_counted() -> None:
    one, other = np.array([0, 1]), np.array([0, 1])  # a sample of one image twice has one kind of verdict
    figure = estimate(lambda weights: table_kappa(pair_tables(one, other, 2, weights)), np.arange(2), "")
    assert figure.value == 1 and figure.interval == (1, 1) and 400 < figure.undefined_samples < 600


def test_of_two_middle_verdicts_the_stricter_counts() -> None:
    assert lower_median(np.array([[0, 2], [1, 2], [2, 2]])).tolist() == [0, 1, 2]
    assert lower_median(np.array([[0, 1, 2], [2, 0, 2], [0, 1, 0]])).tolist() == [1, 2, 0]
    assert lower_median(np.array([[0, 0, 1, 2], [1, 1, 0, 2]])).tolist() == [0, 1]
