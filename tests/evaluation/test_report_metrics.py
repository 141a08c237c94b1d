"""The report's further metrics: their tables, the calibration plot, and which pictures are the surest."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mugs import Page, chart_lines, report

from osm.datasets.table import Dataset
from osm.evaluation.metrics.calibration import calibrate
from osm.evaluation.metrics.scores import Tools
from osm.evaluation.predict.records import read_set
from osm.evaluation.report import report as report_module
from osm.evaluation.report.charts import reliability_plot
from osm.evaluation.report.report import ReportOptions
from osm.evaluation.report.report_page import write_report
from osm.evaluation.report.result_images import choose_surest


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "find_tools", lambda: Tools(notes=("WordNet: left out, not installed",)))


def with_probs(folder: Path, *probs: float | None) -> Path:
    """Gives the own mode's predictions of each image a probability, or none."""
    path = folder / "pets_pred_0_of_1.json"
    document = json.loads(path.read_text())
    for entry, prob in zip(document, probs, strict=True):
        for segment in entry["segments_info"]:
            for prediction in segment.get("open_end_pred", {}).values():
                prediction.pop("prob")
                prediction.update({} if prob is None else {"prob": prob})
    path.write_text(json.dumps(document))
    return path


def section(page: Page, key: str) -> str:
    return page.source.split(f'<section id="{key}"')[1].split("</section>")[0]


def test_tables(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    document, page = report(tmp_path, folder, mugs)
    measured = document["predictions"]["trained"]["pets"]["metrics"]
    assert measured["specific"]["rates"]["acc"]["value"] == 0.6
    low, high = measured["specific"]["rates"]["acc"]["interval"]
    assert low < 0.6 < high
    row = next(line for line in section(page, "metrics").split("<tr>") if "Semantic IoU, target" in line)
    # Own: 1, 0 (Teapots), 1/3, 1/3, 0; 1, 0 (mugs), 1, 1, 0.
    assert "46.7\u00a0%" in row
    assert "pets: WordNet: left out, not installed" in section(page, "metrics")
    # Only the cats' segments state an area (24 pixels).
    assert "Acc, small masks" in section(page, "sizes") and "Acc, large masks" in section(page, "sizes")
    assert "Acc by sizes: without 5 of 10 masks" in section(page, "sizes")
    assert "Acc by frequencies: left out" in section(page, "sizes")
    own = re.search(r'title="6 of 10; 95 % interval (\S+)\s% to (\S+)\s% over images"', section(page, "scores"))
    assert own and [float(own[1]), float(own[2])] == pytest.approx([100 * low, 100 * high], abs=0.051)


def test_published_alone(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    document, page = report(tmp_path, folder, mugs, metrics="published")
    assert "metrics" not in document["predictions"]["trained"]["pets"]
    assert 'id="calibration"' not in page.source and "over images" not in section(page, "classes")


def test_the_seed_and_no_samples(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    found = []
    for options in ({"seed": 1, "bootstrap": 9}, {"seed": 2, "bootstrap": 9}, {"bootstrap": 0}):
        document, _ = report(tmp_path, folder, mugs, pictures=0, **options)
        found.append(document["predictions"]["trained"]["pets"]["metrics"]["specific"]["rates"]["acc"]["interval"])
    assert found[0] != found[1] and found[2] is None


def test_calibration(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    with_probs(folder, 0.9, 0.9, 0.5, 0.5, None)
    document, page = report(tmp_path, folder, mugs)
    table = document["predictions"]["trained"]["pets"]["metrics"]["specific"]["calibration"]
    # Of the four masks at 0.9 all are right; of those at 0.5 "MUG" and "mug" are.
    assert table["ece"] == pytest.approx((4 * 0.1 + 4 * 0.0) / 8)
    assert table["without_prob"] == 2
    shown = section(page, "calibration")
    assert 'aria-label="Calibration of pets: own mode ECE 5.0 %, any ECE' in shown
    assert "pets: calibration of mode pets: without 2 masks that have no `prob`" in shown
    cells = [re.sub("<.*?>", "|", row).replace("\u00a0", " ") for row in shown.split("<tr>") if "0.87 to 0.93" in row]
    assert re.search(r"own mode\|+4\|+90.0 %\|+100.0 %", cells[0])


def test_plot() -> None:
    table = calibrate(np.array([0.9, 0.9, 0.1]), np.array([1, 0, 0]))
    plot = reliability_plot("<pets>", {"own mode": table, "any": calibrate(np.array([np.nan]), np.array([1]))})
    (line,) = chart_lines(plot).values()
    assert "&lt;pets&gt;" in plot and len(line) == 2
    # Half of those at 0.9 are right: below the diagonal.
    assert line[1] == pytest.approx((56 + 0.9 * 300, 12 + 0.5 * 300), abs=0.01)
    assert reliability_plot("pets", {"any": calibrate(np.array([np.nan]), np.array([1]))}) == ""


def test_without_probabilities(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    with_probs(folder, *[None] * 5)
    _, page = report(tmp_path, folder, mugs, surest=2)
    assert "pets: no prediction has a probability." in page.text
    assert "Surest and wrong" not in page.text


def test_the_surest(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    # Right of two: 2, 2, 1, 1, 0 (image by image).
    with_probs(folder, 0.3, 0.8, 0.5, 0.5, 0.9)
    records = read_set(mugs, folder, 1)
    assert choose_surest(records, 5) == ([4], [1, 0])
    assert choose_surest(records, 1) == ([4], [1])
    assert choose_surest(records, 0) == ([], [])
    write_report(tmp_path / "out", {"trained": folder}, 1, {"pets": mugs}, ReportOptions(pictures=0, surest=1))
    page = Page(tmp_path / "out" / "report.html")
    images = [str(attributes["alt"])[:5] for attributes in page.all("img")]
    assert images == ["0.png", "3.png"]  # the images come from last to first
    assert re.findall("(surest and (?:wrong|right)): (. of .) right", page.text) == [
        ("surest and wrong", "0 of 3"),
        ("surest and right", "2 of 3"),
    ]


def test_two_folders_have_a_column_each(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    write_report(
        tmp_path / "out", {"one": folder, "two": folder}, 1, {"pets": mugs}, ReportOptions(pictures=0, surest=0)
    )
    page = Page(tmp_path / "out" / "report.html")
    for name in ("one, own mode", "one, any", "two, own mode", "two, any"):
        assert f'<th scope="col">{name}</th>' in section(page, "metrics")
    assert section(page, "calibration").count("<svg") == 2
