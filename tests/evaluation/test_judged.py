"""The script that lets a person judge predictions, and its figures by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import judged_metrics
import numpy as np
import pytest
from fake_namer import FakeName, FakeNamer
from judged_report import agreement
from judgements import sample
from PIL import Image
from rater_files import RatedItem
from small_wordnet import write_wordnet

from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.evaluation.predict.generate import generate_predictions

ROOT = Path(__file__).resolve().parents[2]


class Cats(FakeNamer):
    """Calls everything a cat."""

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: object) -> list:
        return [{mode: FakeName("Cats", 0.5) for mode in self.modes} for _ in masks]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "judged.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_sample_is_drawn_and_compared(pets: Dataset, pets_yaml: Path, tmp_path: Path) -> None:
    generate_predictions(Cats(), pets, 0, 1, tmp_path / "out", modes=["any"])
    asked = ("sample", tmp_path / "out", 1, tmp_path / "list.json", tmp_path / "sheets", "--datasets", pets_yaml)
    done = run(*asked, "--sets", "pets", "--each", 3)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "list.json").read_text())
    assert sorted(entry["names"][0] for entry in entries) == ["cat"] * 3 + ["dog"] * 3
    assert [entry["number"] for entry in entries] == [1, 2, 3, 4, 5, 6] and not any(e["verdict"] for e in entries)
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "01.png"))
    assert (sheet == (255, 0, 255)).all(-1).sum() > 6 * 200  # an outline each
    # Verdicts are not overwritten.
    again = run(*asked, "--sets", "pets")
    assert again.returncode == 2 and "list.json exists, and its verdicts would be lost" in again.stderr
    unjudged = run("agreement", tmp_path / "list.json")
    assert unjudged.returncode == 2 and "number 1: verdict '' is not one of right, acceptable, wrong" in unjudged.stderr


def test_mistakes_are_said(pets: Dataset, pets_yaml: Path, tmp_path: Path) -> None:
    generate_predictions(Cats(), pets, 0, 1, tmp_path / "out", modes=["any"])
    (tmp_path / "file").touch()
    table = DatasetTable().with_yaml(str(pets_yaml))

    def refused(message: str, out: str = "out", parts: int = 1, sheets: str = "sheets", **options: Any) -> None:
        options = {"sets": ["pets"], **options}
        with pytest.raises(OsmError, match=message):
            sample(tmp_path / out, parts, tmp_path / "list.json", tmp_path / sheets, table, **options)
        assert not (tmp_path / "list.json").exists()

    refused("parts 0: expected 1 or more", parts=0)
    refused("--each -1: expected 1 or more", each=-1)
    refused("set 'v3det': the annotation format boxes needs image_dir, which is not set", sets=["v3det"])
    refused("no prediction in mode 'own' of pets", mode="own")
    refused("1 of 1 parts are missing", out="nowhere")
    refused("sheets .*file: File exists; expected a folder", sheets="file")
    path = tmp_path / "out" / "pets_pred_0_of_1.json"
    path.write_text(path.read_text().replace('"prob": 0.5', '"prob": "high"'))
    refused("prob 'high': expected a number from 0 to 1")
    path.write_text(path.read_text().replace('"prob": "high"', '"prob": 0.5').replace('"id": ', '"id": 9'))
    refused(
        "image 10. has mask 9.* of category ., which is not in .*panoptic.json: the predictions are for different masks"
    )
    meta = tmp_path / "out" / "pets_meta_0_of_1.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "annotations": "others"}))
    refused("has changed since the predictions were made")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "expected the list that `sample` wrote, found {}"),
        ([], "expected the list that `sample` wrote, found"),
        ([3], "expected the list"),
        ([{"verdict": "wrong", "prediction": "cat"}], "number 1: names None is not a list of texts"),
        ([{"verdict": "wrong", "prediction": 3, "names": ["cat"]}], "number 1: class 3: expected a string"),
        ([{"verdict": "wrong", "prediction": "cat", "names": ["cat"]}], "1 verdicts of one kind; some wrong and some"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, document: Any, message: str) -> None:
    (tmp_path / "list.json").write_text(json.dumps(document))
    with pytest.raises(OsmError, match=message):
        agreement(tmp_path / "list.json")


# The figures that docs/evaluation.md cites.
OF_60 = """\
60 predictions: 29 right, 4 acceptable, 27 wrong

| says right or wrong | agrees | true, called wrong | wrong, called right | kappa |
|---|---|---|---|---|
| Acc | 92 % | 4 | 1 | 0.83 |
| WordNet: exact or synonym | 92 % | 4 | 1 | 0.83 |
| WordNet: those, or a hyponym or hypernym | 90 % | 3 | 3 | 0.80 |
| Semantic Similarity of 0.6 or more | 92 % | 3 | 2 | 0.83 |

| graded | true above wrong (AUROC) | rank correlation (Kendall's tau-b) |
|---|---|---|
| Acc | 0.92 | 0.81 |
| Semantic Similarity | 0.95 | 0.71 |
| Semantic IoU | 0.92 | 0.81 |
| WUPS at 0.0 | 0.94 | 0.70 |
| the model's own probability | 0.68 | 0.23 |

Of the metric Acc and the verdict they differ in:
- 16 (clothing): 'jacket' for 'blazer': right
- 22 (coco): 'couch' for 'chair': right
- 33 (camvid): 'car' for 'car': wrong
- 39 (clothing): 'bag' for 'accessories': acceptable
- 57 (clothing): 'stockings' for 'leggings': right
"""


def test_the_published_verdicts_keep_their_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_wordnet()
    except OsmError:
        pytest.skip("WordNet is not installed")
    agreement(ROOT / "docs" / "benchmarks" / "judged" / "osm_small_60.json", (), tmp_path / "figures.json")
    before, after = capsys.readouterr().out.split(OF_60)
    assert not before
    assert "| Acc | 92 % (84 to 98) | 0.83 (0.68 to 0.96) |" in after  # 60 names in 48 images
    assert "| the model's own probability | 0.68 (0.54 to 0.81) |" in after
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["items"], figures["images"], figures["rated_by_all"]) == (60, 48, 60)
    assert figures["true_or_wrong"][0]["accuracy"]["value"] == pytest.approx(55 / 60)


def test_figures_by_hand() -> None:
    assert judged_metrics.kendall_tau(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])) == 1
    assert judged_metrics.kendall_tau(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
    assert np.isnan(judged_metrics.kendall_tau(np.ones(3), np.array([3.0, 2, 1])))
    # a: one pair tied of three; b: none. 2 in order of 2 * sqrt(2 * 3) / 2.
    assert judged_metrics.kendall_tau(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(2 / np.sqrt(6))


def test_cosines_of_equal_names_are_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path / "wordnet")))
    monkeypatch.setattr(judged_metrics, "SentenceEncoder", lambda: None)
    cosines = np.array([1 - 1e-7, 1 + 2e-7, 1.0, 0.3])
    monkeypatch.setattr(judged_metrics, "semantic_similarities", lambda _, pairs: np.stack([cosines, cosines], 1))
    items = [RatedItem(name, "pets", 1, ("dog",), name, {"": 0.5}) for name in ("dog", "dogs", "dog", "cat")]
    _, scores = judged_metrics.metrics(items)
    assert scores["Semantic Similarity"].tolist() == [1, 1, 1, 0.3]


def test_the_intervals_of_the_docs_are_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_wordnet()
    except OsmError:
        pytest.skip("WordNet is not installed")
    agreement(ROOT / "docs" / "benchmarks" / "judged" / "osm_small_60.json")
    page = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
    tables = capsys.readouterr().out.removeprefix(OF_60).strip()
    assert tables.startswith("| with 95 % intervals over images |") and f"\n\n{tables}\n\n" in page
