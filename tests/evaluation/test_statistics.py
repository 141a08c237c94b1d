"""Intervals against a slow and obvious loop; paired differences; the calibration error by hand."""

from __future__ import annotations

import numpy as np
import pytest

from osm.evaluation.metrics import statistics
from osm.evaluation.metrics.calibration import calibrate
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, differences

NAN = float("nan")


def some_masks(seed: int = 3, images: int = 23) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Masks of images, up to 6 each and none in some: right or not, a cosine, and a column for few of them."""
    random = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(images), random.integers(0, 7, images))
    right = (random.random(len(numbers)) < 0.3 + 0.4 * (numbers % 2)).astype(float)
    few = np.where(random.random(len(numbers)) < 0.2, right, NAN)
    return numbers, {"acc": right, "cosine": random.random(len(numbers)), "few": few}


def slow_rates(numbers: np.ndarray, values: np.ndarray, samples: int, seed: int) -> list[float]:
    """The mean over the masks of images drawn one by one."""
    random = np.random.default_rng(seed)
    with_masks = [image for image in range(int(numbers.max()) + 1) if (numbers == image).any()]
    rates = []
    for _ in range(samples):
        drawn: list[float] = []
        for place in random.integers(len(with_masks), size=len(with_masks)):
            drawn += [value for value in values[numbers == with_masks[place]] if not np.isnan(value)]
        rates.append(sum(drawn) / len(drawn) if drawn else NAN)
    return rates


@pytest.mark.parametrize("at_once", [7, 2**20])
def test_bootstrap_is_the_slow_one(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_DRAWN_AT_ONCE", at_once)
    monkeypatch.setattr(statistics, "_COLUMNS_AT_ONCE", 2)
    numbers, columns = some_masks()
    rates = ImageSums(numbers, 25, columns).rates(Bootstrap(200, 5))
    for key, values in columns.items():
        slow = slow_rates(numbers, values, 200, 5)
        assert rates[key].value == pytest.approx(np.nanmean(values))
        assert rates[key].interval == pytest.approx(tuple(np.nanquantile(slow, (0.025, 0.975))))
        assert rates[key].masks == (~np.isnan(values)).sum()
        assert rates[key].images == len(set(numbers[~np.isnan(values)]))


def test_images_are_drawn_and_not_masks() -> None:
    """Ten images of 100 masks that are all alike: 1000 masks tell no more than ten."""
    numbers = np.repeat(np.arange(10), 100)
    values = np.repeat(np.arange(10) % 2, 100).astype(float)
    low, high = ImageSums(numbers, 10, {"acc": values}).rates(Bootstrap(2000, 0))["acc"].interval or (0, 0)
    assert low == pytest.approx(0.2, abs=0.05) and high == pytest.approx(0.8, abs=0.05)
    alone = ImageSums(np.arange(1000), 1000, {"acc": values}).rates(Bootstrap(2000, 0))["acc"].interval or (0, 0)
    assert alone[0] > 0.46 and alone[1] < 0.54


def test_the_seed_decides() -> None:
    numbers, columns = some_masks()
    sums = ImageSums(numbers, 23, columns)
    assert sums.rates(Bootstrap(50, 1)) == sums.rates(Bootstrap(50, 1))
    assert sums.rates(Bootstrap(50, 1)) != sums.rates(Bootstrap(50, 2))


def test_what_has_no_interval() -> None:
    columns = {"none": np.array([NAN, NAN, NAN]), "one image": np.array([1.0, 0.0, NAN]), "two": np.ones(3)}
    rates = ImageSums(np.array([0, 0, 4]), 5, columns).rates(Bootstrap(100, 0))
    assert (rates["none"].value, rates["none"].interval, rates["none"].masks) == (None, None, 0)
    assert (rates["one image"].value, rates["one image"].interval) == (0.5, None)
    assert rates["two"].interval == (1.0, 1.0)
    assert ImageSums(np.array([0, 1]), 2, {"a": np.ones(2)}).rates(Bootstrap(0))["a"].interval is None
    assert ImageSums(np.zeros(0, int), 0, {"a": np.zeros(0)}).rates(Bootstrap(9))["a"].value is None


def test_differences_are_paired() -> None:
    """B has one mask more right in every image: the difference is sure, though each rate alone is not."""
    numbers = np.repeat(np.arange(20), 4)
    a = np.where(numbers % 2, 0.0, (np.arange(80) % 4 < 2).astype(float))
    b = np.where(np.arange(80) % 4 == 3, 1.0, a)
    sums = [ImageSums(numbers, 20, {"acc": values}) for values in (a, b)]
    found = differences(*sums, Bootstrap(500, 0))["acc"]
    assert (found.value, found.interval) == (0.25, (0.25, 0.25))
    assert found.p == pytest.approx(2 / 501)
    assert differences(sums[0], sums[0], Bootstrap(500, 0))["acc"].p == 1.0
    low, high = sums[0].rates(Bootstrap(500, 0))["acc"].interval or (0, 0)
    assert high - low > 0.15


def test_differences_are_the_slow_ones() -> None:
    numbers, columns = some_masks()
    other = some_masks(seed=4)[1]["cosine"]
    other = np.resize(other, len(numbers))
    a, b = (ImageSums(numbers, 23, {"cosine": values}) for values in (columns["cosine"], other))
    found = differences(a, b, Bootstrap(150, 8))["cosine"]
    slow = np.subtract(slow_rates(numbers, other, 150, 8), slow_rates(numbers, columns["cosine"], 150, 8))
    assert found.interval == pytest.approx(tuple(np.quantile(slow, (0.025, 0.975))))
    assert found.p == pytest.approx(min(1, 2 * (min((slow <= 0).sum(), (slow >= 0).sum()) + 1) / 151))


def test_differences_of_other_masks() -> None:
    one = ImageSums(np.array([0, 1]), 2, {"acc": np.ones(2)})
    with pytest.raises(ValueError, match="expected the same"):
        differences(one, ImageSums(np.array([0, 0]), 2, {"acc": np.ones(2)}), Bootstrap(10))


def test_calibration_by_hand() -> None:
    # Bins of two: (0, 0.5] has 0, 0.25 and 0.5 (one right), (0.5, 1] has 0.75 and 1 (both right).
    table = calibrate(np.array([0.0, 0.25, 0.5, 0.75, 1.0, NAN]), np.array([0, 1, 0, 1, 1, 1]), bins=2)
    assert [(one.low, one.high, one.masks) for one in table.bins] == [(0.0, 0.5, 3), (0.5, 1.0, 2)]
    assert [one.prob for one in table.bins] == [0.25, 0.875]
    assert [one.acc for one in table.bins] == pytest.approx([1 / 3, 1])
    assert table.ece == pytest.approx(3 / 5 * (1 / 3 - 0.25) + 2 / 5 * (1 - 0.875))
    assert (table.masks, table.without_prob) == (5, 1)


def test_calibration_has_15_bins() -> None:
    table = calibrate(np.array([1 / 15, 0.07, 0.999, 1.0]), np.array([1, 1, 0, 1]))
    assert [one.masks for one in table.bins] == [1, 1, *[0] * 12, 2]
    assert table.bins[5].prob is None and table.bins[5].acc is None
    assert table.ece == pytest.approx((14 / 15 + 0.93 + 2 * abs(0.5 - 0.9995)) / 4)


def test_calibration_of_nothing() -> None:
    assert calibrate(np.array([NAN]), np.array([1])).ece is None
    assert calibrate(np.zeros(0), np.zeros(0)).ece is None
