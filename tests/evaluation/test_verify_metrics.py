"""`scripts/verify_metrics.py`: other libraries come to the same metrics, and a changed value is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_wordnet import write_wordnet
from verify import command

from osm.evaluation.metrics import base
from osm.evaluation.metrics.measure import find_tools
from osm.evaluation.metrics.published import is_correct

ROOT = Path(__file__).resolve().parents[2]
PASSED = re.compile(r"(\d+) prediction files, (\d+) values compared, 0 different")


@pytest.fixture(autouse=True)
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WNSEARCHDIR", str(write_wordnet(tmp_path / "wordnet")))
    find_tools.cache_clear()  # earlier tests of this process may have loaded a different WordNet
    yield
    find_tools.cache_clear()


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of random predictions, and the YAML file of its datasets."""
    from verify.random_sets import RandomSets

    names = [{"name": name, "synonyms": []} for name in ("dog", "cat", "traffic light", "man", "bus", "car")]
    datasets = command.write_random(RandomSets([names], [], 3), tmp_path / "random", 2)
    return tmp_path / "random" / "predictions", datasets


def test_random_files() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "verify_metrics.py"), "--random", "20", "--seed", "7"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = PASSED.search(done.stdout)
    assert found and int(found[1]) == 20 and int(found[2]) > 2000
    for metric in ("acc", "semantic_iou_best", "lexical/hyponym", "wups_0.9", "interval: limits", "report: Wilson"):
        assert re.search(rf"^{re.escape(metric)}.* [1-9]\d* compared", done.stdout, re.M), metric


def test_random_proposals(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--random", "10", "--proposals", "--seed", "5"]) == 0
    assert PASSED.search(capsys.readouterr().out)


def test_a_changed_value_is_named(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, datasets = written
    arguments = [str(folder), "1", "--datasets", str(datasets), "--json", str(tmp_path / "all.json")]
    document = command.evaluated(folder, 1, datasets, 1000)
    (tmp_path / "all.json").write_text(json.dumps(document))
    assert command.main(arguments) == 0
    rate = document["set1"]["metrics"]["agnostic"]["rates"]["semantic_iou"]
    rate["value"] += 1e-8
    (tmp_path / "all.json").write_text(json.dumps(document))
    capsys.readouterr()
    assert command.main(arguments) == 1
    out = capsys.readouterr().out
    assert "1 different" in out and f"project {rate['value']!r}" in out
    assert f"DIFFERENT semantic_iou: {folder}/set1_pred_*_of_1.json, mode any: semantic_iou" in out
    assert "set1: no single mask on which the command and the recomputation differ" in out


def test_a_changed_prediction_file_is_named(
    written: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, datasets = written
    (tmp_path / "all.json").write_text(json.dumps(command.evaluated(folder, 1, datasets, 1000)))
    path = folder / "set0_pred_0_of_1.json"
    path.write_text(re.sub(r'"prob": [\d.e-]+', '"prob": 0.123', path.read_text(), count=1))
    assert command.main([str(folder), "1", "--datasets", str(datasets), "--json", str(tmp_path / "all.json")]) == 1
    assert f"{folder}/set0_pred_*_of_1.json, mode " in capsys.readouterr().out


def test_the_mask_of_a_wrong_metric_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "sets.yaml").write_text("datasets:\n  pets: {form: coco_panoptic, labels: labels.json}\n")
    segments = [
        {"id": k, "category_id": 2 - k % 2, "open_end_pred": {"any": {"class": name, "prob": 0.5}}}
        for k, name in enumerate(("cat", "dogs", "cats", "bird", "cat"))
    ]
    (tmp_path / "out").mkdir()
    entries = [{"image_id": 5, "file_name": "5.png", "segments_info": segments}]
    (tmp_path / "out" / "pets_pred_0_of_1.json").write_text(json.dumps(entries))
    arguments = [str(tmp_path / "out"), "1", "--datasets", str(tmp_path / "sets.yaml")]
    assert command.main(arguments) == 0

    def wrong(prediction: str, names: tuple[str, ...]) -> bool:
        return prediction != "dogs" and is_correct(prediction, names)

    monkeypatch.setattr(base, "is_correct", wrong)
    capsys.readouterr()
    assert command.main(arguments) == 1
    out = capsys.readouterr().out
    assert "pets: pets_pred_0_of_1.json, image 5, annotation 1: {'any': ('dogs', 0.5)}" in out
    assert re.search(r"DIFFERENT acc: .*project 0\.6, recomputed 0\.8", out)


def test_missing_libraries_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(command.LIBRARIES, "no_such_library", "no-such-library")
    assert command.main(["--random", "1"]) == 2
    expected = "verify_metrics.py requires no-such-library: pip install '.[verify]' && pip install --no-deps"
    assert capsys.readouterr().err.startswith(expected)


def test_what_is_asked_for_is_clear(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == command.main(["out", "1", "--random", "3"]) == 2
    assert "expected OUT_DIR and N, or --random COUNT, or --judged LIST" in capsys.readouterr().err
