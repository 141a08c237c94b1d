"""`scripts/shipped_record.py`: what it keeps, what it replaces, and its paired differences, by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from osm.errors import OsmError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "shipped_record.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which writes into folders of the test's own."""
    spec = importlib.util.spec_from_file_location("shipped_record", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for folder in ("docs/images", "figures", "weights"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    return module


def predictions(folder: Path, name: str, names: list[str]) -> None:
    """One image with a mask for each name; every mask shows a person."""
    segments = [
        {
            **{"id": k + 1, "category_id": 1},
            "open_end_pred": {mode: {"class": said, "prob": 0.5} for mode in ("coco", "any")},
        }
        for k, said in enumerate(names)
    ]
    (folder / name).mkdir(parents=True)
    entries = [{"image_id": 7, "file_name": "a.png", "segments_info": segments}]
    for part, content in enumerate((entries, [])):
        (folder / name / f"coco_pred_{part}_of_2.json").write_text(json.dumps(content))


def test_what_is_kept_and_what_is_replaced(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(value: float) -> dict[str, Any]:
        return {"checkpoint": "x", "folders": {"streets": {"own": {"value": value}}, "all": {}}}

    last = {
        "machine": "two cores",
        "after": scores(0.25),
        "before": scores(0.1),
        "difference": {},
        "ridge_probe": {"streets": {"ridge": 40.0}},
    }
    (tmp_path / "figures" / "val.json").write_text(json.dumps(last))
    out, before = tmp_path / "out", tmp_path / "before"
    for folder in ("run", "model"):
        (out / folder).mkdir(parents=True)
    (out / "val.txt").write_text(f"| a table |\n{json.dumps(scores(0.75))}\n")
    for name in ("calibration.json", "calibration_val.json", "run/log.jsonl", "reliability.png"):
        (out / name).write_text(name)
    for name in ("config.json", "model.safetensors"):
        (out / "model" / name).write_text(name)
    (out / "probe_streets.json").touch()  # was not run again
    predictions(before, "streets", ["person", "car", "car", "car"])
    predictions(out / "val", "streets", ["person", "person", "person", "car"])
    document = {"categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}], "images": [], "annotations": []}
    (tmp_path / "panoptic.json").write_text(json.dumps(document))
    row = {"image_dir": str(tmp_path), "mask_dir": str(tmp_path), "json_file": str(tmp_path / "panoptic.json")}
    (out / "val" / "streets.yaml").write_text(yaml.safe_dump({"datasets": {"coco": row}}))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parents[1]))
    script.record(out, before)

    found = json.loads((tmp_path / "figures" / "val.json").read_text())
    assert found["before"] == last["after"] and found["machine"] == "two cores"
    assert found["after"] == {**scores(0.75), "checkpoint": "osm_small"}
    assert found["difference"]["streets"]["own"]["value"] == found["difference"]["streets"]["any"]["value"] == 0.5
    assert found["ridge_probe"] == last["ridge_probe"]
    assert (tmp_path / "figures" / "log.jsonl").read_text() == "run/log.jsonl"
    assert (tmp_path / "figures" / "calibration.json").read_text() == "calibration.json"
    assert (tmp_path / "docs" / "images" / "reliability.png").read_text() == "reliability.png"
    assert (tmp_path / "weights" / "model.safetensors").read_text() == "model.safetensors"
    (out / "probe_streets.json").write_text('{"sets": {"coco": {"ridge": 44.0}}}')  # of linear_probe.py
    script.record(out, before)  # again: the model does not become its own predecessor
    again = json.loads((tmp_path / "figures" / "val.json").read_text())
    assert again == {**found, "ridge_probe": {"streets": {"ridge": 44.0}}}


def test_a_folder_without_scores_is_named(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("| a table |\n")
    with pytest.raises(OsmError, match=r"val.txt: expected the output of scripts/score_folders.py"):
        script.scores_of(tmp_path)
