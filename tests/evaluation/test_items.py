"""The items of the forms, and wrong annotation files, each with its message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_namer import FakeNamer
from PIL import Image
from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

from osm.datasets.table import BUILTIN, Dataset
from osm.errors import OsmError
from osm.evaluation.predict.generate import generate_predictions
from osm.forms import FORMS, split_of
from osm.io.paths import safe_join
from osm.io.segmentation import decode_segmentation

Change = Callable[[dict[str, Any]], None]


def change_json(row: Dataset, change: Change) -> None:
    path = Path(str(row.json_file))
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def write_instances(root: Path, annotations: list[dict[str, Any]]) -> Dataset:
    """Two images of 6 x 4, the second one given first, with these annotations."""
    (root / "val2017").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (6, 4), (7, 0, 0)).save(root / "val2017" / f"{name}.png")
    document = {
        "images": [
            {"id": 8, "coco_url": "http://images.example.org/val2017/b.png", "height": 4, "width": 6},
            {"id": 3, "file_name": "val2017/a.png"},
        ],
        "annotations": [{"image_id": 8, "category_id": 1, **a, "id": i} for i, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    json_file = root / "instances.json"
    json_file.write_text(json.dumps(document))
    return Dataset("pets", "coco_instances", "Pets", str(json_file), str(root), None, str(json_file))


SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]  # 3 x 2 pixels
SQUARE_COUNTS = [5, 2, 2, 2, 2, 2, 9]  # the same, column by column: 4 pixels each


def test_every_form_of_the_table_has_its_class() -> None:
    assert {FORMS.get(name).name for name in FORMS.names()} >= {row.form for row in BUILTIN}
    assert all(FORMS.get(name).name == name for name in FORMS.names())


def test_instances(tmp_path: Path) -> None:
    compressed = coco_mask.frPyObjects({"size": [4, 6], "counts": SQUARE_COUNTS}, 4, 6)["counts"].decode()
    annotations: list[dict[str, Any]] = [
        {"segmentation": [SQUARE]},
        {"segmentation": {"size": [4, 6], "counts": SQUARE_COUNTS}},
        {"segmentation": {"size": [4, 6], "counts": compressed}},
        {"segmentation": {"size": [4, 6], "counts": [1, 1, 22]}},  # one pixel: nothing is left after resizing
        {"segmentation": []},
        {"segmentation": {"size": [1, 1], "counts": "?"}, "iscrowd": 1, "category_id": 99},
    ]
    row = write_instances(tmp_path, annotations)
    item = split_of(row).load(1)
    square = np.zeros((4, 6), dtype=bool)
    square[1:3, 1:4] = True
    assert all(np.array_equal(item.mask(k), square) for k in range(3))
    namer = FakeNamer()
    document = json.loads(generate_predictions(namer, row, 0, 1, tmp_path / "out").read_text())
    (first, none), (second, named) = document["pred"]
    assert (first["id"], none, second["id"]) == (3, [], 8)
    assert [a["id"] for a in named] == [0, 1, 2, 3, 4, 5]
    assert [a.get("open_end_pred", {}).get("any", {}).get("class") for a in named] == ["any 6 of 7"] * 3 + [None] * 3
    meta = json.loads((tmp_path / "out" / "pets_meta_0_of_1.json").read_text())
    counts = {"named": 3, "empty": 1, "crowd": 1, "missing_in_mask": 0, "unknown_in_mask": 0, "unusable": 1}
    assert meta["counts"] == counts


def test_compressed_rle_is_pycocotools_own() -> None:
    rng = np.random.default_rng(0)
    for side in (1, 7, 300):
        for share in (0.0, 0.01, 0.5, 1.0):
            mask = rng.random((side, 2 * side)) < share
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            assert np.array_equal(decode_segmentation(rle, mask.shape, "test"), mask)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            {"segmentation": {"size": [4, 5], "counts": [20]}},
            r"annotation 0: RLE size \[4, 5\].*image's is \[4, 6\]",
        ),
        ({"segmentation": {"size": [4, 6], "counts": [20]}}, "do not add up to 4 x 6"),
        ({"segmentation": {"size": [4, 6], "counts": [30, -6]}}, "do not add up to 4 x 6"),
        ({"segmentation": {"size": [4, 6], "counts": "o"}}, "end in the middle of a number"),
        ({"segmentation": {"size": [4, 6], "counts": "é"}}, "not valid compressed counts"),
        ({"segmentation": {"size": [4, 6], "counts": "o" * 99}}, "not valid compressed counts"),
        ({"segmentation": {"size": "4", "counts": [24]}}, r"annotation 0: RLE size '4' is not \[height, width\]"),
        ({"segmentation": {"size": [4, 6]}}, "RLE counts are neither"),
        ({"segmentation": None}, "has no mask because its segmentation is None"),
        ({"segmentation": [[1, 1, 2, 2]]}, "three points or more"),
        ({"segmentation": [[1, 1, 2, 2, 3, 3, 4]]}, "three points or more"),
        ({"segmentation": [[0, 0, 1e9, 0, 0, 1e9]]}, "far outside its image, which is 6 x 4"),
        ({"segmentation": [[0, 0, float("nan"), 0, 0, 1]]}, "not a finite number"),
        (
            {"segmentation": [SQUARE], "category_id": 5},
            r"annotations\[0\] \(id 0\).* category_id 5 is not among the 1",
        ),
        ({"segmentation": [SQUARE], "image_id": 5}, r"annotations\[0\] \(id 0\): there is no image with the id 5"),
    ],
)
def test_bad_instances(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    row = write_instances(tmp_path, [annotation])
    with pytest.raises(OsmError, match=message):
        generate_predictions(FakeNamer(), row, 0, 1, tmp_path / "out")


def test_instances_of_another_image_size(tmp_path: Path) -> None:
    row = write_instances(tmp_path, [{"segmentation": [SQUARE]}])
    change_json(row, lambda document: document["images"][0].update(width=7))
    with pytest.raises(OsmError, match=r"image 8 is listed as 7 x 4 pixels, but .*b\.png has 6 x 4 pixels"):
        split_of(row).load(1)


def _segment(document: dict[str, Any]) -> dict[str, Any]:
    return document["annotations"][0]["segments_info"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("images"), r"panoptic\.json: has no list 'images'"),
        (
            lambda d: [row.pop("segments_info") for row in d["annotations"]],
            r"image 104: has no list 'segments_info'",
        ),
        (lambda d: d["annotations"][0].update(file_name="../x.png"), r"image 104.* file name '\.\./x\.png' leads out"),
        (lambda d: d["images"][0].update(file_name="/etc/x.png"), "id 100.* file name '/etc/x.png' leads out"),
        (lambda d: d["images"][0].pop("file_name"), "id 100.* file name None is not valid"),
        (lambda d: d["images"][0].update(id=101), "two different images have the id 101"),
        (lambda d: d["images"][0].update(id=None), r"images\[0\]: expected an 'id'"),
    ],
)
def test_bad_panoptic_json(pets: Dataset, change: Change, message: str) -> None:
    assert pets.label_set  # read before the file is damaged
    change_json(pets, change)
    with pytest.raises(OsmError, match=message):
        split_of(pets)


@pytest.mark.parametrize(
    ("change", "reason", "count"),
    [
        (lambda d: d.update(annotations=[3, *d["annotations"]]), "annotation_malformed", 1),
        (lambda d: d["annotations"][0].update(image_id=7), "annotation_without_image", 1),
        (lambda d: d["annotations"][0].update(image_id=[7]), "annotation_without_image", 1),
        (lambda d: d["images"][0].update(id="a"), "annotation_without_image", 1),
        (lambda d: _segment(d).update(id="one"), "annotation_malformed", 1),
        (lambda d: _segment(d).update(iscrowd="perhaps"), "annotation_malformed", 1),
        (lambda d: _segment(d).update(category_id=3), "category_unknown", 1),
        (lambda d: _segment(d).update(category_id=None), "category_unknown", 1),
        (lambda d: _segment(d).update(id="1", category_id="1"), "", 0),  # the same by value
    ],
)
def test_one_bad_annotation_of_a_split_costs_itself(pets: Dataset, change: Change, reason: str, count: int) -> None:
    before = split_of(pets)
    change_json(pets, change)
    split = split_of(pets)
    assert split.listing.losses.counts == ({reason: count} if count else {})
    lost = len(before) - len(split)
    assert lost == int(reason == "annotation_without_image")
    for index in range(len(split)):
        item = split.load(index)
        assert all(item.mask(k).shape == item.size for k in range(len(item.annotations)))
    if count:
        with pytest.raises(OsmError, match="annotations are unusable, --max_bad_annotations 0 allows 0"):
            split_of(pets, max_bad_annotations=0)


def test_json_that_is_none(pets: Dataset) -> None:
    assert pets.label_set
    Path(str(pets.json_file)).write_text("{")
    with pytest.raises(OsmError, match=r"panoptic\.json: not valid json"):
        split_of(pets)
    Path(str(pets.json_file)).unlink()
    with pytest.raises(OsmError, match=r"panoptic\.json: No such file"):
        split_of(pets)


def test_bad_panoptic_images(pets: Dataset) -> None:
    mask = Path(str(pets.mask_dir)) / "4.png"
    image = Path(str(pets.image_dir)) / "4.png"
    split = split_of(pets)
    Image.new("RGB", (8, 7)).save(mask)
    with pytest.raises(OsmError, match=r"masks/4\.png: is 8 x 7, its image .*images/4\.png is 8 x 6"):
        split.load(0)
    Image.new("LA", (8, 6)).save(mask)
    with pytest.raises(OsmError, match=r"masks/4\.png: panoptic PNG has mode LA"):
        split.load(0)
    mask.unlink()
    with pytest.raises(OsmError, match=r"masks/4\.png"):
        split.load(0)
    image.write_bytes(b"no image")
    with pytest.raises(OsmError, match=r"images/4\.png: not a readable"):
        split.load(0)


@pytest.mark.parametrize("name", ["", ".", "/a", "../a", "a/../../b", "a\0", None, 3])
def test_safe_join_keeps_inside(name: Any) -> None:
    with pytest.raises(OsmError, match="expected a path inside root"):
        safe_join(Path("root"), name)


def test_safe_join_allows_subfolders() -> None:
    assert safe_join(Path("root"), "a/b..c.jpg") == Path("root/a/b..c.jpg")
