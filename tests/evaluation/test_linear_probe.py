"""The linear probe on mask statistics, from the command to its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from linear_probe import pooled_tokens
from PIL import Image
from processes import PATIENCE_S
from tiny import tiny_config

from osm.models.factory import build
from osm.models.zoom import zoom_tokens
from osm.prepare.convert import ConvertOptions, convert_coco_panoptic
from osm.synthetic.scenes.scene_names import PLAIN
from osm.synthetic.scenes.write import SceneOptions, write_scenes

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "linear_probe.py"


@pytest.mark.parametrize("cutout", [False, True])
def test_tokens_under_a_mask_and_in_its_zoom_windows(cutout: bool, tmp_path: Path) -> None:
    zoom = {"direct_tokens": 2, "direct_zoom": 56, "direct_zoom_cutout": cutout}
    model, processor = build(tiny_config(tmp_path, "maskqformer", **zoom))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 112, 3), dtype=np.uint8))
    masks = np.zeros((2, 90, 112), bool)
    masks[0, 10:40, 20:70] = masks[1, :, 60:] = True
    found = pooled_tokens(model, processor, image, masks)
    width = model.tower.width
    assert found.shape == (2, (3 if cutout else 2) * width)
    pixels, padded = processor.pixel_values(processor.canvas(image)[None]), processor.canvas_masks(masks)
    for row, mask in zip(found, padded, strict=True):
        alone = zoom_tokens(model.tower, pixels, torch.zeros(1, dtype=torch.long), mask[None], 56, 0.5, cutout)
        assert np.allclose(row[width:], alone.tokens_RUC[0].flatten().numpy(), atol=1e-5)
    assert not np.allclose(found[:, :width], found[:, -width:])


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
