"""The converters and helpers on real files of the sets, where OSM_TEST_DATA names a folder that has some."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from convert_sets import members, summary
from PIL import Image
from source_sets import folder

from osm.datasets.labels import load_labels
from osm.io.images import read_ids, read_panoptic
from osm.prepare import convert
from osm.prepare.originals.originals_cli import main

SAMPLES = Path(os.environ.get("OSM_TEST_DATA", "/nowhere")) / "samples"
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="OSM_TEST_DATA names no folder with real samples")


def run(name: str, out: Path, **paths: Path) -> dict[str, bytes]:
    flags = [word for flag, path in paths.items() for word in (f"--{flag}", str(path))]
    assert convert.main(name, ["--output_dir", str(out), *flags, "--num_workers", "1", "--max_bad_samples", "0"]) == 0
    return members(out)


def test_coco_panoptic(tmp_path: Path) -> None:
    root = SAMPLES / "coco_panoptic"
    paths = {"image_dir": root / "input_images", "ann_dir": root / "panoptic_examples"}
    found = run("coco", tmp_path, **paths, json_file=root / "panoptic_examples.json")
    images = sorted(paths["image_dir"].glob("*.jpg"))
    assert len(found) == 3 * len(images) > 0
    for image in images:
        assert found[image.name] == image.read_bytes()
        assert found[f"{image.stem}.png"] == (paths["ann_dir"] / f"{image.stem}.png").read_bytes()
    assert summary(tmp_path)["warnings"] == {}
    assert len(load_labels(tmp_path / "categories.json").classes) == 133


def test_lvis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The json is real (its 1230 categories are those of LVIS v0.5), the images are grey."""
    json_file = next((SAMPLES / "lvis").glob("*.json"))
    document = json.loads(json_file.read_text())
    for image in document["images"]:
        at = tmp_path / "lvis" / "/".join(image["coco_url"].split("/")[-2:])
        Image.new("L", (image["width"], image["height"])).save(folder(at.parent) / at.name)
    found = run("lvis", tmp_path / "out", image_dir=tmp_path / "lvis", json_file=json_file)
    count = Counter(row["image_id"] for row in document["annotations"])
    assert summary(tmp_path / "out")["left_out"] == {"no_annotations": len(document["images"]) - len(count)}
    records = [json.loads(data) for name, data in found.items() if name.endswith(".json")]
    assert {record["image_id"]: len(record["segments_info"]) for record in records} == count
    if len(document["categories"]) != len(load_labels("lvis").classes):
        assert "category ids mean something else in the project's table 'lvis'" in capsys.readouterr().err


def test_pascal_part(tmp_path: Path) -> None:
    root = SAMPLES / "pascal_part"
    found = run("pascal_part", tmp_path, image_dir=root, ann_dir=root)
    labels, said = load_labels("pascal_part"), summary(tmp_path)
    assert said["written"] + sum(said["left_out"].values()) == len(list(root.glob("*.mat")))
    assert said["warnings"] == {}, "every part's name is in the table"
    for name, data in found.items():
        if name.endswith(".jpg"):
            assert data == (root / name).read_bytes()
    seen = set()
    for key in (name.split(".")[0] for name in found if name.endswith(".json")):
        part, whole = (read_panoptic(found[f"{key}.{kind}.png"]) for kind in ("part", "whole"))
        seen |= {labels[i].target for i in np.unique(part).tolist() if i in labels}
        for index in np.unique(part[part > 0]).tolist():
            if index in labels:  # a part lies on objects, mostly its own
                below = Counter(whole[part == index].tolist()).most_common(1)[0][0]
                assert below in labels
    assert {"dog head", "aeroplane wing"} <= seen


def test_a847(tmp_path: Path) -> None:
    """The 2021 release: each index in a `_seg.png` is the class that the release's own json names."""
    at = folder(tmp_path / "ADE" / "images" / "ADE" / "training" / "urban" / "street")
    for path in (SAMPLES / "ade20k_full").iterdir():
        shutil.copyfile(path, at / path.name)
    assert main("a847", ["--data_dir", str(tmp_path / "ADE"), "--splits", "training", "--num_workers", "1"]) == 0
    images, maps = (tmp_path / "ADE" / f"{kind}_detectron2" / "training" for kind in ("images", "annotations"))
    labels, compared = load_labels("a847"), 0
    for path in maps.iterdir():
        ids = read_ids(path)
        rgb = np.asarray(Image.open(at / f"{path.stem}_seg.png")).astype(int)
        index = rgb[..., 0] // 10 * 256 + rgb[..., 1]
        objects = json.loads((at / f"{path.stem}.json").read_text(encoding="utf-8"))["annotation"]["object"]
        for number, name in {(row["name_ndx"], row["name"]) for row in objects if not row["parts"]["part_level"]}:
            found = np.unique(ids[index == number]).tolist()
            assert len(found) <= 1
            if found and found != [65535]:
                assert labels[found[0]].target == name.split(",")[0].strip().lower()
                compared += 1
    assert compared > 20
    assert len(run("a847", tmp_path / "out", image_dir=images, ann_dir=maps)) == 9


def test_ade20k_150(tmp_path: Path) -> None:
    """Real class PNGs; the instance release is not among the samples."""
    for kind in ("images", "annotations"):
        shutil.copytree(SAMPLES / "ade20k_150" / kind, tmp_path / kind / "validation")
    assert main("ade20k", ["--data_dir", str(tmp_path), "--splits", "validation", "--num_workers", "1"]) == 0
    made = {"ann_dir": tmp_path / "ade20k_panoptic_val", "json_file": tmp_path / "ade20k_panoptic_val.json"}
    run("ade20k", tmp_path / "out", image_dir=tmp_path / "images" / "validation", **made)
    listed = (SAMPLES / "ade20k_150" / "objectInfo150.txt").read_text().splitlines()[1:]
    names = {int(line.split("\t")[0]) - 1: line.split("\t")[4].split(",")[0].strip() for line in listed}
    labels = load_labels("ade20k")
    for row in json.loads(made["json_file"].read_text())["annotations"]:
        for segment in row["segments_info"]:
            assert names[segment["category_id"]] in labels[segment["category_id"]].names
