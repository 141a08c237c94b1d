"""The converters on small real files: what they write, resuming, the scripts."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from convert_sets import SCRIPTS, SIZE, Set, files, members, summary, write_image
from PIL import Image
from processes import PATIENCE_S

from osm.data.shard_writer import ShardWriter
from osm.datasets.labels import load_labels
from osm.errors import OsmError
from osm.prepare.convert import ConvertOptions, convert_coco_panoptic, main

# What is written.


def test_panoptic_webdataset_layout(panoptic: Set) -> None:
    result = panoptic.convert()
    out = panoptic.root / "out"
    found = members(out)
    assert sorted(found) == sorted(f"im{i}.{e}" for i in range(4) for e in ("jpg", "png", "json"))
    assert found["im2.jpg"] == (panoptic.images / "im2.jpg").read_bytes()
    assert found["im2.png"] == (panoptic.masks / "im2.png").read_bytes()
    segments = panoptic.json["annotations"][2]["segments_info"]
    record = {"image_id": 2, "file_name": "im2.jpg", "width": 24, "height": 16, "segments_info": segments}
    assert found["im2.json"] == json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    assert json.loads((out / "sizes.json").read_text()) == {"000000000.tar": 3, "000000001.tar": 1}
    assert (result["written"], result["shards"], result["left_out"], result["warnings"]) == (4, 2, {}, {})
    assert result == summary(out)
    assert [c.target for c in load_labels(out / "categories.json").classes.values()] == ["sky", "car"]
    assert sorted(files(out)) == sorted(
        [f"00000000{n}.{e}" for n in range(2) for e in ("tar", "index.json")]
        + ["categories.json", "progress.json", "sizes.json", "summary.json"]
    )


def test_panoptic_published_layout(panoptic: Set) -> None:
    panoptic.convert(layout="published")
    found = members(panoptic.root / "out")
    assert sorted(found) == [f"im{i}.json" for i in range(4)]
    record = json.loads(found["im1.json"])
    assert sorted(record) == ["image_base64", "pan_base64", "segments_info"]
    assert base64.b64decode(record["image_base64"]) == (panoptic.images / "im1.jpg").read_bytes()
    assert base64.b64decode(record["pan_base64"]) == (panoptic.masks / "im1.png").read_bytes()
    assert record["segments_info"] == panoptic.json["annotations"][1]["segments_info"]


def test_instances_both_layouts(instances: Set) -> None:
    rle = {"size": [16, 24], "counts": [100, 20, 264]}
    extra = {"id": 99, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3], "segmentation": rle, "iscrowd": 1}
    instances.json["annotations"].append({**extra, "area": 20, "note": "not copied"})
    instances.convert()
    found = members(instances.root / "out")
    assert sorted(found) == sorted(f"im{i}.{e}" for i in range(4) for e in ("jpg", "json"))
    record = json.loads(found["im1.json"])
    assert sorted(record["segments_info"][0]) == ["area", "bbox", "category_id", "id", "iscrowd", "segmentation"]
    assert record["segments_info"][1]["segmentation"] == rle
    instances.convert(instances.root / "published", layout="published")
    published = json.loads(members(instances.root / "published")["im1.json"])
    assert sorted(published) == ["height", "image_base64", "segments_info", "width"]
    assert (published["width"], published["height"]) == SIZE
    assert published["segments_info"] == record["segments_info"]


def test_png_images_do_not_collide_with_their_masks(tmp_path: Path) -> None:
    made = Set(tmp_path, "coco_panoptic", 2, ".png")
    made.convert()
    found = members(tmp_path / "out")
    assert found["im0.image.png"] == (made.images / "im0.png").read_bytes()
    assert found["im0.png"] == (made.masks / "im0.png").read_bytes()
    made.convert(tmp_path / "published", layout="published")
    record = json.loads(members(tmp_path / "published")["im0.json"])
    assert base64.b64decode(record["image_base64"]) == found["im0.image.png"]


def test_dots_and_subfolders_leave_the_key(panoptic: Set) -> None:
    (panoptic.images / "day.1").mkdir()
    write_image(panoptic.images / "day.1" / "a.b.jpg", 9)
    panoptic.json["images"][0]["file_name"] = "day.1/a.b.jpg"
    panoptic.convert()
    assert {"a_b.jpg", "a_b.png", "a_b.json"} <= members(panoptic.root / "out").keys()


def test_nothing_depends_on_the_number_of_workers(tmp_path: Path) -> None:
    made = Set(tmp_path, "coco_panoptic", 30)
    (made.images / "im7.jpg").unlink()
    for workers in (1, 3):
        made.convert(tmp_path / str(workers), num_workers=workers, num_files_per_shard=4)
    one, three = files(tmp_path / "1"), files(tmp_path / "3")
    assert one == three
    # Counted on the samples written: the missing one makes no shard shorter.
    assert list(json.loads(one["sizes.json"]).values()) == [4, 4, 4, 4, 4, 4, 4, 1]
    order = list(members(tmp_path / "1"))
    assert order != sorted(order)


# Resuming.


# Kills the converter inside its third shard: the worker that opens the shard's first image waits until the second shard
# is there, then kills its parent, which cannot go on without that image.
KILLED_AT_AN_IMAGE = """
import os, runpy, signal, sys, time
main = os.getpid()
def hook(event, arguments):
    if event == "open" and os.getpid() != main and str(arguments[0]) == {image!r}:
        while not os.path.exists({shard!r}):
            time.sleep(0.01)
        os.kill(main, signal.SIGKILL)
        signal.pause()
sys.addaudithook(hook)
sys.argv[0] = {script!r}
sys.path.insert(0, os.path.dirname({script!r}))
runpy.run_path({script!r}, run_name="__main__")
"""


def test_killed_run_goes_on_byte_for_byte(tmp_path: Path) -> None:
    made = Set(tmp_path / "set", "coco_panoptic", 20)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    made.convert(undisturbed, num_files_per_shard=4)
    with tarfile.open(undisturbed / "000000002.tar") as tar:
        stuck = made.images / tar.getnames()[0]
    _, script, *arguments = made.command(killed, "--num_files_per_shard", "4", "--num_workers", "2")
    program = KILLED_AT_AN_IMAGE.format(image=str(stuck), shard=str(killed / "000000001.tar"), script=script)
    process = subprocess.run([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL, timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL
    assert sorted(path.name for path in killed.glob("*.tar")) == ["000000000.tar", "000000001.tar"]
    assert not (killed / "sizes.json").exists()
    first = (killed / "000000000.tar").stat().st_mtime_ns
    made.convert(killed, num_files_per_shard=4, num_workers=2)
    assert files(killed) == files(undisturbed)
    assert (killed / "000000000.tar").stat().st_mtime_ns == first, "a whole shard was written again"


def test_resuming_reads_no_image_twice(panoptic: Set) -> None:
    panoptic.convert()
    before = files(panoptic.root / "out")
    for path in panoptic.images.iterdir():
        path.unlink()
    panoptic.convert()
    assert files(panoptic.root / "out") == before


@pytest.mark.parametrize("lost", ["000000000.tar", "000000001.tar"])
def test_lost_or_cut_shard_is_written_again(panoptic: Set, lost: str) -> None:
    panoptic.convert()
    out = panoptic.root / "out"
    before = files(out)
    (out / lost).write_bytes(before[lost][:700])
    (out / "000000001.tar.tmp").write_bytes(b"left behind")
    panoptic.convert()
    assert files(out) == before


def test_shard_renamed_before_it_was_recorded(panoptic: Set) -> None:
    panoptic.convert()
    out = panoptic.root / "out"
    before = files(out)
    record = json.loads(before["progress.json"])
    (out / "progress.json").write_text(json.dumps({**record, "finished": None, "shards": record["shards"][:1]}))
    panoptic.convert()
    assert files(out) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "published"}, "layout was 'webdataset', but is now 'published'"),
        ({"num_files_per_shard": 2}, "num_files_per_shard was 3, but is now 2"),
        ({"filter_lvis_val": False}, "filter_lvis_val was True, but is now False"),
    ],
)
def test_other_arguments_are_refused(panoptic: Set, change: dict[str, Any], message: str) -> None:
    panoptic.convert()
    before = files(panoptic.root / "out")
    with pytest.raises(OsmError, match=message):
        panoptic.convert(**change)
    assert files(panoptic.root / "out") == before


def test_changed_json_is_refused(panoptic: Set) -> None:
    panoptic.convert()
    panoptic.json["annotations"].pop()
    with pytest.raises(
        OsmError, match=r"contains shards from a run with different arguments \(argument json_sha256 was"
    ):
        panoptic.convert()


def test_foreign_shards_are_refused(panoptic: Set) -> None:
    (panoptic.root / "out").mkdir()
    (panoptic.root / "out" / "000000000.tar").write_bytes(b"someone's")
    with pytest.raises(OsmError, match=r"contains 000000000.tar, which progress.json does not list"):
        panoptic.convert()
    assert (panoptic.root / "out" / "000000000.tar").read_bytes() == b"someone's"


def test_two_writers_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osm.data.shard_writer._LOCK_SECONDS", 0.0)
    with (
        ShardWriter(tmp_path, "webdataset"),
        pytest.raises(OsmError, match="another process is writing shards to this folder"),
    ):
        ShardWriter(tmp_path, "webdataset")
    with ShardWriter(tmp_path, "webdataset") as writer:
        writer.write(0, "a", [("json", b"{}")])
        writer.finish()
    assert members(tmp_path) == {"a.json": b"{}"}


# The scripts.


def test_script_with_the_published_flags(panoptic: Set) -> None:
    out = panoptic.root / "out"
    ran = subprocess.run(
        [sys.executable, "convert_coco_panoptic_to_wds.py", *panoptic.command(out, "--filter_lvis_val", "False")[2:]],
        cwd=SCRIPTS,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "4/4 samples" in ran.stderr and "4 samples in 1 shards" in ran.stderr
    assert summary(out)["arguments"]["filter_lvis_val"] is False


def test_errors_are_one_line_and_an_exit_code(instances: Set, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = instances.command(instances.root / "out")[2:]
    with pytest.raises(SystemExit) as stopped:
        main("coco_instances", [*arguments, "--filter_lvis_val", "maybe"])
    assert stopped.value.code == 2
    assert "argument --filter_lvis_val: expected True or False, found 'maybe'" in capsys.readouterr().err
    assert main("coco_instances", [*arguments, "--image_dir", "/nowhere"]) == 2
    assert capsys.readouterr().err == "error: --image_dir /nowhere: there is no such folder\n"
    (instances.images / "im0.jpg").unlink()
    assert main("coco_instances", [*arguments, "--max_bad_samples", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 1 of 4 samples are bad")


@pytest.mark.skipif("OSM_TEST_DATA" not in os.environ, reason="OSM_TEST_DATA names no folder of real sets")
def test_real_set(tmp_path: Path) -> None:
    root = Path(os.environ["OSM_TEST_DATA"]) / "coco_mini" / "val"
    options = ConvertOptions(tmp_path, num_workers=2, num_files_per_shard=20, max_bad_samples=0)
    result = convert_coco_panoptic(root / "panoptic.json", root / "images", root / "panoptic", options)
    source = json.loads((root / "panoptic.json").read_text())
    assert result["written"] == sum(bool(row["segments_info"]) for row in source["annotations"])
    for name, data in members(tmp_path).items():
        if name.endswith(".jpg"):
            assert data == (root / "images" / name).read_bytes()
            Image.open(io.BytesIO(data)).verify()


def test_converters_do_without_torch() -> None:
    """Each of their processes would take seconds and hundreds of megabytes for it."""
    code = "import sys, osm.prepare.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
