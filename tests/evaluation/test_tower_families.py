"""The towers that are tried by one command: a few of them here, and the page that is made of the results of all."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tower_cases import CASES, TowerCase
from tower_trials import towers_page, try_all, try_tower

from osm.errors import OsmError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/benchmarks/families/towers.json"
CHEAP = [case for case in CASES if case.cheap]


@pytest.mark.parametrize("case", CHEAP, ids=lambda case: case.key)
def test_a_tower_is_right_or_refused_as_expected(case: TowerCase, tmp_path: Path) -> None:
    result = try_tower(case, tmp_path)
    assert result["outcome"] == ("right" if case.patch else "refused"), result


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks can fail: an expectation that is not met, mean and std that are lost, weights that are not loaded."""
    case = next(case for case in CHEAP if case.name == "xcit_nano_12_p16_224")
    other = TowerCase(case.kind, case.name, case.strides, case.window, 8, 1)
    assert "patch 16 and 0 class tokens, 8 and 1 expected" in try_tower(other, tmp_path)["sentence"]
    assert try_tower(TowerCase("timm", "levit_128s", (16,), 128, 16), tmp_path)["outcome"] == "wrong"
    monkeypatch.setattr("osm.models.towers.timm_tower._config_beside", lambda *_: None)
    monkeypatch.setattr("osm.models.towers.timm_tower.timm_state_dict", lambda *_: None)
    sentence = try_tower(case, tmp_path)["sentence"]
    assert "are not those of the weights" in sentence and "hold other values than the file" in sentence


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    first, second, third = CASES[:3]
    output = tmp_path / "towers.json"

    def right(_: TowerCase, folder: Path) -> dict[str, str]:
        assert not list(folder.iterdir())
        return {"outcome": "right"}

    def broken(*_: Any) -> NoReturn:
        raise ValueError("it broke")

    try_all([first], output, 60, right)
    document = try_all([first, second], output, 60, broken)
    assert document["towers"][first.key] == {"outcome": "right"}
    assert document["towers"][second.key] == {"outcome": "wrong", "sentence": "ValueError: it broke"}
    assert json.loads(output.read_text()) == document
    document = try_all([third], output, 0.2, lambda *_: threading.Event().wait())
    assert document["towers"][third.key]["sentence"] == "not done after 0.2 seconds"
    gone = try_all([first], tmp_path / "gone.json", 60, lambda *_: os._exit(7))
    assert gone["towers"][first.key]["sentence"] == "its process ended with 7"
    output.write_text("[]")
    with pytest.raises(OsmError, match="expected results of this script"):
        try_all([first], output, 60, right)


def test_the_page_is_made_of_the_results() -> None:
    document = json.loads(RESULTS.read_text())
    assert towers_page(document, CASES) == (ROOT / "docs/towers.md").read_text()
    assert set(document["towers"]) == {case.key for case in CASES} and len(CASES) >= 40
    assert not [key for key, result in document["towers"].items() if result["outcome"] == "wrong"]
