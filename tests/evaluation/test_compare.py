"""Two hand-made folders compared: what changed, by how much, and that other masks are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mugs import Page
from predictions import FIRST, SECOND, segment, whole_meta, write_parts

from osm.cli import main
from osm.evaluation.metrics.scores import Tools
from osm.evaluation.report import report_cli
from osm.evaluation.report.report_cli import compare_main


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_cli, "find_tools", lambda: Tools(notes=("Semantic Similarity: left out, no weights",)))


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "a", FIRST, SECOND)


def changed() -> list[list[dict[str, Any]]]:
    """All three images in one part; any: the light is right now, the dogs and the knives are not."""
    images = json.loads(json.dumps([*FIRST, *SECOND]))
    images[1][1]["open_end_pred"]["any"] = {"class": "Traffic light", "prob": 0.3}
    images[0][1]["open_end_pred"]["any"] = {"class": "cat", "prob": 0.2}
    images[2][0]["open_end_pred"]["any"] = {"class": "", "prob": 0.7}
    return images


def compared(a: Path, b: Path, tmp_path: Path, *flags: str) -> dict[str, Any]:
    path = tmp_path / "compared.json"
    assert main(["compare", str(a), str(b), "--json", str(path), "--bootstrap", "200", *flags]) == 0
    return json.loads(path.read_text())


def test_by_hand(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = write_parts(tmp_path / "b", changed())
    document = compared(a, b, tmp_path, "--parts", "2,1", "--titles", "old,new")
    assert document["titles"] == ["old", "new"]
    found = document["sets"]["coco"]["agnostic"]
    assert found["masks"] == 6 and document["sets"]["coco"]["images"] == 3
    acc = found["rates"]["acc"]
    assert (acc["a"]["value"], acc["b"]["value"]) == (0.5, pytest.approx(2 / 6))
    assert acc["difference"]["value"] == pytest.approx(-1 / 6)
    assert acc["difference"]["interval"][0] < -1 / 6 < acc["difference"]["interval"][1]
    assert 0 < acc["difference"]["p"] <= 1
    # The empty one and the animal stay wrong, the woman right.
    assert found["outcomes"] == {"both_right": 1, "a_alone": 2, "b_alone": 1, "both_wrong": 2}
    gone = [(change["image"], change["mask"], change["a"], change["b"]) for change in found["right_to_wrong"]]
    assert gone == [(3, 1, "knives", ""), (1, 2, " Dogs ", "cat")]  # the surest first
    assert found["wrong_to_right"] == [
        {"image": 2, "mask": 2, "given": "traffic light", "a": "light", "b": "Traffic light"}
    ]
    assert found["ece"]["a"] == pytest.approx(1.9 / 6)
    assert found["ece"]["b"] == pytest.approx((0.1 + 0.2 + 0.1 + 0.7 + 0.7 + 0.7) / 6)
    own = document["sets"]["coco"]["specific"]
    assert own["outcomes"] == {"both_right": 4, "a_alone": 0, "b_alone": 0, "both_wrong": 2}
    assert own["rates"]["acc"]["difference"] == {"value": 0, "interval": [0, 0], "p": 1}
    text = capsys.readouterr().out
    assert "COCO Panoptic, agnostic: 6 masks, in %" in text
    assert "masks right in both: 1; in old alone: 2; in new alone: 1; in neither: 2" in text
    assert "  right -> wrong: image 3, mask 1, knife: knives -> (nothing)" in text
    assert "coco: Semantic Similarity: left out, no weights" in text


def test_a_folder_with_itself(a: Path, tmp_path: Path) -> None:
    document = compared(a, a, tmp_path, "--parts", "2")
    for mode in ("specific", "agnostic"):
        for rate in document["sets"]["coco"][mode]["rates"].values():
            assert rate["a"] == rate["b"] and rate["difference"]["value"] == 0
        assert not document["sets"]["coco"][mode]["right_to_wrong"]


def test_all_masks_better_is_sure(tmp_path: Path) -> None:
    pairs = [("dog", "cat"), ("dog", "dog")]
    folders = [
        write_parts(
            tmp_path / side, [[segment(k, 18, names[place]) for k, names in enumerate(pairs)] for _ in range(12)]
        )
        for place, side in ((1, "a"), (0, "b"))
    ]
    found = compared(*folders, tmp_path, "--parts", "1")["sets"]["coco"]["agnostic"]["rates"]["acc"]
    assert found["difference"] == {"value": 0.5, "interval": [0.5, 0.5], "p": pytest.approx(2 / 201)}


def test_order_and_parts_do_not_matter(a: Path, tmp_path: Path) -> None:
    path = write_parts(tmp_path / "b", changed()) / "coco_pred_0_of_1.json"
    first = compared(a, tmp_path / "b", tmp_path, "--parts", "2,1")
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries[::-1]))
    assert compared(a, tmp_path / "b", tmp_path, "--parts", "2,1") == first


def test_a_mode_or_mask_that_one_lacks(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = changed()
    del images[0][0]["open_end_pred"]["any"]
    del images[2][1]["open_end_pred"]
    for mask in (mask for image in images for mask in image if "open_end_pred" in mask):
        mask["open_end_pred"].pop("coco")
        mask.pop("area", None)
    images[0][0].pop("open_end_pred")
    document = compared(a, write_parts(tmp_path / "b", images), tmp_path, "--parts", "2,1")
    found = document["sets"]["coco"]
    assert "specific" not in found
    assert (
        "coco: mode coco: not compared, because no mask has a prediction in this mode in both folders" in found["notes"]
    )
    assert (found["agnostic"]["masks"], found["agnostic"]["predicted_in_a_alone"]) == (4, 2)
    assert not [key for key in found["agnostic"]["rates"] if "size" in key]  # B has no areas
    assert "left out: 2 masks with a prediction in A alone" in capsys.readouterr().out


def drop_image(images: list[Any]) -> None:
    images.pop()


def add_mask(images: list[Any]) -> None:
    images[1].append(segment(9, 1, "man"))


def other_id(images: list[Any]) -> None:
    images[0][1]["id"] = 77


def other_class(images: list[Any]) -> None:
    images[0][1]["category_id"] = 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            drop_image,
            "A has 7 masks in 3 images, and B has 4 masks in 2 images; only A has mask 1 of image 3;",
        ),
        (add_mask, "A has 7 masks in 3 images, and B has 8 masks in 3 images; only B has mask 9 of image 2; expected"),
        (other_id, "A has 7 masks in 3 images, and B has 7 masks in 3 images; only A has mask 2 of image 1; expected"),
        (
            other_class,
            "mask 2 of image 1 has class 18 in A, but class 16 in B; expected predictions for the same masks",
        ),
    ],
)
def test_other_masks_are_refused(
    a: Path, tmp_path: Path, damage: Callable[[list[Any]], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = changed()
    damage(images)
    b = write_parts(tmp_path / "b", images)
    assert compare_main([str(a), str(b), "--parts", "2,1"]) == 2
    assert f"error: dataset 'coco': {message}" in capsys.readouterr().err


def test_sets_of_one_folder_are_left_out(a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = write_parts(tmp_path / "b", changed())
    write_parts(b, [[segment(1, 1, "wall")]], name="ade20k")
    compared(a, b, tmp_path, "--parts", "2,1")
    assert "ade20k: left out, in B alone" in capsys.readouterr().out
    alone = write_parts(tmp_path / "c", [[segment(1, 1, "wall")]], name="ade20k")
    assert compare_main([str(a), str(alone), "--parts", "2,1"]) == 2
    error = capsys.readouterr().err
    assert "A has predictions for coco, but B has predictions for ade20k; expected at least one dataset" in error


def test_other_annotations_are_told(a: Path, tmp_path: Path) -> None:
    b = write_parts(tmp_path / "b", changed())
    for folder, parts in ((a, 2), (b, 1)):
        for part in range(parts):
            images = json.loads((folder / f"coco_pred_{part}_of_{parts}.json").read_text())
            masks = [mask for image in images for mask in image["segments_info"]]
            named = [mask for mask in masks if "open_end_pred" in mask]
            crowd = sum("iscrowd" in mask for mask in masks)
            start = 2 * part
            meta = whole_meta(
                "coco",
                part,
                parts,
                annotations=folder.name,
                checkpoint=folder.name,
                limit=4 if folder == a else None,
                items=[start, start + len(images)],
                counts={"named": len(named), "crowd": crowd, "empty": len(masks) - len(named) - crowd},
            )
            (folder / f"coco_meta_{part}_of_{parts}.json").write_text(json.dumps(meta))
    notes = compared(a, b, tmp_path, "--parts", "2,1")["sets"]["coco"]["notes"]
    assert "coco: made from different annotation files: ids and classes agree, but masks may differ" in notes
    assert "coco: A was made with --limit 4: not the whole set" in notes


def test_page(a: Path, tmp_path: Path) -> None:
    images = changed()
    images[1][1]["open_end_pred"]["any"]["class"] = "<script>alert('1')</script>"
    b = write_parts(tmp_path / "b", images)
    pages = []
    for _ in range(2):
        compared(a, b, tmp_path, "--parts", "2,1", "--report", str(tmp_path / "c.html"), "--titles", "<old>,new")
        pages.append((tmp_path / "c.html").read_bytes())
    assert pages[0] == pages[1]
    page = Page(tmp_path / "c.html")
    assert not page.all("script")
    assert "Two runs compared: <old> and new" in page.text
    assert page.row("Acc")[:3] == ["66.7", "66.7", "+0.0"]  # the set's own mode comes first
    assert "knives" in page.text and "agnostic: right → wrong, 2 examples" in page.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts", "x"], "--parts 'x': expected N, or N,M"),
        (["--parts", "2,1,3"], "--parts '2,1,3': expected N, or N,M"),
        (["--parts", "0"], "--parts '0': expected N, or N,M"),
        (["--parts", "3"], "A: "),
        (["--parts", "2"], "B: "),
        (["--parts", "2,1", "--titles", "one"], "--titles 'one': expected two comma-separated titles"),
        (["--parts", "2,1", "--examples", "-1"], "--examples -1: expected 0 or more"),
        (["--parts", "2,1", "--bootstrap", "-1"], "--bootstrap -1: expected 0 or more"),
        (["--parts", "2,1", "--report", "/dev/null/x.html"], "--report /dev/null/x.html: "),
    ],
)
def test_wrong_flags(
    a: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    b = write_parts(tmp_path / "b", changed())
    assert compare_main([str(a), str(b), *flags]) == 2
    assert f"error: {message}" in capsys.readouterr().err
