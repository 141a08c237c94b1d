"""The helpers that make what the converters read, on files in the exact layout of the original releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_sets import SCRIPTS, SIZE, members, write_image
from PIL import Image
from scipy.io import savemat
from source_sets import folder, spoil

from osm.datasets.labels import load_labels
from osm.io.images import read_ids, read_panoptic
from osm.prepare import convert
from osm.prepare.originals.originals_cli import SETS, main, prepare

WIDTH, HEIGHT = SIZE


def rgb(path: Path, red: Any, green: Any) -> None:
    """A PNG of two channels, each a number or a picture."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = red, green
    Image.fromarray(pixels).save(path)


def halves(upper: int, lower: int, kind: type = np.uint8) -> np.ndarray:
    ids = np.full((HEIGHT, WIDTH), upper, kind)
    ids[HEIGHT // 2 :] = lower
    return ids


def segments(json_file: Path, number: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(json_file.read_text())["annotations"][number]["segments_info"]
    return found


def test_every_script_is_a_helper() -> None:
    names = {path.read_text(encoding="utf-8").split('main("')[1].split('"')[0] for path in SCRIPTS.glob("make_*.py")}
    assert names == set(SETS)


# ADE20K panoptic.


def ade20k(root: Path, instances: bool = True) -> Path:
    """Two images: sky (3, stuff) above a car (21, a thing) and a person (13); class PNGs count from 1."""
    for number in range(2):
        name = f"ADE_train_{number:08d}"
        write_image(folder(root / "images" / "training") / f"{name}.jpg", number)
        classes = halves(3, 21)
        classes[HEIGHT // 2 :, :5], classes[0, 0] = 13, 0
        Image.fromarray(classes).save(folder(root / "annotations" / "training") / f"{name}.png")
        if instances:
            red, green = halves(0, 9), halves(0, 1)  # the 9th thing is the car, the 4th the person
            red[HEIGHT // 2 :, :5], green[HEIGHT // 2 :, :5] = 4, 2
            green[HEIGHT // 2 :, 15:] = 3  # a second car
            rgb(folder(root / "annotations_instance" / "training") / f"{name}.png", red, green)
    return root


def test_ade20k_panoptic(tmp_path: Path) -> None:
    root = ade20k(tmp_path / "ADEChallengeData2016")
    arguments = ["--data_dir", str(root), "--splits", "training", "--num_workers", "2"]
    assert main("ade20k", arguments) == 0
    found = segments(root / "ade20k_panoptic_train.json")
    names = [load_labels("ade20k")[segment["category_id"]].target for segment in found]
    assert names == ["sky", "car", "person", "car"] or sorted(names) == ["car", "car", "person", "sky"]
    ids = read_panoptic((root / "ade20k_panoptic_train" / "ADE_train_00000000.png").read_bytes())
    assert ids[0, 0] == 0, "what has no class is nothing"
    for segment in found:
        mask = ids == segment["id"]
        assert segment["area"] == np.count_nonzero(mask) > 0
        x, y, width, height = segment["bbox"]
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        assert (x, y, x + width - 1, y + height - 1) == (columns[0], rows[0], columns[-1], rows[-1])
    document = json.loads((root / "ade20k_panoptic_train.json").read_text())
    assert len(document["categories"]) == 150
    out = tmp_path / "out"
    masks, json_file = root / "ade20k_panoptic_train", root / "ade20k_panoptic_train.json"
    paths = ["--ann_dir", str(masks), "--image_dir", str(root / "images" / "training"), "--json_file", str(json_file)]
    assert convert.main("ade20k", ["--output_dir", str(out), *paths, "--num_workers", "1"]) == 0
    assert json.loads((out / "summary.json").read_text())["warnings"] == {}


def test_ade20k_without_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ade20k(tmp_path, instances=False)
    assert prepare(["ade20k", "--data_dir", str(root), "--splits", "training", "--num_workers", "1"]) == 0
    assert "all things of one class become one segment" in capsys.readouterr().err
    assert [segment["category_id"] for segment in segments(root / "ade20k_panoptic_train.json")] == [2, 12, 20]


def test_ade20k_category_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, mapping = ade20k(tmp_path / "set"), tmp_path / "categoryMapping.txt"
    arguments = ["--data_dir", str(root), "--splits", "training", "--num_workers", "1"]
    mapping.write_text("Instance100 SceneParse150 FullADE20K\n4 13 1831\n9 21 401\n")
    assert main("ade20k", [*arguments, "--category_mapping", str(mapping)]) == 0
    mapping.write_text("4 13\n9 151\n")
    assert main("ade20k", [*arguments, "--category_mapping", str(mapping)]) == 2
    assert "rows 'INSTANCE_CLASS SCENE_CLASS ...'" in capsys.readouterr().err


def test_ade20k_classes_that_cannot_be_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("osm.prepare.originals.panoptic_releases._MIN_CHECKED_INSTANCES", 6)
    root, mapping = ade20k(tmp_path / "set"), tmp_path / "categoryMapping.txt"
    mapping.write_text("4 21\n9 13\n")
    arguments = ["--data_dir", str(root), "--splits", "training", "--category_mapping", str(mapping)]
    assert main("ade20k", [*arguments, "--num_workers", "1"]) == 2
    assert "only 0 of 6 instances lie on pixels of their class" in capsys.readouterr().err
    assert not (root / "ade20k_panoptic_train.json").exists()


# Cityscapes panoptic.


def cityscapes(root: Path) -> Path:
    for city, number in (("aachen", 0), ("aachen", 1), ("bremen", 0)):
        ids = halves(7, 26, np.uint16)  # road, and cars that could not be told apart
        ids[0, :3], ids[1, :3], ids[2, :3] = 26000, 26001, 4  # two cars, and what is not evaluated
        frame = f"{city}_{number:06d}_000019"
        at = folder(root / "gtFine" / "train" / city) / f"{frame}_gtFine_instanceIds.png"
        Image.fromarray(ids).save(at)
        write_image(folder(root / "leftImg8bit" / "train" / city) / f"{frame}_leftImg8bit.png", number)
    return root


def test_cityscapes_panoptic(tmp_path: Path) -> None:
    root = cityscapes(tmp_path / "cityscapes")
    assert main("cityscapes", ["--data_dir", str(root), "--splits", "train", "--num_workers", "2"]) == 0
    fine = root / "gtFine"
    found = segments(fine / "cityscapes_panoptic_train.json")
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in found] == [
        (7, 7, 0),
        (26, 26, 1),
        (26000, 26, 0),
        (26001, 26, 0),
    ]
    paths = ["--ann_dir", fine / "cityscapes_panoptic_train", "--image_dir", root / "leftImg8bit" / "train"]
    paths += ["--json_file", fine / "cityscapes_panoptic_train.json", "--output_dir", tmp_path / "out"]
    assert convert.main("cityscapes", [*map(str, paths), "--num_workers", "1"]) == 0
    assert len(members(tmp_path / "out")) == 9


def test_cityscapes_is_what_cityscapesscripts_makes(tmp_path: Path) -> None:
    theirs = pytest.importorskip("cityscapesscripts.preparation.createPanopticImgs")
    root = cityscapes(tmp_path / "cityscapes")
    assert main("cityscapes", ["--data_dir", str(root), "--splits", "train", "--num_workers", "1"]) == 0
    theirs.convert2panoptic(str(root / "gtFine"), str(folder(tmp_path / "theirs")), False, ["train"])
    name = "cityscapes_panoptic_train"
    own, other = (json.loads((at / f"{name}.json").read_text()) for at in (root / "gtFine", tmp_path / "theirs"))
    assert (own["images"], own["annotations"]) == (other["images"], other["annotations"])
    keys = ("id", "isthing")
    assert [[c[k] for k in keys] for c in own["categories"]] == [[c[k] for k in keys] for c in other["categories"]]
    for path in (tmp_path / "theirs" / name).iterdir():
        same = read_panoptic(path) == read_panoptic(root / "gtFine" / name / path.name)
        assert same.all()


#


def test_a847(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "ADE20K_2021_17_01"
    for number, place in enumerate(("urban/street", "home_or_hotel/attic", "urban/street")):
        at, stem = folder(root / "images" / "ADE" / "training" / place), f"ADE_train_{number:08d}"
        write_image(at / f"{stem}.jpg", number)
        # The class index is R / 10 * 256 + G: wall is 2978, car is 401, and 3149 is none of the 847.
        index = halves(2978, 401, np.int32)
        index[0, 0], index[0, 1] = 0, 3149
        rgb(at / f"{stem}_seg.png", index // 256 * 10, index % 256)
        write_image(folder(at / stem) / f"instance_000_{stem}.png", 1)
        write_image(at / f"{stem}_parts_1.png", 1)
    arguments = ["--data_dir", str(root), "--splits", "training", "--num_workers", "1"]
    assert main("a847", arguments) == 0
    image, maps = root / "images_detectron2" / "training", root / "annotations_detectron2" / "training"
    assert sorted(p.name for p in image.iterdir()) == [f"ADE_train_{n:08d}.jpg" for n in range(3)]
    original = root / "images" / "ADE" / "training" / "urban" / "street" / "ADE_train_00000000.jpg"
    assert (image / original.name).read_bytes() == original.read_bytes()
    ids = read_ids(maps / "ADE_train_00000000.tif")
    names = [load_labels("a847")[int(ids[row, 5])].target for row in (0, -1)]
    assert (ids.dtype, names, ids[0, 0], ids[0, 1]) == (np.uint16, ["wall", "car"], 65535, 65535)
    paths = ["--image_dir", str(image), "--ann_dir", str(maps), "--output_dir", str(tmp_path / "out")]
    assert convert.main("a847", [*paths, "--num_workers", "1"]) == 0

    (maps / "ADE_train_00000001.tif").unlink()
    spoil(next(root.glob("images/ADE/training/*/*/ADE_train_00000001_seg.png")))
    capsys.readouterr()
    assert main("a847", arguments) == 1
    assert "left out: mask_truncated 1" in capsys.readouterr().err


def test_a847_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("a847", ["--data_dir", str(tmp_path)]) == 2
    assert "--data_dir: there is no images/ADE/training/**/*_seg.png in" in capsys.readouterr().err


# PC-459.


def pascal_context(root: Path, *names: str) -> list[str]:
    mats, voc = folder(root / "trainval"), root / "VOCdevkit" / "VOC2010"
    for number, name in enumerate(names):
        write_image(folder(voc / "JPEGImages") / f"{name}.jpg", number)
        savemat(mats / f"{name}.mat", {"LabelMap": halves(2, 459, np.uint16)}, do_compression=True)
    (folder(voc / "ImageSets" / "Main") / "train.txt").write_text("\n".join(names) + "\n")
    paths = ["--mat_dir", mats, "--voc_dir", voc, "--output_dir", root / "pascal_ctx_d2"]
    return [*map(str, paths), "--splits", "training", "--num_workers", "1"]


def test_pc459(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = pascal_context(tmp_path, "2008_000002", "2008_000003", "2008_000004")
    savemat(tmp_path / "trainval" / "2008_000003.mat", {"LabelMap": halves(0, 1, np.uint16)})
    savemat(tmp_path / "trainval" / "2008_000004.mat", {"LabelMap": halves(1, 460, np.uint16)})
    assert main("pc459", arguments) == 1
    assert "left out: class_unknown 1" in capsys.readouterr().err
    top = tmp_path / "pascal_ctx_d2"
    images, maps = top / "images" / "training", top / "annotations_ctx459" / "training"
    assert sorted(p.stem for p in images.iterdir()) == sorted(p.stem for p in maps.iterdir())
    ids = read_ids(maps / "2008_000002.tif")
    assert [load_labels("pc459")[int(ids[row, 0])].target for row in (0, -1)] == ["aeroplane", "wool"]
    assert read_ids(maps / "2008_000003.tif")[[0, -1], 0].tolist() == [65535, 0]
    paths = ["--image_dir", str(images), "--ann_dir", str(maps), "--output_dir", str(tmp_path / "out")]
    assert convert.main("pc459", [*paths, "--num_workers", "1"]) == 0


def test_pc459_names_do_not_leave_their_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = pascal_context(tmp_path, "2008_000002")
    listing = tmp_path / "VOCdevkit" / "VOC2010" / "ImageSets" / "Main" / "train.txt"
    listing.write_text("../../2008_000002\n")
    assert main("pc459", arguments) == 2
    assert "leads out of its folder" in capsys.readouterr().err


def test_pc459_labels_txt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, listing = pascal_context(tmp_path, "2008_000002"), tmp_path / "labels.txt"
    names = [one.target.replace(" ", "") for one in load_labels("pc459").classes.values()]
    names[61] = "case"
    listing.write_text("".join(f"{number}: {name}\n" for number, name in enumerate(names, 1)))
    assert main("pc459", [*arguments, "--labels_txt", str(listing)]) == 0
    assert "labels.txt: 62: 'case' is 'computer case' in the table" in capsys.readouterr().err
    for wrong, message in (
        (names[1:], "458 classes; expected 459 lines"),
        ([*names[200:], *names[:200]], "expected the class list of PC-459"),
    ):
        listing.write_text("".join(f"{number}: {name}\n" for number, name in enumerate(wrong, 1)))
        assert main("pc459", [*arguments, "--labels_txt", str(listing)]) == 2
        assert message in capsys.readouterr().err
