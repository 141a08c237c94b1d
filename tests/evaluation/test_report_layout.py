"""The layout of the report's page: what it opens with, every prediction folder's details, and no empty parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mugs import Page, Scripted, predict, report, write_log, write_mugs
from panoptic_pets import write_panoptic

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.metrics.scores import Tools
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.report import report as report_module
from osm.evaluation.report.report import ReportOptions
from osm.evaluation.report.report_cli import report_main
from osm.evaluation.report.report_page import write_report


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "find_tools", Tools)


@pytest.fixture
def second(mugs: Dataset, tmp_path: Path) -> Path:
    """A folder of predictions that are all "mug", which is wrong of every kettle."""
    generate_predictions(Scripted(*[("mug", "mug", "mug")] * 5), mugs, 0, 1, tmp_path / "second")
    return tmp_path / "second"


def both(tmp_path: Path, row: Dataset, *folders: Path, **options: Any) -> Page:
    named = dict(zip(("first", "second"), folders, strict=True))
    write_report(tmp_path / "out", named, 1, {"pets": row}, ReportOptions(**options))
    return Page(tmp_path / "out" / "report.html")


def section(page: Page, key: str) -> str:
    return page.source.split(f'<section id="{key}"')[1].split("</section>")[0]


def sections(page: Page) -> list[str]:
    return re.findall('<section id="(.*?)"', page.source)


def test_pictures_then_one_table_then_the_details(mugs: Dataset, folder: Path, second: Path, tmp_path: Path) -> None:
    page = both(tmp_path, mugs, folder, second, surest=0, run=write_log(tmp_path / "run", 3.0, 2.0))
    details = ["training", "parts", "metrics", "sizes", "calibration", "classes", "confusions"]
    assert sections(page) == ["opening", "scores", "pictures", *details]
    assert re.findall('<a href="#(.*?)">', page.source) == ["pictures", *details]
    top, rest = page.source.split("<main>")[1].split("<nav", 1)
    assert top.index("<img") < top.index("Scores by set and predictions") < top.index(">first</th>")
    shown = re.sub("<details>.*?</details>", "", top, flags=re.DOTALL)  # what is not folded
    assert shown.count("<table") == 1
    assert [shown.count(f'<th scope="row">{title}</th>') for title in ("first", "second")] == [1, 1]
    # Of five images the page opens with four, so that none is in both places.
    assert (top.count("<img"), top.count("chosen by chance"), rest.count("<img")) == (4, 4, 1)
    names = re.findall('<p class="names">(.*?)</p>', top)
    assert "✗</span> dotted kettle <small>[striped kettle]</small>" in "".join(names)


def test_every_set_is_in_the_opening(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    other = write_mugs(write_panoptic(tmp_path / "other"))
    for path in sorted(folder.iterdir()):
        found = path.read_text().replace('"pets"', '"other"').replace(str(tmp_path / "pets"), str(tmp_path / "other"))
        path.with_name(path.name.replace("pets", "other")).write_text(found)
    table = {"pets": mugs, "other": Dataset(**{**vars(other), "name": "other"})}
    write_report(tmp_path / "out", {"trained": folder}, 1, table, ReportOptions(surest=0))
    page = Page(tmp_path / "out" / "report.html")
    assert re.findall("<strong>(pets|other)</strong>", section(page, "opening")) == ["pets", "other"] * 2
    assert section(page, "pictures").count("<img") == 6


def test_details_are_of_every_folder(mugs: Dataset, folder: Path, second: Path, tmp_path: Path) -> None:
    page = both(tmp_path, mugs, folder, second, pictures=0, surest=0)
    labels = re.findall('aria-label="(Calibration of .*?):', section(page, "calibration"))
    assert labels == ["Calibration of pets, first", "Calibration of pets, second"]
    classes = section(page, "classes")
    assert re.findall('<button type="button">(.*?)</button>', classes) == [
        "class",
        "masks",
        "first, Acc",
        "second, Acc",
    ]
    assert page.row("striped kettle") == ["5", "40.0 % 2/5", "0.0 % 0/5"]
    assert page.row("mug") == ["5", "80.0 % 4/5", "100.0 % 5/5"]
    assert "pets, second, lowest of the classes with 5 masks or more: striped kettle 0/5." in classes
    captions = re.findall("<caption>(.*?)</caption>", section(page, "confusions"))
    assert captions == [
        "pets, first: 4 of 4 confusions; 4 wrong masks in all",
        "pets, second: 1 of 1 confusions; 5 wrong masks in all",
    ]
    assert '<th scope="row">striped kettle</th><td>mug</td><td class="n">5</td>' in section(page, "confusions")


def test_classes_of_one_folder_alone(mugs: Dataset, folder: Path, second: Path, tmp_path: Path) -> None:
    """The second folder has predictions for kettles alone, and none in the own mode for one of them."""
    path = second / "pets_pred_0_of_1.json"
    document = json.loads(path.read_text())
    for place, entry in enumerate(document):
        entry["segments_info"][1].pop("open_end_pred")
        if place == 0:
            entry["segments_info"][0]["open_end_pred"].pop("pets")
    path.write_text(json.dumps(document))
    (second / "pets_meta_0_of_1.json").unlink()  # it counts the removed predictions
    page = both(tmp_path, mugs, folder, second, pictures=0, surest=0)
    assert page.row("striped kettle") == ["5", "40.0 % 2/5", "0.0 % 0/4"]
    assert page.row("mug") == ["5", "80.0 % 4/5", "–"]


def test_which_folder_the_pictures_are_of(
    mugs: Dataset, pets_yaml: Path, folder: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--predictions", f"first={folder}", "--predictions", f"second={second}", "--parts", "1"]
    flags = [str(tmp_path / "out"), *flags, "--datasets", str(pets_yaml), "--metrics", "published"]
    for more, title, wrong in (([], "first", "dotted kettle"), (["--pictures_of", "second"], "second", "mug")):
        assert report_main([*flags, *more]) == 0
        opening = section(Page(tmp_path / "out" / "report.html"), "opening")
        assert f"Predictions “{title}”." in opening
        assert f"✗</span> {wrong} <small>[striped kettle]</small>" in opening
        assert ("dotted kettle" in opening) == (title == "first")
    capsys.readouterr()
    assert report_main([*flags, "--pictures_of", "third"]) == 2
    message = "--pictures_of 'third': expected a title given with --predictions ('first', 'second')"
    assert message in capsys.readouterr().err
    with pytest.raises(OsmError, match="pictures_of 'third': expected the title of one of the predictions"):
        report(tmp_path, folder, mugs, pictures_of="third")


def test_empty_parts_are_left_out(mugs: Dataset, tmp_path: Path) -> None:
    """Predictions in mode `any` alone, without probabilities, pictures and a run, and a log of one step."""
    generate_predictions(Scripted(*[("", "", "mug")] * 5), mugs, 0, 1, tmp_path / "pred", modes=["any"])
    path = tmp_path / "pred" / "pets_pred_0_of_1.json"
    path.write_text(re.sub(r',\s*"prob": [\d.e-]+', "", path.read_text()))
    assert "prob" not in path.read_text()
    _, page = report(tmp_path, tmp_path / "pred", mugs, pictures=0)
    assert sections(page) == ["scores", "metrics", "sizes"]
    heads = re.findall('<th scope="col">(.*?)</th>', section(page, "scores"))
    assert heads == ["predictions", "masks", "any Acc", "any NIV", "majority class", "masks without prediction"]
    assert "calibration of pets: no prediction has a probability." in section(page, "scores")
    _, page = report(tmp_path, tmp_path / "pred", mugs, pictures=0, metrics="published", bootstrap=0)
    assert sections(page) == ["scores"] and "<nav" not in page.source
    _, page = report(tmp_path, tmp_path / "pred", mugs, pictures=0, run=write_log(tmp_path / "run", 3.0))
    assert "last loss" in section(page, "training") and "<figure" not in section(page, "training")


def test_without_a_wrong_name(mugs: Dataset, tmp_path: Path) -> None:
    generate_predictions(Scripted(*[("teapot", "mug", "mug")] * 5), mugs, 0, 1, tmp_path / "right")
    wrong = predict(mugs, tmp_path)
    _, page = report(tmp_path, tmp_path / "right", mugs, pictures=0)
    assert "confusions" not in sections(page)
    page = both(tmp_path, mugs, tmp_path / "right", wrong, pictures=0, surest=0)
    captions = re.findall("<caption>(.*?)</caption>", section(page, "confusions"))
    assert captions == ["pets, second: 4 of 4 confusions; 4 wrong masks in all"]
