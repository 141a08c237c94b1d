"""Evaluation of prediction files whose counts are worked out by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judgements
import left_out_classes
import pytest
from fake_namer import FakeNamer
from predictions import whole_meta

from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation import reproduce
from osm.evaluation.evaluate_cli import evaluate_main
from osm.evaluation.predict.generate import generate_predictions
from osm.evaluation.report.report_cli import compare_main, picture_main, report_main

ROOT = Path(__file__).resolve().parents[2]


def segment(category_id: int, any_name: str | None = None, own_name: str | None = None, **more: Any) -> dict[str, Any]:
    """A segment of a prediction file; its `open_end_pred` has the modes that are given a name."""
    names = {"any": any_name, "coco": own_name}
    predictions = {mode: {"class": name, "prob": 0.5} for mode, name in names.items() if name is not None}
    return {"id": 1, "category_id": category_id, **({"open_end_pred": predictions} if predictions else {}), **more}


# COCO: 1 person (woman, women, guys, ...), 16 bird(s), 22 elephant(s), 49 knife / knives.
PART_0 = [
    segment(1, "Woman", "person"),  # right (capitals) / right
    segment(1, "guy", "PERSONS"),  # right / right by plural, which is not in the vocabulary
    segment(16, "", "bird"),  # wrong and not in the vocabulary / right
    segment(16, "elephant", "birdes"),  # wrong / right by form, not in the vocabulary
    segment(1, iscrowd=1),  # not counted
]
PART_1 = [
    segment(49, "  Knife ", "sword"),  # right, blanks at the ends / wrong, not in the vocabulary
    segment(22, "an elephant", "elephants"),  # wrong, not in the vocabulary / right
    segment(22),  # no prediction, not counted
    segment(22, "cow", "cow"),  # wrong / wrong
]
COCO_LINES = [
    "COCO Panoptic evaluation:",
    f"Agnostic: Acc: 3/7 = {3 / 7}, Not-In-Vocab: 2/7 = {2 / 7}",
    f"Specific: Acc: 5/7 = {5 / 7}, Not-In-Vocab: 3/7 = {3 / 7}",
]


def write(out_dir: Path, name: str, document: Any, meta: dict[str, Any] | None = None) -> None:
    out_dir.mkdir(exist_ok=True)
    (out_dir / f"{name}.json").write_text(document if isinstance(document, str) else json.dumps(document))
    if meta is not None:
        (out_dir / f"{name}.json".replace("_pred_", "_meta_")).write_text(json.dumps(meta))


def entry(segments: list[dict[str, Any]], image_id: int = 1) -> dict[str, Any]:
    return {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}


@pytest.fixture
def two_parts(tmp_path: Path) -> Path:
    out_dir = tmp_path / "out"
    write(out_dir, "coco_pred_0_of_2", [entry(PART_0[:2]), entry(PART_0[2:])])
    write(out_dir, "coco_pred_1_of_2", [entry(PART_1, 2), entry([], 3)])
    return out_dir


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert evaluate_main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    return captured.err.splitlines()[-1]


def test_published_lines(two_parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    assert evaluate_main([str(two_parts), "2", "--json", str(results)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:3] == COCO_LINES
    assert lines == COCO_LINES  # nothing is said about datasets without predictions
    assert "coco: 1 masks without a prediction and 1 crowd annotations, not counted" in captured.err
    coco = json.loads(results.read_text())["coco"]
    assert coco["agnostic"] == {"correct": 3, "not_in_vocabulary": 2, "total": 7, "acc": 3 / 7, "niv": 2 / 7}
    assert coco["specific"]["acc"] == 5 / 7
    # Two persons, birds and elephants each: the smallest id of the most frequent ones.
    assert coco["majority_class"] == {"category_id": 1, "name": "person", "acc": 2 / 7}


def test_crowds_are_not_scored_even_if_they_have_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [segment(1, "woman", "person"), segment(16, "car", "car", iscrowd=1), segment(1, iscrowd=1)]
    write(tmp_path / "out", "coco_pred_0_of_1", [entry(named)])
    results = tmp_path / "results.json"
    assert evaluate_main([str(tmp_path / "out"), "1", "--metrics", "all", "--json", str(results)]) == 0
    coco = json.loads(results.read_text())["coco"]
    assert (coco["specific"]["correct"], coco["specific"]["total"], coco["crowd"]) == (1, 1, 2)
    assert list(coco["metrics"]["agnostic"]["classes"]) == ["1"] and coco["majority_class"]["acc"] == 1
    assert "coco: 0 masks without a prediction and 2 crowd annotations, not counted" in capsys.readouterr().err


def test_script_runs_from_anywhere(two_parts: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "test" / "evaluate_pred.py")]
    done = subprocess.run([*script, "out", "2"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[:3] == COCO_LINES


def test_lvis_style_file_of_a_users_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "Mug", "synonyms": ["mug", "cup"]}]}
    (tmp_path / "mine.json").write_text(json.dumps(labels))
    (tmp_path / "my.yaml").write_text("datasets:\n  mine: {form: coco_instances, title: Mine, json_file: mine.json}\n")
    named = {"id": 3, "category_id": 7, "open_end_pred": {"mine": {"class": "cups", "prob": 1.0}}}
    write(tmp_path, "mine_pred_0_of_1", {"pred": [[{"id": 1}, [named, {"id": 4, "category_id": 7}]], [{"id": 2}, []]]})
    assert evaluate_main([str(tmp_path), "1", "--datasets", str(tmp_path / "my.yaml")]) == 0
    assert "Mine evaluation:\nAgnostic: no prediction in this mode\nSpecific: Acc: 1/1" in capsys.readouterr().out


def test_absent_own_mode_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "coco_pred_0_of_1", [entry([segment(1, "man")])])
    assert evaluate_main([str(tmp_path), "1"]) == 0
    captured = capsys.readouterr()
    assert "Agnostic: Acc: 1/1 = 1.0, Not-In-Vocab: 0/1 = 0.0\nSpecific: no prediction in this mode\n" in captured.out
    assert "coco: 1 masks without a prediction in own mode" in captured.err


def test_set_outside_of_the_table_is_told(two_parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(two_parts, "mine_pred_0_of_2", [])
    assert evaluate_main([str(two_parts), "2"]) == 0
    assert "mine: left out, its predictions are in" in capsys.readouterr().out


def test_missing_part(two_parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (two_parts / "coco_pred_1_of_2.json").rename(two_parts / "coco_pred_1_of_2.partial.jsonl")
    message = failure([str(two_parts), "2"], capsys)
    assert "1 of 2 parts are missing: coco_pred_1_of_2.json (unfinished, resume with" in message


def test_no_prediction_at_all(two_parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure([str(two_parts), "3"], capsys)
    assert "no prediction file for 3 parts" in message
    assert "there are parts of 2" in message
    assert "is not a folder; expected the out_dir" in failure([str(two_parts / "absent"), "2"], capsys)
    assert "number of parts 0" in failure([str(two_parts), "0"], capsys)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"checkpoint": "b"},
            "the prediction files come from different checkpoints: coco_pred_0_of_2.json from a, coco_pred_1_of_2.json",
        ),
        ({"checkpoint": "a", "alter": "blank_image"}, "were made with different values of alter"),
    ],
)
def test_parts_of_different_runs(
    two_parts: Path, other: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(two_parts, "coco_pred_0_of_2", [], whole_meta("coco", 0, 2, alter="none"))
    write(two_parts, "coco_pred_1_of_2", [], whole_meta("coco", 1, 2, **other))
    assert message in failure([str(two_parts), "2"], capsys)


def test_sets_of_different_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, checkpoint in (("coco", "a"), ("ade20k", "b")):
        meta = whole_meta(name, checkpoint=checkpoint, items=[0, 1], modes=["any"], counts={"named": 1})
        write(tmp_path, f"{name}_pred_0_of_1", [entry([segment(1, "wall")])], meta)
    assert "mixes predictions from different checkpoints: coco from a, ade20k from b" in failure(
        [str(tmp_path), "1"], capsys
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('[{"segments_info"', "not valid json"),
        ({"pred": []}, "not in the format of annotation format coco_panoptic"),
        ([{"image_id": 3}], "not in the format of annotation format coco_panoptic"),
        ([entry([{"id": 1, "category_id": 1, "open_end_pred": {"any": {"prob": 1}}}])], "not in the format"),
        ([entry([segment(12, "man")])], "annotation 1: category_id 12 is not in the label set coco"),
        ([entry([{**segment(1, "man"), "category_id": [1]}])], "category_id [1] is not in the label set coco"),
    ],
)
def test_bad_file(tmp_path: Path, document: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "coco_pred_0_of_1", document)
    error = failure([str(tmp_path), "1"], capsys)
    assert message in error
    assert "coco_pred_0_of_1.json" in error


# What a file holds, against its meta file and its set.

META = "pets_meta_0_of_1.json"
FILE = "pets_pred_0_of_1.json"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def field(name: str, value: Any) -> Callable[[Path], None]:
    return lambda out: edit(out / META, lambda meta: {**meta, name: value})


def content(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda out: edit(out / FILE, change)


def unnamed(document: Any) -> Any:
    del document[0]["segments_info"][0]["open_end_pred"]
    return document


def without_a_mask(document: Any) -> Any:
    document[2]["segments_info"].pop(0)
    return document


def without_a_mode(document: Any) -> Any:
    del document[1]["segments_info"][0]["open_end_pred"]["any"]
    return document


def another_mask(document: Any) -> Any:
    document[1]["segments_info"][0]["id"] = 77
    return document


def another_image(document: Any) -> Any:
    document[1]["image_id"] = 999
    return document


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            content(lambda entries: entries[:2]),
            "images is 2 in the file, but 5 in its meta file; the file is cut short",
        ),
        (content(lambda entries: []), "the number of images is 0 in the file, but 5 in its meta file"),
        (content(unnamed), "masks with a prediction is 9 in the file, but 10 in its meta file"),
        (content(without_a_mask), "in the file, but 10 in its meta file"),
        (
            content(without_a_mode),
            "names in the modes ['pets'], but the meta file lists the modes ['any', 'pets']",
        ),
        (content(another_mask), "image 103 has mask 77 of category 1, which"),
        (content(another_image), "image 999 is not among the images of"),
        (lambda out: (out / META).write_text("{}"), "meta file .*: required fields missing: checkpoint, set, part, "),
        (lambda out: (out / META).write_text("[]"), "meta file .*: expected a JSON object, found []"),
        (field("counts", 5), "counts 5: expected the numbers of masks named, empty, ..."),
        (field("counts", {"named": -1}), "counts {'named': -1}: expected the numbers"),
        (field("images", "x"), "images 'x': expected a number of images"),
        (field("items", [0, 9]), "the range of items [0, 9] exceeds the number of images (5)"),
        (field("items", [3, 1]), "items [3, 1]: expected [first image, image after the last]"),
        (field("items", "all"), "items 'all': expected [first image"),
        (field("set", "coco"), "the file was written for dataset 'coco', but its name belongs to dataset 'pets'"),
        (field("modes", "any"), "modes 'any': expected a list of modes"),
        (field("seconds", float("nan")), "seconds nan: expected a number of seconds"),
        (
            field("vocabulary", {"a": "\x1b"}),
            "vocabulary {'a': '\\x1b'}: expected [way, number of names, hash], or null",
        ),
        (field("limit", 2), "the number of images (5) exceeds the limit (2)"),
    ],
)
def test_a_file_that_does_not_hold_what_it_should(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, damage: Callable[[Path], None], message: str, capsys: Any
) -> None:
    out = tmp_path / "out"
    generate_predictions(FakeNamer(), pets, 0, 1, out)
    call = [str(out), "1", "--datasets", str(pets_yaml)]
    assert evaluate_main(call) == 0
    damage(out)
    capsys.readouterr()
    error = failure(call, capsys)
    assert "nan" not in error.replace("seconds nan", "")
    first, _, rest = message.partition(".*")
    assert first in error and rest.rpartition(".*")[2] in error
    assert FILE in error or META in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[:2], "image 102 of .* is in none of pets_pred_0_of_1.json: a file is cut short"),
        (lambda entries: [], "dataset 'pets': the prediction files contain no images: pets_pred_0_of_1.json"),
        (
            another_mask,
            "image 103 has mask 77 of category 1, which is not in .*: the predictions are for different masks",
        ),
        (another_image, "image 999 is not among the images of .*; the predictions belong to a different dataset"),
    ],
)
def test_without_a_meta_file_the_set_itself_is_asked(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, change: Callable[[Any], Any], message: str, capsys: Any
) -> None:
    out = tmp_path / "out"
    generate_predictions(FakeNamer(), pets, 0, 1, out)
    (out / META).unlink()
    call = [str(out), "1", "--datasets", str(pets_yaml)]
    assert evaluate_main(call) == 0
    edit(out / FILE, change)
    capsys.readouterr()
    assert re.search(message, failure(call, capsys))


def test_published_files_are_read_without_the_set(two_parts: Path, tmp_path: Path, capsys: Any) -> None:
    assert evaluate_main([str(two_parts), "2"]) == 0  # no meta file, no path in the table
    annotations = [entry([{**one, "open_end_pred": {}} for one in PART_0])]
    write(tmp_path / "truth", "coco_pred_0_of_1", annotations)
    assert "the masks in the 1 images of coco_pred_0_of_1.json" in failure([str(tmp_path / "truth"), "1"], capsys)


def test_parts_beyond_the_images_are_empty_files(pets: Dataset, pets_yaml: Path, tmp_path: Path) -> None:
    for part in range(7):
        generate_predictions(FakeNamer(), pets, part, 7, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "pets_pred_0_of_7.json").read_text()) == []
    assert evaluate_main([str(tmp_path / "out"), "7", "--datasets", str(pets_yaml)]) == 0


def test_swapped_parts_are_noticed(pets: Dataset, pets_yaml: Path, tmp_path: Path, capsys: Any) -> None:
    for part in range(5):
        generate_predictions(FakeNamer(), pets, part, 5, tmp_path / "out")
    one, other = (tmp_path / "out" / f"pets_pred_{part}_of_5.json" for part in (1, 3))
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    message = failure([str(tmp_path / "out"), "5", "--datasets", str(pets_yaml)], capsys)
    assert "image 101 has index 3 in" in message and "this part contains images 1 to 1;" in message


@pytest.mark.parametrize("command", ["evaluate", "all", "compare", "report", "picture", "judged", "reproduce", "open"])
def test_every_reader_refuses_a_file_that_is_cut_short(
    pets: Dataset, pets_yaml: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "predictions"
    generate_predictions(FakeNamer(), pets, 0, 1, out)
    edit(out / FILE, lambda entries: entries[:3])
    own = ["--datasets", str(pets_yaml)]
    readers: dict[str, Callable[[], int]] = {
        "evaluate": lambda: evaluate_main([str(out), "1", *own]),
        "all": lambda: evaluate_main([str(out), "1", "--metrics", "all", *own]),
        "compare": lambda: compare_main([str(out), str(out), "--parts", "1", "--metrics", "published", *own]),
        "report": lambda: report_main([str(tmp_path / "r"), "--predictions", f"a={out}", "--parts", "1", *own]),
        "picture": lambda: picture_main([str(out), "1", str(tmp_path / "a.jpg"), "--set", "pets", *own]),
        "reproduce": lambda: reproduce.main(["my.pt", str(out)], lambda _: 0),
    }
    monkeypatch.setattr(reproduce, "DatasetTable", lambda: {"pets": pets})
    capsys.readouterr()
    if command in readers:
        assert readers[command]() == 2
        error = capsys.readouterr().err.splitlines()[-1]
    else:
        monkeypatch.setattr(left_out_classes, "PARTS", 1)
        with pytest.raises(OsmError) as caught:
            if command == "judged":
                judgements.sample(out, 1, tmp_path / "list.json", tmp_path / "sheets", DatasetTable((pets,)), ["pets"])
            else:
                left_out_classes.answers(pets, tmp_path)
        error = str(caught.value)
    assert f"predictions {out / FILE}: the number of images is 3 in the file, but 5 in its meta file" in error
    assert not (tmp_path / "r").exists() and not (tmp_path / "a.jpg").exists() and not (tmp_path / "list.json").exists()
