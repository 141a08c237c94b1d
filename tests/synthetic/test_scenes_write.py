"""Scenes on disk: COCO-panoptic form, several sets over the same images, resuming, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osm.data.shards import RawSample, read_shard
from osm.datasets.labels import load_labels
from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.forms import read_sample, split_of
from osm.prepare.convert import ConvertOptions, convert_coco_panoptic
from osm.synthetic.scenes import write
from osm.synthetic.scenes.scene_names import ATTRIBUTES, FINE, PLAIN, SETS, STUFF, THINGS, held_out_pairs
from osm.synthetic.scenes.write import SceneOptions, main, write_scenes

OPTIONS = SceneOptions(images=4, size=64, seed=3)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished split; only read."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "a" / "test", OPTIONS, workers=1)


def row(split: Path, set_name: str) -> Dataset:
    json_file = str(split / f"{set_name}.json")
    folders = str(split / "images"), str(split / "panoptic")
    return Dataset(set_name, "coco_panoptic", "Scenes", json_file, *folders, json_file)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_files_of_a_split(split: Path) -> None:
    stems = [f"{number:06d}" for number in range(4)]
    pictures = [f"images/{stem}.jpg" for stem in stems] + [f"panoptic/{stem}.png" for stem in stems]
    assert sorted(files(split)) == sorted([*pictures, "scenes.json", *(f"{name}.json" for name in SETS)])
    for stem in stems:
        for path in (split / f"images/{stem}.jpg", split / f"panoptic/{stem}.png"):
            with Image.open(path) as image:
                assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize("set_name", SETS)
def test_the_benchmark_reads_it(split: Path, set_name: str) -> None:
    items = split_of(row(split, set_name))
    assert len(items) == 4
    for index in range(4):
        item = items.load(index)
        assert not item.counts.total()  # nothing in the json alone, nothing in the PNG alone, no crowd
        assert item.size == (64, 64) and len(item.annotations) >= 4
        covered = np.zeros((64, 64), int)
        for number, annotation in enumerate(item.annotations):
            mask = item.mask(number)
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["area"] == mask.sum() and annotation["bbox"] == box
            covered += mask
        assert (covered == 1).all()


@pytest.mark.parametrize("set_name", SETS)
def test_it_converts_to_shards(split: Path, set_name: str, tmp_path: Path) -> None:
    options = ConvertOptions(tmp_path, num_workers=1)
    done = convert_coco_panoptic(split / f"{set_name}.json", split / "images", split / "panoptic", options)
    assert (done["written"], done["left_out"], done["warnings"]) == (4, {}, {})
    labels = load_labels(tmp_path / "categories.json")
    assert labels.classes == load_labels(split / f"{set_name}.json").classes
    by_image = {entry["file_name"][:6]: entry["segments_info"] for entry in annotations(split, set_name)}
    for raw in read_shard(str(tmp_path / "000000000.tar")):
        assert isinstance(raw, RawSample)
        scene = read_sample("coco_panoptic", raw.members, labels)
        assert scene.image().size == (64, 64)
        expected = [labels[segment["category_id"]].target for segment in by_image.pop(raw.key)]
        assert [scene.labels[entry["category_id"]].target for entry in scene.entries] == expected
    assert not by_image


def annotations(split: Path, set_name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load(split / f"{set_name}.json")["annotations"]
    return found


def test_both_sets_call_the_same_masks_by_their_own_names(split: Path) -> None:
    documents = {name: load(split / f"{name}.json") for name in SETS}
    names = {
        set_name: {category["id"]: category["name"] for category in document["categories"]}
        for set_name, document in documents.items()
    }
    assert documents[FINE]["images"] == documents[PLAIN]["images"]
    differing = 0
    for fine, plain in zip(annotations(split, FINE), annotations(split, PLAIN), strict=True):
        assert (fine["image_id"], fine["file_name"]) == (plain["image_id"], plain["file_name"])
        for one, other in zip(fine["segments_info"], plain["segments_info"], strict=True):
            assert all(one[key] == other[key] for key in ("id", "area", "bbox", "names"))
            precise, simple = names[FINE][one["category_id"]], names[PLAIN][other["category_id"]]
            assert one["names"] == list(dict.fromkeys([precise, simple]))
            attribute, _, thing = precise.rpartition(" ")
            assert simple == {**THINGS, **STUFF}[thing] and (attribute in ATTRIBUTES) == (thing in THINGS)
            differing += simple != thing
    assert differing


def test_the_pairing_decides_what_is_drawn(tmp_path: Path) -> None:
    split = write_scenes(tmp_path, replace(OPTIONS, images=3, pairs="held_out", held_out_seed=5, sets=(FINE,)), 1)
    labels = load_labels(split / f"{FINE}.json")
    shown = {labels[s["category_id"]].target for entry in annotations(split, FINE) for s in entry["segments_info"]}
    assert shown - set(STUFF) and shown - set(STUFF) <= {str(pair) for pair in held_out_pairs(5)}
    assert not (split / f"{PLAIN}.json").exists()


# -- workers, resuming -------------------------------------------------------------------------------------------------


def test_workers_change_nothing(tmp_path: Path) -> None:
    options = replace(OPTIONS, images=11)
    one, three = (files(write_scenes(tmp_path / str(workers), options, workers)) for workers in (1, 3))
    assert one == three


class Killed(BaseException):
    """Stands for the end of the process: nothing of the project catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, folder: Path, index: int) -> None:
    """Starts a split and ends while scene `index` is drawn, its image half on disk."""
    draw = write._draw_one

    def draw_or_die(job: tuple[str, SceneOptions, int]) -> dict[str, Any]:
        if job[2] == index:
            (folder / "images" / f"{index:06d}.jpg").write_bytes(b"\xff\xd8half")
            raise Killed
        return draw(job)

    with monkeypatch.context() as patch:
        patch.setattr(write, "_draw_one", draw_or_die)
        with pytest.raises(Killed):
            write_scenes(folder, OPTIONS, workers=1)


@pytest.mark.parametrize("damage", [b"", b'{"index": 2, "scene": 2, "segm', b"\0\0\n"], ids=["none", "cut", "zeros"])
def test_a_killed_run_goes_on(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    kill_at(monkeypatch, tmp_path, 2)
    assert not list(tmp_path.glob("scenes*.json"))  # nothing that a reader could take for whole
    with (tmp_path / "scenes.partial.jsonl").open("ab") as file:
        file.write(damage)
    drawn = []
    draw = write._draw_one
    monkeypatch.setattr(write, "_draw_one", lambda job: (drawn.append(job[2]), draw(job))[1])
    write_scenes(tmp_path, OPTIONS, workers=1)
    assert drawn == [2, 3]
    assert files(tmp_path) == files(split)


def test_a_killed_run_with_other_options_starts_again(split: Path, tmp_path: Path, monkeypatch: Any) -> None:
    other = replace(OPTIONS, seed=4, images=5)  # its fifth image must not stay
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_atomically", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            write_scenes(tmp_path, other, workers=1)
    write_scenes(tmp_path, OPTIONS, workers=1)
    assert files(tmp_path) == files(split)


@pytest.mark.usefixtures("console")
def test_a_finished_split_is_left_alone(split: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in split.rglob("*")}
    monkeypatch.setattr(write, "_draw_one", lambda job: pytest.fail("drawn again"))
    assert write_scenes(split, OPTIONS, workers=1) == split
    assert {path: path.stat().st_mtime_ns for path in split.rglob("*")} == before
    assert "finished already, 4 scenes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 4}, "seed"), ({"images": 5, "size": 65}, "images, size"), ({"sets": (FINE,)}, "sets")],
)
def test_other_options_are_refused(split: Path, changes: dict[str, Any], named: str) -> None:
    before = files(split)
    with pytest.raises(OsmError, match=f"drawn with a different value of {named}; choose a different folder"):
        write_scenes(split, replace(OPTIONS, **changes), workers=1)
    assert files(split) == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OsmError, match="file/test: Not a directory; expected a writable folder"):
        write_scenes(tmp_path / "file" / "test", OPTIONS, workers=1)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_same(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--split", "test", "--images", "4", "--size", "64", "--seed", "3", "--num_workers", "1"]
    assert main([str(tmp_path), *flags]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'test'}\n"
    assert files(tmp_path / "test") == files(split)
    assert main([str(tmp_path), *flags, "--sets", PLAIN]) == 2
    assert "a different value of sets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "63"], "--size 63 is not between 64 and 1120"),
        (["--size", "1121"], "--size 1121"),
        (["--images", "0"], "--images 0 must be 1 or more"),
        (["--sets", "scenes_fine,coco"], "--sets 'coco' is not one of scenes_fine, scenes_plain"),
        (["--sets", ","], "--sets: no dataset given"),
        (["--split", "a/b"], "--split 'a/b' must be a single folder name"),
        (["--split", ".."], "--split '..'"),
        (["--split", ""], "--split ''"),
        (["--pairs", "unseen"], "--pairs 'unseen' is not one of seen, held_out, all"),
        (["--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--held_out_seed", "-1"], "--held_out_seed -1"),
        (["--num_workers", "0"], "--num_workers 0"),
    ],
)
def test_wrong_flags_are_named(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
