"""From a set's own files to a training step: what the converters write is trained on, in both layouts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from source_sets import MAKERS
from tiny import tiny_model_yaml

from osm.datasets.table import PUBLISHED_MODES
from osm.prepare import convert
from osm.prepare.originals.originals_cli import main as prepare_original
from osm.training.tracking import read_log
from osm.training.train_cli import main

NINE = PUBLISHED_MODES[:-1]
SAMPLES = Path(os.environ.get("OSM_TEST_DATA", "/nowhere")) / "samples"


def train_a_step(folder: Path, shards: dict[str, Path], *more: str) -> dict[str, Any]:
    """One step on all sets at once; the log's record."""
    flags = ["--config", str(tiny_model_yaml(folder)), "--run_name", str(folder / "run"), "--device", "cpu"]
    flags += ["--workers", "0", "--dataset_resampled", "--warmup_steps", "0", "--logging_steps", "1"]
    flags += ["--mask2box_prob", "0.5"]
    for name, at in shards.items():
        flags += [f"--{name}_shards", f"{at}/000000000.tar", f"--batch_size_{name}", "2"]
        flags += [f"--train_num_samples_{name}", "2"]
    assert main([*flags, *more]) == 0
    (record,) = read_log(folder / "run")
    assert record["step"] == 1 and not record["skipped_steps"]
    for name in shards:
        assert {f"loss/{name}/own", f"loss/{name}/any"} <= set(record)
    return record


@pytest.mark.parametrize("layout", ["webdataset", "published"])
def test_every_set_is_trained_on(layout: str, tmp_path: Path) -> None:
    shards = {name: tmp_path / "shards" / name for name in NINE}
    for name, at in shards.items():
        assert MAKERS[name](tmp_path / "data" / name, 4).convert(at, "--format", layout) == 0
    assert not train_a_step(tmp_path, shards)["skipped_samples"]


def prepare(name: str, out: Path, layout: str, **paths: Path) -> Path:
    flags = [word for flag, path in paths.items() for word in (f"--{flag}", str(path))]
    assert convert.main(name, ["--output_dir", str(out), *flags, "--num_workers", "1", "--format", layout]) == 0
    return out


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="OSM_TEST_DATA names no folder with real samples")
@pytest.mark.parametrize("layout", ["webdataset", "published"])
def test_real_samples_are_trained_on(layout: str, tmp_path: Path) -> None:
    """COCO panoptic, Pascal-Part, ADE20K (150 and full); of LVIS the json, over grey images."""
    out = tmp_path / "shards"
    coco = SAMPLES / "coco_panoptic"
    folders = {"image_dir": coco / "input_images", "ann_dir": coco / "panoptic_examples"}
    shards = {"coco": prepare("coco", out / "coco", layout, **folders, json_file=coco / "panoptic_examples.json")}
    parts = SAMPLES / "pascal_part"
    shards["pascal_part"] = prepare("pascal_part", out / "pascal_part", layout, image_dir=parts, ann_dir=parts)

    full = tmp_path / "full"
    shutil.copytree(SAMPLES / "ade20k_full", full / "images" / "ADE" / "training" / "all")
    assert prepare_original("a847", ["--data_dir", str(full), "--splits", "training", "--num_workers", "1"]) == 0
    images, maps = (full / f"{kind}_detectron2" / "training" for kind in ("images", "annotations"))
    shards["a847"] = prepare("a847", out / "a847", layout, image_dir=images, ann_dir=maps)

    ade = tmp_path / "ade"
    for kind in ("images", "annotations"):
        shutil.copytree(SAMPLES / "ade20k_150" / kind, ade / kind / "validation")
    assert prepare_original("ade20k", ["--data_dir", str(ade), "--splits", "validation", "--num_workers", "1"]) == 0
    made = {"ann_dir": ade / "ade20k_panoptic_val", "json_file": ade / "ade20k_panoptic_val.json"}
    shards["ade20k"] = prepare("ade20k", out / "ade20k", layout, image_dir=ade / "images" / "validation", **made)

    json_file = next((SAMPLES / "lvis").glob("*.json"))
    for image in json.loads(json_file.read_text())["images"]:
        at = tmp_path / "lvis" / "/".join(image["coco_url"].split("/")[-2:])
        at.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (image["width"], image["height"])).save(at)
    shards["lvis"] = prepare("lvis", out / "lvis", layout, image_dir=tmp_path / "lvis", json_file=json_file)
    table = tmp_path / "sets.yaml"  # its ids are those of another release than the table's
    table.write_text(yaml.safe_dump({"datasets": {"lvis": {"labels": str(shards["lvis"] / "categories.json")}}}))

    assert not train_a_step(tmp_path, shards, "--datasets", str(table))["skipped_samples"]
