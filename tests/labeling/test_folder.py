"""demo_with_sam.py: real photos in, pictures and json files out, whatever else lies in the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import PATIENCE_S, wait_until
from pycocotools import mask as coco_mask
from sams import ANY, tiny_sam
from test_namer import built  # noqa: F401  (a fixture)

from osm.errors import OsmError
from osm.io.images import read_panoptic
from osm.labeling.folder import FolderDemo, ImageTask, find_images, image_tasks, record
from osm.labeling.folder_cli import main
from osm.labeling.naming import MapRequest, name_image
from osm.models.checkpoint import save_folder
from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters import ScoredMask
from osm.recognition.segmenters.embedded import EmbeddedSegmenter

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos that scikit-image brings, as they are."""
    import skimage

    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        (source,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
        (folder / source.name).write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="module")
def checkpoint(built: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("checkpoint") / "final"
    save_folder(built[0], folder)
    return folder


@pytest.fixture
def recognizer(built: Any) -> Recognizer:  # noqa: F811
    return Recognizer(*built, max_new_tokens=4)


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def check(folder: Path, names: set[str]) -> None:
    """Every picture has its files, and they agree."""
    found = documents(folder)
    assert set(found) == names
    assert not list(folder.glob("*.tmp"))
    for name, document in found.items():
        size = tuple(document["size"])
        with Image.open(folder / f"{name}_vis.png") as picture:
            assert list(picture.size) == document["scene_size"] and max(picture.size) == 56
        kept = 0
        for segment in document["segments"]:
            mask = coco_mask.decode(segment["segmentation"])
            assert mask.shape == size[::-1] and segment["area"] >= 100
            assert segment["bbox"] == coco_mask.toBbox(segment["segmentation"]).tolist()
            assert "skipped" in segment or 0 <= segment["prob"] <= 1
            assert ("id" in segment) + ("dropped" in segment) + ("skipped" in segment) == 1
            if "id" in segment:
                kept += 1
                assert not (coco_mask.decode(segment["visible"]) & ~mask & 1).any()
        ids = sorted(segment["id"] for segment in document["segments"] if "id" in segment)
        assert ids == list(range(1, kept + 1))


@pytest.mark.parametrize("segmenter", ["sam", "embedded"])
def test_five_photos(
    segmenter: str, photos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(photos), "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "vis"), "--device", "cpu"]
    arguments += ["--min_prob", "0.01", "--max_new_tokens", "3", "--panoptic", "--to", "coco,labelme"]
    if segmenter == "sam":  # a real one, but its type's size, and what it is sure of, are the test's
        import segment_anything

        from osm.recognition.segmenters import sam

        monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_sam)
        monkeypatch.setattr(sam, "EVERYTHING", ANY)
        torch.save(tiny_sam(3).state_dict(), tmp_path / "sam_vit_b.pth")
        arguments += ["--sam_checkpoint", str(tmp_path / "sam_vit_b.pth")]
    assert main(arguments) == 0
    check(tmp_path / "vis", set(PHOTOS))
    found = documents(tmp_path / "vis")
    assert all(document["made_by"]["segmenter"] == segmenter for document in found.values())
    assert all(document["segments"] for document in found.values())
    for name, document in found.items():
        ids = read_panoptic(tmp_path / "vis" / f"{name}_panoptic.png")
        assert set(np.unique(ids)) - {0} == {s["id"] for s in document["segments"] if "id" in s}
    labels = json.loads((tmp_path / "vis" / "labels" / "labels.json").read_text())
    names = {row["id"]: row["name"] for row in labels["categories"]}
    ids_of = {Path(row["file_name"]).stem: row["id"] for row in labels["images"]}
    for name, document in found.items():
        rows = [row for row in labels["annotations"] if row["image_id"] == ids_of[name]]
        named = [segment for segment in document["segments"] if segment.get("name")]
        assert [(names[row["category_id"]], row["segmentation"]) for row in rows] == [
            (segment["name"], segment["segmentation"]) for segment in named
        ]
        assert (tmp_path / "vis" / "labels" / "labelme" / f"{name}.json").is_file()


def test_a_bad_picture_does_not_end_the_run(
    photos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = Image.open(photos / "coffee.png").resize((80, 60))
    image.convert("CMYK").save(folder / "b_cmyk.jpg")
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) << 8).save(folder / "c_16.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "d_turned.jpg", exif=turned)
    (folder / "a_bad.png").write_bytes((photos / "coffee.png").read_bytes()[:5000])
    (folder / "notes.txt").write_text("nothing")
    arguments = [str(folder), "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "vis"), "--device", "cpu"]
    assert main([*arguments, "--max_new_tokens", "3"]) == 1
    out, err = capsys.readouterr()
    assert "3 images named, 0 skipped, 1 failed" in out and "a_bad.png: " in out.splitlines()[-1]
    assert "1 files are not images and are skipped: notes.txt" in err
    check(tmp_path / "vis", {"b_cmyk", "c_16", "d_turned"})
    assert documents(tmp_path / "vis")["d_turned"]["size"] == [60, 80]

    # A second run leaves what is there, and tries what failed once more.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "vis").iterdir()}
    assert main([*arguments, "--max_new_tokens", "3"]) == 1
    assert "0 images named, 3 skipped, 1 failed" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "vis").iterdir()}
    # With other settings, another picture of that name or without one of its files it is named again.
    (folder / "a_bad.png").unlink()
    image.rotate(180).convert("CMYK").save(folder / "b_cmyk.jpg")
    (tmp_path / "vis" / "c_16_vis.png").unlink()
    assert main([*arguments, "--max_new_tokens", "3"]) == 0
    assert "2 images named, 1 skipped" in capsys.readouterr().out
    assert main([*arguments, "--max_new_tokens", "3", "--min_prob", "0.1"]) == 0
    assert "3 images named, 0 skipped" in capsys.readouterr().out
    assert main([*arguments, "--max_new_tokens", "3", "--min_prob", "0.1", "--overwrite"]) == 0
    assert "3 images named, 0 skipped" in capsys.readouterr().out


def test_names_with_control_characters(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x9b31m\u202e\rfine\nerror: none\udcff"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / f"{evil}.png").write_bytes(b"nothing")
    (folder / f"{evil}.txt").write_bytes(b"nothing")
    Image.new("RGB", (32, 32), "red").save(folder / f"{evil}good.png")
    arguments = [str(folder), "--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "vis"), "--device", "cpu"]
    assert main([*arguments, "--max_new_tokens", "3"]) == 1
    out, err = capsys.readouterr()
    shown = r"\x1b[2J\x9b31m\u202e\rfine\nerror: none\udcff"
    assert f"files are not images and are skipped: {shown}.txt" in err
    assert f"{shown}.png: failed (image" in err and f"{shown}good.png: " in err
    assert f"{shown}.png: image {folder}/{shown}.png: not a readable" in out
    assert not {"\x1b", "\x9b", "\u202e", "\udcff"} & set(out + err)
    assert "\rfine" not in out + err and "\nerror" not in out + err
    assert (tmp_path / "vis" / f"{evil}good_vis.png").is_file()  # files are called as they are


class Cells:
    """Segments of 2 x 2 pixels, each score another."""

    name = "cells"

    def set_image(self, image: Image.Image) -> None:
        self.size = image.size

    def everything(self) -> list[ScoredMask]:
        found = []
        for y in range(0, 32, 2):
            for x in range(0, 34, 2):
                mask = np.zeros(self.size[::-1], bool)
                mask[y : y + 2, x : x + 2] = True
                found.append(ScoredMask(mask))
        return found


def test_more_than_255_segments(recognizer: Recognizer, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8)).save(tmp_path / "a.png")
    request = MapRequest(min_area=1, min_prob=0.0, min_pixels=1)
    demo = FolderDemo(recognizer, Cells(), request, {}, panoptic=True)  # type: ignore[arg-type]
    assert demo.run(image_tasks([tmp_path / "a.png"], tmp_path)).named == 1
    ids = read_panoptic(tmp_path / "a_panoptic.png")
    assert len(np.unique(ids)) == 273 and ids.max() == 272
    segments = documents(tmp_path)["a"]["segments"]
    by_id = {segment["id"]: segment for segment in segments}
    for number in (1, 256, 272):
        assert (coco_mask.decode(by_id[number]["visible"]).astype(bool) == (ids == number)).all()
    probs = [by_id[number]["prob"] for number in sorted(by_id)]
    assert probs == sorted(probs, reverse=True)


def test_what_is_small_is_counted_and_not_named(recognizer: Recognizer) -> None:
    picture = name_image(Image.new("RGB", (56, 56)), recognizer, Cells(), MapRequest())  # type: ignore[arg-type]
    assert (picture.small, picture.segments, picture.answers) == (272, [], [])
    assert record(picture)["too_small"] == 272 and not picture.merged.ids.any()


def test_a_failing_segmenter_is_a_failed_picture(recognizer: Recognizer, tmp_path: Path) -> None:
    class Failing(Cells):
        def everything(self) -> list[ScoredMask]:
            raise RuntimeError("out of something")

    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    outcome = FolderDemo(recognizer, Failing(), MapRequest(), {}).run(image_tasks([tmp_path / "a.png"], tmp_path))  # type: ignore[arg-type]
    assert outcome.failed == {tmp_path / "a.png": "RuntimeError: out of something"}


def test_no_two_pictures_share_a_name(tmp_path: Path) -> None:
    images = [Path(p) for p in ("x/a.jpg", "x/A.png", "x/b.png", "y/b.png", "x/c.png", "x/a.jpg.png", "x/b.png_2.png")]
    names = [work.name for work in image_tasks(images, tmp_path)]
    assert len({name.lower() for name in names}) == len(images)
    assert names[:5] == ["a.jpg_2", "A.png", "b.png", "b.png_3", "c"] and names[5:] == ["a.jpg", "b.png_2"]
    assert ImageTask(images[0], tmp_path, "q").file("_vis.png") == tmp_path / "q_vis.png"


def test_places_that_are_wrong(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OsmError, match="no such folder or image"):
        find_images([tmp_path / "none"], tmp_path)
    with pytest.raises(OsmError, match="no image found"):
        find_images([tmp_path], tmp_path / "out")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.PNG")
    assert find_images([tmp_path, tmp_path / "a.PNG"], tmp_path / "out") == ([tmp_path / "a.PNG"], [])
    with pytest.raises(OsmError, match="is also an input folder"):
        find_images([tmp_path], tmp_path / "." / "")
    base = [str(tmp_path), "--checkpoint", str(checkpoint), "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    for flags, message in [
        (["--mode", "zebra"], "--mode 'zebra' is not one of"),
        (["--min_prob", "2"], "--min_prob 2.0 must be from 0 to 1"),
        (["--min_area", "0"], "--min_area 0 must be"),
        (["--way", "guess"], "--way 'guess'"),
        (["--segmenter", "sam"], "--segmenter sam needs a checkpoint"),
        (["--sam_type", "vit_b"], "--sam_type vit_b applies only to a SAM checkpoint file"),
        (["--output_dir", str(tmp_path / "a.PNG")], "is not a folder"),
    ]:
        assert main([*base, *flags]) == 2
        error = capsys.readouterr().err
        assert "error: " in error and message in error


@pytest.mark.slow
def test_killed_and_started_again(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A second run names what the killed one did not, and ends with what a run in one piece gives."""

    some = PHOTOS[:3]
    (tmp_path / "some").mkdir()
    for name in some:
        (source,) = photos.glob(f"{name}.*")
        (tmp_path / "some" / source.name).symlink_to(source)

    def command(output: Path) -> list[str]:
        script = [
            sys.executable,
            str(ROOT / "demo_with_sam.py"),
            str(tmp_path / "some"),
            "--checkpoint",
            str(checkpoint),
        ]
        return [*script, "--output_dir", str(output), "--segmenter", "embedded", "--device", "cpu", "--min_prob", "0"]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command(tmp_path / "killed"), env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: documents_there(tmp_path / "killed"), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    there = documents_there(tmp_path / "killed")
    assert 1 <= len(there) < len(some)
    times = {path: path.stat().st_mtime_ns for path in there}
    again = subprocess.run(
        command(tmp_path / "killed"), env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert again.returncode == 0 and f"{len(some) - len(there)} images named, {len(there)} skipped" in again.stdout
    assert times == {path: path.stat().st_mtime_ns for path in there}
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
    check(tmp_path / "killed", set(some))
    assert documents(tmp_path / "killed") == documents(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def documents_there(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def test_osm_name_auto(photos: Path, checkpoint: Path, recognizer: Recognizer, capsys: Any) -> None:
    from osm.cli import main as osm_main

    base = ["name", str(photos / "rocket.jpg"), "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert osm_main([*base, "--auto", "--json"]) == 0
    regions = json.loads(capsys.readouterr().out)["regions"]
    segmenter = EmbeddedSegmenter(recognizer)
    segmenter.set_image(Image.open(photos / "rocket.jpg"))
    found = segmenter.everything()
    assert [region["area"] for region in regions] == [segment.area for segment in found]
    assert (coco_mask.decode(regions[3]["segmentation"]) == found[3].mask).all()
    assert all(region["answers"] for region in regions)
    assert osm_main([*base, "--auto", "--point", "3,3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("segment 1 (box ") and lines[-1].startswith("point 3,3 [any]: ")
    assert osm_main([*base, "--point", "3,3", "--sam_checkpoint", "x"]) == 2
    assert "have no effect without --auto" in capsys.readouterr().err
    assert osm_main(base) == 2


def test_all_kinds_of_pictures_are_found(tmp_path: Path) -> None:
    for name in ("a.webp", "b.bmp", "c.GIF", "d.jpg", "e.TIF"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
        (tmp_path / f"._{name}").write_bytes(bytes(9))  # macOS's, of no picture and nobody's file
    (tmp_path / "notes.txt").write_text("no picture")
    images, others = find_images([tmp_path], tmp_path / "out")
    assert [path.name for path in images] == ["a.webp", "b.bmp", "c.GIF", "d.jpg", "e.TIF"]
    assert others == [tmp_path / "notes.txt"]
