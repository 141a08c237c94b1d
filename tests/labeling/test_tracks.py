"""One name for each object that is tracked through a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from osm.errors import OsmError
from osm.io.segmentation import encode_rle
from osm.labeling.label_cli import main
from osm.labeling.track_labeler import chosen_frames
from osm.labeling.tracks import TrackMasks, read_tracks

SIZE = (64, 48)
FRAMES = 6


def mask(number: int, frame: int) -> np.ndarray:
    """Object 2 is not in the last two frames."""
    found = np.zeros(SIZE[::-1], bool)
    if number == 1:
        found[5:25, 2 + frame : 22 + frame] = True
    elif frame < FRAMES - 2:
        found[30:40, 40 - frame : 60 - frame] = True
    return found


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(FRAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg")
    return folder


def written(form: str, folder: Path) -> Path:
    """The masks in one of the four forms."""
    place = folder / form
    if form == "objects":
        for number in (1, 2):
            (place / str(number)).mkdir(parents=True)
            for frame in range(FRAMES):
                if mask(number, frame).any():
                    Image.fromarray(mask(number, frame)).save(place / str(number) / f"{frame:05d}.png")
    elif form == "frames":
        place.mkdir()
        for frame in range(FRAMES):
            ids = mask(1, frame) * 1 + mask(2, frame) * 2
            Image.fromarray(ids.astype(np.uint8)).save(place / f"{frame:05d}.png")
    elif form == "rles.json":
        place.write_text(
            json.dumps({frame: {n: encode_rle(mask(n, frame)) for n in (1, 2)} for frame in range(FRAMES)})
        )
    else:
        masks = np.stack([np.stack([mask(n, frame) for n in (1, 2)]) for frame in range(FRAMES)])
        np.savez(place, masks=np.where(masks, 3.0, -4.0)[:, :, None].astype(np.float16), object_ids=[1, 2])
    return place


FORMS = ("objects", "frames", "rles.json", "logits.npz")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_masks(form: str, tmp_path: Path) -> None:
    sources = list(TrackMasks.sources(written(form, tmp_path)))
    assert [int(one.image) for one in sources] == list(range(FRAMES))
    for frame, source in enumerate(sources):
        shapes = {shape.id: shape.mask for shape in TrackMasks.shapes(source, SIZE)}  # type: ignore[union-attr]
        expected = {str(n): mask(n, frame) for n in (1, 2) if mask(n, frame).any()}
        assert shapes.keys() == expected.keys()
        assert all(np.array_equal(shapes[n], expected[n]) for n in expected)


def test_frames_are_spread_over_the_track() -> None:
    areas = [(k, area) for k, area in enumerate([1, 9, 3, 4, 4, 2, 8, 7])]
    assert chosen_frames(areas, 2) == [1, 6]
    assert chosen_frames(areas, 3) == [1, 3, 6]
    assert chosen_frames(areas[:2], 5) == [0, 1]


@pytest.fixture
def command(frames: Path, checkpoint: Path, tmp_path: Path) -> list[str]:
    model = ["--checkpoint", str(checkpoint), "--device", "cpu", "--max_new_tokens", "3", "--views", "3"]
    return [str(frames), str(tmp_path / "out"), "--tracks", str(written("objects", tmp_path)), *model]


def test_an_object_has_one_name_in_all_frames(command: list[str], frames: Path, tmp_path: Path) -> None:
    assert main([*command, "--to", "coco,labelme"]) == 0
    out = tmp_path / "out"
    document = json.loads((out / "labels.json").read_text())
    names = {row["id"]: row["name"] for row in document["categories"]}
    found: dict[str, set[str]] = {}
    for row in document["annotations"]:
        found.setdefault(row["source_id"], set()).add(names[row["category_id"]])
    assert found.keys() == {"1", "2"} and all(len(one) == 1 for one in found.values())
    tracks = json.loads((out / "tracks.json").read_text())["tracks"]
    assert [(row["id"], row["frames"], len(row["votes"])) for row in tracks] == [("1", FRAMES, 3), ("2", FRAMES - 2, 3)]
    assert all({row["name"]} == found[row["id"]] for row in tracks)
    assert all(row["agreeing"] == sum(vote["name"] == row["name"] for vote in row["votes"]) for row in tracks)
    # Killed after the first object, it goes on with the second one, and writes the same.
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and ".osm_label" not in file.parts}
    journal = out / ".osm_label" / "tracks.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:20])
    (out / ".osm_label" / "images_0.jsonl").unlink()
    assert main([*command, "--to", "coco,labelme"]) == 0
    assert {file: file.read_bytes() for file in before} == before and journal.read_bytes().count(b"\n") == 2


def test_a_frame_that_cannot_be_read_is_left_out(
    command: list[str], frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (frames / "00002.jpg").write_bytes(b"no image")
    Image.new("1", (9, 9), 1).save(tmp_path / "objects" / "1" / "00001.png")  # a mask of another size
    assert main([*command, "--min_area", "205"]) == 1
    said = capsys.readouterr().out
    assert "not labeled: " in said and "00002.jpg" in said and "1 mask left out: mask_size" in said
    assert "3 masks left out: below min_area" in said  # the second object in the frames that are left
    document = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert len(document["images"]) == FRAMES - 1 and len(document["annotations"]) == FRAMES - 2


def test_a_video(command: list[str], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for _ in range(FRAMES):
            pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    assert main([str(tmp_path / "clip.mp4"), *command[1:]]) == 0
    document = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [row["file_name"] for row in document["images"]] == [f"{k:06d}.jpg" for k in range(FRAMES)]


def refused(path: Path, said: str) -> None:
    with pytest.raises(OsmError, match=said):
        read_tracks(path)


def test_what_is_no_tracks(tmp_path: Path, frames: Path, command: list[str], capsys: Any) -> None:
    (tmp_path / "a.json").write_text('{"0": [1]}')
    refused(tmp_path / "a.json", r"frame '0' is \[1\], not \{object: RLE\}")
    np.savez(tmp_path / "a.npz", masks=np.zeros((2, 3, 4), np.float32))
    refused(tmp_path / "a.npz", "masks have the shape")
    np.savez(tmp_path / "b.npz", masks=np.array([{}], object))  # a pickle
    refused(tmp_path / "b.npz", "is not an .npz file with 'masks'")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no masks")
    (frames / "00005.jpg").unlink()
    assert main(command) == 2
    assert "has no frame of this name or position (5 frames)" in capsys.readouterr().err
    assert main([*command, "--masks", "x"]) == 2
    assert "--tracks cannot be combined with --masks" in capsys.readouterr().err
