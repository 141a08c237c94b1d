"""Prediction files: format, parts, restarts, alterations, the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_namer import FakeName, FakeNamer

from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.predict.generate import generate_predictions, part_range
from osm.evaluation.predict.generate_cli import generate_main

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "pets_pred_0_of_1"
META = f"{NAME}.json".replace("_pred_", "_meta_")


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_format(pets: Dataset, tmp_path: Path) -> None:
    path = generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "out")
    assert path == tmp_path / "out" / f"{NAME}.json"
    source = load(Path(str(pets.json_file)))["annotations"]
    document = load(path)
    assert [entry["image_id"] for entry in document] == [104, 103, 102, 101, 100]
    cat, dog, crowd, absent = document[4]["segments_info"]
    assert cat.pop("open_end_pred") == {
        "pets": {"class": "pets 24 of 0", "prob": 1 / 3},
        "any": {"class": "any 24 of 0", "prob": 1 / 3},
    }
    assert dog.pop("open_end_pred")["any"]["class"] == "any 18 of 0"
    assert [cat, dog, crowd, absent] == source[4]["segments_info"]
    meta = load(tmp_path / "out" / META)
    none = {"empty": 0, "unusable": 0}
    assert meta["counts"] == {"named": 10, "crowd": 5, "missing_in_mask": 5, "unknown_in_mask": 5, **none}
    assert (meta["checkpoint"], meta["items"], meta["modes"]) == ("fake-1", [0, 5], ["pets", "any"])
    assert sorted(os.listdir(tmp_path / "out")) == [META, f"{NAME}.json"]


def test_parts_are_the_whole(pets: Dataset, tmp_path: Path) -> None:
    whole = load(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path))
    parts = [load(generate_predictions(FakeNamer(), pets, part, 2, tmp_path)) for part in range(2)]
    assert [len(part) for part in parts] == [2, 3]
    assert parts[0] + parts[1] == whole
    few = [load(generate_predictions(FakeNamer(), pets, part, 7, tmp_path)) for part in range(7)]
    assert few == [[]] * 6 + [whole]
    assert part_range(5, 1, 2) == range(2, 5)


def test_limit_and_modes(pets: Dataset, tmp_path: Path) -> None:
    document = load(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path, limit=2, modes=["coco"]))
    assert len(document) == 2
    assert list(document[0]["segments_info"][0]["open_end_pred"]) == ["coco"]


DAMAGES = (b"", b'{"index": 3, "counts": {"na', b"\0\0\0\n", b'{"index": 7}\n')


@pytest.mark.usefixtures("console")
def test_killed_run_goes_on(pets: Dataset, pets_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    undisturbed = generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "undisturbed").read_bytes()
    # Its process ends at the fourth image, with no chance to tidy up.
    command = [sys.executable, str(HERE / "fake_namer.py"), str(pets_yaml), str(tmp_path / "killed"), "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert os.listdir(tmp_path / "killed") == [f"{NAME}.partial.jsonl"]
    for number, damage in enumerate(DAMAGES):
        out_dir = shutil.copytree(tmp_path / "killed", tmp_path / str(number))
        with (out_dir / f"{NAME}.partial.jsonl").open("ab") as file:
            file.write(damage)
        namer = FakeNamer()
        assert generate_predictions(namer, pets, 0, 1, out_dir).read_bytes() == undisturbed
        assert len(namer.calls) == 2
        assert "resuming after 3 of 5 images" in capsys.readouterr().err
        counts = [load(folder / META)["counts"] for folder in (tmp_path / "undisturbed", out_dir)]
        assert counts[0] == counts[1]
        assert sorted(os.listdir(out_dir)) == [META, f"{NAME}.json"]


class Together(FakeNamer):
    """Whose names tell which images were named together; ends a run after so many of them."""

    def __init__(self, calls: int = 99) -> None:
        super().__init__()
        self.batches: list[int] = []
        self._left = calls

    def name_images(self, images: Any, masks: Any, modes: Any) -> Any:
        if len(self.batches) == self._left:
            raise Interrupted
        self.batches.append(len(images))
        reds = "".join(f" {np.asarray(image)[0, 0, 0]}" for image in images)
        found = super().name_images(images, masks, modes)
        return [
            [names and {mode: FakeName(name.text + reds, name.prob) for mode, name in names.items()} for names in one]
            for one in found
        ]


def test_batches_of_images(pets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "alone"))
    batched = load(generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "batched", batch=3))
    assert batched == alone
    assert load(tmp_path / "batched" / META)["counts"] == load(tmp_path / "alone" / META)["counts"]
    whole = Together()
    undisturbed = generate_predictions(whole, pets, 0, 1, tmp_path / "whole", batch=2).read_bytes()
    assert sum(whole.batches) == 5 and max(whole.batches) == 2
    # Killed after a batch, and in the middle of writing one down: the same batches again.
    with pytest.raises(Interrupted):
        generate_predictions(Together(2), pets, 0, 1, tmp_path / "killed", batch=2)
    partial = tmp_path / "killed" / f"{NAME}.partial.jsonl"
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 4
    for kept in range(1, 6):
        partial.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(Interrupted):
            generate_predictions(Together(0), pets, 0, 1, tmp_path / "killed", batch=2)
        again = Together()
        assert generate_predictions(again, pets, 0, 1, tmp_path / "killed", batch=2).read_bytes() == undisturbed
        assert len(again.batches) == 3 - (kept - 1) // 2
        (tmp_path / "killed" / f"{NAME}.json").unlink()
    # Masks that do not fit into memory together are named one after the other, whatever the batch.
    monkeypatch.setattr("osm.evaluation.predict.generate._MASK_PIXELS", 1)
    small = Together()
    assert load(generate_predictions(small, pets, 0, 1, tmp_path / "small", batch=5)) != alone
    assert set(small.batches) == {1}
    with pytest.raises(OsmError, match="batch 0: expected 1 image or more"):
        generate_predictions(FakeNamer(), pets, 0, 1, tmp_path / "none", batch=0)


def test_two_runs_of_one_part(pets: Dataset, tmp_path: Path) -> None:
    class Second(FakeNamer):
        def name_image(self, *arguments: Any) -> Any:
            with pytest.raises(OsmError, match="another process is writing"):
                generate_predictions(FakeNamer(), pets, 0, 1, tmp_path)
            return super().name_image(*arguments)

    assert len(load(generate_predictions(Second(), pets, 0, 1, tmp_path))) == 5


class Interrupted(Exception):
    """Stands for whatever ends a run."""


def interrupt(pets: Dataset, out_dir: Path, **options: Any) -> None:
    """A run that ends after two images."""

    class Failing(FakeNamer):
        def name_image(self, *arguments: Any) -> Any:
            if len(self.calls) == 2:
                raise Interrupted
            return super().name_image(*arguments)

    with pytest.raises(Interrupted):
        generate_predictions(Failing(), pets, 0, 1, out_dir, **options)


@pytest.mark.usefixtures("console")
def test_partial_file_of_another_run_is_not_used(
    pets: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(pets, tmp_path)
    namer = FakeNamer(fingerprint="fake-2")
    generate_predictions(namer, pets, 0, 1, tmp_path, modes=["any"])
    assert len(namer.calls) == 5
    assert f"{NAME}.partial.jsonl: written with a different checkpoint, modes; starting over" in capsys.readouterr().err


@pytest.mark.usefixtures("console")
def test_finished_part_is_skipped(pets: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = generate_predictions(FakeNamer(), pets, 0, 1, tmp_path)
    before = path.stat().st_mtime_ns
    namer = FakeNamer()
    assert generate_predictions(namer, pets, 0, 1, tmp_path) == path
    assert not namer.calls
    assert path.stat().st_mtime_ns == before
    assert f"{NAME}.json: finished already, skipped" in capsys.readouterr().err
    with pytest.raises(OsmError, match="made with a different value of checkpoint; choose another out_dir"):
        generate_predictions(FakeNamer(fingerprint="fake-2"), pets, 0, 1, tmp_path)


def test_blank_image(pets: Dataset, tmp_path: Path) -> None:
    namer = FakeNamer()
    generate_predictions(namer, pets, 0, 1, tmp_path, alter="blank_image")
    assert all((image == 128).all() for image, _ in namer.calls)


def test_shuffled_masks(pets: Dataset, tmp_path: Path) -> None:
    plain, first, again, other = FakeNamer(), FakeNamer(), FakeNamer(), FakeNamer()
    whole = generate_predictions(plain, pets, 0, 1, tmp_path / "plain")
    shuffled = generate_predictions(first, pets, 0, 1, tmp_path / "first", alter="shuffle_masks")
    for part in range(2):
        generate_predictions(again, pets, part, 2, tmp_path / "again", alter="shuffle_masks")
    generate_predictions(other, pets, 0, 1, tmp_path / "other", alter="shuffle_masks", seed=1)
    masks = [np.concatenate([masks for _, masks in namer.calls]) for namer in (plain, first, again, other)]
    assert not np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[1], masks[2])
    assert not np.array_equal(masks[1], masks[3])
    # Every mask is one of the split's, and the same annotations are named.
    assert {int(mask.sum()) for mask in masks[1]} <= {24, 18}
    named = [[["open_end_pred" in s for s in e["segments_info"]] for e in load(path)] for path in (whole, shuffled)]
    assert named[0] == named[1]


def test_shuffling_needs_another_mask(pets: Dataset, tmp_path: Path) -> None:
    document = load(Path(str(pets.json_file)))
    document["annotations"] = document["annotations"][:1]
    document["annotations"][0]["segments_info"] = document["annotations"][0]["segments_info"][:1]
    Path(str(pets.json_file)).write_text(json.dumps(document))
    with pytest.raises(OsmError, match="shuffle_masks found no other mask among"):
        generate_predictions(FakeNamer(), pets, 0, 1, tmp_path, alter="shuffle_masks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit 0: expected 1"),
        ({"alter": "noise"}, "alter 'noise' is not one of none, shuffle_masks, blank_image"),
        ({"modes": ["own", "lvis"]}, "mode 'lvis', but the checkpoint has only pets, coco, any"),
        ({"modes": []}, "modes: no mode was given"),
    ],
)
def test_wrong_options(pets: Dataset, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        generate_predictions(FakeNamer(), pets, 0, 1, tmp_path, **options)


@pytest.mark.parametrize(("part", "parts"), [(2, 2), (-1, 2), (0, 0)])
def test_wrong_part(pets: Dataset, tmp_path: Path, part: int, parts: int) -> None:
    with pytest.raises(OsmError, match="expected 0 <= part < parts"):
        generate_predictions(FakeNamer(), pets, part, parts, tmp_path)


def test_form_without_its_folder(pets: Dataset, tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="needs mask_dir"):
        generate_predictions(FakeNamer(), replace(pets, mask_dir=None), 0, 1, tmp_path)


def run_main(tmp_path: Path, *flags: str) -> tuple[int, list[dict[str, Any]]]:
    """The command line with the fake namer; what it asked the loader for."""
    asked: list[dict[str, Any]] = []

    def loader(checkpoint: str, **options: Any) -> FakeNamer:
        asked.append({"checkpoint": checkpoint, **options})
        return FakeNamer()

    return generate_main(["0", "1", "my.pt", str(tmp_path / "out"), *flags], loader), asked


def test_command_line(
    pets_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets" / "images").rename(tmp_path / "photos")
    flags = ["--datasets", str(pets_yaml), "--pets_image_dir", "photos", "--device", "cpu", "--limit", "1"]
    code, asked = run_main(tmp_path, *flags)
    assert code == 0
    assert (asked[0]["checkpoint"], asked[0]["device"], asked[0]["config"]) == ("my.pt", "cpu", None)
    assert len(load(tmp_path / "out" / f"{NAME}.json")) == 1
    error = capsys.readouterr().err
    assert "coco: left out, image_dir coco/val2017 does not exist (--coco_image_dir)" in error
    assert "ade20k: left out, image_dir ADEChallengeData2016/images/validation does not exist" in error
    assert "lvis: left out, image_dir lvis does not exist (--lvis_image_dir)" in error
    assert "v3det: left out, image_dir V3Det does not exist (--v3det_image_dir)" in error
    assert "pascal_part: left out, image_dir pascal_part/VOCdevkit/VOC2010/JPEGImages does not exist" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no dataset has its files; coco: left out, image_dir coco/val2017 does not exist"),
        (["--sets", "coco,cats"], "--sets: unknown dataset 'cats'; known datasets: coco, lvis"),
        (["--sets", "v3det"], "v3det: left out, image_dir V3Det does not exist (--v3det_image_dir)"),
        (["--benchmark", "absent.yaml"], "absent.yaml"),
        (["--datasets", "absent.yaml"], "absent.yaml"),
        (["--num_threads", "-1"], "--num_threads -1: expected 1 or more"),
        (["--way", "scored"], "--way scored has no effect without --vocabulary; give --vocabulary as well"),
    ],
)
def test_command_line_errors(
    tmp_path: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, asked = run_main(tmp_path, *flags)
    error = capsys.readouterr().err
    assert code == 2
    assert not asked
    assert error.startswith("error: ")
    assert message in error


def test_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "test" / "generate_pred.py"), "0", "1", "my.pt", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no dataset has its files; coco: left out, image_dir coco/val2017 does")
    assert len(done.stderr.splitlines()) == 1
