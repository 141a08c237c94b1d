"""Acc and NIV against the published rules."""

from __future__ import annotations

import math

import pytest

from osm.datasets.labels import LabelSet
from osm.evaluation.metrics import (
    accepted_forms,
    head_is_correct,
    in_vocabulary,
    is_correct,
    majority_class,
    modifiers_are_correct,
    plural_forms,
    ratio,
    singular_forms,
    wilson_interval,
)

LABELS = LabelSet.from_categories(
    [{"id": 1, "name": "Knife", "synonyms": ["blade"]}, {"id": 7, "name": "buses"}], "labels of the test"
)


@pytest.mark.parametrize(
    ("name", "plurals"),
    [
        ("dog", {"dogs", "doges"}),
        ("berry", {"berrys", "berryes", "berries"}),
        ("leaf", {"leafs", "leafes", "leaves"}),
        ("knife", {"knifes", "knifees", "knives"}),
        ("fire truck", {"fire trucks", "fire truckes"}),
    ],
)
def test_plural_forms(name: str, plurals: set[str]) -> None:
    assert plural_forms(name) == plurals


@pytest.mark.parametrize(
    ("name", "singulars"),
    [
        ("dog", set()),
        ("dogs", {"dog"}),
        ("buses", {"buse", "bus"}),
        ("berries", {"berrie", "berri", "berry"}),
        ("knives", {"knive", "kniv", "knif", "knife"}),
        ("bus", {"bu"}),
    ],
)
def test_singular_forms(name: str, singulars: set[str]) -> None:
    assert singular_forms(name) == singulars


def test_forms_are_made_once_only() -> None:
    assert accepted_forms(["bus"]) == {"bus", "buss", "buses", "bu"}


def test_empty_answer_is_never_right() -> None:
    assert "" not in accepted_forms(["s", "es"])
    assert not is_correct("", ["s"])
    assert not in_vocabulary(" ", LABELS)


@pytest.mark.parametrize("answer", ["knife", "KNIVES", "Blade", "blades", " knife "])
def test_correct(answer: str) -> None:
    assert is_correct(answer, LABELS[1].names)


@pytest.mark.parametrize("answer", ["bus", "a knife", "knife.", "kni fe"])
def test_wrong(answer: str) -> None:
    assert not is_correct(answer, LABELS[1].names)


@pytest.mark.parametrize(
    ("answer", "known"), [("Knife", True), ("blade", True), ("BUSES", True), ("knives", False), ("bus", False)]
)
def test_vocabulary_has_synonyms_but_no_other_forms(answer: str, known: bool) -> None:
    assert in_vocabulary(answer, LABELS) is known


def test_majority_class() -> None:
    assert majority_class({3: 2, 1: 5, 2: 5}) == (1, 5 / 12)
    assert majority_class({}) is None


def test_ratio_of_nothing() -> None:
    assert ratio(1, 4) == 0.25
    assert math.isnan(ratio(0, 0))


@pytest.mark.parametrize(
    ("answer", "head", "modifiers"),
    [
        ("Striped Kettle", True, True),
        ("striped kettles", True, True),
        ("dotted kettle", True, False),
        ("kettle", True, False),
        ("striped mug", False, True),
        ("red striped kettle", True, False),
        ("teapots", True, True),  # the one-word synonym, in full
        ("mug", False, False),
        ("striped", False, False),
        ("", False, False),
    ],
)
def test_parts_of_names(answer: str, head: bool, modifiers: bool) -> None:
    names = ["striped kettle", "teapot"]
    assert head_is_correct(answer, names) is head
    assert modifiers_are_correct(answer, names) is modifiers


def test_wilson_interval() -> None:
    # Newcombe (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert wilson_interval(0, 0) is None
