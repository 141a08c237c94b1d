"""Sets made of cut-outs: what is in them, that they are repeatable, and what is said of tables that do not fit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from osm.cli import main
from osm.datasets.table import DatasetTable
from osm.errors import OsmError
from osm.io.images import read_panoptic, read_rgb
from osm.synthetic.collages import MIN_VISIBLE, CollageOptions, Cutout, compose, read_table, write_collages

COLOURS = {"plum": (150, 30, 140), "lime": (90, 200, 30), "brick": (190, 60, 40)}


def cutout(path: Path, colour: tuple[int, int, int], mode: str = "RGBA") -> None:
    """A disc with a transparent border."""
    ys, xs = np.mgrid[:80, :90]
    alpha = ((ys - 40) ** 2 + (xs - 45) ** 2 < 900).astype(np.uint8) * 255
    image = Image.fromarray(np.dstack([np.full((80, 90, 3), colour, np.uint8), alpha]))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        cutout(tmp_path / f"stamps/{name}/a.png", colour)
        cutout(tmp_path / f"stamps/{name}/b.png", colour, "LA" if name == "brick" else "RGBA")
    table = {name: {"train": [f"{name}/a.png"], "val": [f"{name}/b.png"]} for name in ("plum", "lime")}
    table["brick"] = {"train": ["brick/a.png"]}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120 + 40 * number, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.jpg")
    return tmp_path


@pytest.fixture
def segments(folders: Path) -> Path:
    """A set of one photo with a large square, a small one and a crowd."""
    root = folders / "set"
    for name in ("images", "panoptic"):
        (root / name).mkdir(parents=True)
    pixels = np.full((200, 260, 3), 90, np.uint8)
    ids = np.zeros((200, 260, 3), np.uint8)
    for number, (box, colour) in enumerate(
        [((20, 20, 120, 130), 250), ((150, 10, 170, 30), 10), ((150, 60, 198, 250), 0)]
    ):
        top, left, bottom, right = box
        pixels[top:bottom, left:right] = (colour, 0, colour)
        ids[top:bottom, left:right, 0] = number + 1
    Image.fromarray(pixels).save(root / "images/p.jpg", quality=95)
    Image.fromarray(ids).save(root / "panoptic/p.png")
    found = [
        {"id": 1, "category_id": 7, "area": 11000, "iscrowd": 0},
        {"id": 2, "category_id": 8, "area": 400, "iscrowd": 0},
        {"id": 3, "category_id": 8, "area": 9120, "iscrowd": 1},
    ]
    document = {
        "images": [{"id": 4, "file_name": "p.jpg"}],
        "annotations": [{"image_id": 4, "file_name": "p.png", "segments_info": found}],
        "categories": [{"id": 7, "name": "carpet"}, {"id": 8, "name": "crumb"}],
    }
    (root / "panoptic.json").write_text(json.dumps(document))
    return root


def options(folders: Path, **changes: Any) -> CollageOptions:
    given: dict[str, Any] = {
        "table": folders / "table.yaml",
        "cutouts": folders / "stamps",
        "backgrounds": (folders / "photos",),
        "images": 6,
    }
    return CollageOptions(**{**given, **changes})


def test_a_collage_shows_what_it_says(folders: Path) -> None:
    """Inside of each named mask is the colour of what it is called, as far as the changed light leaves it."""
    pool = {name: splits["train"] for name, splits in read_table(folders / "table.yaml", folders / "stamps").items()}
    photos = sorted((folders / "photos").glob("*.jpg"))
    seen: set[str] = set()
    for seed in range(25):
        image, ids, names = compose(pool, photos, random.Random(seed))
        assert ids.shape == (image.height, image.width) and set(names) <= set(np.unique(ids)) - {0}
        for number, name in names.items():
            inside = np.asarray(image)[ids == number].astype(int)
            if len(inside) < 400:
                continue
            spread = {other: np.abs(np.median(inside, 0) - colour).sum() for other, colour in COLOURS.items()}
            assert min(spread, key=spread.__getitem__) == name
            seen.add(name)
    assert seen == set(COLOURS)


def test_what_is_covered_is_not_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two things in one place, the first is below the second."""
    pool = {name: [Cutout(folders / f"stamps/{name}/a.png")] for name in COLOURS}
    hidden = 0
    for seed in range(60):
        _, ids, names = compose(pool, [folders / "photos/0.jpg"], random.Random(seed))
        drawn = set(np.unique(ids).tolist()) - {0}
        hidden += len(drawn - set(names))
    assert hidden > 0 and 0 < MIN_VISIBLE < 1


def test_a_split_is_the_same_whenever_it_is_made(folders: Path, segments: Path) -> None:
    made = [write_collages(folders / name, options(folders, segments=(segments,))) for name in ("one", "two")]
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in made]
    assert files[0] == files[1] and len(files[0]) == 2 * 6 + 2
    for path in files[0]:
        assert (made[0] / path).read_bytes() == (made[1] / path).read_bytes(), path
    other = write_collages(folders / "three", options(folders, segments=(segments,), seed=1))
    assert (other / "images/000000.jpg").read_bytes() != (made[0] / "images/000000.jpg").read_bytes()
    # Finished, it is left as it is; made otherwise, it is not mixed.
    before = (made[0] / "panoptic.json").stat().st_mtime_ns
    write_collages(folders / "one", options(folders, segments=(segments,)))
    assert (made[0] / "panoptic.json").stat().st_mtime_ns == before
    with pytest.raises(
        OsmError, match="contains collages made with different flags or files; choose a different folder"
    ):
        write_collages(folders / "one", options(folders))
    cutout(folders / "stamps/plum/a.png", (1, 2, 3), "LA")  # another picture under the same name
    with pytest.raises(OsmError, match="contains collages made with different flags or files"):
        write_collages(folders / "one", options(folders, segments=(segments,)))
    cutout(folders / "stamps/plum/a.png", COLOURS["plum"])
    # Interrupted before its end, it is made again, to the same bytes.
    (made[1] / "collages.json").unlink()
    (made[1] / "images/000003.jpg").write_bytes(b"half")
    write_collages(folders / "two", options(folders, segments=(segments,)))
    assert (made[1] / "images/000003.jpg").read_bytes() == (made[0] / "images/000003.jpg").read_bytes()


def test_it_is_a_set_in_coco_panoptic_form(folders: Path, segments: Path) -> None:
    """Ids, boxes and areas are those of the pixels; both splits have the same categories, val its own files."""
    command = ["collages", str(folders / "things"), "--table", str(folders / "table.yaml")]
    command += ["--cutouts", str(folders / "stamps"), "--backgrounds", str(folders / "photos"), "--images", "12"]
    command += ["--segments", str(segments)]
    assert main(command) == 0 and main([*command, "--split", "val"]) == 0
    documents = [json.loads((folders / f"things/{split}/panoptic.json").read_text()) for split in ("train", "val")]
    assert documents[0]["categories"] == documents[1]["categories"]
    names = {one["id"]: one["name"] for one in documents[0]["categories"]}
    assert sorted(names.values()) == ["brick", "carpet", "crumb", "lime", "plum"]
    used = [{names[s["category_id"]] for a in d["annotations"] for s in a["segments_info"]} for d in documents]
    assert used[0] == {"brick", "carpet", "lime", "plum"}  # crumbs are too small, and crowds are none
    assert used[1] == {"lime", "plum"}
    for entry in documents[0]["annotations"]:
        ids = read_panoptic(folders / "things/train/panoptic" / entry["file_name"])
        picture = read_rgb(folders / "things/train/images" / f"{entry['image_id']:06d}.jpg")
        assert ids.shape == (picture.height, picture.width)
        for one in entry["segments_info"]:
            ys, xs = np.nonzero(ids == one["id"])
            assert one["area"] == len(ys)
            assert one["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    table = folders / "sets.yaml"
    root = folders / "things/train"
    row = {"form": "coco_panoptic", "image_dir": str(root / "images"), "mask_dir": str(root / "panoptic")}
    table.write_text(yaml.safe_dump({"datasets": {"things": {**row, "json_file": str(root / "panoptic.json")}}}))
    assert len(DatasetTable().with_yaml(table)["things"].label_set.classes) == 5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("- plum", "expected a mapping from object names to lists of files under train or val"),
        ("plum: [a.png]", "'plum': expected lists of files under train or val, found"),
        ("plum: {test: [a.png]}", "'plum': expected lists of files under train or val, found"),
        ("plum: {train: plum/a.png}", "'plum', train: expected a list of files, found 'plum/a.png'"),
        ("plum: {train: [../table.yaml]}", "'../table.yaml' is not a file in"),
        ('plum: {train: ["plum/\\0a.png"]}', "is not a file in"),
        ("plum: {train: [plum/c.png]}", "'plum', train: plum/c.png is not in --cutouts"),
        ("7: {train: [plum/a.png]}", "7 is not a name"),
        ("{", "not valid YAML"),
        ("plum: {val: [plum/a.png]}", "none of the names in the table has any files under train"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folders: Path, table: str, message: str) -> None:
    (folders / "table.yaml").write_text(table)
    with pytest.raises(OsmError, match=message):
        write_collages(folders / "out", options(folders))
    assert not (folders / "out/collages.json").exists()


def test_other_mistakes_are_sentences(folders: Path, segments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, message in (
        ({"split": "test"}, "--split 'test' is not one of train, val"),
        ({"images": 0}, "--images 0 must be 1 or more"),
        ({"seed": -1}, "--seed -1 must be 0 or more"),
    ):
        with pytest.raises(OsmError, match=message):
            options(folders, **changes)
    with pytest.raises(OsmError, match=r"--backgrounds .*stamps: the folder contains no image"):
        write_collages(folders / "out", options(folders, backgrounds=(folders / "stamps",)))
    document = json.loads((segments / "panoptic.json").read_text())
    document["images"][0]["file_name"] = "../../photos/0.jpg"
    (segments / "panoptic.json").write_text(json.dumps(document))
    with pytest.raises(OsmError, match="is outside of the folder"):
        write_collages(folders / "out", options(folders, segments=(segments,)))
    (segments / "panoptic.json").write_text(json.dumps({"images": []}))
    with pytest.raises(OsmError, match="not in COCO-panoptic format"):
        write_collages(folders / "out", options(folders, segments=(segments,)))
    Image.new("RGB", (20, 20)).save(folders / "stamps/plum/a.png")
    with pytest.raises(OsmError, match="a.png: the image has no alpha channel, so the object's outline is unknown"):
        Cutout(folders / "stamps/plum/a.png").load()
    Image.fromarray(np.zeros((20, 20, 4), np.uint8)).save(folders / "stamps/lime/a.png")
    with pytest.raises(OsmError, match="the image has no opaque pixels"):
        Cutout(folders / "stamps/lime/a.png").load()
    command = ["collages", str(folders / "bad"), "--table", str(folders / "missing.yaml")]
    assert main([*command, "--cutouts", str(folders), "--backgrounds", str(folders / "photos")]) == 2
    assert "error: --table" in capsys.readouterr().err
