"""The report: figures counted by hand, what may be missing, the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mugs import TEXTS, Page, Scripted, chart_lines, report, write_log

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.report.report import ReportOptions
from osm.evaluation.report.report_cli import report_main
from osm.evaluation.report.report_page import write_report


def test_figures_are_those_counted_by_hand(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    document, page = report(tmp_path, folder, mugs, baselines={"pets": {"linear probe": 45.64}})
    entry = document["predictions"]["trained"]["pets"]
    assert (entry["specific"]["correct"], entry["specific"]["total"], entry["specific"]["not_in_vocabulary"]) == (
        6,
        10,
        4,
    )
    assert (entry["agnostic"]["correct"], entry["without_prediction"]) == (6, 5)
    assert entry["intervals"]["specific"]["acc"] == pytest.approx((0.3127, 0.8318), abs=5e-5)
    parts = entry["parts_of_names"]
    assert [parts[key] for key in ("total", "full_right", "head_right", "modifiers_right")] == [5, 2, 3, 3]
    either = entry["either_vocabulary"]
    assert (either["correct"], either["total"], either["acc"]) == (3, 4, 0.75)
    assert page.row("trained")[:5] == ["10", "60.0 % 6/10", "60.0 % 6/10", "75.0 % 3/4", "40.0 % 4/10"]
    assert page.row("trained")[6:] == ["50.0 % striped kettle", "5"]
    assert page.row("linear probe (baseline)")[1] == "45.6 %"
    assert document["baselines"] == {"pets": {"linear probe": 45.64}}
    assert page.row("striped kettle")[:2] == ["5", "40.0 % 2/5"]
    assert page.row("mug")[:2] == ["5", "80.0 % 4/5"]
    pairs = re.findall(
        r'<th scope="row">([^<]+)</th><td>([^<]+)</td><td class="n">(\d+)</td>', page.source.split('id="confusions"')[1]
    )
    # Equals by name.
    assert pairs == [
        ("mug", "striped kettle", "1"),
        ("striped kettle", "dotted kettle", "1"),
        ("striped kettle", "mug", "1"),
        ("striped kettle", "striped mug", "1"),
    ]


def test_without_names_and_several_folders(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    generate_predictions(Scripted(*[("mug", "mug", "mug")] * 5), mugs, 0, 1, grey, modes=["own"], alter="blank_image")
    folders = {"trained": folder, "grey image": grey}
    document = write_report(tmp_path / "out", folders, 1, {"pets": mugs}, ReportOptions(surest=0))
    page = Page(tmp_path / "out" / "report.html")
    assert document["predictions"]["grey image"]["pets"]["either_vocabulary"]["acc"] is None
    assert page.row("grey image")[:5] == ["10", "50.0 % 5/10", "–", "–", "0.0 % 0/10"]
    assert "grey image: made with --alter 'blank_image'" in page.text
    assert len(page.all("img")) == 5  # of the first folder alone


def test_parts_are_one(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    for part in range(2):
        texts = TEXTS[:2] if part == 0 else TEXTS[2:]
        generate_predictions(Scripted(*texts), mugs, part, 2, tmp_path / "two")
    document = write_report(tmp_path / "out", {"trained": tmp_path / "two"}, 2, {"pets": mugs})
    one, _ = report(tmp_path, folder, mugs)
    for entry in (document, one):
        del entry["predictions"]["trained"]["pets"]["either_vocabulary"]
        entry["predictions"]["trained"]["pets"]["metrics"]["agnostic"]["rates"].pop("either_vocabulary", None)
    assert document == one


def test_two_writes_are_equal(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    report(tmp_path, folder, mugs)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    report(tmp_path, folder, mugs)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    assert sorted(first) == ["report.html", "results.json"]


def test_training(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    document, page = report(
        tmp_path, folder, mugs, run=write_log(tmp_path / "run", 8.0, 2.0, float("nan"), 0.5), metrics="published"
    )
    assert (document["training"]["steps"], document["training"]["names"]) == (40, 28)
    assert document["training"]["last"]["loss"] == 0.5
    lines = chart_lines(page.source)
    assert len(lines) == 3
    assert [len(points) for points in lines.values()] == [3, 3, 3]  # nan is on no axis
    assert page.all("svg")[0]["aria-label"] == "Loss curve: 8 at step 10, 0.5 at step 40"
    assert "no_mask 3" in page.text
    for tick in ("5", "2", "1", "0.5", "optimizer step", "all sets, summed", "a/any"):
        assert f">{tick}</text>" in page.source
    document, _ = report(tmp_path, folder, mugs, run=write_log(tmp_path / "run", 8.0, float("inf")))
    assert document["training"]["last"]["loss"] is None


def test_without_a_log(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    document, page = report(tmp_path, folder, mugs)
    assert document["training"] is None
    assert 'id="training"' not in page.source and "Training" not in page.text
    (tmp_path / "run").mkdir()
    with pytest.raises(OsmError, match=r"run .*run: log\.jsonl: No such file .* written by train\.py"):
        report(tmp_path, folder, mugs, run=tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").write_text("")
    _, page = report(tmp_path, folder, mugs, run=tmp_path / "run")
    assert 'id="training"' not in page.source and "training: the run's log has no step yet." in page.text
    (tmp_path / "run" / "log.jsonl").write_text("3\n")
    with pytest.raises(OsmError, match="is not a training log"):
        report(tmp_path, folder, mugs, run=tmp_path / "run")


def test_many_classes_are_folded(tmp_path: Path) -> None:
    categories = [{"id": n, "name": f"thing {n}"} for n in range(61)]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"categories": categories}))
    predictions = {"pets": {"class": "thing 3"}}
    segments = [{"id": n, "category_id": n % 61, "open_end_pred": predictions} for n in range(122 + 4)]
    (tmp_path / "pets_pred_0_of_1.json").write_text(json.dumps([{"segments_info": segments}]))
    row = Dataset("pets", "coco_panoptic", "Pets", str(labels))
    _, page = report(tmp_path, tmp_path, row)
    assert "pets: all 61 classes" in page.text
    assert "25 of 60 confusions; 123 wrong masks in all" in page.text
    order = re.findall(r'<th scope="row">(thing \d+)</th>', page.source.split('id="classes"')[1])
    assert order[:5] == ["thing 0", "thing 1", "thing 2", "thing 3", "thing 10"]  # three masks; then by name


@pytest.mark.parametrize("names", [[], "kettle", [3], None])
def test_names_in_another_form(mugs: Dataset, folder: Path, tmp_path: Path, names: Any) -> None:
    path = folder / "pets_pred_0_of_1.json"
    document = json.loads(path.read_text())
    document[0]["segments_info"][0]["names"] = names
    path.write_text(json.dumps(document))
    with pytest.raises(OsmError, match=r"'trained': .*pets_pred_0_of_1\.json: annotation 1: names .* list of strings"):
        report(tmp_path, folder, mugs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baselines": [3]}, "baselines: expected"),
        ({"baselines": {"benchmark": "probe"}}, "baselines: 'benchmark': expected {name: percent}, found 'probe'"),
        ({"pictures": -1}, "pictures -1: expected 0 or more"),
    ],
)
def test_wrong_options(mugs: Dataset, folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        report(tmp_path, folder, mugs, **options)


def test_out_dir_that_is_a_file(mugs: Dataset, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OsmError, match="out_dir .*out: File exists; expected a folder"):
        report(tmp_path, folder, mugs)


def test_command_line(pets_yaml: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.json").write_text('{"pets": {"probe": {"ridge": 40}}}')
    flags = ["--predictions", f"as trained={folder}", "--parts", "1", "--datasets", str(pets_yaml), "--title", "Mine"]
    flags += ["--run", str(write_log(tmp_path / "run", 3.0, 1.0)), "--baselines", str(tmp_path / "base.json")]
    assert report_main([str(tmp_path / "out"), *flags, "--pictures", "1", "--surest", "0"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'report.html'}\n"
    page = Page(tmp_path / "out" / "report.html")
    assert "<title>Mine</title>" in page.source
    assert page.row("probe / ridge (baseline)")[1] == "40.0 %"
    assert len(page.all("img")) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predictions", "trained"], "--predictions 'trained': expected TITLE=FOLDER"),
        (["--predictions", "=x"], "--predictions '=x': expected TITLE=FOLDER"),
        (["--predictions", "x=absent"], "--predictions 'x=absent': absent is not a folder"),
        (["--predictions", "x=.", "--predictions", "x=."], "the title 'x' is given twice"),
        (["--predictions", "x=."], "predictions 'x': .: no prediction file for 1 parts"),
        (["--predictions", "x=.", "--run", "absent"], "--run absent: the folder has no log.jsonl"),
        (["--predictions", "x=.", "--baselines", "absent.json"], "--baselines absent.json: No such file"),
        (["--predictions", "x=.", "--pictures", "-1"], "--pictures -1: expected 0 or more"),
        (["--predictions", "x=.", "--parts", "0"], "--parts 0: expected at least 1"),
        (["--predictions", "x=.", "--datasets", "absent.yaml"], "absent.yaml"),
    ],
)
def test_command_line_errors(
    tmp_path: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report_main(["out", "--parts", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
