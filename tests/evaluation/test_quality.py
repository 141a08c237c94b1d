"""Panoptic quality on maps small enough to count by hand, and against a slow implementation of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from osm.evaluation.scoring.map_scores import MeanOverlap, Painter, PanopticQuality, PanopticSegment

CAT, DOG, SKY = 0, 5, 9
A_CAT, A_DOG, A_SKY, CROWD = (
    PanopticSegment(CAT),
    PanopticSegment(DOG),
    PanopticSegment(SKY),
    PanopticSegment(CAT, True),
)


def row(text: str) -> np.ndarray:
    """A map of one row; a character a pixel."""
    return np.array([[int(character) for character in text]])


def counts(
    truth: str, true: list[PanopticSegment], predicted: str, categories: list[int]
) -> dict[int, tuple[int, int, int]]:
    """(TP, FP, FN) by class."""
    quality = PanopticQuality()
    quality.add(row(truth), true, row(predicted), categories)
    return {i: (c.tp, c.fp, c.fn) for i, c in quality.classes.items()}


CASES: dict[str, tuple[str, list[PanopticSegment], str, list[int], dict[int, tuple[int, int, int]]]] = {
    "perfect": ("11112222", [A_CAT, A_DOG], "22221111", [DOG, CAT], {CAT: (1, 0, 0), DOG: (1, 0, 0)}),
    "one missed": ("11112222", [A_CAT, A_DOG], "11110000", [CAT], {CAT: (1, 0, 0), DOG: (0, 0, 1)}),
    "one too many": ("11110000", [A_CAT], "11111200", [CAT, CAT], {CAT: (1, 0, 0)}),  # it lies on void
    "one too many, on a segment": (
        "11111112",
        [A_CAT, A_SKY],
        "11111122",
        [CAT, CAT],
        {CAT: (1, 1, 0), SKY: (0, 0, 1)},
    ),
    "the wrong class": (
        "11112222",
        [A_CAT, A_DOG],
        "11112222",
        [CAT, CAT],
        {CAT: (1, 1, 0), DOG: (0, 0, 1)},
    ),
    # 4 of 8 in common is no match; 5 of 9 is one.
    "half": ("11111122", [A_CAT, A_SKY], "00111111", [CAT], {CAT: (0, 1, 1), SKY: (0, 0, 1)}),
    "a bit over half": (
        "111111122",
        [A_CAT, A_SKY],
        "001111111",
        [CAT],
        {CAT: (1, 0, 0), SKY: (0, 0, 1)},
    ),
    # IoU 3 of 6 with the void pixels in the union, 3 of 4 without them.
    "void in the union": ("11110000", [A_CAT], "01111100", [CAT], {CAT: (1, 0, 0)}),
    # 2 of 4 pixels on void are no excuse, 3 of 4 are.
    "half on void": ("00111111", [A_DOG], "11110000", [CAT], {CAT: (0, 1, 0), DOG: (0, 0, 1)}),
    "more on void": ("00011111", [A_DOG], "11110000", [CAT], {DOG: (0, 0, 1)}),
    "on crowd": ("11112222", [CROWD, A_SKY], "11000000", [CAT], {SKY: (0, 0, 1)}),
    "on crowd of another class": ("1111", [CROWD], "1100", [DOG], {DOG: (0, 1, 0)}),
    "on two crowds of its class": (
        "11222233",
        [CROWD, A_SKY, CROWD],
        "11100022",
        [CAT, CAT],
        {SKY: (0, 0, 1)},
    ),
    "crowd is not missed": ("1111", [CROWD], "0000", [], {}),
    # A crowd in the place of a segment: neither a match nor a false positive.
    "crowd found": ("1111", [CROWD], "1111", [CAT], {}),
    "void and crowd together": ("00112222", [CROWD, A_SKY], "11111100", [CAT], {SKY: (0, 0, 1)}),
    "crowd of no class": ("1111", [PanopticSegment(None, True)], "1111", [CAT], {CAT: (0, 1, 0)}),
    "nothing there, nothing said": ("0000", [], "0000", [], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_counts(case: str) -> None:
    truth, true, predicted, categories, expected = CASES[case]
    assert counts(truth, true, predicted, categories) == expected


def test_void_is_taken_out_of_the_union() -> None:
    quality = PanopticQuality()
    quality.add(row("11110000"), [PanopticSegment(CAT)], row("01111100"), [CAT])
    assert quality.classes[CAT].iou == 3 / 4


def test_figures() -> None:
    quality = PanopticQuality()
    # CAT: IoU 3/4, then one missed; DOG: one too many alone; SKY: IoU 1.
    quality.add(row("1111222"), [PanopticSegment(CAT), PanopticSegment(SKY)], row("1110222"), [CAT, SKY])
    quality.add(row("1111"), [PanopticSegment(CAT)], row("1000"), [DOG])
    assert quality.classes[CAT].figures() == (pytest.approx(0.75 / 1.5), 0.75, pytest.approx(1 / 1.5))
    assert quality.classes[DOG].figures() == (0, 0, 0)
    assert quality.mean(lambda i: i == SKY) == {"pq": 1, "sq": 1, "rq": 1, "classes": 1}
    every = quality.mean()
    assert every["pq"] == pytest.approx((0.5 + 0 + 1) / 3) and every["classes"] == 3
    assert every["sq"] == pytest.approx((0.75 + 0 + 1) / 3) and every["rq"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert quality.mean(lambda i: i == 77) == {"pq": None, "sq": None, "rq": None, "classes": 0}


def slow(
    truth: np.ndarray, true: list[PanopticSegment], predicted: np.ndarray, categories: list[int]
) -> dict[int, Any]:
    """The definition, set by set of pixels."""

    def pixels(image: np.ndarray, value: int) -> set[int]:
        return set(np.flatnonzero(image == value).tolist())

    void = pixels(truth, 0)
    result = {i: [0, 0, 0, 0.0] for i in (CAT, DOG, SKY)}
    hit = set()
    for t, segment in enumerate(true, 1):
        found = False
        for p, category in enumerate(categories, 1):
            ours, theirs = pixels(truth, t), pixels(predicted, p) - void
            iou = len(ours & theirs) / len(ours | theirs)
            if not segment.crowd and segment.category_id == category and iou > 0.5:
                found = True
                hit.add(p)
                result[category][0] += 1
                result[category][3] += iou
        if not segment.crowd and not found:
            assert segment.category_id is not None
            result[segment.category_id][2] += 1
    for p, category in enumerate(categories, 1):
        excused = set(void)
        for t, segment in enumerate(true, 1):
            if segment.crowd and segment.category_id == category:
                excused |= pixels(truth, t)
        if p not in hit and len(pixels(predicted, p) & excused) / len(pixels(predicted, p)) <= 0.5:
            result[category][1] += 1
    return {i: tuple(values) for i, values in result.items()}


def random_map(random: np.random.Generator) -> tuple[np.ndarray, int]:
    """Blocks of 0 to 6 values, numbered without a gap; often the same ones twice."""
    blocks = random.integers(0, random.integers(2, 8), (3, 4))
    image = np.kron(blocks, np.ones((3, 3), int))
    image[random.random(image.shape) < 0.15] = 0
    values = sorted(set(np.unique(image).tolist()) - {0})
    numbered = np.zeros_like(image)
    for k, value in enumerate(values, 1):
        numbered[image == value] = k
    return numbered, len(values)


def test_against_the_definition() -> None:
    random = np.random.default_rng(0)
    matches = 0
    for _ in range(300):
        truth, count = random_map(random)
        true = [PanopticSegment(int(random.choice([CAT, DOG, SKY])), bool(random.random() < 0.2)) for _ in range(count)]
        predicted, count = random_map(random)
        categories = random.choice([CAT, DOG, SKY], count).tolist()
        if random.random() < 0.7 and true:  # else hardly anything would match
            predicted = np.where(random.random(truth.shape) < random.random() * 0.5, 0, truth)
            kept = [t for t in range(1, len(true) + 1) if (predicted == t).any()]
            predicted = np.select([predicted == t for t in kept], list(range(1, len(kept) + 1)), 0)
            categories = [CAT if random.random() < 0.2 else true[t - 1].category_id for t in kept]
        quality = PanopticQuality()
        quality.add(truth, true, predicted, categories)
        expected = {i: found for i, found in slow(truth, true, predicted, categories).items() if any(found)}
        assert {i: (c.tp, c.fp, c.fn) for i, c in quality.classes.items()} == {i: e[:3] for i, e in expected.items()}
        for i, (tp, _, _, iou) in expected.items():
            assert quality.classes[i].iou == pytest.approx(iou)
            matches += tp
    assert matches > 200


def test_mean_overlap() -> None:
    overlap = MeanOverlap([3, 4, 8, 11])
    # Places 0 to 3; -1 = void, or nothing predicted.
    overlap.add(np.array([[0, 0, 0, 0, 1, 1, -1, -1]]), np.array([[0, 0, 1, -1, 1, 1, 2, 0]]))
    overlap.add(np.array([[0, 1]]), np.array([[0, 2]]))
    # 3: 3 of 5 pixels, one of them not predicted; 4: 2 of (3 true, 1 more); 8: predicted alone, not averaged.
    assert overlap.by_class() == {3: 3 / 5, 4: 2 / 4}
    assert overlap.mean() == {"miou": pytest.approx((3 / 5 + 2 / 4) / 2), "classes": 2}
    assert MeanOverlap([1]).mean() == {"miou": None, "classes": 0}


def mask(text: str) -> np.ndarray:
    return row(text) == 1


def test_painting() -> None:
    painter = Painter((1, 10), {SKY}, 0.5)
    painter.add(mask("1111000000"), CAT)
    painter.add(mask("0011110000"), CAT)  # half of it is left
    painter.add(mask("0000111000"), DOG)  # a third
    painter.add(mask("1111000000"), DOG)  # nothing
    painter.add(mask("0000001110"), SKY)
    painter.add(mask("0000000111"), SKY)  # two of three are the merged segment's already
    assert painter.segments_HW.tolist() == row("1111223333").tolist()
    assert (painter.categories, painter.hidden) == ([CAT, CAT, SKY], 2)


def test_painting_without_a_threshold() -> None:
    """A mask of which nothing is left is left out all the same: no segment is without a pixel."""
    painter = Painter((1, 4), (), 0.0)
    painter.add(mask("1110"), CAT)
    painter.add(mask("0111"), DOG)
    painter.add(mask("1111"), DOG)
    assert painter.segments_HW.tolist() == row("1112").tolist()
    assert (painter.categories, painter.hidden) == ([CAT, DOG], 1)
