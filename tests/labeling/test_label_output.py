"""What `osm label` writes: the same files filled in, tables, tags, shards, overlaps, corrections."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import osm
from osm.errors import OsmError
from osm.io.segmentation import encode_rle
from osm.labeling.corrections import REMOVED, Correction, Corrections
from osm.labeling.formats import FORMATS, recognized
from osm.labeling.formats.image_tags import image_tags
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelShape, filled_ids
from osm.labeling.label_rules import KeepRules, merge_shapes, with_parents

WIDTH, HEIGHT = 60, 40


def box_mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def shape(mask: np.ndarray, name: str = "cup", prob: float = 0.5, **facts: Any) -> LabelShape:
    return LabelShape(encode_rle(mask), name=name, prob=prob, **facts)


@pytest.fixture
def labels(tmp_path: Path) -> LabeledImages:
    (tmp_path / "images").mkdir()
    images = []
    for number in range(2):
        photo = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        path = tmp_path / "images" / f"{number}.png"
        Image.fromarray(photo).save(path)
        shapes = (
            shape(box_mask(2, 2, 20, 20), "old", 0.5, row=0, id=7),
            shape(box_mask(25, 5, 50, 30), "old", 0.6, row=1, id=8),
        )
        images.append(LabeledImage(number, path.name, str(path), (WIDTH, HEIGHT), shapes))
    return LabeledImages(images, {"old": 1}, "m")


def renamed(labels: LabeledImages) -> LabeledImages:
    """The second image has names; of the first one, only the second object has."""
    one, other = labels.images
    first = (LabelShape(one.shapes[1].rle, name="teddy & bear", prob=0.75, row=1),)
    second = tuple(
        LabelShape(s.rle, name=n, prob=0.25, row=k) for k, (s, n) in enumerate(zip(other.shapes, "ab", strict=True))
    )
    images = [
        LabeledImage(one.number, one.file_name, one.path, one.size, first),
        LabeledImage(other.number, other.file_name, other.path, other.size, second),
    ]
    return LabeledImages(images, {"teddy & bear": 1, "a": 2, "b": 3}, "m")


EXPECTED = ["old", "teddy & bear", "a", "b"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("coco", "labels.json"),
        ("coco_panoptic", "panoptic.json"),
        ("cvat", "cvat.xml"),
        ("label_studio", "label_studio.json"),
        ("labelme", "labelme"),
        ("yolo", "yolo"),
    ],
)
def test_names_are_filled_into_the_files_of_the_masks(
    name: str, place: str, labels: LabeledImages, tmp_path: Path
) -> None:
    """The masks stay the same, byte by byte where the format stores them as text; what has no name keeps its label."""
    reader = FORMATS.get(name)
    source, out = tmp_path / "source", tmp_path / "same"
    source.mkdir(), out.mkdir()
    reader.write(labels, source)
    reader.fill(source / place, renamed(labels), out)
    written = out / place if (out / place).exists() else out
    names, masks = [], []
    for path in (source / place, written):
        found = [list(reader.shapes(one, (WIDTH, HEIGHT))) for one in reader.sources(path)]
        shapes = [one for of_image in found for one in of_image if isinstance(one, LabelShape)]
        names.append([one.label for one in shapes])
        masks.append([one.rle["counts"] for one in shapes])
    assert names == [["old"] * 4, EXPECTED] and masks[0] == masks[1]


def test_what_else_is_in_the_files_stays(labels: LabeledImages, tmp_path: Path) -> None:
    row = {"id": 4, "image_id": 9, "category_id": 5, "segmentation": encode_rle(box_mask(2, 2, 9, 9)), "own": [1, 2]}
    image = {"id": 9, "file_name": "0.png", "width": WIDTH, "height": HEIGHT, "license": 3}
    categories = [{"id": 5, "name": "old", "supercategory": "x"}, {"id": 1, "name": "other"}]
    document = {"info": {"year": 2026}, "images": [image], "annotations": [row, row], "categories": categories}
    (tmp_path / "mine.json").write_text(json.dumps(document))
    (tmp_path / "same").mkdir()
    named = LabeledImages(
        [LabeledImage(0, "0.png", "", (WIDTH, HEIGHT), (shape(box_mask(2, 2, 9, 9), row=1),))], {"cup": 1}
    )
    FORMATS.get("coco").fill(tmp_path / "mine.json", named, tmp_path / "same")
    after = json.loads((tmp_path / "same" / "mine.json").read_text())
    assert after["annotations"] == [row, row | {"category_id": 6, "score": 0.5}]
    assert after["categories"] == [*categories, {"id": 6, "name": "cup"}]  # id 1 is taken
    assert {key: after[key] for key in ("info", "images")} == {key: document[key] for key in ("info", "images")}


def test_sam_and_results_get_new_fields(labels: LabeledImages, tmp_path: Path) -> None:
    mask = encode_rle(box_mask(2, 2, 9, 9))
    (tmp_path / "sam").mkdir(), (tmp_path / "same").mkdir()
    rows = [{"segmentation": mask, "predicted_iou": 0.9, "stability_score": 0.9} for _ in range(2)]
    for number in range(2):
        (tmp_path / "sam" / f"{number}.json").write_text(json.dumps(rows))
    FORMATS.get("sam").fill(tmp_path / "sam", renamed(labels), tmp_path / "same")
    found = [json.loads((tmp_path / "same" / f"{number}.json").read_text()) for number in range(2)]
    assert [[row.get("name") for row in one] for one in found] == [[None, "teddy & bear"], ["a", "b"]]
    results = [{"image_id": number, "segmentation": mask, "score": 0.1} for number in (0, 1, 0, 1)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    FORMATS.get("coco_results").fill(tmp_path / "results.json", renamed(labels), tmp_path / "same")
    after = json.loads((tmp_path / "same" / "results.json").read_text())
    assert [row.get("category_name") for row in after] == [None, "a", "teddy & bear", "b"]
    assert [row["score"] for row in after] == [0.1] * 4  # the proposals' own


def test_ids_of_categories_that_are_filled_in() -> None:
    rows = [{"id": 3, "name": "cat"}]
    assert filled_ids(rows, {"cat": 1, "dog": 3, "ape": 9}) == {"cat": 3, "dog": 4, "ape": 9}
    assert rows == [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 9, "name": "ape"}]


def test_a_parquet_table(labels: LabeledImages, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    FORMATS.get("parquet").write(labels, tmp_path)
    rows = parquet.read_table(tmp_path / "labels.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["old"] * 4 and [row["id"] for row in rows] == ["7", "8"] * 2
    shapes = [one for image in labels.images for one in image.shapes]
    assert [(row["rle"], row["prob"], row["area"]) for row in rows] == [
        (s.rle["counts"], s.prob, s.area) for s in shapes
    ]
    assert [row["parent"] for row in rows] == [None] * 4


def test_tags_have_the_share_of_all_masks_of_a_name() -> None:
    """Common pixels count once."""
    shapes = (shape(box_mask(0, 0, 30, 40), "sky", 0.5), shape(box_mask(0, 0, 30, 20), "sky", 0.9))
    cup = shape(box_mask(40, 0, 46, 40), "cup")
    tags = image_tags(LabeledImage(0, "a.png", "", (WIDTH, HEIGHT), (cup, *shapes)))
    assert tags == [
        {"name": "sky", "masks": 2, "share": 0.5, "prob": 0.9},
        {"name": "cup", "masks": 1, "share": 0.1, "prob": 0.5},
    ]


def test_shards_are_those_of_osm_prepare(labels: LabeledImages, tmp_path: Path) -> None:
    from osm.prepare.convert import ConvertOptions, convert_coco_instances

    out = tmp_path / "out"
    for _ in range(2):  # written again, they are replaced
        (out / ".osm_label").mkdir(parents=True, exist_ok=True)
        FORMATS.get("shards").write(labels, out)
    FORMATS.get("coco").write(labels, tmp_path)
    convert_coco_instances(tmp_path / "labels.json", tmp_path / "images", ConvertOptions(tmp_path / "own"))
    names = ("000000000.tar", "categories.json")
    assert [(out / "shards" / n).read_bytes() for n in names] == [(tmp_path / "own" / n).read_bytes() for n in names]
    assert not (out / ".osm_label" / "staged").exists()
    reader = recognized(out / "shards" / names[0])
    read = {}
    for source in reader.sources(out / "shards" / names[0]):
        assert source.stored is not None and source.stored.photo(None).size == (WIDTH, HEIGHT)
        shapes = [one for one in reader.shapes(source, (WIDTH, HEIGHT)) if isinstance(one, LabelShape)]
        read[Path(source.image).name.partition(".")[0]] = [(one.label, one.rle["counts"]) for one in shapes]
    assert read == {
        Path(image.file_name).stem: [(one.name, one.rle["counts"]) for one in image.shapes] for image in labels.images
    }


# Overlaps


def test_merged_masks_share_no_pixel() -> None:
    left, right, small = box_mask(0, 0, 40, 40), box_mask(32, 0, 60, 40), box_mask(5, 5, 8, 8)
    found = merge_shapes([shape(left, "sky", 0.6), shape(right, "sea", 0.9), shape(small, "sun", 0.2)])
    assert [one.name for one in found] == ["sky", "sea"]  # the sun lies behind the sky
    assert np.array_equal(found[0].mask, box_mask(0, 0, 32, 40)) and np.array_equal(found[1].mask, right)
    rules = KeepRules(overlaps="merge")
    image = LabeledImage(0, "a", "", (WIDTH, HEIGHT), (shape(left, "sky", 0.6), shape(small, "sun", 0.2)))
    assert rules.kept(image, Corrections())[1] == {"covered by more probable masks": 1}


def test_parts_name_the_smallest_whole(tmp_path: Path) -> None:
    masks = {
        "wheel": box_mask(5, 20, 12, 27),
        "car": box_mask(2, 10, 40, 30),
        "street": box_mask(0, 5, 60, 40),
        "tree": box_mask(35, 0, 50, 20),  # only a part of it is in front of the car
    }
    shapes = with_parents([shape(mask, name) for name, mask in masks.items()])
    assert [one.parent for one in shapes] == [1, 2, None, None]
    image = LabeledImage(0, "a.png", "a.png", (WIDTH, HEIGHT), tuple(shapes))
    labels = LabeledImages([image, image], {name: k for k, name in enumerate(masks, 1)})
    FORMATS.get("coco").write(labels, tmp_path)
    rows = json.loads((tmp_path / "labels.json").read_text())["annotations"]
    assert [row.get("parent_id") for row in rows] == [2, 3, None, None, 6, 7, None, None]
    FORMATS.get("label_studio").write(labels, tmp_path)
    results = json.loads((tmp_path / "label_studio.json").read_text())[0]["predictions"][0]["result"]
    assert [row.get("parentID") for row in results] == [results[1]["id"], results[2]["id"], None, None]


# Corrections


def test_corrections_of_the_same_predictions_apply(tmp_path: Path) -> None:
    shapes = (
        shape(box_mask(0, 0, 9, 9), "cup", 0.1),
        shape(box_mask(9, 9, 20, 20), "mug", 0.1, unsure=True),
        shape(box_mask(20, 9, 30, 20), "jar", 0.1),
    )
    image = LabeledImage(0, "a.png", "", (WIDTH, HEIGHT), shapes)
    rows = [
        {"file_name": "a.png", "shape": 0, "predicted": "cup", "name": None},
        {"file_name": "a.png", "shape": 1, "predicted": "mug", "name": " tea cup "},
        {"file_name": "a.png", "shape": 2, "predicted": "bottle", "name": "vase"},
    ]
    (tmp_path / "c.json").write_text(json.dumps({"corrections": rows}))
    corrections = Corrections.read(tmp_path / "c.json", "--corrections")
    kept, lost = KeepRules(min_prob=0.2, unsure="drop").kept(image, corrections)
    assert [(one.name, one.prob) for one in kept.shapes] == [("tea cup", 1.0)]
    assert lost == {REMOVED: 1, "below min_prob": 1} and len(corrections.applied_to) == 2
    corrections.add(Corrections({("a.png", 0): Correction("cup", "cup")}))
    corrections.write(tmp_path / "d.json")
    assert Corrections.read(tmp_path / "d.json", "x").entries[("a.png", 0)].name == "cup"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (3, r"corrections\[0\] 3 is not an object"),
        ({"file_name": "a", "shape": -1, "name": "x"}, "expected the fields file_name \\(text\\), shape"),
        ({"file_name": "a", "shape": 0, "predicted": "", "name": " "}, "is not a name of at most 200 characters"),
        ({"file_name": "a", "shape": 0, "predicted": "", "name": "a\u0000"}, "is not a name of at most 200 characters"),
    ],
)
def test_corrections_that_are_malformed(row: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"corrections": [row]}))
    with pytest.raises(OsmError, match=said):
        Corrections.read(tmp_path / "c.json", "--corrections")


# The whole command, as a function


def test_osm_label(labels: LabeledImages, checkpoint: Path, tmp_path: Path) -> None:
    """Names, corrections with a new name, and the numbers of a vocabulary."""
    FORMATS.get("coco").write(labels, tmp_path)
    options: dict[str, Any] = {"masks": tmp_path / "labels.json", "checkpoint": str(checkpoint), "device": "cpu"}
    options |= {"max_new_tokens": 3, "vocabulary": ["cat", "dog"]}
    summary = osm.label(tmp_path / "images", tmp_path / "out", to="coco,same,cvat", **options)
    assert (summary.images, summary.masks) == (2, 4)
    document = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [(row["id"], row["name"]) for row in document["categories"]] == [(1, "cat"), (2, "dog")]
    names = {1: "cat", 2: "dog"}
    predicted = [names[row["category_id"]] for row in document["annotations"]]
    same = json.loads((tmp_path / "out" / "same" / "labels.json").read_text())
    of_same = {row["id"]: row["name"] for row in same["categories"]}
    assert [of_same[row["category_id"]] for row in same["annotations"]] == predicted
    row = {"file_name": "1.png", "shape": 1, "predicted": predicted[3], "name": "ape"}
    (tmp_path / "c.json").write_text(json.dumps({"corrections": [row, {**row, "shape": 5}]}))
    again = osm.label(tmp_path / "images", tmp_path / "out", corrections=tmp_path / "c.json", **options)
    assert (again.corrected, again.stale) == (1, 1)
    document = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert document["categories"][-1] == {"id": 3, "name": "ape"} and document["annotations"][3]["category_id"] == 3
    osm.label(tmp_path / "images", tmp_path / "out", to=["yolo"], **options)  # they are not forgotten
    assert yaml.safe_load((tmp_path / "out" / "yolo" / "data.yaml").read_text())["names"] == {
        0: "cat",
        1: "dog",
        2: "ape",
    }
    assert ElementTree.parse(tmp_path / "out" / "cvat.xml").getroot().tag == "annotations"
    with pytest.raises(OsmError, match="option 'mask' is not one of"):
        osm.label(tmp_path / "images", tmp_path / "out", mask="x")
    with pytest.raises(OsmError, match="names cannot be filled into segments of a segmenter"):
        osm.label(tmp_path / "images", tmp_path / "new", to="same", auto=True, checkpoint=str(checkpoint))
