"""Fitting a calibration: against scikit-learn and slow references, and the command `osm calibrate` on real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from osm.errors import OsmError
from osm.evaluation.calibrate_cli import main
from osm.evaluation.metrics.calibration import (
    calibrate_by_mass,
    cross_fitted,
    ece_if_calibrated,
    fit_calibration,
)

SLOPE, INTERCEPT = 0.6, -0.8


def simulated(names: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident probabilities: a name is correct with probability sigmoid(SLOPE logit + INTERCEPT)."""
    random = np.random.default_rng(seed)
    probs = random.beta(2, 1, size=names)
    true = 1 / (1 + np.exp(-(SLOPE * np.log(probs / (1 - probs)) + INTERCEPT)))
    return probs, random.random(names) < true


def test_the_fit_is_logistic_regression() -> None:
    probs, correct = simulated()
    found = fit_calibration(probs, correct)
    reference = LogisticRegression(C=1e3, tol=1e-10).fit(np.log(probs / (1 - probs))[:, None], correct)
    assert found.slope == pytest.approx(reference.coef_[0, 0], abs=1e-4)
    assert found.intercept == pytest.approx(reference.intercept_[0], abs=1e-4)
    assert found.slope == pytest.approx(SLOPE, abs=0.05) and found.intercept == pytest.approx(INTERCEPT, abs=0.05)
    assert found.names == len(probs)


def test_a_fit_stays_finite_where_probabilities_separate_right_from_wrong() -> None:
    probs = np.linspace(0, 1, 400)
    found = fit_calibration(probs, probs > 0.5)
    assert np.isfinite([found.slope, found.intercept]).all() and found(0.1) < 0.01 < 0.99 < found(0.9)


@pytest.mark.parametrize(
    ("probs", "correct", "message"),
    [
        (np.full(50, 0.5), np.arange(50) % 2 == 0, "at least 100 names.*there are 50"),
        (np.linspace(0, 1, 200), np.ones(200, bool), "200 are correct"),
        (np.linspace(0, 1, 200), np.linspace(0, 1, 200) < 0.5, "less probable names are not less often correct"),
    ],
)
def test_what_cannot_be_fitted_is_refused(probs: np.ndarray, correct: np.ndarray, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        fit_calibration(probs, correct)


def test_bins_of_equal_mass_are_those_of_a_slow_reference() -> None:
    probs, correct = simulated(1003)
    table = calibrate_by_mass(probs, correct)
    pairs = sorted(zip(probs.tolist(), correct.tolist(), strict=True))
    assert [one.masks for one in table.bins] == [101] * 3 + [100] * 7
    error, start = 0.0, 0
    for one in table.bins:
        part = pairs[start : start + one.masks]
        start += one.masks
        mean, right = (sum(values) / len(part) for values in zip(*part, strict=True))
        assert (one.prob, one.acc) == (pytest.approx(mean), pytest.approx(right))
        error += len(part) / len(pairs) * abs(mean - right)
    assert table.ece == pytest.approx(error) and start == 1003


def test_cross_fitting_uses_other_images_only() -> None:
    probs, correct = simulated(2000)
    images = np.arange(2000) // 8
    found = cross_fitted(probs, correct, images)
    # What an image's names are does not reach the calibrations of its fold.
    changed = correct.copy()
    changed[images == 7] = ~changed[images == 7]
    again = cross_fitted(probs, changed, images)
    assert (again[images == 7] == found[images == 7]).all() and (again != found).any()
    assert calibrate_by_mass(found, correct).ece < 0.04 < calibrate_by_mass(probs, correct).ece
    mean, high = ece_if_calibrated(found)
    assert 0.01 < mean < high < 0.06


def named(pets: Path, folder: Path, images: int, seed: int) -> Path:
    """A COCO-panoptic set and predictions of it: names with simulated probabilities. Returns its YAML."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    probs, correct = simulated(4 * images, seed)
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "dog", "isthing": 1}]
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    predicted = []
    for number in range(images):
        truth["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 8, "width": 8})
        segments: list[dict[str, Any]] = []
        said = []
        for k in range(4):
            category = int(random.integers(1, 3))
            segments.append({"id": k + 1, "category_id": category, "iscrowd": 0, "area": 16, "bbox": [0, 0, 4, 4]})
            name = "cat" if (category == 1) == correct[4 * number + k] else "dog"
            said.append(
                {**segments[-1], "open_end_pred": {"any": {"class": name, "prob": float(probs[4 * number + k])}}}
            )
        row = {"image_id": number, "file_name": f"{number}.png"}
        truth["annotations"].append({**row, "segments_info": segments})
        predicted.append({**row, "segments_info": said})
    (folder / "panoptic.json").write_text(json.dumps(truth))
    (folder / "predictions").mkdir()
    (folder / "predictions" / "pets_pred_0_of_1.json").write_text(json.dumps(predicted))
    yaml = folder / "sets.yaml"
    yaml.write_text(f"datasets:\n  pets: {{form: coco_panoptic, title: Pets, labels: {folder / 'panoptic.json'}}}\n")
    return yaml


def test_the_command_stores_what_it_fits(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "final"
    shutil.copytree(checkpoint, model)
    before = json.loads((model / "config.json").read_text())
    flags: list[str] = []
    for number in range(2):
        yaml = named(tmp_path, tmp_path / f"fold_{number}", 150, number)
        flags += ["--predictions", str(yaml.parent / "predictions"), "--datasets", str(yaml)]
    figures = tmp_path / "figures.json"
    assert main([str(model), *flags, "--json", str(figures), "--dry_run"]) == 0
    assert json.loads((model / "config.json").read_text()) == before
    plot = tmp_path / "plots" / "reliability.png"
    assert main([str(model), *flags, "--json", str(figures), "--unsure", "0.45", "--plot", str(plot)]) == 0
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 400 and len(drawn.convert("RGB").getcolors(1 << 20)) > 50
    said = capsys.readouterr().out
    found, after = json.loads(figures.read_text()), json.loads((model / "config.json").read_text())
    assert after.pop("calibration") == found["calibration"] and after == before
    assert found["calibration"]["slope"] == pytest.approx(SLOPE, abs=0.2) and found["calibration"]["names"] == 1200
    assert (found["names"], found["masks"], found["images"]) == (1200, 1200, 300)
    assert found["sure"]["names"] + found["unsure"]["names"] == 1200
    assert found["cross_fitted"]["ece"] < found["raw"]["ece"]
    assert f"{found['unsure']['wrong']} of {found['unsure']['names']} wrong" in said and "threshold 0.45" in said

    other = named(tmp_path, tmp_path / "other", 150, 7)  # photos that nothing was fitted to
    flags = ["--predictions", str(other.parent / "predictions"), "--datasets", str(other), "--check"]
    state = (model / "config.json").read_bytes()
    assert main([str(model), *flags, "--json", str(figures)]) == 0
    checked = json.loads(figures.read_text())
    assert (model / "config.json").read_bytes() == state and checked["calibration"] == found["calibration"]
    assert checked["threshold"] == 0.45 and "cross_fitted" not in checked
    probs, correct = simulated(600, 7)
    slope, intercept = (found["calibration"][key] for key in ("slope", "intercept"))
    expected = 1 / (1 + np.exp(-(slope * np.log(probs / (1 - probs)) + intercept)))
    assert checked["stored"]["ece"] == pytest.approx(calibrate_by_mass(expected, correct).ece, abs=1e-6)
    assert checked["stored"]["ece"] < checked["raw"]["ece"]
    assert "after (stored)" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_use(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = named(tmp_path, tmp_path / "set", 40, 0)
    good = ["--predictions", str(yaml.parent / "predictions"), "--datasets", str(yaml)]
    for arguments, message in (
        ([str(tmp_path / "nothing"), *good], "nothing: not a model folder, because it has no config.json"),
        (
            [str(checkpoint), *good, *good[:2]],
            "--predictions has 2 values, but --datasets has 1; give one --datasets value for each",
        ),
        ([str(checkpoint), *good, "--plot", "plot.pdf"], "--plot plot.pdf: expected a name that ends in .png or .svg"),
        (
            [str(checkpoint), *good, "--check"],
            "--check: " + str(checkpoint / "config.json") + " has no calibration; run",
        ),
        ([str(checkpoint), *good, "--unsure", "2"], "--unsure 2.0 is not between 0 and 1"),
        (
            [str(checkpoint), "--predictions", str(tmp_path), *good[2:]],
            "contains no prediction files of generate_pred.py",
        ),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
