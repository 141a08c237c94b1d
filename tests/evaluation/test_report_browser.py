"""The report's page in a real browser: what the first window shows, and that the page never scrolls sideways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mugs import Scripted, write_log

from osm.datasets.table import Dataset
from osm.evaluation.metrics.scores import Tools
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.report import report as report_module
from osm.evaluation.report.report import ReportOptions
from osm.evaluation.report.report_page import write_report

pytestmark = pytest.mark.slow

LONG = "a_very_long_name_without_a_space_" * 8
TITLES = ("trained for a whole week on all of the sets", LONG, "third", "fourth", "fifth", "sixth")
SIZES = "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
TOP = "e => Math.round(e.getBoundingClientRect().top)"


def wide_report(mugs: Dataset, tmp_path: Path, *, titles: tuple[str, ...], name: str) -> str:
    """Writes a report of many folders, in which a class and its predictions have a long name; returns its address."""
    labels = Path(str(mugs.json_file))
    document = json.loads(labels.read_text())
    document["categories"][0]["name"] = name
    labels.write_text(json.dumps(document))
    texts = [(name, "mug", name), ("mug", name, "mug"), (f"{name} of tin", "mug", "cup"), ("cup", "mug", name)]
    generate_predictions(Scripted(*texts, texts[0]), mugs, 0, 1, tmp_path / "wide")
    options = ReportOptions(write_log(tmp_path / "run", 3.0, 2.0, 1.0), {"pets": {name: 40}}, bootstrap=20)
    write_report(tmp_path / "out", dict.fromkeys(titles, tmp_path / "wide"), 1, {"pets": mugs}, options)
    return (tmp_path / "out" / "report.html").as_uri()


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "find_tools", Tools)


def test_no_sideways_scrolling(mugs: Dataset, tmp_path: Path, browser: Any) -> None:
    address = wide_report(mugs, tmp_path, titles=TITLES, name=LONG)
    for width in (1280, 400):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(address)
        page.evaluate("() => document.querySelectorAll('details').forEach(e => e.open = true)")
        scrolled, seen = page.evaluate(SIZES)
        assert scrolled <= seen <= width
        page.close()


def test_tables_of_many_folders_fit_the_window(mugs: Dataset, tmp_path: Path, browser: Any) -> None:
    titles = ("before training", "after one epoch", "after two epochs", "after three epochs", "after four epochs")
    address = wide_report(mugs, tmp_path, titles=titles, name="striped kettle")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    boxes = page.eval_on_selector_all(
        ".scroll", "l => l.filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)"
    )
    assert boxes == []  # none has to be scrolled
    page.close()


def test_the_first_window(mugs: Dataset, tmp_path: Path, browser: Any) -> None:
    address = wide_report(mugs, tmp_path, titles=("first", "second"), name="striped kettle")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    pictures = [image for image in page.query_selector_all("img") if image.is_visible()]
    tops = [image.evaluate(TOP) for image in pictures]
    assert len(tops) == 4 and len(set(tops)) == 1  # one row; the other pictures are folded
    assert pictures[0].evaluate("e => e.complete && e.naturalWidth") == 512
    table = page.locator("table:visible").first
    box = table.bounding_box()
    assert table.locator("caption").inner_text() == "Scores by set and predictions"
    assert tops[0] < box["y"] and box["y"] + box["height"] < 900
    assert all(top > box["y"] for top in page.eval_on_selector_all("nav, #scores ~ section", f"l => l.map({TOP})"))
    assert all(request.startswith(("file:", "data:")) for request in requests)
    page.close()


def test_classes_are_sorted_by_any_folder(mugs: Dataset, tmp_path: Path, browser: Any) -> None:
    address = wide_report(mugs, tmp_path, titles=("first", "second"), name="striped kettle")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    rows = "() => [...document.querySelectorAll('#classes tbody th')].map(e => e.textContent)"
    for expected in (["striped kettle", "mug"], ["mug", "striped kettle"]):
        page.get_by_role("button", name="second, Acc").click()
        assert page.evaluate(rows) == expected  # 2 of 5 kettles are right, and 4 of 5 mugs
    page.close()
