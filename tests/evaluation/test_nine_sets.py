"""Boxes and parts beside the six published val sets: named by the public command, scored, reported; figures by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judgements import sample
from mugs import Page
from PIL import Image
from six_sets import HEIGHT, WIDTH, AreaNamer, row_of
from source_sets import write_mat
from three_sets import MAKERS, SETS, V3DET_JSON, area, make, write_v3det
from tiny import tiny_model_yaml

from osm.datasets.table import PUBLISHED_MODES, DatasetTable
from osm.errors import OsmError
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.metrics.evaluate import evaluate_set
from osm.evaluation.metrics.scores import score_masks
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.predict.generate_cli import generate_main
from osm.evaluation.predict.records import read_set
from osm.evaluation.report.compare import compare_folders
from osm.evaluation.report.report_cli import report_main
from osm.evaluation.report.result_images import write_picture
from osm.forms import split_of
from osm.models.factory import build, load_model_config
from osm.recognition.namer import Namer


def load(path: Path | str) -> Any:
    return json.loads(Path(path).read_text())


def rewrite(path: Path | str, **changes: Any) -> None:
    Path(path).write_text(json.dumps({**load(path), **changes}))


# Named, scored and reported.


def test_all_nine_by_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = {name: make(name, root, 3) for name in SETS}
    for part in range(2):
        assert generate_main([str(part), "2", "my.pt", "out"], lambda *_, **__: AreaNamer()) == 0
    assert "left out" not in capsys.readouterr().err
    for name in MAKERS:
        parts = [load(f"out/{name}_pred_{part}_of_2.json")["pred"] for part in range(2)]
        assert parts == [whole[name]["pred"][:1], whole[name]["pred"][1:]], name
    assert evaluate_main(["out", "2"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.endswith("evaluation:")]
    assert len(titles) == 9
    assert {"V3Det Detection", "PartImageNet Semantic", "Pascal-Part Semantic"} < {t[:-12] for t in titles}
    flags = ["--predictions", "trained=out", "--parts", "2", "--bootstrap", "5"]
    assert report_main(["report", *flags]) == 0
    page = Page(Path("report/report.html"))
    assert "V3Det" in page.text and "Pascal-Part" in page.text and "has changed since" not in page.text
    named = load("report/results.json")["predictions"]["trained"]
    assert {name: named[name]["specific"]["total"] for name in MAKERS} == {
        "v3det": 4, "partimagenet": 6, "pascal_part": 4
    }  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_boxes_alone_are_asked_about_as_boxes(root: Path, name: str) -> None:
    make(name, root, 2)
    namer = AreaNamer()
    generate_predictions(namer, row_of(name), 0, 1, root / "out")
    assert set(namer.boxed) == {name == "v3det"}


# (category id, name in any, name in the own mode) of three masks; right and not in vocabulary: in any, in the own mode.
BY_HAND = {
    "v3det": ([(1, "Ashtrays", "ashtray"), (2, "ATM", "cash machine"), (2, "ashtray", "x")], (1, 2), (2, 1)),
    "partimagenet": (
        [(0, "quadruped head", " Quadruped Head"), (3, "quadruped tails", "tail"), (4, "arm", "biped head")],
        (2, 2),
        (2, 1),
    ),
    "pascal_part": ([(2, "cow heads", "cow head"), (4, "cow ear", "cow ear"), (3, "ear", "cow head")], (2, 2), (2, 0)),
}
TITLES = {"v3det": "V3Det Detection", "partimagenet": "PartImageNet Semantic", "pascal_part": "Pascal-Part Semantic"}


@pytest.mark.parametrize("name", MAKERS)
def test_scores_worked_out_by_hand(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    masks, (right, strange), (own_right, own_strange) = BY_HAND[name]
    entries: list[Any] = []
    for number, (category, anyone, own) in enumerate(masks):
        names = {"any": {"class": anyone, "prob": 0.5}, name: {"class": own, "prob": 0.5}}
        if name == "v3det":
            mask = {"id": number, "image_id": number, "category_id": category, "bbox": [0, 0, 30 + number, 31]}
            entries.append([{"id": number}, [{**mask, "open_end_pred": names}, {**mask, "id": 9}]])
        else:
            pred = [{"mask_unique_id": category, "open_end_pred": names}, {"mask_unique_id": 9}]
            entries.append({"file_name": f"{number}.jpg", "pred": pred})
    (tmp_path / f"{name}_pred_0_of_1.json").write_text(json.dumps({"pred": entries}))
    assert evaluate_main([str(tmp_path), "1", "--metrics", "all", "--bootstrap", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:3] == [
        f"{TITLES[name]} evaluation:",
        f"Agnostic: Acc: {right}/3 = {right / 3}, Not-In-Vocab: {strange}/3 = {strange / 3}",
        f"Specific: Acc: {own_right}/3 = {own_right / 3}, Not-In-Vocab: {own_strange}/3 = {own_strange / 3}",
    ]
    assert f"{name}: 3 masks without a prediction" in err
    assert ("Acc, small masks" in out) == (name == "v3det")  # of label maps no area is known


def test_sizes_of_boxes(root: Path) -> None:
    """`area` where the json has it, else width by height."""
    make("v3det", root, 3)
    document = load(V3DET_JSON)
    document["annotations"][0]["area"] = 32 * 32
    del document["annotations"][1]["area"]
    document["annotations"][1]["bbox"] = [4, 0, 96, 96]
    rewrite(V3DET_JSON, **document)
    row = row_of("v3det")
    generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    scores = score_masks(read_set(row, root / "out", 1), "any")
    sizes = {key: int((~np.isnan(scores.columns[f"acc/size/{key}"])).sum()) for key in ("small", "medium", "large")}
    # 32 x 32 is medium, 96 x 96 large; the first image's 3.25 x 6 and 100 x 50.5 have their `area`.
    assert sizes == {"small": 1, "medium": 2, "large": 1}


@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_run_goes_on_to_the_same_bytes(root: Path, name: str) -> None:
    make(name, root, 4)
    row = row_of(name)
    whole = generate_predictions(AreaNamer(), row, 0, 1, root / "whole").read_bytes()

    class Dying(AreaNamer):
        def name_image(self, *arguments: Any) -> Any:
            if self.calls:
                raise KeyboardInterrupt
            return super().name_image(*arguments)

    runs = 0
    while not (root / "out" / f"{name}_pred_0_of_1.json").exists():
        runs += 1
        try:
            generate_predictions(Dying(), row, 0, 1, root / "out")
        except KeyboardInterrupt:
            continue
    assert runs > 2 and (root / "out" / f"{name}_pred_0_of_1.json").read_bytes() == whole


@pytest.mark.parametrize("name", MAKERS)
def test_compared_pictured_judged(root: Path, name: str) -> None:
    make(name, root, 3)
    row = row_of(name)
    table = {name: row}
    for out in ("one", "two"):
        generate_predictions(AreaNamer(), row, 0, 1, root / out)
    compared, notes = compare_folders((root / "one", root / "two"), (1, 1), table)
    assert [one.row.name for one in compared] == [name] and not notes
    path = write_picture(root / "some.jpg", root / "one", 1, table, name, images=3)
    assert np.asarray(Image.open(path)).std() > 1
    sample(root / "one", 1, root / "list.json", root / "sheets", table, [name])  # type: ignore[arg-type]
    assert {entry["set"] for entry in load("list.json")} == {name}


@pytest.mark.parametrize("name", MAKERS)
def test_files_of_another_set_are_refused(root: Path, name: str) -> None:
    make(name, root, 3)
    row = row_of(name)
    path = generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    (root / "out" / f"{name}_meta_0_of_1.json").unlink()
    whole = load(path)
    rewrite(path, pred=whole["pred"][:-2])
    with pytest.raises(OsmError, match="is in none of .*: a file is cut short"):
        evaluate_set(row, [path])
    if name == "v3det":  # of label maps only pixels tell which masks there are
        del whole["pred"][0][1][0]
        rewrite(path, **whole)
        with pytest.raises(OsmError, match="lacks mask 7. of category 1"):
            evaluate_set(row, [path])


# Boxes.


def test_boxes_with_a_fault(root: Path) -> None:
    make("v3det", root, 3)
    path = generate_predictions(AreaNamer(), row_of("v3det"), 0, 1, root / "out")
    counts = load(root / "out" / "v3det_meta_0_of_1.json")["counts"]
    assert (counts["named"], counts["crowd"], counts["unusable"], counts["empty"]) == (4, 2, 1, 0)
    assert load(path)["pred"][0][1][3]["bbox"] == [2, 2, 0, 4]
    document = load(V3DET_JSON)
    for annotation, box in zip(document["annotations"], ([1, 1, "x", 2], [900, 1, 2, 2]), strict=False):
        annotation["bbox"] = box
    rewrite(V3DET_JSON, **document)
    with pytest.raises(OsmError, match=r"set 'v3det': 3 of 5 annotations are unusable, .*the first: .*bbox \[2, 2, 0"):
        generate_predictions(AreaNamer(), row_of("v3det"), 0, 1, root / "strict")
    generate_predictions(AreaNamer(), row_of("v3det"), 0, 1, root / "lax", max_bad_annotations=0.7)
    counts = load(root / "lax" / "v3det_meta_0_of_1.json")["counts"]
    assert (counts["named"], counts["unusable"]) == (2, 3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Namer:
    """A model whose names depend on the question: its LLM hears the prompt loudly."""
    torch.manual_seed(0)
    model, processor = build(load_model_config(str(tiny_model_yaml(tmp_path_factory.mktemp("model")))))
    assert set(PUBLISHED_MODES) <= set(model.config.modes)
    return Namer(model.eval(), processor, max_new_tokens=4)


def test_the_same_names_as_of_boxes_given_to_the_recognizer(root: Path, tiny: Namer) -> None:
    rng = np.random.default_rng(0)
    boxes = [[0.5, 0, 3.25, 6], [4, -2, 100, 50.5], [1.2, 2.2, 3, 2]]
    write_v3det(
        root,
        [{"id": 1, "file_name": "images/n1/a.jpg", "width": WIDTH, "height": HEIGHT}],
        [{"id": k, "image_id": 1, "category_id": 1, "bbox": box} for k, box in enumerate(boxes)],
    )
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "V3Det/images/n1/a.jpg")
    path = generate_predictions(tiny, row_of("v3det"), 0, 1, root / "out")
    (_, annotations), *_ = load(path)["pred"]
    recognizer = tiny.recognizer
    recognizer.set_image(root / "V3Det/images/n1/a.jpg")
    found = recognizer.name(boxes=boxes, modes=["v3det", "any"])
    split = split_of(row_of("v3det"))
    masks = np.stack([split.load(0).mask(k) for k in range(3)])
    as_masks = recognizer.name(masks, modes=["v3det", "any"])
    for annotation, answers in zip(annotations, found, strict=True):
        for answer in answers:
            said = annotation["open_end_pred"][answer.mode]
            assert said["class"] == answer.text.strip() and said["prob"] == pytest.approx(answer.prob, rel=1e-3)
    probs = [[[answer.prob for answer in answers] for answers in one] for one in (found, as_masks)]
    assert np.abs(np.log(np.array(probs[0]) / np.array(probs[1]))).max() > 1e-2  # the questions differ


# Parts.


def test_ids_of_no_part(root: Path) -> None:
    """Ids that the table lacks are no part; a map with none at all has nothing to be named."""
    make("partimagenet", root, 2)
    maps = root / "PartImageNet/annotations/val"
    ids = np.full((HEIGHT, WIDTH), 40, np.uint8)
    Image.fromarray(ids).save(maps / "n01440000_1.png")
    ids[:, 0], ids[:, 1] = 39, 200
    Image.fromarray(ids).save(maps / "n01440001_1.png")
    path = generate_predictions(AreaNamer(), row_of("partimagenet"), 0, 1, root / "out")
    entries = load(path)["pred"]
    assert [[mask["mask_unique_id"] for mask in entry["pred"]] for entry in entries] == [[], [39]]
    result = evaluate_set(row_of("partimagenet"), [path])
    assert result.agnostic.total == 1 and result.without_prediction == 0


def test_maps_of_whole_objects_do_not_matter(root: Path) -> None:
    make("partimagenet", root, 1)
    before = generate_predictions(AreaNamer(), row_of("partimagenet"), 0, 1, root / "before").read_bytes()
    whole = root / "PartImageNet/annotations/val_whole"
    whole.mkdir()
    (whole / "n01440000_1.png").write_bytes(b"broken")
    row = row_of("partimagenet")
    assert generate_predictions(AreaNamer(), row, 0, 1, root / "after").read_bytes() == before


def test_parts_that_are_not_in_order(root: Path) -> None:
    make("partimagenet", root, 2)
    row = row_of("partimagenet")
    first = root / "PartImageNet/annotations/val/n01440000_1.png"
    Image.new("L", (9, 6), 3).save(first)
    with pytest.raises(OsmError, match="n01440000_1.png: is 9 x 6, its image"):
        generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    first.unlink()
    with pytest.raises(OsmError, match="1 of the 4 files to read are missing; the first one is .*0000_1.png"):
        generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    shutil.rmtree(first.parent)
    with pytest.raises(OsmError, match="partimagenet_mask_dir .*annotations/val: there is no such folder"):
        split_of(row)


def test_a_row_of_ones_own_with_mat_files(root: Path) -> None:
    """A row that says nothing of how ids are coded, as .mat files do not code them."""
    whole = make("pascal_part", root, 3)
    row = row_of("pascal_part")
    Path("my.yaml").write_text(
        "datasets:\n  my_parts:\n    form: parts\n    labels: pascal_part\n"
        f"    image_dir: {row.image_dir}\n    mask_dir: {row.mask_dir}\n"
    )
    own = DatasetTable().with_yaml("my.yaml")["my_parts"]
    for one in (own, replace(own, id_coding="rgb")):
        split = split_of(one)
        assert len(split) == 3
        items = [split.load(k) for k in range(3)]
        assert [[a["mask_unique_id"] for a in item.annotations] for item in items] == [[2, 3], [2, 3], []]
        assert [int(items[0].mask(k).sum()) for k in range(2)] == [12, 6]
    assert [len(entry["pred"]) for entry in whole["pred"]] == [2, 2, 0]


def test_mat_files_with_what_nobody_knows(root: Path) -> None:
    make("pascal_part", root, 2)
    row = row_of("pascal_part")
    mats = Path(str(row.mask_dir))
    parts = [("head", area(0, 0, 4, 6)), ("antenna", area(0, 0, 1, 6))]
    write_mat(mats / "2008_000002.mat", [("cow", area(0, 0, 8, 6), parts)])
    generate_predictions(AreaNamer(), row, 0, 1, root / "out")
    counts = load(root / "out" / "pascal_part_meta_0_of_1.json")["counts"]
    assert (counts["named"], counts["unknown_in_mask"]) == (1, 1)
    write_mat(mats / "2008_000002.mat", [("cow", np.ones((3, 3), bool), [("head", np.ones((3, 3), bool))])])
    with pytest.raises(OsmError, match=r"2008_000002\.mat: the mask of 'cow:head' is 3 x 3, its image 8 x 6"):
        generate_predictions(AreaNamer(), row, 0, 1, root / "others")
    (mats / "2008_000002.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 200)
    with pytest.raises(OsmError, match=r"mask .*2008_000002\.mat: "):
        generate_predictions(AreaNamer(), row, 0, 1, root / "broken")
    (mats / "2009_000001.mat").write_bytes(b"")
    with pytest.raises(
        OsmError, match=r"1 of the 6 files .* are missing; the first one is .*JPEGImages/2009_000001\.jpg"
    ):
        generate_predictions(AreaNamer(), row, 0, 1, root / "broken")


def test_help_says_what_each_path_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        generate_main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--v3det_json_file V3DET_JSON_FILE json of the annotations [V3Det/annotations/v3det_2023_v1_val.json]",
        "--partimagenet_mask_dir PARTIMAGENET_MASK_DIR folder of the PNGs of parts, or .mat files of Pascal",
        "--a847_mask_dir A847_MASK_DIR folder of the label maps",
        "--coco_mask_dir COCO_MASK_DIR folder of the panoptic PNGs",
    ):
        assert words in text, words
    assert "--v3det_mask_dir" not in text and "--pascal_part_json_file" not in text
