"""Every format holds what its table says, and nothing else is lost on the way there and back."""

from __future__ import annotations

import csv
import itertools
import json
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from osm.errors import OsmError, SampleError
from osm.io.segmentation import encode_rle
from osm.labeling.formats import FORMATS, recognized
from osm.labeling.formats.label_format import LabeledImage, LabeledImages, LabelFormat, LabelShape
from osm.labeling.outlines import outlines

PLACES = {
    "coco": "labels.json",
    "coco_polygons": "labels_polygons.json",
    "coco_panoptic": "panoptic.json",
    "cvat": "cvat.xml",
    "label_studio": "label_studio.json",
    "labelme": "labelme",
    "xanylabeling": "xanylabeling",
    "yolo": "yolo",
}
NAMES = ("teddy bear", 'a <b> & "c"', "naïve café", "dining table", "7")
EIGHT = np.ones((3, 3))  # pixels of a hole may touch in a corner
RANDOM_PAIRS = random.Random(22).sample(list(itertools.permutations(PLACES, 2)), 10)


def blobs(seed: int, size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Masks that do not overlap: of one part, of several parts, and with holes."""
    rng = np.random.default_rng(seed)
    regions, count = ndimage.label(ndimage.gaussian_filter(rng.normal(size=size_hw), 3) > 0)
    masks = [regions == k for k in range(1, count + 1)]
    masks = [mask for mask in masks if mask.sum() > 30]
    return [masks[0] | masks[1], *masks[2:]] if len(masks) > 3 else masks


@pytest.fixture(scope="module")
def labels() -> LabeledImages:
    images = []
    for number in range(3):
        width, height = 90 + number, 70
        shapes = tuple(
            LabelShape(encode_rle(mask), None, k + 10, "", NAMES[(number + k) % len(NAMES)], 0.5 + k / 64)
            for k, mask in enumerate(blobs(number, (height, width)))
        )
        images.append(LabeledImage(number, f"folder/image {number}.jpg", f"/x/{number}.jpg", (width, height), shapes))
    assert any(len(outlines(shape.mask)) > 1 for image in images for shape in image.shapes)
    return LabeledImages(images, {name: number for number, name in enumerate(NAMES, 1)}, "osm_small")


def written(labels: LabeledImages, name: str, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    FORMATS.get(name).write(labels, out)
    return out / PLACES[name]


def read(path: Path, labels: LabeledImages, reader: type[LabelFormat] | None = None) -> LabeledImages:
    """Read masks again. The labels that are read become the names."""
    reader = reader or recognized(path)
    sources = {Path(source.image).stem: source for source in reader.sources(path)}
    images = []
    for image in labels.images:
        found = list(reader.shapes(sources[Path(image.file_name).stem], image.size))
        assert not [error for error in found if isinstance(error, SampleError)]
        shapes = [
            LabelShape(one.rle, one.box, one.id, "", one.label, 0.9 - k / 64)
            for k, one in enumerate(found)
            if isinstance(one, LabelShape)
        ]
        images.append(LabeledImage(image.number, image.file_name, image.path, image.size, tuple(shapes)))
    return LabeledImages(images, labels.categories, labels.model)


def compare(before: LabeledImages, after: LabeledImages, holes: bool, parts: bool) -> None:
    """Every mask is there as it was, apart from what the formats on the way do not hold."""
    for old, new in zip(before.images, after.images, strict=True):
        expected = []
        for shape in old.shapes:
            mask = shape.mask if holes else ndimage.binary_fill_holes(shape.mask, EIGHT)
            regions, count = ndimage.label(mask)
            pieces = [regions == k for k in range(1, count + 1)] if not parts and count > 1 else [mask]
            expected += [(shape.name, piece.tobytes()) for piece in pieces]
        assert sorted(expected) == sorted((shape.name, shape.mask.tobytes()) for shape in new.shapes)


@pytest.mark.parametrize("name", PLACES)
def test_every_format_there_and_back(name: str, labels: LabeledImages, tmp_path: Path) -> None:
    path, holds = written(labels, name, tmp_path), FORMATS.get(name).holds
    compare(labels, read(path, labels), holds.holes, holds.parts)


@pytest.mark.parametrize(("first", "second"), RANDOM_PAIRS)
def test_pairs_of_formats(first: str, second: str, labels: LabeledImages, tmp_path: Path) -> None:
    between = read(written(labels, first, tmp_path / "1"), labels)
    after = read(written(between, second, tmp_path / "2"), labels)
    holds = FORMATS.get(first).holds, FORMATS.get(second).holds
    compare(labels, after, all(one.holes for one in holds), all(one.parts for one in holds))


def test_the_formats_say_whether_they_hold_scores_and_ids(labels: LabeledImages, tmp_path: Path) -> None:
    """The score and the id of the first mask are searched for in the text of each format's files."""
    for name, place in PLACES.items():
        path = written(labels, name, tmp_path / name)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in (".json", ".txt")]
        text = "".join(file.read_text() for file in files)
        assert FORMATS.get(name).holds.scores == ('"score": 0.5' in text), place
        assert FORMATS.get(name).holds.ids == ('"source_id": 10' in text or '"id": "10"' in text), place


def test_boxes_stay_boxes(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), bool)
    mask[5:15, 10:30] = True
    shape = LabelShape(encode_rle(mask), (10.0, 5.0, 20.0, 10.0), name="cup", prob=0.5)
    labels = LabeledImages([LabeledImage(0, "a.png", "a.png", (50, 40), (shape,))], {"cup": 1})
    for name in ("cvat", "label_studio", "labelme"):
        (image,) = read(written(labels, name, tmp_path / name), labels).images
        assert image.shapes[0].box == pytest.approx((10, 5, 20, 10)) and np.array_equal(image.shapes[0].mask, mask)


def test_the_table_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "labeling.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    table = {row[0].strip("`"): [cell == "yes" for cell in row[4:]] for row in rows if len(row) == 10}
    assert set(table) == set(FORMATS.names())
    for name, cells in table.items():
        holds = FORMATS.get(name).holds
        expected = [holds.holes, holds.parts, holds.overlaps, holds.scores, holds.ids, holds.parents]
        assert cells == [holds.masks and one for one in expected], name
    written = {row[0].strip("`"): row[3].split(",")[0].strip("`/") for row in rows if len(row) == 10}
    for name, place in written.items():
        assert place == (FORMATS.get(name).output if FORMATS.get(name).writes else "no"), name


# Other programs read the files.


def test_pycocotools_reads_coco(labels: LabeledImages, tmp_path: Path) -> None:
    for name in ("coco", "coco_polygons"):
        coco = COCO(str(written(labels, name, tmp_path)))
        found = [coco.annToMask(row).astype(bool) for row in coco.loadAnns(coco.getAnnIds())]
        masks = [shape.mask for image in labels.images for shape in image.shapes]
        masks = masks if name == "coco" else [ndimage.binary_fill_holes(mask, EIGHT) for mask in masks]
        assert all(map(np.array_equal, found, masks))
        rows = coco.loadAnns(coco.getAnnIds())
        assert [row["area"] for row in rows] == [s.area for i in labels.images for s in i.shapes]
        assert {coco.cats[row["category_id"]]["name"] for row in rows} <= set(NAMES)


def test_opencv_draws_yolo_and_labelme_polygons(labels: LabeledImages, tmp_path: Path) -> None:
    path = written(labels, "yolo", tmp_path)
    names = yaml.safe_load((path / "data.yaml").read_text())["names"]
    assert [names[k] for k in sorted(names)] == list(labels.categories)
    for image in labels.images:
        canvas = np.zeros(image.size[::-1], np.uint8)
        lines = (path / "labels" / image.file_name).with_suffix(".txt").read_text().splitlines()
        for line in lines:
            points = np.array(line.split()[1:], float).reshape(-1, 2) * image.size
            cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
        union = np.any([ndimage.binary_fill_holes(shape.mask, EIGHT) for shape in image.shapes], 0)
        assert np.array_equal(canvas.astype(bool), union)


def test_a_csv_row_for_each_mask(labels: LabeledImages, tmp_path: Path) -> None:
    FORMATS.get("csv").write(labels, tmp_path)
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shapes = [shape for image in labels.images for shape in image.shapes]
    assert [row["name"] for row in rows] == [shape.name for shape in shapes]
    assert [(row["rle"], float(row["prob"])) for row in rows] == [(s.rle["counts"], s.prob) for s in shapes]


def test_the_panoptic_png_gives_common_pixels_to_the_more_probable_name(tmp_path: Path) -> None:
    left, right = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    left[:, :12], right[:, 8:] = True, True
    shapes = tuple(
        LabelShape(encode_rle(mask), name=name, prob=prob)
        for mask, name, prob in ((left, "sky", 0.6), (right, "sea", 0.9))
    )
    labels = LabeledImages([LabeledImage(0, "a.png", "a.png", (20, 10), shapes)], {"sky": 1, "sea": 2})
    (image,) = read(written(labels, "coco_panoptic", tmp_path), labels).images
    assert [(shape.name, shape.area) for shape in image.shapes] == [("sky", 80), ("sea", 120)]


# Files of others, and broken ones.


def test_sa1b_and_dumps_of_sam(tmp_path: Path) -> None:
    mask = blobs(1, (40, 50))[0]
    row = {"segmentation": encode_rle(mask), "predicted_iou": 0.9, "stability_score": 0.9, "id": 3}
    for document in ({"image": {"file_name": "sa_1.jpg", "width": 50}, "annotations": [row]}, [row]):
        (tmp_path / "sa_1.json").write_text(json.dumps(document))
        reader = recognized(tmp_path)
        assert reader.name == "sam"
        (source,) = reader.sources(tmp_path)
        (shape,) = reader.shapes(source, (50, 40))
        assert isinstance(shape, LabelShape) and np.array_equal(shape.mask, mask)
        assert Path(source.image).stem == "sa_1"


def test_shapes_that_people_draw_in_labelme(tmp_path: Path) -> None:
    shapes = [
        {"label": "a", "shape_type": "circle", "points": [[20, 20], [20, 26]]},
        {"label": "b", "shape_type": "rectangle", "points": [[30, 5], [10, 2]]},
        {"label": "c", "shape_type": "line", "points": [[30, 5], [10, 2]]},
        {"label": "d", "points": [[1, 1], [9, 1]]},
        {"label": "e", "shape_type": "mask", "points": [[0, 0], [3, 3]], "mask": "not base64!"},
        "nonsense",
    ]
    document = {"shapes": shapes, "imagePath": "..\\photos\\a.jpg", "imageWidth": 50, "imageHeight": 40}
    (tmp_path / "a.json").write_text(json.dumps(document))
    (source,) = recognized(tmp_path).sources(tmp_path)
    found = list(recognized(tmp_path).shapes(source, (50, 40)))
    circle, rectangle, *errors = found
    assert isinstance(circle, LabelShape) and circle.area == pytest.approx(np.pi * 36, rel=0.05)
    assert isinstance(rectangle, LabelShape) and rectangle.box == (10, 2, 20, 3)
    reasons = [error.reason for error in errors if isinstance(error, SampleError)]
    assert reasons == ["shape_without_area", "polygon_too_short", "mask_unreadable", "annotation_malformed"]


def test_cvat_polygons_boxes_and_what_is_broken(tmp_path: Path) -> None:
    shapes = (
        '<polygon label="a" points="1,1;9,1;9,5;1,5"/><box label="b" xtl="2" ytl="3" xbr="8" ybr="9"/>'
        '<mask label="c" rle="1, 2, 1" left="48" top="0" width="4" height="1"/>'
        '<mask label="c" rle="1, 2" left="0" top="0" width="4" height="1"/><points label="d" points="1,1"/>'
    )
    file = tmp_path / "a.xml"
    file.write_text(f'<annotations><image name="a.jpg" width="50" height="40">{shapes}</image></annotations>')
    (source,) = recognized(file).sources(file)
    polygon, box, *errors = recognized(file).shapes(source, (50, 40))
    assert isinstance(polygon, LabelShape) and polygon.area == 32 and polygon.label == "a"
    assert isinstance(box, LabelShape) and box.area == 36
    reasons = [error.reason for error in errors if isinstance(error, SampleError)]
    assert reasons == ["mask_size", "rle_malformed", "shape_without_area"]
    file.write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>')
    with pytest.raises(OsmError, match="document type declaration"):
        list(recognized(file).sources(file))
    ElementTree.fromstring("<annotations/>")


def test_label_studio_values_and_what_is_broken(tmp_path: Path) -> None:
    def result(kind: str, **value: object) -> dict[str, object]:
        return {"id": "r", "type": kind, "value": {**value, kind: ["a"]}}

    results = [
        result("polygonlabels", points=[[0, 0], [50, 0], [50, 50], [0, 50]]),
        result("rectanglelabels", x=10, y=10, width=20, height=50, rotation=0),
        result("rectanglelabels", x=10, y=10, width=20, height=50, rotation=30),
        result("brushlabels", format="rle", rle=[0, 0, 0, 9, 57]),
        result("brushlabels", format="rle", rle="text"),
        {"type": "choices", "value": {}},
    ]
    file = tmp_path / "a.json"
    task = {"data": {"image": "/data/local-files/?d=some/a%20b.jpg"}, "annotations": [{"result": results}]}
    file.write_text(json.dumps([task]))
    (source,) = recognized(file).sources(file)
    assert source.image == "some/a b.jpg"
    polygon, box, *errors = recognized(file).shapes(source, (50, 40))
    assert isinstance(polygon, LabelShape) and polygon.area == 500
    assert isinstance(box, LabelShape) and box.box == pytest.approx((5, 4, 10, 20)) and box.label == "a"
    reasons = [error.reason for error in errors if isinstance(error, SampleError)]
    assert reasons == ["box_malformed", "rle_size", "rle_malformed"]


def test_yolo_boxes(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.5\n0 0.1 0.2\n\nx\n")
    (source,) = recognized(tmp_path).sources(tmp_path)
    box, *errors = recognized(tmp_path).shapes(source, (50, 40))
    assert isinstance(box, LabelShape) and box.box == pytest.approx((20, 10, 10, 20)) and box.label == "dog"
    assert [e.reason for e in errors if isinstance(e, SampleError)] == ["polygon_too_short", "annotation_malformed"]


def test_what_is_not_recognized(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(OsmError, match=r"its format is not recognized; name it with --from \(coco, "):
        recognized(tmp_path)
    with pytest.raises(OsmError, match="no such file or folder"):
        recognized(tmp_path / "none")
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [3]}')
    with pytest.raises(OsmError, match=r"annotations\[0\] 3 is not an object"):
        list(FORMATS.get("coco").sources(tmp_path / "a.json"))
