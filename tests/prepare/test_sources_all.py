"""All nine sets through one converter: members of both layouts, bytes, order, resuming, the published commands."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from convert_sets import SCRIPTS, files, members, summary
from PIL import Image
from source_sets import MAKERS, Made

from osm.data.shard_writer import ShardWriter
from osm.datasets.labels import load_labels
from osm.prepare import convert
from osm.prepare.convert import SETS, parser


@pytest.fixture(params=MAKERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return MAKERS[request.param](tmp_path, 7)


def test_every_set_is_tested() -> None:
    forms = {"coco_panoptic", "coco_instances", "boxes", "semantic", "regions"}
    in_other_tests = {"visual_genome", "objects365", "openimages", "paco"}  # test_regions.py, test_more_sets.py
    assert set(SETS) == {*MAKERS, *forms, *in_other_tests}


def test_plain_layout(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert made.convert(out) == 0
    found = members(out)
    assert {name.split(".", 1)[0] for name in found} == set(made.images)
    for key, image in made.images.items():
        ending = "image.png" if image.suffix == ".png" else "jpg"
        assert found.pop(f"{key}.{ending}") == image.read_bytes()
        record = json.loads(found.pop(f"{key}.json"))
        assert (record["width"], record["height"]) == Image.open(image).size
        assert image.as_posix().endswith(record["file_name"])
        for member, path in made.masks.get(key, {}).items():
            assert found.pop(f"{key}.{member}") == path.read_bytes()
    assert {name.split(".", 1)[1] for name in found} == ({"part.png", "whole.png"} if found else set())
    assert bool(found) == (made.name == "pascal_part"), "drawn by the converter; all other members are a file's bytes"
    assert json.loads((out / "sizes.json").read_text()) == {f"00000000{i}.tar": n for i, n in enumerate((3, 3, 1))}
    assert (summary(out)["written"], summary(out)["left_out"], summary(out)["warnings"]) == (7, {}, {})
    assert load_labels(out / "categories.json").classes


def test_published_layout(made: Made, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain", tmp_path / "out"
    assert made.convert(plain) == made.convert(out, "--format", "published") == 0
    found, as_plain = members(out), members(plain)
    assert set(found) == {f"{key}.json" for key in made.images}
    fields = {"pan_base64": "png", "seg_base64": "tif", "part_seg_base64": "part.png", "whole_seg_base64": "whole.png"}
    for key, image in made.images.items():
        record = json.loads(found[f"{key}.json"])
        assert sorted(record) == sorted(("image_base64", *made.published))
        assert base64.b64decode(record["image_base64"]) == image.read_bytes()
        for name, value in record.items():
            if name in fields:
                assert base64.b64decode(value) == as_plain[f"{key}.{fields[name]}"]
            elif name != "image_base64":
                assert value == json.loads(as_plain[f"{key}.json"])[name]


def test_order_is_fixed_and_processes_do_not_matter(made: Made, tmp_path: Path) -> None:
    assert made.convert(tmp_path / "a") == made.convert(tmp_path / "b", "--num_workers", "2") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    order = list(dict.fromkeys(name.split(".")[0] for name in members(tmp_path / "a")))
    assert sorted(order) == sorted(made.images) != order


def test_stopped_run_goes_on_byte_for_byte(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made.convert(tmp_path / "undisturbed") == 0
    write, written = ShardWriter.write, []

    def stop(self: ShardWriter, item: int, key: str, data: list[tuple[str, bytes]], annotations: int) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(key)
        write(self, item, key, data, annotations)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", stop)
        assert made.convert(tmp_path / "stopped") == 130
    assert sorted(path.name for path in (tmp_path / "stopped").glob("*.tar*")) == ["000000000.tar"]
    before = (tmp_path / "stopped" / "000000000.tar").stat().st_mtime_ns
    assert made.convert(tmp_path / "stopped") == 0
    assert files(tmp_path / "stopped") == files(tmp_path / "undisturbed")
    assert (tmp_path / "stopped" / "000000000.tar").stat().st_mtime_ns == before


def test_published_command_as_a_process(tmp_path: Path) -> None:
    """One with pairs of files: the published command for PC-459 calls A-847's script."""
    made = MAKERS["pc459"](tmp_path, 4)
    command = [sys.executable, "convert_ade_847_to_wds.py", *made.arguments(tmp_path / "out")[:2]]
    command += [word for flag, path in made.paths.items() for word in (f"--{flag}", str(path))]
    ran = subprocess.run([*command, "--num_workers", "1"], cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "4 samples in 1 shards" in ran.stderr
    with tarfile.open(tmp_path / "out" / "000000000.tar") as tar:
        assert len(tar.getnames()) == 12
    assert not (tmp_path / "out" / "categories.json").exists(), "whose classes they are is not known here"


def test_every_script_names_a_set() -> None:
    used = {}
    for script in SCRIPTS.glob("convert_*.py"):
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 20
        used[script.name] = text.split('main("')[1].split('"')[0]
        assert parser(used[script.name])
    assert {"coco_panoptic", "coco_instances", *MAKERS} - {"coco", "ade20k", "a847"} <= set(used.values())


def test_unused_arguments_are_accepted(tmp_path: Path) -> None:
    for name, flag in (("a847", "--json_file"), ("pc459", "--json_file"), ("v3det", "--ann_dir")):
        made = MAKERS[name](tmp_path / name, 2)
        assert made.convert(tmp_path / name / "out", flag, "nowhere") == 0


def test_prepare_is_the_same(made: Made, tmp_path: Path) -> None:
    assert made.convert(tmp_path / "script") == 0
    assert convert.prepare([made.name, *made.arguments(tmp_path / "osm")]) == 0
    assert files(tmp_path / "script") == files(tmp_path / "osm")
