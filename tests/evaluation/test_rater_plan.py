"""The plan of a study: simulated raters agree as asked, and the intervals are those of real studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rater_agreement import FLEISS, group_agreement, pair_agreement
from rater_files import RatedSample, read_sample
from rater_plan import plan, simulated_study, simulated_widths

from osm.errors import OsmError
from osm.evaluation.metrics import is_correct

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "docs" / "benchmarks" / "judged" / "osm_small_60.json"


@pytest.fixture(scope="module")
def pilot() -> RatedSample:
    return read_sample(LIST)


@pytest.mark.parametrize("kappa", [0.3, 0.8])
def test_simulated_raters_agree_as_asked(pilot: RatedSample, kappa: float) -> None:
    study, flag = simulated_study(pilot, 4000, 3, kappa, np.random.default_rng(1))
    assert pair_agreement(study, 0, 2).kappa.value == pytest.approx(kappa, abs=0.04)
    assert group_agreement(study)[FLEISS].value == pytest.approx(kappa, abs=0.04)
    # The items are those of the pilot, with what Acc says of them; 48 images have 60 items.
    assert flag.tolist() == [is_correct(item.prediction, item.names) for item in study.items]
    assert len(study.items) / len(np.unique(study.images)) == pytest.approx(60 / 48, abs=0.05)


def test_the_intervals_contain_the_true_kappa(pilot: RatedSample) -> None:
    """About 95 % of 95 % intervals do. With 400 studies, 90 % or 98 % would be off by three standard deviations."""
    found = []
    for number in range(400):
        study, _ = simulated_study(pilot, 60, 3, 0.8, np.random.default_rng([7, number]))
        interval = group_agreement(study)[FLEISS].interval
        assert interval is not None
        found.append(interval[0] <= 0.8 <= interval[1])
    assert 0.9 <= np.mean(found) <= 0.985


def test_more_items_make_narrower_intervals(pilot: RatedSample) -> None:
    few, many = (simulated_widths(pilot, items, 3, 0.8, 5, 0) for items in (60, 240))
    for one, other in zip(few, many, strict=True):
        assert other == pytest.approx(one / 2, rel=0.35)
    one_rater = simulated_widths(pilot, 60, 1, 0.8, 2, 0)
    assert not np.isnan(one_rater[:2]).any() and np.isnan(one_rater[2:]).all()


def test_the_rows_of_the_docs_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    plan(LIST, (), [60, 240], [1, 3], 0.8)
    page = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8").splitlines()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and set(lines) < set(page)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items": [60, 0]}, "--items 60,0: expected numbers from 1 to 100000"),
        ({"raters": []}, "--raters '': expected numbers from 1 to 100"),
        ({"kappa": 1.5}, "--kappa 1.5 must be from 0 to 1"),
        ({"kappa": float("nan")}, "--kappa nan must be from 0 to 1"),
        ({"studies": 0}, "--studies 0: expected numbers from 1 to 10000"),
    ],
)
def test_mistakes_in_a_plan_are_said(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        plan(LIST, (), **{"items": [60], "raters": [2], "kappa": 0.8, **changed})
