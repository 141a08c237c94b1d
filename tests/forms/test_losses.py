"""Annotations that are lost: counted in training, bounded in conversion and prediction, never without a word."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_namer import FakeNamer
from quirks import Quirky, plain
from stream_sets import instances, rectangle, scene

from osm.data.batch import Batch
from osm.errors import OsmError, RunStopped
from osm.evaluation.predict.generate import generate_predictions
from osm.forms.base import ANNOTATION, too_many_lost
from osm.io.views import View
from osm.prepare.convert import prepare
from osm.training.stopping import SampleFaults


@pytest.mark.parametrize(
    ("lost", "kept", "share", "fails"),
    [
        (0, 0, 0.05, False),
        (1, 1, 0.05, False),  # one always may
        (1, 0, 0.05, True),  # but something has to be left
        (2, 3, 0.05, True),
        (5, 95, 0.05, False),
        (6, 94, 0.05, True),
        (1, 999, 0.0, True),
        (9, 1, 1.0, False),
        (9, 0, 1.0, False),
    ],
)
def test_how_many_may_be_lost(lost: int, kept: int, share: float, fails: bool) -> None:
    told = too_many_lost(lost, kept, share, "the polygon of annotation 3")
    assert bool(told) == fails
    assert not fails or ("--max_bad_annotations" in told and told.endswith("the polygon of annotation 3"))


def half_lost(root: Path) -> Quirky:
    """Of every picture one of two masks has no segmentation."""
    made = plain("coco_instances", root)
    for row in made.json["annotations"]:
        if row["category_id"] == 1:
            row["segmentation"] = [[1, 1, 5, 5]]
    made.write()
    return made


def test_a_run_that_loses_half_the_masks_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = half_lost(tmp_path / "set")
    command = made.command(tmp_path / "out")
    command[command.index("--max_bad_annotations") + 1] = "0.05"
    assert prepare(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: 3 of 6 annotations are unusable, --max_bad_annotations 0.05 allows 1; the first: ")
    assert "is not [x, y, x, y, ...] with three points or more" in said
    command[command.index("--max_bad_annotations") + 1] = "0.5"
    assert prepare(command) == 0, "the shards are there already"


def test_a_prediction_that_loses_half_the_masks_fails_and_goes_on(tmp_path: Path) -> None:
    row = half_lost(tmp_path / "set").row()
    namer = FakeNamer()
    with pytest.raises(OsmError, match=r"set 'mine': 3 of 6 annotations are unusable, --max_bad_annotations 0.05 all"):
        generate_predictions(namer, row, 0, 1, tmp_path / "out", modes=("any",))
    assert not (tmp_path / "out" / "mine_pred_0_of_1.json").exists()
    called = len(namer.calls)
    path = generate_predictions(namer, row, 0, 1, tmp_path / "out", modes=("any",), max_bad_annotations=0.5)
    assert len(namer.calls) == called == 3, "what was named is not named again"
    document = json.loads(path.read_text())
    given = [["open_end_pred" in annotation for annotation in of_image] for _, of_image in document["pred"]]
    assert given == [[False, True]] * 3
    counts = json.loads((tmp_path / "out" / "mine_meta_0_of_1.json").read_text())["counts"]
    assert (counts["named"], counts["unusable"]) == (3, 3)


def test_a_label_file_of_another_set_is_noticed_in_prediction(tmp_path: Path) -> None:
    """Half of the ids of its label maps are not in it."""
    made = plain("semantic", tmp_path / "set")
    made.write()
    (tmp_path / "set" / "labels.json").write_text(json.dumps({"categories": [{"id": 2, "name": "car"}]}))
    with pytest.raises(OsmError, match=r"3 of 6 annotations are unusable.* ids \[1\] are not in the labels"):
        generate_predictions(FakeNamer(), made.row(), 0, 1, tmp_path / "out", modes=("any",))


def test_training_draws_the_others_and_counts() -> None:
    """In a shard of another converter, one annotation cannot be drawn."""
    bad = {"id": 7, "category_id": 1, "segmentation": {"size": [1, 1], "counts": "?"}}
    good = {"id": 8, "category_id": 2, "segmentation": rectangle(5, 5, 40, 30)}
    found = scene(instances(60, 40, [bad, good]), "coco_instances")
    view = View(60, 40, 0, 0, 60, 40, False)
    for seed in range(8):
        picked = found.pick(view, 2, np.random.default_rng(seed))
        assert [segment.category_id for segment in picked] == [2]
    assert found.faults() == {f"{ANNOTATION}rle_size": 1}


def test_unusable_annotations_are_no_broken_samples() -> None:
    faults = SampleFaults(limit=0.01)
    batch = Batch.__new__(Batch)
    batch.keys, batch.skipped = ["a"] * 8, Counter({f"{ANNOTATION}rle_size": 5})
    for _ in range(20):
        faults.add("mine", batch)
    assert faults.skipped == {f"{ANNOTATION}rle_size": 100}
    batch.skipped = Counter({"bad_json": 1})
    with pytest.raises(RunStopped, match="samples are broken"):
        for _ in range(20):
            faults.add("mine", batch)


def test_boxes_are_a_form_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A detection export is refused as instances, and the form that the message suggests converts it."""
    made = plain("coco_instances", tmp_path / "set")
    for row in made.json["annotations"]:
        row["segmentation"] = []
    made.write()
    assert prepare(made.command(tmp_path / "out")) == 2
    assert "contains boxes but no masks" in capsys.readouterr().err and not (tmp_path / "out").exists()
    command = ["boxes", *made.command(tmp_path / "out")[1:]]
    assert prepare(command) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["annotations"] == 6


@pytest.mark.parametrize("form", ["coco_instances", "boxes"])
def test_shares_of_the_sides_are_no_pixels(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plain(form, tmp_path / "set")
    for row in made.json["annotations"]:
        row["bbox"] = [value / 100 for value in row["bbox"]]
        if "segmentation" in row:
            row["segmentation"] = [[value / 100 for value in row["segmentation"][0]]]
    made.write()
    assert prepare(made.command(tmp_path / "out")) == 2
    assert "value is between 0 and 1, so the coordinates seem to be normalized" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "second"), [("./0.png", "val/0.png"), ("0.png", r"val\0.png")])
@pytest.mark.parametrize("which", ["images", "annotations"])
def test_one_file_is_not_taken_for_two_names(which: str, first: str, second: str, tmp_path: Path) -> None:
    made = plain("coco_panoptic", tmp_path / "set")
    made.json[which][0]["file_name"], made.json[which][1]["file_name"] = first, second
    made.write()
    prepare(made.command(tmp_path / "out"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["left_out"] == {"image_missing" if which == "images" else "mask_missing": 1}
    assert summary["written"] == 2


def test_one_row_without_its_png_costs_itself(tmp_path: Path) -> None:
    made = plain("coco_panoptic", tmp_path / "set")
    del made.json["annotations"][0]["file_name"]
    made.json["annotations"][1]["segments_info"] = None
    made.write()
    assert prepare(made.command(tmp_path / "out")) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["written"], summary["warnings"]) == (1, {"annotation_malformed": 2})


def test_two_images_of_one_id_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plain("coco_instances", tmp_path / "set")
    for image in made.json["images"]:
        image["coco_url"] = f"http://example.org/x/{image.pop('file_name')}"
    made.json["images"][1]["id"] = 0
    made.write()
    assert prepare(made.command(tmp_path / "out")) == 2
    assert "two different images have the id 0" in capsys.readouterr().err


def test_no_image_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = plain("coco_instances", tmp_path / "set")
    for image in made.json["images"]:
        image["file_name"] = f"photos/{image['id'] + 7}.jpg"
    made.write()
    assert prepare(made.command(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "none of the 3 images of" in said and "the json says 'photos/7.jpg'" in said
    assert "the folder holds 3 images ('0.png', '1.png', '2.png')" in said


def test_a_panoptic_set_of_another_coding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    made = plain("coco_panoptic", tmp_path / "set")
    for path in made.maps.iterdir():
        red, green, blue = Image.open(path).split()
        Image.merge("RGB", (blue, green, red)).save(path)
    made.write()
    assert prepare(made.command(tmp_path / "out")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "none of the json's 2 segment ids (such as 7) is in the PNG" in said
    assert "with red and blue swapped (BGR, as OpenCV writes) they match" in said
