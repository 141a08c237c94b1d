"""Values of other people's jsons by what they mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from osm.io.values import finite, side, truth, whole


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7 ", "007", "7.0", np.int64(7), np.float32(7)])
def test_one_integer(value: Any) -> None:
    assert whole(value) == 7 and type(whole(value)) is int


@pytest.mark.parametrize(
    "value", [None, True, 7.5, "seven", "", "7.5", "٧", float("nan"), float("inf"), "1" * 40, [7], {}, "1_0"]
)
def test_no_integer(value: Any) -> None:
    assert whole(value) is None


@pytest.mark.parametrize("value", [None, True, "x", "", float("nan"), "nan", "inf", 10**400, [1], "1_0"])
def test_no_number(value: Any) -> None:
    assert finite(value) is None


def test_numbers_keep_their_kind() -> None:
    assert [finite(value) for value in (3, 2.5, "2.5", np.float32(0.5))] == [3, 2.5, 2.5, 0.5]
    assert type(finite(3)) is int


@pytest.mark.parametrize(
    ("value", "flag"),
    [(True, True), (1, True), (1.0, True), ("1", True), ("true", True), (None, False), (0, False), (False, False)]
    + [("0", False), ("False", False), ("", False), (2, None), ("maybe", None), ([], None)],
)
def test_flags(value: Any, flag: bool | None) -> None:
    assert truth(value) is flag


@pytest.mark.parametrize("value", [None, 0, -1, "", "wide", 96.5])
def test_no_side(value: Any) -> None:
    assert side(value) is None
