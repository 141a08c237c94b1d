"""Objects365, Open Images and PACO (and Visual Genome): converted, read, trained on, predicted on and evaluated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import more_sets
import numpy as np
import pytest
from more_sets import HEIGHT, WIDTH, RightNamer, documents, prepare, samples, told
from PIL import Image
from tiny import tiny_model_yaml

from osm.datasets.category_names import spoken
from osm.datasets.labels import load_labels
from osm.datasets.table import PUBLISHED_MODES, Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation.metrics.evaluate import evaluate_folder
from osm.evaluation.predict.generate import generate_predictions
from osm.forms import read_sample, split_of
from osm.io.csv_rows import csv_records, csv_rows
from osm.io.segmentation import decode_segmentation
from osm.io.views import View
from osm.training.run_config import parse
from osm.training.tracking import read_log
from osm.training.train_cli import main as train

VIEW = View(WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT, flip=False)
TABLE = DatasetTable()
NEW = ("visual_genome", "objects365", "openimages", "paco")


def visual_genome(root: Path) -> dict[str, Path]:
    made = more_sets.visual_genome(root)
    return {"image_dir": made["image_dir"], "json_file": made["regions"]}


MAKERS: dict[str, Callable[[Path], dict[str, Path]]] = {
    "visual_genome": visual_genome,
    "objects365": more_sets.objects365,
    "openimages": more_sets.openimages,
    "paco": more_sets.paco,
}
TARGETS = {
    "visual_genome": {"the clock is green", "shade"},
    "objects365": {"cabinet", "person"},
    "openimages": {"bicycle", "person, human"},
    "paco": {"car", "trash can rim"},
}
FIELDS = {"ann_dir": "mask_dir"}


def val_row(name: str, made: dict[str, Path]) -> Dataset:
    return replace(TABLE[name], **{FIELDS.get(field, field): str(path) for field, path in made.items()})


def test_the_rows_come_after_the_published_ones() -> None:
    assert tuple(TABLE) == (*PUBLISHED_MODES[:-1], *NEW)
    assert not any(TABLE[name].labels or TABLE[name].exact_names for name in NEW)


@pytest.mark.parametrize("layout", ["webdataset", "published"])
@pytest.mark.parametrize("name", NEW)
def test_converted_and_read(name: str, layout: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(name, out, "--format", layout, **MAKERS[name](tmp_path)) == 0
    assert (told(out)["left_out"], told(out)["warnings"]) == ({}, {})
    labels = out / "categories.json"
    row = replace(TABLE[name], labels=str(labels) if labels.exists() else "")
    found = set()
    for sample in samples(out).values():
        scene = read_sample(row.form, sample.members, row.label_set, row.rules)
        picked = scene.pick(VIEW, 5, np.random.default_rng(0))
        assert picked and all(segment.mask.sum() > 100 for segment in picked)
        found |= {scene.target(segment, np.random.default_rng(0)) for segment in picked}
    assert found == TARGETS[name]


def test_all_four_are_trained_on(tmp_path: Path) -> None:
    """The names come from `categories.json` beside the shards, or from the samples; no flag and no YAML tells them."""
    flags = ["--config", str(tiny_model_yaml(tmp_path)), "--run_name", str(tmp_path / "run"), "--device", "cpu"]
    flags += ["--workers", "0", "--dataset_resampled", "--warmup_steps", "0", "--logging_steps", "1"]
    for name in NEW:
        out = tmp_path / "shards" / name
        assert prepare(name, out, **MAKERS[name](tmp_path / name)) == 0
        flags += [f"--{name}_shards", f"{out}/{{000000000..000000000}}.tar", f"--batch_size_{name}", "2"]
        flags += [f"--train_num_samples_{name}", "2"]
    run = parse(flags)
    assert run.model.modes == (*PUBLISHED_MODES, *NEW)
    assert {name: run.table[name].label_set.classes.keys() for name in NEW} == {
        "visual_genome": set(),
        "objects365": {1, 20},
        "openimages": {1, 2, 3},
        "paco": {3, 80},
    }
    assert train(flags) == 0
    (record,) = read_log(tmp_path / "run")
    assert not record["skipped_samples"] and all(f"loss/{name}/own" in record for name in NEW)


def test_training_without_names_is_refused(tmp_path: Path) -> None:
    flags = ["--objects365_shards", str(tmp_path / "0.tar"), "--batch_size_objects365", "1"]
    with pytest.raises(OsmError, match="set 'objects365': its class names are unknown.*categories.json"):
        parse(flags)


@pytest.mark.parametrize("name", NEW)
def test_predicted_and_evaluated(name: str, tmp_path: Path) -> None:
    row = val_row(name, MAKERS[name](tmp_path))
    split = split_of(row)
    right: dict[int, str] = {}
    total = 0
    for index in range(len(split)):
        item = split.load(index)
        for k, annotation in enumerate(item.annotations):
            right[int(item.mask(k).sum())] = row.label_set[annotation["category_id"]].names[-1]
            total += 1
    generate_predictions(RightNamer(right), row, 0, 1, tmp_path / "pred", modes=("any",))
    (result,), _ = evaluate_folder(tmp_path / "pred", 1, DatasetTable((row,)))
    assert total >= 2 and result.agnostic.total == total and result.agnostic.correct >= 1
    if name != "openimages":  # whose names are in no file that generation notes
        (again,), _ = evaluate_folder(tmp_path / "pred", 1, TABLE)
        assert (again.agnostic.correct, again.agnostic.total) == (result.agnostic.correct, total)


@pytest.mark.parametrize("name", NEW)
def test_shards_and_val_split_have_the_same_masks(name: str, tmp_path: Path) -> None:
    made, out = MAKERS[name](tmp_path), tmp_path / "out"
    assert prepare(name, out, **made) == 0
    row = val_row(name, made)
    split = split_of(row)
    of_split = {}
    for index in range(len(split)):
        item = split.load(index)
        of_split[item.image_path.name] = [
            (annotation["category_id"], item.mask(k).tobytes()) for k, annotation in enumerate(item.annotations)
        ]
    of_shards = {}
    for sample in samples(out).values():
        scene = read_sample(row.form, sample.members, row.label_set, row.rules)
        document = json.loads(sample.members["json"])
        ids = [region.get("category_id") for region in document["segments_info"]]
        if name == "visual_genome":  # whose shards have phrases alone
            by_names = {one.names: i for i, one in row.label_set.classes.items()}
            ids = [by_names[tuple(region["phrases"])] for region in document["segments_info"]]
        masks = [target.draw().tobytes() for target in scene.targets()]
        of_shards[Path(document["file_name"]).name] = list(zip(ids, masks, strict=True))
    assert of_shards == of_split and of_split


# Objects365.


@pytest.mark.parametrize("below", ["", "images", "images/v1"])
def test_images_with_and_without_the_leading_folders(below: str, tmp_path: Path) -> None:
    made, out = more_sets.objects365(tmp_path), tmp_path / "out"
    made["image_dir"] = made["image_dir"] / below
    assert prepare("objects365", out, **made) == 0
    expected = (
        {"objects365_v1_00420917", "objects365_v2_00908726"} if below != "images/v1" else {"objects365_v1_00420917"}
    )
    assert set(documents(out)) == expected


def test_images_in_one_flat_folder(tmp_path: Path) -> None:
    made, out = more_sets.objects365(tmp_path), tmp_path / "out"
    flat = more_sets.folder(tmp_path / "flat")
    for path in made["image_dir"].rglob("*.jpg"):
        path.rename(flat / path.name)
    assert prepare("objects365", out, **{**made, "image_dir": flat}) == 0
    assert len(documents(out)) == 2
    written = json.loads((out / "categories.json").read_text())["categories"]
    assert written[1] == {"id": 20, "name": "cabinet", "synonyms": ["shelf", "cabinet/shelf"]}


# PACO.


@pytest.mark.parametrize(
    ("name", "spelling", "expected"),
    [
        (
            "trash_can:rim",
            "object:part",
            ["trash can rim", "rim", "rim of trash can", "trash can:rim", "trash_can:rim"],
        ),
        ("car_(automobile)", "object:part", ["car", "car (automobile)", "car_(automobile)"]),
        (
            "car_(automobile):Antenna",
            "object:part",
            [
                "car antenna",
                "antenna",
                "antenna of car",
                "car:antenna",
                "car (automobile):antenna",
                "car_(automobile):antenna",
            ],
        ),
        (":rim", "object:part", [":rim"]),
        ("bowl:", "object:part", ["bowl:"]),
        ("bowl", "object:part", ["bowl"]),
        ("Monitor/TV", "alternatives", ["monitor", "tv", "monitor/tv"]),
        ("/", "alternatives", ["/"]),
        ("Cat", "plain", ["cat"]),
    ],
)
def test_names_as_they_are_said(name: str, spelling: str, expected: list[str]) -> None:
    assert spoken([name], spelling) == expected
    assert spoken(expected, spelling)[0] == expected[0], "what was written is read again as it is"


def test_paco_names_of_the_json_and_of_the_shards_agree(tmp_path: Path) -> None:
    made, out = more_sets.paco(tmp_path), tmp_path / "out"
    assert prepare("paco", out, **made) == 0
    of_json = val_row("paco", made).label_set
    of_shards = replace(TABLE["paco"], labels=str(out / "categories.json")).label_set
    assert {i: one.names for i, one in of_json.classes.items()} == {
        i: one.names for i, one in of_shards.classes.items()
    }
    assert of_json[80].target == "trash can rim" and of_json[80].supercategory == "part"


# Open Images.


def test_masks_become_rle_of_the_images_size(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare("openimages", out, **more_sets.openimages(tmp_path)) == 0
    found = documents(out)
    assert set(found) == {"0a1b", "f00d"} and found["0a1b"]["file_name"] == "0a1b.jpg"
    areas = {}
    for document in found.values():
        for row in document["segments_info"]:
            assert row["segmentation"]["size"] == [HEIGHT, WIDTH] and "mask_file" not in row
            mask = decode_segmentation(row["segmentation"], (HEIGHT, WIDTH), "test")
            areas[row["id"]] = (row["category_id"], mask.nonzero()[0].min(), int(mask.sum()))
    assert areas == {
        "0a1b_m0199g_b1": (2, 2, 400),
        "0a1b_m01g317_b2": (3, 10, 400),  # 10 x 10 at half the size
        "f00d_m01g317_b3": (3, 0, 600),
    }
    written = load_labels(out / "categories.json")
    assert written[3].names == ("person, human",) and len(written.classes) == 3


def test_names_from_a_categories_json(tmp_path: Path) -> None:
    made, out = more_sets.openimages(tmp_path), tmp_path / "out"
    assert prepare("openimages", out, **made) == 0
    again = {**made, "labels": out / "categories.json"}
    assert prepare("openimages", tmp_path / "again", **again) == 0
    assert documents(tmp_path / "again") == documents(out)
    made["labels"] = more_sets.write_json(tmp_path / "x.json", {"categories": [{"id": 1, "name": "cat"}]})
    assert prepare("openimages", tmp_path / "third", **made) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0a1b_m0199g_b1.png,0a1b", "annotation_malformed"),
        ('0a1b_m0199g_b1.png,0a1b,"/m/0199g,b1,0,0,0,0,0,', "annotation_malformed"),
        ("0a1b_m0199g_b1.png,../../0a1b,/m/0199g,b1,0,0,0,0,0,", "annotation_without_image"),
        ("nowhere.png,0a1b,/m/0199g,b1,0,0,0,0,0,", "annotation_without_mask"),
        ("../../secret.png,0a1b,/m/0199g,b1,0,0,0,0,0,", "annotation_without_mask"),
        ("0a1b_m0199g_b1.png,0a1b,/m/unknown,b1,0,0,0,0,0,", "category_unknown"),
    ],
)
def test_one_bad_line_costs_itself(tmp_path: Path, line: str, reason: str) -> None:
    made, out = more_sets.openimages(tmp_path), tmp_path / "out"
    Image.new("1", (WIDTH, HEIGHT), 1).save(tmp_path / "secret.png")
    lines = made["json_file"].read_text(encoding="utf-8-sig").splitlines()
    made["json_file"].write_text("\n".join([lines[0], line, *lines[1:]]))
    assert prepare("openimages", out, **made) == 0
    assert told(out)["warnings"] == {reason: 1}
    assert sum(len(document["segments_info"]) for document in documents(out).values()) == 3


@pytest.mark.parametrize("kind", ["missing", "cut", "empty", "colours", "text", "fifo"])
def test_one_bad_mask_costs_itself(tmp_path: Path, kind: str) -> None:
    made, out = more_sets.openimages(tmp_path), tmp_path / "out"
    path = made["ann_dir"] / "0" / "0a1b_m0199g_b1.png"
    data = path.read_bytes()
    path.unlink()
    if kind == "cut":
        path.write_bytes(data[:-30])
    elif kind == "empty":
        Image.new("1", (WIDTH, HEIGHT)).save(path)
    elif kind == "colours":
        Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)).save(path)
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "fifo":
        os.mkfifo(path)
    assert prepare("openimages", out, **made) == 0
    assert told(out)["warnings"] == {"annotation_without_mask": 1}
    assert [row["id"] for row in documents(out)["0a1b"]["segments_info"]] == ["0a1b_m01g317_b2"]
    if kind != "fifo":  # it is refused before the run
        item = split_of(val_row("openimages", made), max_bad_annotations=1).load(0)
        assert [row["id"] for row in item.annotations] == ["0a1b_m01g317_b2"]


def test_mistakes_about_the_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = more_sets.openimages(tmp_path)
    paths = {**made, "json_file": made["labels"]}
    assert prepare("openimages", tmp_path / "out", **paths) == 2
    assert "the first line must name each of the columns MaskPath, ImageID, LabelName" in capsys.readouterr().err
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    for field, message in (("json_file", "is empty; expected the columns"), ("labels", "has no line with a label")):
        assert prepare("openimages", tmp_path / "out", **{**made, field: empty}) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(OsmError, match=r"set 'openimages': .*\.csv contains no class names; set `labels`"):
        _ = replace(TABLE["openimages"], json_file=str(made["json_file"])).label_set


def test_lines_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    long = b"x" * (3 << 20)
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"two, too"\r\n\r\n3\n' + long + b'\n4,"5\n6,\xff\n7,"8"9\n10,11')
    assert [(n, row) for n, row in csv_rows(path, "x") if n != 5] == [
        (1, ["a", "b"]),
        (2, ["1", "two, too"]),
        (4, ["3"]),
        (6, None),
        (7, None),
        (8, None),
        (9, ["10", "11"]),
    ]
    assert dict(csv_rows(path, "x"))[5] is None
    records: list[Any] = [row for _, row in csv_records(path, "x", ["b"])]
    assert records == [{"a": "1", "b": "two, too"}, None, None, None, None, None, {"a": "10", "b": "11"}]
    with pytest.raises(OsmError, match="x .*nowhere.csv: No such file"):
        list(csv_rows(tmp_path / "nowhere.csv", "x"))
    with pytest.raises(OsmError, match="is not a regular file, but a folder"):
        list(csv_rows(tmp_path, "x"))
