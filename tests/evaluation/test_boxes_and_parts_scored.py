"""Proposals on sets of boxes and of parts: figures by hand, and beside slow, obvious references."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_namer import FakeName
from PIL import Image
from six_sets import HEIGHT, WIDTH, AreaNamer
from three_sets import area, make, picture, write_v3det

from osm.cli import main
from osm.evaluation.predict.generate_cli import generate_main

Pixels = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom excluded


class BoundsNamer(AreaNamer):
    """Names masks by the box around them."""

    def __init__(self, names: dict[Pixels, str]) -> None:
        super().__init__()
        self.names = names

    def name_image(self, image: Image.Image, masks: np.ndarray, modes: Sequence[str]) -> list[Any]:
        found = [self.names.get(bounds(mask)) for mask in masks]
        return [name and {mode: FakeName(name, 0.5) for mode in modes} for name in found]


def bounds(mask: np.ndarray) -> Pixels:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def name_all(name: str, proposals: list[dict[str, Any]], names: dict[Pixels, str]) -> BoundsNamer:
    Path("proposals.json").write_text(json.dumps(proposals))
    namer = BoundsNamer(names)
    command = ["0", "1", "my.pt", "out", "--sets", name, "--masks", "proposals.json"]
    assert generate_main(command, lambda *_, **__: namer) == 0
    return namer


def scored(name: str, *flags: str) -> Any:
    assert main(["evaluate_proposals", "out", "1", "--map", "exact", "--json", "scores.json", *flags]) == 0
    return json.loads(Path("scores.json").read_text())[name]


def rle(mask: np.ndarray) -> dict[str, Any]:
    """An uncompressed one: runs down the columns, of 0 first."""
    runs, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": runs}


# Boxes.


def test_box_ap_by_hand(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In images 1 and 2: an ashtray in columns 0 to 3, a cash machine in 4 to 7, a crowd of ashtrays there, too."""
    make("v3det", root, 3)
    proposals = [
        {"image_id": 1, "bbox": [0, 0, 4, 6], "score": 0.9, "segmentation": "not looked at"},
        {"image_id": 2, "bbox": [4, 0, 4, 5], "score": 0.9},  # 20 of 24 pixels: right up to IoU 0.80
        {"image_id": 1, "bbox": [4.5, 0.5, 3, 5], "score": 0.8},  # rounded outwards: 24 of 24
        {"image_id": 1, "bbox": [5, 0, 3, 6], "score": 0.7},  # an ashtray upon the crowd of ashtrays: no matter
        {"image_id": 2, "segmentation": rle(area(0, 0, 4, 1) | area(0, 5, 1, 6))},  # no bbox: the box around the mask
    ]
    names = {
        (0, 0, 4, 6): "ashtray",
        (4, 0, 8, 5): "cash machine",
        (4, 0, 8, 6): "cash machines",
        (5, 0, 8, 6): "ashtray",
    }
    namer = name_all("v3det", proposals, names)
    assert set(namer.boxed) == {True}
    scores = scored("v3det")
    # Cash machine: found in the order 0.9 (IoU 5/6), 0.8 (IoU 1). Over IoU 0.80 the first is wrong: half right.
    half = 51 / 101 * 0.5
    assert scores["box_ap"]["by_class"] == {"1": 1, "2": pytest.approx((7 * 1 + 3 * half) / 10)}
    assert scores["box_ap"]["protocol"] == "coco" and not {"mask_ap", "panoptic", "semantic"} & set(scores)
    assert scores["counts"]["truth_unusable"] == 1
    out, err = capsys.readouterr()
    assert "V3Det Detection proposals, mode v3det, percent:" in out and "Boxes (COCO's protocol): AP 88.79" in out
    assert "v3det: only box AP is defined: boxes overlap" in err
    assert "v3det: 1 invalid annotations, left out" in err
    assert main(["evaluate_proposals", "out", "1", "--map", "exact", "--without_ap"]) == 2
    assert "--without_ap: dataset 'v3det' would have no score, because only box AP is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"bbox [1, 2, 3] is not [x, y, width, height]"),
        ({"bbox": [1, 2, 0, 3]}, "bbox [1, 2, 0, 3] has no area"),
        ({"bbox": [80, 2, 2, 3]}, "bbox [80, 2, 2, 3] is outside the image, which is 8 x 6 pixels"),
        (
            {"segmentation": 5},
            "proposal 0: segmentation 5 is neither an RLE {size, counts} nor polygons, and there is no bbox",
        ),
    ],
)
def test_boxes_that_are_none(
    root: Path, wrong: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make("v3det", root, 2)
    Path("proposals.json").write_text(json.dumps([{"image_id": 1, **wrong}]))
    command = ["0", "1", "my.pt", "out", "--sets", "v3det", "--masks", "proposals.json"]
    assert generate_main(command, lambda *_, **__: AreaNamer()) == 2
    assert message in capsys.readouterr().err


def test_a_crowd_with_no_box(root: Path) -> None:
    """It excuses nothing, and ends nothing."""
    image = {"id": 1, "file_name": "images/n1/a.jpg", "width": WIDTH, "height": HEIGHT}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 6]}
    write_v3det(root, [image], [box, {**box, "id": 2, "iscrowd": 1, "bbox": None}, {**box, "id": 3, "iscrowd": 1}])
    name_all("v3det", [{"image_id": 1, "bbox": [0, 0, 4, 6]}], {(0, 0, 4, 6): "ashtray"})
    assert scored("v3det")["box_ap"]["ap"] == 1


def pixels(box: Sequence[float]) -> Pixels:
    x, y, width, height = box
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    return left, top, min(WIDTH, math.ceil(x + width)), min(HEIGHT, math.ceil(y + height))


def overlap(one: Pixels, other: Pixels) -> float:
    """IoU by counting pixels one by one."""
    first, second = (
        {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one, other)
    )  # fmt: skip
    return len(first & second) / len(first | second)


def slow_ap(true: dict[int, list[Pixels]], found: list[tuple[float, int, Pixels]]) -> float:
    """AP of a class: `true` by image, `found` as (score, image, box)."""
    found, total = sorted(found, key=lambda one: -one[0]), sum(map(len, true.values()))
    aps = []
    for threshold in np.linspace(0.5, 0.95, 10):
        free = {image: list(boxes) for image, boxes in true.items()}
        right = 0
        points: list[tuple[float, float]] = []  # recall, precision
        for number, (_, image, box) in enumerate(found, 1):
            # Of equals the last, as the library does.
            best = max(reversed(free[image]), key=lambda other: overlap(box, other), default=None)
            if best is not None and overlap(box, best) >= threshold - 1e-10:
                free[image].remove(best)
                right += 1
            points.append((right / total, right / number))
        wanted = np.linspace(0, 1, 101)
        aps += [np.mean([max((p for r, p in points if r >= recall), default=0.0) for recall in wanted])]
    return float(np.mean(aps))


@pytest.mark.parametrize("seed", range(3))
def test_box_ap_beside_a_slow_reference(root: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = {1: "ashtray", 2: "cash machine"}

    def box() -> list[float]:
        x, y = rng.uniform(-1, WIDTH - 2), rng.uniform(-1, HEIGHT - 2)
        return [round(float(n), 2) for n in (x, y, rng.uniform(1.5, WIDTH), rng.uniform(1.5, HEIGHT))]

    count = 6
    names = {i: f"images/n{i}/a.jpg" for i in range(count)}
    images = [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in names.items()]
    annotations: list[dict[str, Any]] = []
    proposals: list[dict[str, Any]] = []
    named: dict[Pixels, str] = {}
    for i in names:
        for _ in range(int(rng.integers(1, 4))):
            annotations.append(
                {"id": len(annotations), "image_id": i, "category_id": int(rng.integers(1, 3)), "bbox": box()}
            )
        for _ in range(8):
            near = rng.choice([a for a in annotations if a["image_id"] == i])  # type: ignore[arg-type]
            b = [n + float(rng.uniform(-0.6, 0.6)) for n in near["bbox"]] if rng.random() < 0.7 else box()
            if b[2] > 0.5 and b[3] > 0.5 and b[0] + b[2] > 0.1 and b[1] + b[3] > 0.1:
                proposals.append({"image_id": i, "bbox": b, "score": float(rng.random())})
                named.setdefault(pixels(b), classes[near["category_id"]])
    write_v3det(root, images, annotations)
    name_all("v3det", proposals, named)
    found = scored("v3det")["box_ap"]["by_class"]
    for category, name in classes.items():
        of_class = [a for a in annotations if a["category_id"] == category]
        true = {i: [pixels(a["bbox"]) for a in of_class if a["image_id"] == i] for i in names}
        said = [(p["score"], p["image_id"], pixels(p["bbox"])) for p in proposals if named[pixels(p["bbox"])] == name]
        assert found[str(category)] == pytest.approx(slow_ap(true, said), abs=1e-9)
    assert min(found.values()) > 0 and max(found.values()) < 1


# Parts.


def test_miou_of_parts_by_hand(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Head in columns 0 to 3, tail in 4 and 5, no part in 6 and 7: void. Of the second image there is no proposal."""
    make("partimagenet", root, 2)
    image = {"file_name": "n01440000_1.JPEG"}
    proposals = [
        {**image, "segmentation": rle(area(0, 0, 3, 6)), "score": 0.9},
        {**image, "segmentation": rle(area(3, 0, 8, 6)), "score": 0.8},
    ]
    name_all("partimagenet", proposals, {(0, 0, 3, 6): "quadruped heads", (3, 0, 8, 6): "Quadruped tail"})
    scores = scored("partimagenet")
    # Head: 18 of 2 * 24. Tail: 12 of 2 * 12 true and 18 said, 6 of them head; two void columns do not count.
    assert scores["semantic"]["by_class"] == {"0": pytest.approx(18 / 48), "3": pytest.approx(12 / 30)}
    assert scores["semantic"]["miou"] == pytest.approx((18 / 48 + 12 / 30) / 2)
    assert not {"panoptic", "mask_ap", "box_ap"} & set(scores)
    out, err = capsys.readouterr()
    assert "Semantic: mIoU 38.75 (classes: 2)" in out and "only mIoU is defined" in err


def test_miou_of_pascal_parts_by_hand(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the first image: a cow's head (12 pixels beside ear and a car's part without a name), its ear (6)."""
    make("pascal_part", root, 2)
    image = {"file_name": "2008_000002.jpg"}
    name_all("pascal_part", [{**image, "segmentation": rle(area(0, 0, 4, 6))}], {(0, 0, 4, 6): "cow head"})
    scores = scored("pascal_part")
    assert scores["semantic"]["by_class"] == {"2": pytest.approx(12 / 18), "3": 0}
    assert scores["counts"]["images"] == 2  # a .mat file without parts is an image all of void
    from source_sets import write_mat

    parts = [("head", area(0, 0, 4, 6)), ("antenna", area(0, 0, 1, 6))]
    write_mat(root / "pascal_part/Annotations_Part/2008_000002.mat", [("cow", area(0, 0, 8, 6), parts)])
    capsys.readouterr()
    assert scored("pascal_part")["semantic"]["miou"] == 1
    unknown = "1 ids of label maps, and parts of .mat files, that the labels do not define, void"
    assert unknown in capsys.readouterr().err


def slow_miou(true: list[np.ndarray], said: list[np.ndarray], classes: Sequence[int]) -> dict[int, float]:
    """IoU by class, pixel by pixel; `true` has ids of no class where it is void, `said` has -1 where nothing is."""
    both, either, there = ({i: 0 for i in classes} for _ in range(3))
    for map_true, map_said in zip(true, said, strict=True):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                t, s = int(map_true[y, x]), int(map_said[y, x])
                if t not in classes:
                    continue
                there[t] += 1
                both[t] += t == s
                for i in {t, s} & set(classes):
                    either[i] += 1
    return {i: both[i] / either[i] for i in classes if there[i]}


@pytest.mark.parametrize("seed", range(3))
def test_miou_of_parts_beside_a_slow_reference(root: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = {0: "quadruped head", 1: "quadruped body", 3: "quadruped tail"}
    maps, proposals, said = [], [], []
    names: dict[Pixels, str] = {}
    folder = root / "PartImageNet/annotations/val"
    folder.mkdir(parents=True)
    for number in range(4):
        stem = f"n0144{number:04d}_1"
        picture(root / f"PartImageNet/images/val/{stem}.JPEG", number)
        maps.append(rng.choice([0, 1, 3, 40, 77], (HEIGHT, WIDTH)))
        Image.fromarray(maps[-1].astype(np.uint8)).save(folder / f"{stem}.png")
        drawn = np.full((HEIGHT, WIDTH), -1)
        scores = sorted(rng.random(6).tolist(), reverse=True)
        of_image = []
        for score in scores:
            left, top = int(rng.integers(WIDTH - 1)), int(rng.integers(HEIGHT - 1))
            box = (left, top, int(rng.integers(left + 1, WIDTH + 1)), int(rng.integers(top + 1, HEIGHT + 1)))
            category = int(rng.choice(list(classes)))
            name = names.setdefault(box, classes[category])
            category = next(i for i, one in classes.items() if one == name)
            drawn[area(*box) & (drawn < 0)] = category
            of_image.append({"file_name": f"{stem}.JPEG", "segmentation": rle(area(*box)), "score": score})
        proposals += [of_image[k] for k in rng.permutation(len(of_image))]
        said.append(drawn)
    name_all("partimagenet", proposals, names)
    expected = slow_miou(maps, said, list(classes))
    found = scored("partimagenet", "--overlap", "0")["semantic"]
    assert found["by_class"] == {str(i): pytest.approx(iou) for i, iou in expected.items()}
    assert found["miou"] == pytest.approx(sum(expected.values()) / len(expected)) and 0 < found["miou"] < 1
