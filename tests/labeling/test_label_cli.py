"""`osm label` on real files: what it writes, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from noise_photos import COUNT, noise_photos
from processes import wait_until

from osm.labeling.label_cli import main
from osm.labeling.label_output import LabelTarget, grown_names, write_labels
from osm.labeling.label_rules import KeepRules


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_photos(tmp_path_factory.mktemp("data"))


def command(photos: Path, out: Path, checkpoint: Path, *more: str) -> list[str]:
    masks = ["--masks", str(photos / "masks.json"), "--device", "cpu", "--max_new_tokens", "4"]
    return [str(photos / "images"), str(out), *masks, "--checkpoint", str(checkpoint), *more]


def files(out: Path) -> dict[str, bytes]:
    found = (path for path in sorted(out.rglob("*")) if path.is_file() and ".osm_label" not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def labeled(photos: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels")
    assert main(command(photos, out, checkpoint, "--to", "coco,yolo,csv,labelme")) == 1  # one image failed
    return out


def test_every_mask_gets_a_name_and_what_has_none_is_counted(
    labeled: Path, photos: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((labeled / "labels.json").read_text())
    named = len(document["annotations"])
    assert main(command(photos, labeled, checkpoint, "--to", "coco,yolo,csv,labelme")) == 1
    said = capsys.readouterr().out
    assert f"{COUNT - 1} images, {named} masks named" in said
    left_out = sum(int(line.split()[0]) for line in said.splitlines() if " left out: " in line)
    assert named + left_out == 3 * (COUNT - 1) + 2
    assert "1 mask left out: annotation_without_mask" in said
    assert "not labeled: " in said and "3.png" in said
    assert f"yolo cannot hold: {named} probabilities" in said
    names = (labeled / "names.txt").read_text().splitlines()
    assert {row["name"]: row["id"] for row in document["categories"]} == {n: k for k, n in enumerate(names, 1)}
    assert len(document["images"]) == COUNT - 1 and all(0 <= row["score"] <= 1 for row in document["annotations"])
    assert set(files(labeled)) >= {"labels.json", "labels.csv", "names.txt", "yolo/data.yaml", "labelme/sub/0.json"}


def test_killed_twice_and_resumed_is_byte_identical(
    labeled: Path, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = ["-m", "osm", "label", *command(photos, tmp_path, checkpoint, "--to", "coco,yolo,csv,labelme")]
    journal = tmp_path / ".osm_label" / "images_0.jsonl"
    for lines in (2, 6):
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_until(lambda wanted=lines: journal.is_file() and journal.read_bytes().count(b"\n") >= wanted, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    with journal.open("ab") as file:
        file.write(b'{"number":11,"file_name":"half a li')  # a line that was being written
    assert main(words[3:]) == 1
    assert files(tmp_path) == files(labeled)


def test_an_image_that_failed_is_tried_again(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    words = command(own, tmp_path / "out", checkpoint)
    assert main(words) == 1
    shutil.copy(own / "images" / "sub" / "2.png", own / "images" / "sub" / "3.png")
    assert main(words) == 0
    lines = (tmp_path / "out" / ".osm_label" / "images_0.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [*range(COUNT), 3]
    assert len(json.loads((tmp_path / "out" / "labels.json").read_text())["images"]) == COUNT


def test_two_processes_write_the_same_files(labeled: Path, photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    more = ("--to", "coco,yolo,csv,labelme", "--processes", "2")
    assert main(command(photos, tmp_path, checkpoint, *more)) == 1
    assert len(list((tmp_path / ".osm_label").glob("images_*.jsonl"))) == 2
    assert files(tmp_path) == files(labeled)


def test_other_settings_need_another_folder(
    labeled: Path, photos: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(labeled, out)
    assert main(command(photos, out, checkpoint, "--mode", "coco")) == 2
    assert "holds labels made with mode 'any', but it is now 'coco'" in capsys.readouterr().err
    assert main(command(photos, out, checkpoint, "--mode", "coco", "--overwrite")) == 1


def test_dry_run_and_strict(
    photos: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, labeled: Path
) -> None:
    assert main(command(photos, tmp_path / "new", checkpoint, "--dry_run", "--to", "yolo")) == 0
    assert f"{COUNT} images, {3 * COUNT + 2} masks (COCO instances), to yolo" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    out = tmp_path / "copy"
    shutil.copytree(labeled, out)
    shutil.rmtree(out / "yolo")
    assert main(command(photos, out, checkpoint, "--strict", "--to", "yolo")) == 2
    assert "--to yolo: YOLO segmentation cannot hold" in capsys.readouterr().err and not (out / "yolo").exists()


def test_a_vocabulary_gives_its_own_ids(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "names.txt"
    vocabulary.write_text("cat\ndog\nhouse\n")
    out = tmp_path / "out"
    assert main(command(photos, out, checkpoint, "--vocabulary", str(vocabulary), "--min_area", "421")) == 1
    document = json.loads((out / "labels.json").read_text())
    assert [(row["id"], row["name"]) for row in document["categories"]] == [(1, "cat"), (2, "dog"), (3, "house")]
    assert document["annotations"] and all(row["area"] >= 421 for row in document["annotations"])


def test_the_labels_that_were_written_can_be_labeled_again(
    labeled: Path, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    words = [str(labeled / "labels.json"), str(tmp_path), "--image_dir", str(photos / "images"), "--device", "cpu"]
    assert main([*words, "--checkpoint", str(checkpoint), "--max_new_tokens", "4"]) == 0
    before, after = (json.loads((folder / "labels.json").read_text()) for folder in (labeled, tmp_path))
    keys = ("segmentation", "area", "bbox")
    assert [[row[key] for key in keys] for row in after["annotations"]] == [
        [row[key] for key in keys] for row in before["annotations"]
    ]


def test_segments_of_a_folder(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = [str(photos / "images"), str(tmp_path), "--auto", "--device", "cpu", "--max_new_tokens", "2"]
    assert main([*words, "--checkpoint", str(checkpoint), "--min_area", "50"]) == 1
    assert len(json.loads((tmp_path / "labels.json").read_text())["images"]) == COUNT - 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--to", "sam"], "--to sam: the format (SA-1B and SAM's automatic masks) has no field for a name"),
        (["--to", "yolos"], "did you mean 'yolo'"),
        (["--unsure", "keeps"], "--unsure 'keeps' is not one of keep, drop, review; did you mean 'keep'?"),
        (["--min_prob", "2"], "--min_prob 2.0 must be from 0 to 1"),
        (["--processes", "0"], "--processes 0 must be 1 or more"),
        (["--auto"], "--auto finds masks, so it cannot be combined with --masks, --tracks or --from"),
        (["--segmenter", "embedded"], "have no effect without --auto"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    more: list[str], said: str, photos: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(command(photos, tmp_path / "out", checkpoint, *more)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_without_masks(photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(photos / "images"), str(tmp_path / "out")]) == 2
    assert "holds no masks in a known format" in capsys.readouterr().err
    assert main([str(photos / "masks.json"), str(tmp_path / "out"), "--image_dir", str(tmp_path)]) == 2
    assert "name the folder of the images with --image_dir" in capsys.readouterr().err


def test_names_keep_their_ids(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    assert grown_names(file, ["cat", "dog"]) == {"cat": 1, "dog": 2}
    assert grown_names(file, ["ape", "dog"]) == {"cat": 1, "dog": 2, "ape": 3}


def test_a_name_with_line_breaks_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    first = grown_names(file, ["ball\n\n I\u2028am", "dog"])
    assert file.read_text() == "ball I am\ndog\n"
    assert first["ball\n\n I\u2028am"] == 1 and first["dog"] == 2
    again = grown_names(file, ["cat", "ball\n\n I\u2028am"])
    assert {name: again[name] for name in first} == first and again["cat"] == 3
    file.write_text("traffic  light\n")  # written by an earlier version
    assert grown_names(file, ["dog", "traffic  light"]) == {"traffic  light": 1, "dog": 2}


def test_unsure_names_go_to_a_file_of_their_own(labeled: Path, tmp_path: Path) -> None:
    from osm.labeling.formats import FORMATS
    from osm.labeling.label_journal import LabelJournal

    shutil.copytree(labeled / ".osm_label", tmp_path / ".osm_label")
    (journal_file,) = (tmp_path / ".osm_label").glob("images_*.jsonl")
    records: list[dict[str, Any]] = [json.loads(line) for line in journal_file.read_text().splitlines()]
    marked = 0
    for record in records:
        for shape in record["shapes"][:1]:
            if shape.get("name"):
                shape["unsure"] = True
                marked += 1
    journal_file.write_text("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in records))
    settings = json.loads((tmp_path / ".osm_label" / "settings.json").read_text())
    coco = [FORMATS.get("coco")]
    for unsure in ("keep", "drop", "review"):
        journal = LabelJournal(tmp_path, settings)
        summary = write_labels(journal, KeepRules(unsure=unsure), tmp_path, LabelTarget(coco))
        assert summary.left_out["unsure"] == (0 if unsure == "keep" else marked) and marked
    rows = [json.loads(line) for line in (tmp_path / "review.jsonl").read_text().splitlines()]
    assert len(rows) == marked and all(row["unsure"] and row["file_name"] for row in rows)
