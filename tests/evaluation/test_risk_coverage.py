"""`benchmarks/risk_coverage.py`: the curve against a slow reference, and the figures of prediction files."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from predictions import FIRST, write_parts

from benchmarks import risk_coverage
from osm.datasets.table import DatasetTable


def test_the_risks_of_equally_probable_names_are_the_mean_over_their_orders() -> None:
    probs, correct = np.array([0.5, 0.9, 0.5, 0.2, 0.5]), np.array([True, True, False, False, True])
    curves = []
    for order in itertools.permutations(range(5)):
        if all(probs[a] >= probs[b] for a, b in itertools.pairwise(order)):
            wrong = [not correct[name] for name in order]
            curves.append([sum(wrong[:n]) / n for n in range(1, 6)])
    assert len(curves) == 6
    np.testing.assert_allclose(risk_coverage.risks(probs, correct), np.mean(curves, 0))


def test_the_figures_of_two_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    labels = DatasetTable()["coco"].labels
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_parts(tmp_path / name / "pets", FIRST)
        row = {"labels": labels, "image_dir": "x", "mask_dir": "x", "json_file": "x"}
        (tmp_path / name / "pets.yaml").write_text(yaml.safe_dump({"datasets": {"coco": row}}))
    sys.argv = ["risk_coverage.py", str(tmp_path / "one"), str(tmp_path / "two")]
    assert risk_coverage.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == [str(tmp_path / "one"), str(tmp_path / "two")]
    for row in found.values():
        # Probabilities 0.9, 0.9, 0.8, 0.8 (correct), 0.4, 0.4 (wrong), 0.1 (correct), 0.1 (wrong)
        assert row["names"] == 8 and row["accuracy"] == pytest.approx(5 / 8)
        curve = [0, 0, 0, 0, 1 / 5, 2 / 6, 2.5 / 7, 3 / 8]
        assert row["area"] == pytest.approx(sum(curve) / 8)
        assert row["risk"] == pytest.approx({"0.25": 0, "0.5": 0, "0.75": 2 / 6, "1": 3 / 8})
    (tmp_path / "empty").mkdir()
    sys.argv = ["risk_coverage.py", str(tmp_path / "empty")]
    assert risk_coverage.main() == 2
    assert "contains no YAML file; expected a folder of scripts/score_folders.py" in caplog.text
