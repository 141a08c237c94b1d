"""The linear probe on mask statistics, from the command to its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from processes import PATIENCE_S

from osm.prepare.convert import ConvertOptions, convert_coco_panoptic
from osm.synthetic.scenes.scene_names import PLAIN
from osm.synthetic.scenes.write import SceneOptions, write_scenes

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "linear_probe.py"


def test_statistics_of_a_few_scenes(tmp_path: Path) -> None:
    for split, images, seed in (("train", 12, 1), ("test", 6, 2)):
        write_scenes(tmp_path / split, SceneOptions(images, 64, seed, sets=(PLAIN,)), workers=1)
    train, test = tmp_path / "train", tmp_path / "test"
    options = ConvertOptions(tmp_path / "shards", num_workers=1)
    convert_coco_panoptic(train / f"{PLAIN}.json", train / "images", train / "panoptic", options)
    row = {"form": "coco_panoptic", "image_dir": "test/images", "mask_dir": "test/panoptic"}
    table = {"datasets": {PLAIN: {**row, "json_file": f"test/{PLAIN}.json"}}}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(table))

    command = [sys.executable, str(SCRIPT), "--features", "statistics", "--datasets", str(tmp_path / "sets.yaml")]
    command += ["--shards", f"{PLAIN}={tmp_path}/shards/000000000.tar"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["benchmark"], document["features"]) == ("linear_probe", "statistics")
    assert list(document["sets"]) == [PLAIN]
    found = document["sets"][PLAIN]
    segments = [s for a in json.loads((test / f"{PLAIN}.json").read_text())["annotations"] for s in a["segments_info"]]
    assert found["val_masks"] == len(segments)
    in_training = [
        s["category_id"]
        for a in json.loads((train / f"{PLAIN}.json").read_text())["annotations"]
        for s in a["segments_info"]
        if s["area"] > 100
    ]
    assert (found["train_masks"], found["classes"]) == (len(in_training), len(set(in_training)))
    assert 0 <= found["majority"] <= 100 and 0 <= found["ridge"] <= 100
    assert found["ridge"] > 5  # stuff is told apart by its colour; a guess among all the classes is right for 2 %
