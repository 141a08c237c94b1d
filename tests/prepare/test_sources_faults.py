"""What is wrong with a set, form by form: left out and counted, warned of, or the end of the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_sets import SIZE, members, summary, write_image
from PIL import Image
from source_sets import MAKERS, Made, area, spoil, write_ids, write_mat

from osm.forms.pascal_part import ids
from osm.io.images import read_panoptic

pytestmark = pytest.mark.usefixtures("console")

OTHER = (SIZE[0] + 2, SIZE[1])


def mask(made: Made, member: str, number: int = 0) -> Path:
    return made.masks[sorted(made.masks)[number]][member]


def image(made: Made, number: int = 0) -> Path:
    return made.images[sorted(made.images)[number]]


def mat(made: Made) -> Path:
    return made.paths["ann_dir"] / f"{image(made).stem}.mat"


def boxes(made: Made, *rows: list[float]) -> None:
    """The first image's boxes."""
    base = made.document["annotations"].pop(0)
    made.document["annotations"] += [{**base, "id": 900 + n, "bbox": row} for n, row in enumerate(rows)]


# One bad sample of 4: (set, reason, what is done to it, what the message says).
BAD: list[tuple[str, str, Callable[[Made], Any], str]] = [
    ("cityscapes", "image_missing", lambda s: image(s).unlink(), "aachen_000000_000019_leftImg8bit.png: there is no"),
    (
        "cityscapes",
        "size_mismatch",
        lambda s: write_image(image(s), 1, OTHER),
        "is 26 x 16, but the JSON file states 24 x 16",
    ),
    ("cityscapes", "mask_truncated", lambda s: spoil(mask(s, "png")), "panoptic.png: .*broken data"),
    ("lvis", "image_missing", lambda s: image(s).unlink(), "train2017/000000000000.jpg: there is no such file"),
    ("lvis", "no_masks", lambda s: s.document["annotations"][0].update(segmentation=[]), "none of its annotations"),
    ("lvis", "no_masks", lambda s: s.document["annotations"][0].update(segmentation="x"), "neither"),
    ("v3det", "image_truncated", lambda s: spoil(image(s), 0.9), "broken data"),
    ("v3det", "no_boxes", lambda s: boxes(s, [1, 2, 3]), r"bbox \[1, 2, 3\] is not \[x, y"),
    ("v3det", "no_boxes", lambda s: boxes(s, [1, 2, 3, float("nan")]), "bbox"),
    ("v3det", "no_boxes", lambda s: boxes(s, [30, 2, 3, 3]), "is outside the image, which is 24 x 16 pixels"),
    ("a847", "mask_missing", lambda s: mask(s, "tif").unlink(), "im_00000000.tif: there is no such file"),
    ("a847", "image_missing", lambda s: image(s).unlink(), "im_00000000.jpg: there is no such file"),
    ("a847", "mask_truncated", lambda s: spoil(mask(s, "tif")), "im_00000000.tif"),
    ("pc459", "mask_format", lambda s: Image.new("L", SIZE).save(mask(s, "tif"), "BMP"), "is a BMP; a PNG or TIFF of"),
    ("pc459", "mask_not_ids", lambda s: Image.new("RGB", SIZE, (1, 2, 3)).save(mask(s, "tif")), "mode RGB"),
    ("pc459", "size_mismatch", lambda s: Image.new("I;16", OTHER).save(mask(s, "tif")), "is 26 x 16, its image"),
    ("partimagenet", "mask_missing", lambda s: mask(s, "whole.png").unlink(), "train_whole/n01440000_1.png: there is"),
    ("partimagenet", "mask_not_png", lambda s: Image.new("L", SIZE).save(mask(s, "part.png"), "TIFF"), "is a TIFF"),
    ("partimagenet", "size_mismatch", lambda s: Image.new("L", OTHER).save(mask(s, "part.png")), "is 26 x 16"),
    ("pascal_part", "image_missing", lambda s: image(s).unlink(), "2008_000000.jpg: there is no such file"),
    ("pascal_part", "mask_unreadable", lambda s: spoil(mat(s)), "2008_000000.mat: is not a readable .mat file"),
    ("pascal_part", "mask_unreadable", lambda s: mat(s).write_bytes(b"no" * 99), "is not a .mat file of version 5"),
    ("pascal_part", "size_mismatch", lambda s: write_image(image(s), 1, OTHER), "mask of 'cow:head' is 24 x 16"),
]


@pytest.mark.parametrize(("name", "reason", "spoiled", "message"), BAD, ids=[f"{b[0]}-{b[1]}" for b in BAD])
def test_bad_sample(
    name: str, reason: str, spoiled: Callable[[Made], Any], message: str, tmp_path: Path, capsys: Any
) -> None:
    made = MAKERS[name](tmp_path, 4)
    spoiled(made)
    assert made.convert(tmp_path / "out") == 0, "one bad sample is allowed"
    found = summary(tmp_path / "out")
    assert (found["written"], found["left_out"]) == (3, {reason: 1})
    capsys.readouterr()
    assert made.convert(tmp_path / "strict", "--max_bad_samples", "0") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 4 samples are bad, --max_bad_samples 0 allows 0")

    assert re.search(message, error)


def empty_tif(made: Made) -> None:
    write_ids(mask(made, "tif"), (65535, 65535), np.uint16)


def no_parts(made: Made) -> None:
    write_mat(mat(made), [("boat", area(0, 0, 9, 9), [])])


def nameless_parts(made: Made) -> None:
    write_mat(mat(made), [("car", area(0, 0, 9, 9), [("backside", area(0, 0, 5, 5))])])


# Left out and counted, but nothing is wrong.
FINE: list[tuple[str, str, Callable[[Made], Any]]] = [
    ("cityscapes", "no_segments", lambda s: s.document["annotations"][0].update(segments_info=[])),
    ("cityscapes", "no_segments", lambda s: s.document["annotations"].pop(0)),
    ("lvis", "no_annotations", lambda s: s.document["annotations"].pop(0)),
    ("v3det", "no_annotations", lambda s: s.document["annotations"].pop(0)),
    ("v3det", "image_missing", lambda s: image(s).unlink()),
    ("a847", "nothing_labelled", empty_tif),
    (
        "partimagenet",
        "nothing_labelled",
        lambda s: [write_ids(mask(s, m), (200, 201)) for m in ("part.png", "whole.png")],
    ),
    ("pascal_part", "no_part_masks", no_parts),
    ("pascal_part", "no_part_masks", nameless_parts),
    ("pascal_part", "no_mat_file", lambda s: mat(s).unlink()),
]


@pytest.mark.parametrize(("name", "reason", "change"), FINE, ids=[f"{f[0]}-{f[1]}" for f in FINE])
def test_left_out_but_not_bad(name: str, reason: str, change: Callable[[Made], Any], tmp_path: Path) -> None:
    made = MAKERS[name](tmp_path, 4)
    change(made)
    assert made.convert(tmp_path / "out", "--max_bad_samples", "0") == 0
    assert (summary(tmp_path / "out")["written"], summary(tmp_path / "out")["left_out"]) == (3, {reason: 1})


def test_all_images_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MAKERS["v3det"](tmp_path, 3)
    for path in made.images.values():
        path.unlink()
    assert made.convert(tmp_path / "out") == 1
    assert "no sample was written" in capsys.readouterr().err


def test_boxes_that_are_nowhere(tmp_path: Path) -> None:
    made = MAKERS["v3det"](tmp_path, 2)
    boxes(made, [0, 0, 0, 5], [24, 0, 5, 5], [-9, 0, 9, 5], [3, 3, 4, -1], [-2, 3, 5, 30], [1, 1, 2, 2])
    assert made.convert(tmp_path / "out") == 1, "4 of 7 annotations"
    assert made.convert(tmp_path / "out", "--max_bad_annotations", "0.6") == 0
    assert summary(tmp_path / "out")["warnings"] == {"box_empty": 2, "box_outside": 2}
    record = json.loads(members(tmp_path / "out")["00000000.json"])
    kept = [[-2, 3, 5, 30], [1, 1, 2, 2]]
    assert [segment["bbox"] for segment in record["segments_info"]] == kept, "a box that is partly outside stays"


def test_ids_that_the_labels_lack(tmp_path: Path) -> None:
    made = MAKERS["pc459"](tmp_path, 2)
    write_ids(mask(made, "tif"), (3, 459), np.uint16)
    assert made.convert(tmp_path / "out") == 0
    found = summary(tmp_path / "out")
    assert found["warnings"] == {"id_not_in_labels": 1}
    assert "ids [459] are not in the labels pc459" in found["examples"]["id_not_in_labels"][0]


def test_pascal_part_ids_are_the_tables(tmp_path: Path) -> None:
    """Later masks cover earlier ones; parts without a name cover too; unknown names are ignored and warned of."""
    made = MAKERS["pascal_part"](tmp_path, 1)
    horse = [("head", area(0, 0, 8, 8)), ("lear", area(4, 4, 6, 6)), ("saddle", area(0, 0, 9, 9))]
    car = [("door_1", area(12, 0, 20, 8)), ("backside", area(16, 0, 20, 8))]
    write_mat(mat(made), [("horse", area(0, 0, 10, 10), horse), ("car", area(8, 0, 24, 10), car)])
    assert made.convert(tmp_path / "out") == 0
    found = members(tmp_path / "out")
    part, whole = (read_panoptic(found[f"2008_000000.{member}.png"]) for member in ("part", "whole"))
    head, ear, door, back = (ids()[name] for name in ("horse:head", "horse:lear", "car:door_1", "car:backside"))
    assert (head, ear, door, back) == (124, 125, 138, 24)
    assert (part[0, 0], part[5, 5], part[0, 14], part[0, 18], part[9, 9], part[15, 23]) == (head, ear, door, back, 0, 0)
    assert (whole[0, 0], whole[0, 9], whole[15, 0]) == (ids()["horse"], ids()["car"], 0)
    assert summary(tmp_path / "out")["warnings"] == {"name_not_in_table": 1}
    assert "'horse:saddle' is not in the table" in summary(tmp_path / "out")["examples"]["name_not_in_table"][0]


def test_pascal_part_of_another_form(tmp_path: Path) -> None:
    from scipy.io import savemat

    made = MAKERS["pascal_part"](tmp_path, 4)
    savemat(mat(made), {"anno": {"objects": {"class": 5.0, "mask": area(0, 0, 2, 2), "parts": 1.0}}})
    assert made.convert(tmp_path / "a") == 0
    assert summary(tmp_path / "a")["left_out"] == {"annotation_malformed": 1}
    savemat(mat(made), {"LabelMap": np.zeros((3, 3))})
    assert made.convert(tmp_path / "b") == 0
    assert summary(tmp_path / "b")["left_out"] == {"mask_without_variable": 1}


def test_partimagenet_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MAKERS["partimagenet"](tmp_path, 2)
    for folder in (made.paths["image_dir"], made.paths["image_dir"].parent / "annotations"):
        for path in folder.iterdir():
            path.rename(path.with_name(path.name.replace("train", "val")))
    assert made.convert(tmp_path / "out", "--split", "val") == 0
    for split, message in (("train", "there is no such folder"), ("../x", "'../x': expected the name of a subfolder")):
        assert made.convert(tmp_path / "other", "--split", split) == 2
        assert message in capsys.readouterr().err


WRONG: list[tuple[str, Callable[[Made], Any], str]] = [
    ("lvis", lambda s: s.document["images"][1].update(coco_url="http://x/../../a.jpg"), "leads out of its folder"),
    ("lvis", lambda s: s.document["images"][1].update(coco_url="a.jpg"), r"images\[1\].*coco_url 'a.jpg': expected an"),
    ("lvis", lambda s: s.document["images"][1].pop("coco_url"), "coco_url None"),
    ("lvis", lambda s: s.document["annotations"].clear() or s.document.pop("annotations"), "has no list 'annotations'"),
    ("v3det", lambda s: s.document["images"][1].update(file_name="../x.jpg"), "--image_dir .*'../x.jpg' leads out"),
    ("v3det", lambda s: s.document["images"][1].update(file_name="/etc/passwd"), "leads out of its folder"),
    (
        "cityscapes",
        lambda s: s.document["annotations"][1].update(file_name="x.png"),
        "'x.png' does not have the format CITY",
    ),
    (
        "cityscapes",
        lambda s: s.document["annotations"][1].update(file_name="../a_1_gtFine_panoptic.png"),
        "leads out of its",
    ),
    (
        "cityscapes",
        lambda s: s.document["annotations"][1].update(file_name=".._1_gtFine_panoptic.png"),
        "'../.._1_leftImg8bit.png' leads out of its folder",
    ),
    ("a847", lambda s: write_image(image(s).with_suffix(".png"), 1), "im_00000000.jpg and im_00000000.png are one"),
    ("a847", lambda s: [path.unlink() for path in s.paths["ann_dir"].iterdir()], "holds no .tif, .tiff, .png file"),
    ("pascal_part", lambda s: [p.unlink() for p in s.paths["ann_dir"].iterdir()], "--ann_dir .*holds no .mat file"),
    ("pc459", lambda s: s.paths.update(ann_dir=Path("/nowhere")), "--ann_dir /nowhere: there is no such folder"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=[f"{w[0]}-{w[2][:20]}" for w in WRONG])
def test_wrong_set_ends_the_run_before_it_writes(
    name: str, change: Callable[[Made], Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    made = MAKERS[name](tmp_path, 3)
    change(made)
    assert made.convert(tmp_path / "out") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cityscapes", "lvis", "v3det"])
def test_categories_of_another_release(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MAKERS[name](tmp_path, 3)
    made.document["categories"] = [{**row, "name": f"no such thing {row['id']}"} for row in made.document["categories"]]
    assert made.convert(tmp_path / "out") == 0
    assert f"2 of 2 category ids mean something else in the project's table {name!r}" in capsys.readouterr().err


def test_changed_files_are_another_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MAKERS["a847"](tmp_path, 3)
    assert made.convert(tmp_path / "out") == 0
    write_image(made.paths["image_dir"] / "more.jpg", 1)
    assert made.convert(tmp_path / "out") == 2
    assert "contains shards from a run with different arguments (argument files_sha256 was" in capsys.readouterr().err
