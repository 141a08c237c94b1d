"""A form of another package: a set of it is converted, trained on and evaluated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from example_packages import ROOT, install_example
from fake_namer import FakeNamer
from PIL import Image
from processes import PATIENCE_S
from tiny_run import Workshop

from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.predict.generate_cli import generate_main
from osm.training.tracking import read_log


def write_set(root: Path) -> None:
    """Four pictures with two circles each, and the table that names the set."""
    (root / "images").mkdir()
    images, annotations = [], []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        for k, x in enumerate((18, 46)):
            annotations.append({"id": 2 * number + k, "image_id": number, "category_id": k + 1, "circle": [x, 24, 14]})
    categories = [{"id": 1, "name": "plate"}, {"id": 2, "name": "coin"}]
    (root / "circles.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    row = {"form": "circles", "json_file": "circles.json", "image_dir": "images"}
    (root / "sets.yaml").write_text(yaml.safe_dump({"datasets": {"round": row}}))


def test_a_set_is_converted_trained_on_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = install_example("form", tmp_path)
    write_set(tmp_path)
    (tmp_path / "workshop").mkdir()
    workshop = Workshop(tmp_path / "workshop")
    environment = {**os.environ, "PYTHONPATH": f"{installed}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def osm(*arguments: object) -> None:
        command = [sys.executable, "-m", "osm", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr

    files = ["--image_dir", tmp_path / "images", "--json_file", tmp_path / "circles.json"]
    osm("prepare", "circles", *files, "--output_dir", tmp_path / "shards", "--num_workers", 2)
    summary = json.loads((tmp_path / "shards/summary.json").read_text())
    assert summary["written"] == 4 and not summary["warnings"]
    sets = ["--datasets", tmp_path / "sets.yaml", "--round_shards", *(tmp_path / "shards").glob("*.tar")]
    sets += ["--batch_size_round", 2, "--train_num_samples_round", 2, "--dataset_resampled", "--workers", 1]
    model = ["--config", workshop.configs["maskqformer", 0.1], "--device", "cpu"]
    osm("train", *model, *sets, "--run_name", tmp_path / "run", "--logging_steps", 1)
    assert [record["loss"] > 0 for record in read_log(tmp_path / "run")] == [True]

    monkeypatch.syspath_prepend(installed)
    table = DatasetTable().with_yaml(tmp_path / "sets.yaml")
    assert table["round"].label_set[2].target == "coin"
    namer = FakeNamer()
    namer.modes = ("round", "any")
    command = ["0", "1", "my.pt", str(tmp_path / "pred"), "--sets", "round", "--datasets", str(tmp_path / "sets.yaml")]
    assert generate_main(command, lambda *_, **__: namer) == 0
    area = int(namer.calls[0][1][0].sum())
    assert abs(area - np.pi * 14**2) < 20
    capsys.readouterr()
    assert evaluate_main([str(tmp_path / "pred"), "1", "--datasets", str(tmp_path / "sets.yaml")]) == 0
    assert "round evaluation:\nAgnostic: Acc: 0/8" in capsys.readouterr().out


def test_a_form_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples/form")
    write_set(tmp_path)
    path = tmp_path / "sets.yaml"
    path.write_text(path.read_text().replace("form: circles", "form: osm_example_form:Circles"))
    assert DatasetTable().with_yaml(path)["round"].label_set[1].target == "plate"
    path.write_text(path.read_text().replace("osm_example_form:Circles", "osm.errors:OsmError"))
    with pytest.raises(OsmError, match="set 'round': form 'osm.errors:OsmError': expected a subclass of osm.forms"):
        DatasetTable().with_yaml(path)
