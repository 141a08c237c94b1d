"""Metrics of another package have their columns in every table and json of the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_packages import install_example
from predictions import FIRST, SECOND, write_parts

from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.evaluation import evaluate_cli
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.metrics import METRICS, register_metric
from osm.evaluation.metrics.base import Metric, Tools
from osm.evaluation.metrics.evaluate import evaluate_folder
from osm.evaluation.metrics.scores import score_masks, select_metrics
from osm.evaluation.report import report, report_cli
from osm.evaluation.report.report_cli import compare_main, report_main
from osm.listing import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (evaluate_cli, report, report_cli):
        monkeypatch.setattr(module, "find_tools", Tools)
    monkeypatch.setattr(METRICS, "_registered", {})
    return write_parts(tmp_path / "pred", FIRST, SECOND)


def test_example_metrics_are_in_the_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(install_example("metric", tmp_path))
    out = tmp_path / "out"
    flags = ["--parts", "2", "--pictures", "0", "--surest", "0", "--bootstrap", "20"]
    assert report_main([str(out), "--predictions", f"mine={folder}", *flags]) == 0
    page = (out / "report.html").read_text()
    rates = json.loads((out / "results.json").read_text())["predictions"]["mine"]["coco"]["metrics"]["specific"][
        "rates"
    ]
    assert "Edit similarity" in page and "Different names per mask" in page
    assert rates["edit_similarity"]["masks"] == 6 and rates["edit_similarity"]["interval"]
    assert rates["distinct_names"] == {"value": pytest.approx(1.0), "masks": 6, "images": 3, "interval": None}
    capsys.readouterr()
    assert evaluate_main([str(folder), "2", "--metrics", "all", "--bootstrap", "0"]) == 0
    assert "\nEdit similarity " in capsys.readouterr().out
    assert compare_main([str(folder), str(folder), "--parts", "2", "--bootstrap", "0"]) == 0
    told = capsys.readouterr().out
    assert "\nEdit similarity " in told and "\nDifferent names per mask " in told
    assert main(["metrics"]) == 0
    assert "distinct_names" in (text := capsys.readouterr().out) and "osm-example-metric" in text


def test_some_metrics_by_name_or_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(install_example("metric", tmp_path))
    given = "niv,osm_example_metric:EditSimilarity"
    path = tmp_path / "a.json"
    assert evaluate_main([str(folder), "2", "--metrics", given, "--bootstrap", "0", "--json", str(path)]) == 0
    rates = json.loads(path.read_text())["coco"]["metrics"]["specific"]["rates"]
    assert list(rates) == ["acc", "niv", "edit_similarity"]
    capsys.readouterr()
    assert evaluate_main([str(folder), "2", "--metrics", "acc,speed"]) == 2
    assert "--metrics 'acc,speed': metric 'speed': expected one of acc" in capsys.readouterr().err


class Odd(Metric):
    name, title = "odd", "Odd"
    found: dict[str, Any] = {}

    def columns(self, masks: Any) -> dict[str, Any]:
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"acc": 1.0}, r"metric 'odd': column 'acc' has no title; titles\(\) only has odd"),
        (
            {"odd": np.zeros(2)},
            r"metric 'odd': column 'odd' has shape \(2,\); expected one value, or one value for each of the 6",
        ),
        ({"odd": float("inf")}, "metric 'odd': column 'odd' contains infinite values"),
    ],
)
def test_wrong_columns(folder: Path, found: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register_metric("odd")(Odd)
    monkeypatch.setattr(Odd, "found", found)
    records = evaluate_folder(folder, 2, DatasetTable())[0][0].records
    with pytest.raises(OsmError, match=message):
        score_masks(records, "coco")
    with pytest.raises(OsmError, match="another metric"):
        score_masks(records, "coco", metrics=[*select_metrics("acc"), *map(_same, ("acc",))])


def _same(key: str) -> Metric:
    twin = Odd()
    twin.name, twin.found = key, {key: 1.0}  # type: ignore[misc]
    return twin
