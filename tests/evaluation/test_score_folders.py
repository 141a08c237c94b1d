"""`scripts/score_folders.py`: its arguments, its figures by hand, and a real run on a tiny folder."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from panoptic_pets import write_panoptic
from processes import PATIENCE_S

from osm.errors import OsmError
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "score_folders.py"
_spec = importlib.util.spec_from_file_location("score_folders", SCRIPT)
assert _spec is not None and _spec.loader is not None
score_folders = importlib.util.module_from_spec(_spec)
sys.modules["score_folders"] = score_folders  # dataclasses look their module up
_spec.loader.exec_module(score_folders)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder in COCO panoptic format."""
    row = write_panoptic(tmp_path / "set", images=3)
    shutil.move(str(row.mask_dir), tmp_path / "set" / "panoptic")
    return tmp_path / "set"


def test_arguments(place: Path, tmp_path: Path) -> None:
    folder = score_folders.Folder.of(f"coco:small={place}")
    assert (folder.title, folder.mode, folder.place) == ("small", "coco", place)
    assert score_folders.Folder.of(f"camvid={place}").title == "camvid"
    with pytest.raises(OsmError, match="expected MODE=FOLDER or MODE:TITLE=FOLDER"):
        score_folders.Folder.of(str(place))
    (tmp_path / "empty").mkdir()
    with pytest.raises(OsmError, match="empty has no images; expected images/, panoptic/ and panoptic.json"):
        score_folders.Folder.of(f"coco={tmp_path / 'empty'}")


def test_figures_pool_masks_and_pair_the_modes() -> None:
    one = ImageSums(np.array([0, 0, 1]), 2, {"own": np.array([1.0, 0, 1]), "any": np.array([1.0, 0, 0])})
    other = ImageSums(np.array([0]), 1, {"own": np.array([0.0]), "any": np.array([0.0])})
    found = score_folders.figures(one, Bootstrap(200))
    assert found["own"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["gap"]["value"] == pytest.approx(-1 / 3, abs=1e-6)
    low, high = found["gap"]["interval"]
    assert (low, high) == (-1, 0)  # the second image alone, the first image alone
    both = score_folders.figures(score_folders.pooled([one, other]), Bootstrap(200))
    assert (both["own"]["value"], both["any"]["value"], both["own"]["masks"]) == (0.5, 0.25, 4)
    same = ImageSums(np.array([0, 1]), 2, {"own": np.array([1.0, 0]), "any": np.array([1.0, 0])})
    assert score_folders.figures(same, Bootstrap(50))["gap"] == {"value": 0, "interval": (0, 0)}


def test_a_single_photo_has_no_intervals() -> None:
    one = ImageSums(np.array([0, 0]), 1, {"own": np.array([1.0, 0]), "any": np.array([0.0, 0])})
    assert (
        score_folders.line("photo", score_folders.figures(one, Bootstrap(50)))
        == "| photo | 1 | 2 | 50.0 | 0.0 | -50.0 |"
    )


def test_a_folder_is_named_and_scored(place: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(tmp_path / "out"), f"coco:one={place}"]
    done = subprocess.run([*command, f"coco:two={place}"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])["folders"]
    assert list(found) == ["one", "two", "all"] and found["one"] == found["two"]
    assert found["all"]["own"]["masks"] == 2 * found["one"]["own"]["masks"] > 0
    assert [line.split("|")[1].strip() for line in lines[-4:-1]] == ["one", "two", "all"]
    assert (tmp_path / "out" / "one" / "coco_pred_1_of_2.json").is_file()
    twice = subprocess.run([*command, f"coco:one={place}"], capture_output=True, text=True, timeout=PATIENCE_S)
    assert twice.returncode == 2 and "two folders have the title 'one'" in twice.stderr
