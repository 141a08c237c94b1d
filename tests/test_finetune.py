"""`osm finetune`: one command from annotated photos to a compared model, resumed where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import PATIENCE_S

import osm
from benchmarks.finetune import export
from osm.cli import main
from osm.command_stages import RECORD
from osm.errors import OsmError
from osm.finetune import check_start, find_annotations, held_out_images, read_annotations
from osm.io.segmentation import decode_segmentation

ROOT = Path(osm.__file__).resolve().parents[1]
COCO: dict[str, Any] = {
    "images": [{"id": k, "file_name": f"{k}.jpg", "width": 4, "height": 4} for k in range(10)],
    "annotations": [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [0, 0, 2, 2], "segmentation": [[0, 0, 2, 0, 2, 2]]}
        for k in range(10)
    ],
    "categories": [{"id": 1, "name": "cat"}],
}


def write_coco(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**COCO, **changes}))
    return path


def test_photos_and_annotations_are_found(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "a" / "annotations" / "instances.json")
    (tmp_path / "a" / "images").mkdir()
    wanted = {"json_file": str(path), "image_dir": str(tmp_path / "a" / "images"), "ann_dir": ""}
    assert find_annotations(tmp_path / "a") == find_annotations(path) == wanted
    beside = write_coco(tmp_path / "b" / "labels.json")
    assert find_annotations(beside)["image_dir"] == str(tmp_path / "b")
    panoptic = [{"image_id": 1, "file_name": "1.png", "segments_info": []}]
    maps = write_coco(tmp_path / "c" / "panoptic.json", annotations=panoptic)
    with pytest.raises(OsmError, match="in panoptic format, but .*panoptic is not a folder; give .* --ann_dir"):
        find_annotations(maps)
    (tmp_path / "c" / "panoptic").mkdir()
    assert find_annotations(maps)["ann_dir"] == str(tmp_path / "c" / "panoptic")
    write_coco(tmp_path / "c" / "other.json")
    with pytest.raises(OsmError, match=r"several json files \(other.json, panoptic.json\)"):
        find_annotations(tmp_path / "c")
    with pytest.raises(OsmError, match="contains no json file"):
        find_annotations(tmp_path)
    broken = write_coco(tmp_path / "d" / "x.json", categories=None)
    with pytest.raises(OsmError, match="x.json: categories is None; expected COCO's list of categories"):
        read_annotations(broken)


def test_the_same_photos_are_held_out_whatever_their_order() -> None:
    held_out = held_out_images(COCO, 0.3)
    assert len(held_out) == 3
    assert held_out_images({**COCO, "images": COCO["images"][::-1]}, 0.3) == held_out
    for share in (0.1, 0.9):
        with pytest.raises(OsmError, match="expected at least 2 photos on either side"):
            held_out_images(COCO, share)


def test_a_model_that_does_not_exist_is_refused_before_any_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "config.json").write_text("{}")
    data = write_coco(tmp_path / "labels.json")
    said = {
        "osm_smal": "--start_from 'osm_smal': no such folder or file, and not a hub id (owner/name); did you mean "
        "'osm_small'?",
        str(tmp_path / "run"): "no config.json in this folder; a run's model is in its folder `final`",
        str(tmp_path / "nothing"): "no such folder or file",
    }
    for start, message in said.items():
        assert main(["finetune", str(data), str(tmp_path / "out"), "--start_from", start]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for start in ("osm_small", "owner/name", "https://example.org/model", str(tmp_path / "run" / "final")):
        check_start(start)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--name", "coco"],
            "--name 'coco' must be lower-case letters, digits and underscores, and not one of any, coco",
        ),
        (["--name", "My set"], "--name 'My set' must be"),
        (["--epochs", "0"], "--epochs 0 must be 1 or more"),
        (["--learning_rate", "0"], "--learning_rate 0 must be above 0"),
        (["--held_out", "1"], "--held_out 1 must be between 0 and 1"),
        (["--image_dir", "/nowhere"], "--image_dir /nowhere is not a folder"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_coco(tmp_path / "labels.json")
    assert main(["finetune", str(path), str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_benchmark_exports_the_masks_of_panoptic_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "panoptic").mkdir()
        Image.new("RGB", (8, 6)).save(tmp_path / folder / "images" / f"{folder}.jpg")
        ids_HW = np.zeros((6, 8), np.uint32)
        ids_HW[1:4, 2:7] = 70_000 + number
        colors_HW3 = np.stack([ids_HW >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
        Image.fromarray(colors_HW3).save(tmp_path / folder / "panoptic" / "p.png")
        document = {
            "images": [{"id": 5, "file_name": f"{folder}.jpg", "height": 6, "width": 8}],
            "annotations": [
                {"image_id": 5, "file_name": "p.png", "segments_info": [{"id": 70_000 + number, "category_id": 1}]}
            ],
            "categories": COCO["categories"],
        }
        (tmp_path / folder / "panoptic.json").write_text(json.dumps(document))
    path, counts = export([tmp_path / "a", tmp_path / "b"], 2, tmp_path / "out")
    assert counts == [1, 1] and find_annotations(path)["image_dir"] == str(tmp_path / "out" / "images")
    rows = read_annotations(path)["annotations"]
    assert [(row["id"], row["image_id"], row["area"], row["bbox"]) for row in rows] == [
        (1, 1, 15, [2.0, 1.0, 5.0, 3.0]),
        (2, 2, 15, [2.0, 1.0, 5.0, 3.0]),
    ]
    assert decode_segmentation(rows[0]["segmentation"], (6, 8), "").sum() == 15
    assert export([tmp_path / "a", tmp_path / "b"], 1, tmp_path / "less")[1] == [1, 0]


@pytest.mark.slow
def test_one_command_trains_and_compares(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = osm.create_model_and_transforms("osm_nano")
    model.save_pretrained(tmp_path / "start")
    assert main(["scenes", str(tmp_path / "toys"), "--split", "x", "--sets", "scenes_plain", "--images", "12"]) == 0
    photos = tmp_path / "toys" / "x"
    command = ["finetune", photos / "scenes_plain.json", tmp_path / "out", "--ann_dir", photos / "panoptic"]
    command += ["--name", "toys", "--start_from", tmp_path / "start", "--epochs", "2", "--device", "cpu"]

    def run() -> str:
        words = [sys.executable, "-m", "osm", *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run()
    assert said.count("$ ") == 7 and " train --dataset_resampled --start_from " in said  # what it runs is printed
    assert "accuracy on " in said and "before, mode any:" in said and "after, mode toys:" in said
    assert f"--checkpoint {tmp_path / 'out' / 'run' / 'final'} --mode toys" in said
    train, val = (json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in ("train", "val"))
    assert len(train["images"]) == 10 and len(val["images"]) == 2
    assert not {one["id"] for one in train["images"]} & {one["id"] for one in val["images"]}
    assert {row["image_id"] for row in val["annotations"]} == {one["id"] for one in val["images"]}
    assert (tmp_path / "out" / "report" / "report.html").is_file()

    record = json.loads((tmp_path / "out" / RECORD).read_text())
    del record["seconds"]["comparison"]
    (tmp_path / "out" / RECORD).write_text(json.dumps(record))
    again = run()
    assert again.count("done before") == 4 and again.count("$ ") == 3
    assert again.split("accuracy on")[1].split("minutes")[0] == said.split("accuracy on")[1].split("minutes")[0]
