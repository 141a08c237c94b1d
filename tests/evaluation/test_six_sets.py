"""The six val sets of the published benchmark: their trees, the prediction files field by field, kills, scores."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from six_sets import SETS, AreaNamer, make, row_of

from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.metrics.evaluate import evaluate_set
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.predict.generate_cli import generate_main
from osm.evaluation.report.result_images import draw_pictures
from osm.forms import split_of


def test_all_sets_by_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a flag: the trees are those that `configs/benchmark.yaml` names, all six are named and scored."""
    whole = {name: make(name, root, 3) for name in SETS}
    namer = AreaNamer()
    for part in range(2):
        assert generate_main([str(part), "2", "my.pt", "out"], lambda *_, **__: namer) == 0
    assert "v3det: left out, image_dir V3Det does not exist" in capsys.readouterr().err
    for name, document in whole.items():
        parts = [json.loads((root / f"out/{name}_pred_{part}_of_2.json").read_text()) for part in range(2)]
        if isinstance(document, list):
            assert parts == [document[:1], document[1:]]
        else:
            assert parts == [{"pred": document["pred"][:1]}, {"pred": document["pred"][1:]}]
    assert evaluate_main(["out", "2"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.endswith("evaluation:")]
    assert sorted(titles) == [
        "A-847 Semantic evaluation:",
        "ADE20K Panoptic evaluation:",
        "COCO Panoptic evaluation:",
        "Cityscapes Panoptic evaluation:",
        "LVIS Instance evaluation:",
        "PC-459 Semantic evaluation:",
    ]


def test_semantic_file_in_full(root: Path) -> None:
    make("pc459", root, 1)
    path = generate_predictions(AreaNamer(), row_of("pc459"), 0, 1, root / "out")
    accordion = '{"pc459": {"class": "pc459 30", "prob": 0.25}, "any": {"class": "any 30", "prob": 0.25}}'
    last = '{"pc459": {"class": "pc459 6", "prob": 0.25}, "any": {"class": "any 6", "prob": 0.25}}'
    assert path.read_text() == (
        '{"pred": [{"file_name": "2008_000002.jpg", "pred": [{"mask_unique_id": 0, "open_end_pred": '
        + accordion
        + '}, {"mask_unique_id": 458, "open_end_pred": '
        + last
        + "}]}]}"
    )


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("name", SETS)
def test_killed_at_random_places(root: Path, name: str) -> None:
    """However often a run is cut off, and in the middle of a line, too: the same bytes in the end."""
    make(name, root, 6)
    row, rng = row_of(name), random.Random(name)
    undisturbed = generate_predictions(AreaNamer(), row, 0, 1, root / "undisturbed").read_bytes()
    partial = root / "out" / f"{name}_pred_0_of_1.partial.jsonl"
    path, runs = None, 0
    while path is None:
        left = rng.randint(0, 2)

        class Dying(AreaNamer):
            def name_image(self, *arguments: Any) -> Any:
                if len(self.calls) == left:  # noqa: B023
                    raise Killed
                return super().name_image(*arguments)

        try:
            path = generate_predictions(Dying(), row, 0, 1, root / "out")
        except Killed:
            data = partial.read_bytes()
            partial.write_bytes(data[: len(data) - rng.randint(0, 40)])
        runs += 1
    assert path.read_bytes() == undisturbed
    assert runs > 2
    assert len(list((root / "out").iterdir())) == 2


def pairs(*masks: tuple[int, str, str]) -> list[tuple[int, dict[str, Any]]]:
    return [(i, {"any": {"class": a, "prob": 0.5}, "own": {"class": o, "prob": 0.5}}) for i, a, o in masks]


# (category id, name in any, name in the set's own mode) of the masks of two parts.
BY_HAND: dict[str, tuple[list[Any], list[Any]]] = {
    # right (synonym), right (plural, no name of the set) | wrong, another class's name
    "coco": (pairs((1, "Woman", "person"), (16, "birdes", "bird")), pairs((49, "cow", "  knives "))),
    "ade20k": (pairs((0, "walls", "Wall"), (12, "womans", "person")), pairs((20, "bus", "cars"))),
    "cityscapes": (pairs((7, "railroad", "road"), (26, "automobile", "CAR")), pairs((33, "bikes", "bus"))),
    "lvis": (pairs((3, "Aeroplanes", "airplane"), (35, "zzz", "purse")), pairs((139, "bowls", "bowl"))),
    "a847": (pairs((4, "street", "road"), (3, "trees", "tree")), pairs((0, "brick walls", "sky"))),
    # "unknown" is a name of the set, though no mask is asked about that is it
    "pc459": (pairs((0, "unknown", "accordion"), (1, "zzz", "airplane")), pairs((19, "beers", "unknown"))),
}
# right and not in vocabulary, of three masks: in any, in the set's own mode
COUNTS = {
    "coco": ("COCO Panoptic", (2, 1), (3, 0)),
    "ade20k": ("ADE20K Panoptic", (2, 1), (3, 0)),
    "cityscapes": ("Cityscapes Panoptic", (2, 1), (2, 0)),
    "lvis": ("LVIS Instance", (2, 3), (3, 0)),
    "a847": ("A-847 Semantic", (3, 1), (2, 0)),
    "pc459": ("PC-459 Semantic", (1, 2), (2, 0)),
}


def document(name: str, masks: list[Any], part: int) -> Any:
    """One image a mask, in the set's published layout; an image more has a mask without a prediction."""
    entries: list[Any] = []
    for number, (category, names) in enumerate([*masks, (masks[0][0], None)]):
        key = 100 * part + number
        field = {} if names is None else {"open_end_pred": {name: names["own"], "any": names["any"]}}
        mask = {"id": 3, "category_id": category, **field}
        if name == "lvis":
            entries.append([{"id": key}, [{**mask, "image_id": key}]])
        elif name in ("a847", "pc459"):
            entries.append({"file_name": f"{key}.jpg", "pred": [{"mask_unique_id": category, **field}]})
        else:
            entries.append({"image_id": key, "file_name": f"{key}.png", "segments_info": [mask]})
    return entries if name in ("coco", "ade20k", "cityscapes") else {"pred": entries}


@pytest.mark.parametrize("name", SETS)
def test_scores_worked_out_by_hand(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for part, masks in enumerate(BY_HAND[name]):
        (tmp_path / f"{name}_pred_{part}_of_2.json").write_text(json.dumps(document(name, masks, part)))
    assert evaluate_main([str(tmp_path), "2"]) == 0
    captured = capsys.readouterr()
    title, (right, strange), (own_right, own_strange) = COUNTS[name]
    assert captured.out.splitlines()[:3] == [
        f"{title} evaluation:",
        f"Agnostic: Acc: {right}/3 = {right / 3}, Not-In-Vocab: {strange}/3 = {strange / 3}",
        f"Specific: Acc: {own_right}/3 = {own_right / 3}, Not-In-Vocab: {own_strange}/3 = {own_strange / 3}",
    ]
    assert f"{name}: 2 masks without a prediction" in captured.err


def test_ignored_class_is_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = pairs((0, "accordion", "accordion"), (430, "unknown", "unknown"))
    (tmp_path / "pc459_pred_0_of_1.json").write_text(json.dumps(document("pc459", masks, 0)))
    assert evaluate_main([str(tmp_path), "1"]) == 0
    captured = capsys.readouterr()
    assert "Agnostic: Acc: 1/1 = 1.0" in captured.out
    assert "pc459: 1 masks of ignored classes, not counted" in captured.err


def test_semantic_item(root: Path) -> None:
    make("a847", root, 2)
    row = row_of("a847")
    split = split_of(row)
    item = split.load(1)
    assert (len(split), item.image_path.name) == (2, "ADE_val_00000002.jpg")
    assert item.annotations == [{"mask_unique_id": 0}, {"mask_unique_id": 846}]
    columns = [np.flatnonzero(item.mask(k).any(0)).tolist() for k in range(2)]
    assert columns == [[1], [2, 3, 4, 5, 6, 7]]
    assert item.mask(0).shape == item.size == (6, 8)


def test_png_label_maps(root: Path) -> None:
    make("a847", root, 1)
    maps = root / "ADE20K_2021_17_01/annotations_detectron2/validation"
    next(maps.iterdir()).unlink()
    Image.fromarray(np.full((6, 8), 3, np.uint8)).save(maps / "ADE_val_00000001.png")
    row = row_of("a847")
    assert split_of(row).load(0).annotations == [{"mask_unique_id": 3}]


def test_bad_semantic_sets(root: Path) -> None:
    make("a847", root, 2)
    row = row_of("a847")
    maps = root / "ADE20K_2021_17_01/annotations_detectron2/validation"
    first = maps / "ADE_val_00000001.tif"
    split = split_of(row)
    good = split.source_hash
    ids = np.full((6, 8), 847, np.uint16)
    ids[0] = 3
    Image.fromarray(ids).save(first)
    item = split.load(0)  # an id of no class costs itself alone
    assert item.annotations == [{"mask_unique_id": 3}] and item.counts["unknown_in_mask"] == 1
    for ids, message in (
        (np.full((6, 9), 3, np.uint16), r"00001\.tif: is 9 x 6, its image .*00001\.jpg is 8 x 6"),
        (np.full((6, 8, 3), (3, 4, 5), np.uint8), r"00001\.tif: .*RGB"),
    ):
        Image.fromarray(ids).save(first)
        with pytest.raises(OsmError, match=message):
            split.load(0)
    assert split_of(row).source_hash != good
    first.unlink()
    with pytest.raises(OsmError, match=r"set 'a847': 1 of the 4 files .* are missing; the first one is .*00001\.tif"):
        generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    (maps / "a.txt").write_text("no map")
    first.with_name("ADE_val_00000002.tif").rename(maps / "b.tif")
    with pytest.raises(OsmError, match=r"set 'a847': 3 of the 6 files .* are missing"):
        generate_predictions(AreaNamer(), row, 0, 1, root / "out")


def test_image_names(root: Path) -> None:
    make("cityscapes", root, 1)
    make("lvis", root, 1)
    city, lvis = row_of("cityscapes"), row_of("lvis")
    for row, old, new, message in (
        (
            city,
            "_gtFine_panoptic.png",
            "_labels.png",
            r"the PNG name '.*_labels\.png' does not have the format CITY_SEQUENCE_FRAME",
        ),
        (
            lvis,
            "http://images.cocodataset.org/val2017",
            "http:",
            "coco_url .* expected an address that ends",
        ),
        (lvis, "org/val2017", "org/..", r"file name '\.\./0*1\.jpg' leads out of its folder"),
    ):
        path = Path(str(row.json_file))
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))
        with pytest.raises(OsmError, match=message):
            split_of(row)
        path.write_text(before)


def test_lvis_file_name_is_not_what_the_image_is_called(root: Path) -> None:
    """LVIS v0.5 and copies of v1 have one."""
    make("lvis", root, 2)
    row = row_of("lvis")
    path = Path(str(row.json_file))
    json_of_set = json.loads(path.read_text())
    for image in json_of_set["images"]:
        image["file_name"] = f"COCO_val2014_{image['id']:012d}.jpg"
    path.write_text(json.dumps(json_of_set))
    split = split_of(row)
    assert [split.load(k).image_path.as_posix() for k in range(2)] == [
        "lvis/val2017/000000000001.jpg",
        "lvis/train2017/000000000002.jpg",
    ]


def test_pictures_of_a_semantic_set(root: Path) -> None:
    make("a847", root, 2)
    row = row_of("a847")
    path = generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    result = evaluate_set(row, [path])
    drawn, notes = draw_pictures(result, [1, 0])
    pictures = list(drawn.values())
    assert not notes
    assert [len(picture.masks) for picture in pictures] == [2, 2]
    written = json.loads(path.read_text())
    written["pred"][0]["pred"][0]["mask_unique_id"] = 5
    path.write_text(json.dumps(written))
    result = evaluate_set(row, [path])
    assert "the masks in the prediction file differ from the masks in" in draw_pictures(result, [0, 1])[1][0]


def test_yaml_row_with_unknown_image_names(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("datasets:\n  lvis: {image_names: url}\n")
    with pytest.raises(OsmError, match="image_names 'url' is not one of file_name, coco_url, cityscapes"):
        DatasetTable().with_yaml(path)
