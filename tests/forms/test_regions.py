"""The form `regions`: each of its sources, its samples, its val split, and what is wrong with a region."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import more_sets
import numpy as np
import pytest
from more_sets import HEIGHT, SQUARE, WIDTH, RightNamer, documents, prepare, samples, told

from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError, SampleError
from osm.evaluation.metrics.evaluate import evaluate_folder
from osm.evaluation.predict.generate import generate_predictions
from osm.forms import Form, read_sample, split_of
from osm.forms.region_phrases import MAX_PHRASE
from osm.io.views import View

VIEW = View(WIDTH, HEIGHT, 0, 0, WIDTH, HEIGHT, flip=False)
BOXED = Dataset("boxed", "regions", "Boxed")


def scenes(out: Path) -> dict[str, Form]:
    return {key: read_sample("regions", one.members, BOXED.label_set) for key, one in samples(out).items()}


def phrased_row(root: Path) -> Dataset:
    made = more_sets.phrased(root)
    return Dataset("pseudo", "regions", "Pseudo", image_dir=str(made["image_dir"]), json_file=str(made["json_file"]))


def change(row: Dataset, **fields: Any) -> None:
    """Changes the first annotation of a row's json; a field that is `...` goes."""
    path = Path(str(row.json_file))
    document = json.loads(path.read_text())
    document["annotations"][0] |= fields
    document["annotations"][0] = {k: v for k, v in document["annotations"][0].items() if v != "gone"}
    path.write_text(json.dumps(document))


# Sources.


@pytest.mark.parametrize("layout", ["webdataset", "published"])
def test_region_descriptions(layout: str, tmp_path: Path) -> None:
    made, out = more_sets.visual_genome(tmp_path), tmp_path / "out"
    paths = {"image_dir": made["image_dir"], "json_file": made["regions"]}
    assert prepare("visual_genome", out, "--format", layout, **paths) == 0
    assert (told(out)["written"], told(out)["left_out"], told(out)["warnings"]) == (2, {}, {})
    assert not (out / "categories.json").exists()
    found = documents(out)
    assert set(found) == {"1", "2"}
    if layout == "webdataset":
        first = {key: found["1"][key] for key in ("file_name", "image_id", "width", "height")}
        assert first == {"file_name": "VG_100K/1.jpg", "image_id": 1, "width": WIDTH, "height": HEIGHT}
        assert found["2"]["file_name"] == "VG_100K_2/2.jpg"
    assert found["1"]["segments_info"] == [
        {"id": 10, "iscrowd": 0, "phrases": ["the clock is green"], "bbox": [0, 0, 20, 20]},
        {"id": 11, "iscrowd": 0, "phrases": ["shade"], "bbox": [5, 5, 30, 20]},
    ]
    for scene in scenes(out).values():
        picked = scene.pick(VIEW, 5, np.random.default_rng(0))
        assert sorted(segment.label.target for segment in picked) == ["shade", "the clock is green"]
        assert {int(segment.mask.sum()) for segment in picked} == {400, 600} and all(s.boxed for s in picked)


def test_objects(tmp_path: Path) -> None:
    made, out = more_sets.visual_genome(tmp_path), tmp_path / "out"
    assert prepare("regions", out, image_dir=made["image_dir"], json_file=made["objects"]) == 0
    (region,) = documents(out)["1"]["segments_info"]
    assert region == {"id": 7, "iscrowd": 0, "phrases": ["tree", "trees"], "bbox": [1, 2, 20, 10]}


def test_images_directly_in_the_folder(tmp_path: Path) -> None:
    made, out = more_sets.visual_genome(tmp_path), tmp_path / "out"
    assert prepare("regions", out, image_dir=made["image_dir"] / "VG_100K", json_file=made["objects"]) == 0
    assert documents(out)["1"]["file_name"] == "1.jpg"


def test_pseudo_labels(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare("regions", out, **more_sets.phrased(tmp_path)) == 0
    first, second = (documents(out)[key]["segments_info"] for key in ("1", "2"))
    assert first == [
        {"id": 1, "iscrowd": 0, "phrases": ["a red mug"], "segmentation": [SQUARE]},
        {"id": 2, "iscrowd": 0, "phrases": ["old chair", "chair"], "bbox": [10, 5, 25, 20]},
    ]
    assert [region["iscrowd"] for region in second] == [0, 1]
    picked = scenes(out)["1"].pick(VIEW, 5, np.random.default_rng(0))
    by_name = {segment.label.names: segment for segment in picked}
    assert set(by_name) == {("a red mug",), ("old chair", "chair")}
    mug, chair = by_name["a red mug",], by_name["old chair", "chair"]
    assert (mug.boxed, chair.boxed) == (False, True) and chair.mask.sum() == 500
    assert abs(int(mug.mask.sum()) - 400) <= 41  # a polygon's outline
    assert len(scenes(out)["2"].targets()) == 1, "a crowd is not asked about"


def test_refs(tmp_path: Path) -> None:
    made, out = more_sets.refcoco(tmp_path), tmp_path / "out"
    assert prepare("regions", out, "--split", "train", **made) == 0
    assert list(documents(out)) == ["COCO_train2014_000000000001"] and told(out)["left_out"] == {}
    (document,) = documents(out).values()
    assert [region["phrases"] for region in document["segments_info"]] == [["the left man", "guy in blue"], ["him"]]
    assert all(region["segmentation"] == [SQUARE] for region in document["segments_info"])
    # Another split in the same folder is other shards.
    assert prepare("regions", out, "--split", "val", **made) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--refs_file", "{refs}"], "--split None: expected one of train, val"),
        (["--refs_file", "{refs}", "--split", "testA"], "--split 'testA': expected one of train, val"),
        (["--split", "val"], "--split val: requires --refs_file, which was not given"),
        (["--refs_file", "refs(unc).p", "--split", "val"], "is a Python pickle, which can run arbitrary code"),
        (["--refs_file", "nowhere.json", "--split", "val"], "--refs_file nowhere.json: No such file"),
        (["--refs_file", "{json}", "--split", "val"], "expected a list of {ref_id, ann_id"),
    ],
)
def test_mistakes_about_refs(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    made = more_sets.refcoco(tmp_path)
    more = [word.format(refs=made["refs_file"], json=made["json_file"]) for word in more]
    paths = {key: made[key] for key in ("image_dir", "json_file")}
    assert prepare("regions", tmp_path / "out", *more, **paths) == 2
    assert message in capsys.readouterr().err


def test_a_ref_without_its_mask_costs_that_ref(tmp_path: Path) -> None:
    made, out = more_sets.refcoco(tmp_path), tmp_path / "out"
    refs = json.loads(made["refs_file"].read_text())
    made["refs_file"].write_text(json.dumps([{**refs[0], "ann_id": 99}, *refs[1:], 5]))
    assert prepare("regions", out, "--split", "train", "--max_bad_annotations", "0.9", **made) == 0
    (document,) = documents(out).values()
    assert [region["phrases"] for region in document["segments_info"]] == [["him"]]
    assert told(out)["warnings"] == {"annotation_malformed": 1, "annotation_without_mask": 1}


@pytest.mark.parametrize("document", [{}, [], [1], "x", {"images": []}, [{"id": 1}], {"images": {}, "annotations": []}])
def test_other_shapes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], document: Any) -> None:
    json_file = more_sets.write_json(tmp_path / "x.json", document)
    assert prepare("regions", tmp_path / "out", image_dir=tmp_path, json_file=json_file) == 2
    assert "expected a list of images with their regions" in capsys.readouterr().err


def test_categories_are_no_phrases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = more_sets.objects365(tmp_path)
    assert prepare("regions", tmp_path / "out", **made) == 2
    assert "none of the 4 annotations has a phrase (phrase, phrases," in capsys.readouterr().err


# One bad region costs itself.


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"phrase": "gone"}, "phrase_missing"),
        ({"phrase": "  "}, "phrase_missing"),
        ({"phrase": 7}, "phrase_missing"),
        ({"phrase": {"text": "mug"}}, "phrase_missing"),
        ({"phrase": "m" * (MAX_PHRASE + 1)}, "phrase_missing"),
        ({"segmentation": [[1, 1, 2, 2]]}, "polygon_too_short"),
        ({"segmentation": "gone", "bbox": "gone"}, "annotation_without_mask"),
        ({"segmentation": None, "bbox": [1, 1, 0, 5]}, "box_empty"),
        ({"segmentation": None, "bbox": [None, 1, 2, 5]}, "box_malformed"),
        ({"segmentation": None, "bbox": [900, 1, 2, 5]}, "box_outside"),
        ({"image_id": 99}, "annotation_without_image"),
    ],
)
def test_one_bad_region_costs_itself(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    row, out = phrased_row(tmp_path), tmp_path / "out"
    change(row, **fields)
    paths = {"image_dir": Path(str(row.image_dir)), "json_file": Path(str(row.json_file))}
    assert prepare("regions", out, **paths) == 0
    assert told(out)["warnings"] == {reason: 1}
    assert [region["id"] for region in documents(out)["1"]["segments_info"]] == [2]
    item = split_of(row).load(0)
    assert [annotation["id"] for annotation in item.annotations] == [2] and item.mask(0).sum() == 500


def test_many_bad_regions_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = more_sets.visual_genome(tmp_path)
    items = json.loads(made["regions"].read_text())
    for item in items:
        item["regions"][0]["phrase"] = None
    made["regions"].write_text(json.dumps(items))
    paths = {"image_dir": made["image_dir"], "json_file": made["regions"]}
    assert prepare("regions", tmp_path / "out", **paths) == 1
    said = capsys.readouterr().err
    assert "2 of 4 annotations are unusable" in said and "has no phrase of 1 to" in said


def test_hostile_images_of_visual_genome(tmp_path: Path) -> None:
    made, out = more_sets.visual_genome(tmp_path), tmp_path / "out"
    items = json.loads(made["regions"].read_text())
    bad = [{"id": name, "regions": items[0]["regions"][:1]} for name in ("../1", True, None, {}, 1.5)]
    made["regions"].write_text(json.dumps([*items, *bad, 3, {"id": 1, "regions": "x"}, {"id": 1, "regions": [None]}]))
    paths = {"image_dir": made["image_dir"], "json_file": made["regions"]}
    assert prepare("regions", out, "--max_bad_annotations", "0.9", **paths) == 0
    assert set(documents(out)) == {"1", "2"}
    assert told(out)["warnings"] == {"annotation_malformed": 2, "annotation_without_image": 5}


@pytest.mark.parametrize(
    "segments",
    [
        None,
        [3],
        [{"bbox": [0, 0, 20, 20]}],
        [{"phrases": ["x"]}],
        [{"phrases": "", "bbox": [0, 0, 20, 20]}],
        [{"phrases": [None], "bbox": [0, 0, 20, 20]}],
    ],
)
def test_bad_samples(tmp_path: Path, segments: Any) -> None:
    out = tmp_path / "out"
    assert prepare("regions", out, **more_sets.phrased(tmp_path)) == 0
    members = samples(out)["1"].members
    members["json"] = json.dumps({"segments_info": segments}).encode()
    with pytest.raises(SampleError) as caught:
        read_sample("regions", members, BOXED.label_set)
    assert caught.value.reason == "bad_json"


def test_a_box_that_is_none_costs_itself_in_training(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare("regions", out, **more_sets.phrased(tmp_path)) == 0
    members = samples(out)["1"].members
    regions = [{"phrases": ["X"], "bbox": ["a", 0, 1, 1]}, {"phrases": [" Y ", "z"], "bbox": [0, 0, 20, 20]}]
    members["json"] = json.dumps({"segments_info": regions}).encode()
    (segment,) = read_sample("regions", members, BOXED.label_set).pick(VIEW, 5, np.random.default_rng(0))
    assert segment.label.names == ("y", "z")


# Classes, val split, evaluation.


def test_each_list_of_phrases_is_a_class(tmp_path: Path) -> None:
    labels = phrased_row(tmp_path).label_set
    assert {i: one.names for i, one in labels.classes.items()} == {1: ("a red mug",), 2: ("old chair", "chair")}
    assert not Dataset("x", "regions", "X").label_set.classes, "in training there are none"


def test_predicted_and_evaluated(tmp_path: Path) -> None:
    row = phrased_row(tmp_path)
    split = split_of(row)
    assert [split.load(0).mask(k).sum() for k in (1,)] == [500]
    mug = int(split.load(0).mask(0).sum())
    namer = RightNamer({mug: "a red mug", 500: "chairs", 225: "a cup"})
    path = generate_predictions(namer, row, 0, 1, tmp_path / "pred", modes=("any",), batch=2)
    assert namer.boxed == [False, True], "the mask of the first image, then the boxes of both"
    (image, named), (_, others) = json.loads(path.read_text())["pred"]
    assert image["file_name"] == "1.png" and [a["category_id"] for a in named] == [1, 2]
    assert [a["phrases"] for a in named] == [["a red mug"], ["old chair", "chair"]]
    assert others[1]["iscrowd"] == 1 and "open_end_pred" not in others[1]
    (result,), _ = evaluate_folder(tmp_path / "pred", 1, DatasetTable((row,)))
    assert (result.agnostic.correct, result.agnostic.total) == (2, 3)
    # The paths of the prediction's own files are enough.
    bare = Dataset("pseudo", "regions", "Pseudo")
    (result,), _ = evaluate_folder(tmp_path / "pred", 1, DatasetTable((bare,)))
    assert (result.agnostic.correct, result.agnostic.total) == (2, 3)
    # Of another json the ids mean other phrases.
    other = phrased_row(tmp_path / "other")
    change(other, phrase="a blue zebra")
    with pytest.raises(OsmError, match="phrases .*, but category_id 1 is .*not the one used for prediction"):
        evaluate_folder(tmp_path / "pred", 1, DatasetTable((other,)))


def test_val_split_of_refs(tmp_path: Path) -> None:
    made = more_sets.refcoco(tmp_path)
    document = {"datasets": {"refs": {"form": "regions", "split": "train", **{k: str(v) for k, v in made.items()}}}}
    (tmp_path / "sets.yaml").write_text(json.dumps(document))
    row = DatasetTable().with_yaml(tmp_path / "sets.yaml")["refs"]
    assert (row.labels, row.split, row.refs_file) == ("", "train", str(made["refs_file"]))
    split = split_of(row)
    assert len(split) == 1 and [a["phrases"][0] for a in split.load(0).annotations] == ["the left man", "him"]
    assert split.source_hash != split_of(replace(row, split="val")).source_hash


def test_a_row_of_regions_has_no_labels(tmp_path: Path) -> None:
    path = more_sets.write_json(tmp_path / "x.yaml", {"datasets": {"mine": {"form": "regions", "labels": "coco"}}})
    with pytest.raises(OsmError, match="set 'mine': the annotation format regions does not support labels"):
        DatasetTable().with_yaml(path)
