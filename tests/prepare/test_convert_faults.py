"""The converters on faulty sets: what is left out and counted, what ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_sets import SIZE, Set, members, summary, write_mask
from PIL import Image
from small_disk import fill, mounted

from osm.datasets.labels import load_labels
from osm.errors import OsmError
from osm.prepare.convert import BadSamplesError, prepare

pytestmark = pytest.mark.usefixtures("console")


def test_images_without_annotations_are_left_out(panoptic: Set, tmp_path: Path) -> None:
    panoptic.json["annotations"][0]["segments_info"] = []
    panoptic.json["annotations"].pop(1)
    result = panoptic.convert()
    assert (result["written"], result["left_out"]) == (2, {"no_segments": 2})
    other = Set(tmp_path / "other", "coco_instances")
    other.json["annotations"].pop()
    result = other.convert()
    assert (result["written"], result["left_out"]) == (3, {"no_annotations": 1})


@pytest.mark.parametrize("form", ["coco_panoptic", "coco_instances"])
def test_lvis_val_filter_is_for_coco_alone(tmp_path: Path, form: str) -> None:
    made = Set(tmp_path, form, 1)
    made.add(9, "000000000009")  # 9 is in LVIS val
    made.add(25, "elsewhere")  # so is 25, but this is not that photo
    made.add(26, "000000000026")
    assert made.convert(tmp_path / "own")["written"] == 4, "not COCO's categories"
    coco = [c for c in load_labels("coco").classes.values() if c.isthing or form == "coco_panoptic"]
    made.json["categories"] = [{"id": c.id, "name": c.target} for c in coco]
    result = made.convert(tmp_path / "coco")
    assert (result["written"], result["left_out"]) == (3, {"in_lvis_val": 1})
    assert "000000000009.jpg" not in members(tmp_path / "coco")
    assert made.convert(tmp_path / "all", filter_lvis_val=False)["written"] == 4


def test_some_of_cocos_categories_are_cocos_too(tmp_path: Path) -> None:
    made = Set(tmp_path, "coco_panoptic", 1)
    made.add(9, "000000000009")
    things = [c for c in load_labels("coco").classes.values() if c.isthing]
    made.json["categories"] = [{"id": c.id, "name": c.target} for c in things]
    assert made.convert(tmp_path / "things")["left_out"] == {"in_lvis_val": 1}
    made.json["categories"][5]["name"] = "a name of my own"
    assert made.convert(tmp_path / "own")["written"] == 2


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


BAD = {
    "image_missing": (lambda s: (s.images / "im0.jpg").unlink(), r"im0.jpg: there is no such file"),
    "mask_missing": (lambda s: (s.masks / "im0.png").unlink(), r"im0.png: there is no such file"),
    "image_truncated": (lambda s: cut(s.images / "im0.jpg", 0.9), r"im0.jpg: broken data"),
    "image_unreadable": (lambda s: (s.images / "im0.jpg").write_text("no"), r"im0.jpg: .*not a readable JPEG"),
    "mask_unreadable": (
        lambda s: (s.masks / "im0.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        r"im0.png: .*not a readable",
    ),
    "mask_truncated": (lambda s: cut(s.masks / "im0.png", 0.7), r"im0.png: .*broken data"),
    "mask_not_rgb": (lambda s: Image.new("LA", SIZE).save(s.masks / "im0.png"), r"im0.png: .*mode LA; expected RGB"),
    "no_id_in_png": (lambda s: write_mask(s.masks / "im0.png", (5, 6)), r"im0.png: none of the json's 2 segment ids"),
    "segment_id_twice": (
        lambda s: s.json["annotations"][0]["segments_info"][0].update(id=70000),
        r"70000 more than once",
    ),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_sample(panoptic: Set, reason: str) -> None:
    spoil, message = BAD[reason]
    spoil(panoptic)
    result = panoptic.convert()  # one bad sample is allowed
    assert (result["written"], result["left_out"]) == (3, {reason: 1})
    assert "im0" in result["examples"][reason][0]
    with pytest.raises(BadSamplesError, match=rf"1 of 4 samples are bad, --max_bad_samples 0 allows 0.*{message}"):
        panoptic.convert(panoptic.root / "strict", max_bad_samples=0)
    assert summary(panoptic.root / "strict")["left_out"] == {reason: 1}


def test_names_with_control_characters_are_told_written_out(panoptic: Set, capsys: pytest.CaptureFixture[str]) -> None:
    panoptic.add(9, "\x1b[2J\u202e\nerror: none\r")
    (panoptic.images / "\x1b[2J\u202e\nerror: none\r.jpg").write_bytes(b"nothing")
    assert panoptic.convert()["left_out"] == {"image_unreadable": 1}
    told = capsys.readouterr().err
    assert r"\x1b[2J\u202e\nerror: none\r.jpg" in told
    assert not {"\x1b", "\u202e", "\r"} & set(told) and "\nerror" not in told


def test_mask_that_is_a_jpeg(panoptic: Set) -> None:
    Image.new("RGB", SIZE).save(panoptic.masks / "im0.png", format="JPEG")
    assert panoptic.convert()["left_out"] == {"mask_not_png": 1}


def test_sizes_that_do_not_agree(panoptic: Set, capsys: pytest.CaptureFixture[str]) -> None:
    write_mask(panoptic.masks / "im0.png", (300, 70000), (24, 18))
    panoptic.json["images"][1]["width"] = 25
    with pytest.raises(BadSamplesError, match="2 of 4 samples are bad"):
        panoptic.convert()
    said = capsys.readouterr().err
    assert "im0.png: is 24 x 18, its image" in said and "im0.jpg is 24 x 16" in said
    assert "im1.jpg: is 24 x 16, but the JSON file states 25 x 16" in said
    assert summary(panoptic.root / "out")["left_out"] == {"size_mismatch": 2}


def test_ids_in_one_place_alone_are_warned_of(panoptic: Set) -> None:
    write_mask(panoptic.masks / "im0.png", (300, 5))
    result = panoptic.convert()
    assert (result["written"], result["warnings"]) == (4, {"id_not_in_json": 1, "id_not_in_png": 1})
    assert "segment ids [5] in the PNG but not in the json" in result["examples"]["id_not_in_json"][0]
    assert "segment ids [70000] in the json but not in the PNG" in result["examples"]["id_not_in_png"][0]


def test_masks_of_instances(instances: Set) -> None:
    rows = instances.json["annotations"]
    rows[0]["segmentation"].append([1, 1, 2, 2])
    rows.append({**rows[1], "id": 98, "segmentation": []})
    rows[2]["segmentation"] = {"size": [24, 16], "counts": [384]}
    rows[3]["segmentation"] = {"size": [16, 24], "counts": [383]}
    with pytest.raises(BadSamplesError, match="3 of 5 annotations are unusable, --max_bad_annotations 0.05 allows 1;"):
        instances.convert(max_bad_samples=0.5)
    result = instances.convert(max_bad_samples=0.5, max_bad_annotations=0.6)
    assert result["left_out"] == {"no_masks": 2}
    assert result["warnings"] == {
        "annotation_without_mask": 1,
        "polygon_unusable": 1,
        "rle_malformed": 1,
        "rle_size": 1,
    }
    found = members(instances.root / "out")
    assert len(json.loads(found["im0.json"])["segments_info"][0]["segmentation"]) == 1
    assert [s["id"] for s in json.loads(found["im1.json"])["segments_info"]] == [51]


def test_mended_set_is_converted_anew(panoptic: Set) -> None:
    image = panoptic.images / "im0.jpg"
    data = image.read_bytes()
    image.unlink()
    with pytest.raises(BadSamplesError):
        panoptic.convert(max_bad_samples=0)
    assert panoptic.convert()["written"] == 3, "a laxer limit takes the run as it is"
    image.write_bytes(data)
    assert panoptic.convert(max_bad_samples=0)["written"] == 4
    assert len(members(panoptic.root / "out")) == 12


def test_no_sample_at_all(panoptic: Set) -> None:
    panoptic.json["annotations"] = []
    with pytest.raises(BadSamplesError, match="no sample was written"):
        panoptic.convert()


WRONG = [
    (lambda s: [row.pop("segments_info") for row in s.json["annotations"]], "no list 'segments_info'"),
    (lambda s: s.json["annotations"][1].update(file_name="../im1.png"), r"image 1, --ann_dir .*'../im1.png'"),
    (lambda s: s.json["images"][1].update(file_name="/etc/passwd"), r"images\[1\].*--image_dir .*'/etc/passwd'"),
    (lambda s: s.json["images"][1].update(file_name="a/../../im1.jpg"), "leads out of its folder"),
    (lambda s: s.json["images"][1].pop("file_name"), r"images\[1\] \(id 1\), --image_dir"),
    (lambda s: s.json["images"][1].update(id=0), "two different images have the id 0"),
    (lambda s: s.json["images"][1].pop("id"), r"images\[1\]: expected an 'id'"),
    (lambda s: s.json.pop("categories"), "no list 'categories'"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_wrong_json_ends_the_run_before_it_writes(panoptic: Set, spoil: Any, message: str) -> None:
    spoil(panoptic)
    with pytest.raises(OsmError, match=message):
        panoptic.convert()
    assert not (panoptic.root / "out").exists()


LOST: dict[str, Any] = {
    "category_unknown": lambda s: s.json["annotations"][1]["segments_info"][0].update(category_id=7),
    "annotation_malformed": lambda s: s.json["annotations"][1]["segments_info"][0].update(id=0),
    "annotation_without_image": lambda s: s.json["annotations"].append({**s.json["annotations"][1], "image_id": 77}),
    "image_annotated_twice": lambda s: s.json["annotations"].append({**s.json["annotations"][1], "file_name": "x.png"}),
}


@pytest.mark.parametrize("reason", LOST)
def test_one_bad_annotation_costs_itself_alone(panoptic: Set, reason: str) -> None:
    LOST[reason](panoptic)
    result = panoptic.convert()
    assert (result["written"], result["warnings"].get(reason)) == (4, 1)
    with pytest.raises(BadSamplesError, match=r"1 of [89] annotations are unusable, --max_bad_annotations 0 allows 0"):
        panoptic.convert(panoptic.root / "strict", max_bad_annotations=0)


def test_wrong_instances_json(instances: Set) -> None:
    instances.json["annotations"][3]["category_id"] = 9
    result = instances.convert()
    assert (result["written"], result["left_out"]) == (3, {"no_annotations": 1})
    assert result["warnings"] == {"category_unknown": 1}
    instances.json["annotations"][3] = {"image_id": 3, "segments_info": []}
    with pytest.raises(OsmError, match="this is a panoptic JSON file"):
        instances.convert(instances.root / "panoptic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "tar"}, "--format 'tar' is not one of webdataset, published"),
        ({"num_files_per_shard": 0}, "--num_files_per_shard 0 must be 1 or more"),
        ({"num_workers": 0}, "--num_workers 0 must be 1 or more"),
        ({"max_bad_samples": 2.0}, "--max_bad_samples 2.0 must be between 0 and 1"),
        ({"max_bad_annotations": -0.1}, "--max_bad_annotations -0.1 must be between 0 and 1"),
    ],
)
def test_wrong_options(panoptic: Set, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        panoptic.convert(**options)


# Disks.


@pytest.mark.parametrize("pages", [0, 1, 3, 5])
def test_a_full_disk_ends_with_a_sentence_and_goes_on(
    panoptic: Set, tmp_path: Path, pages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = panoptic.write()
    flags = ["--image_dir", str(panoptic.images), "--ann_dir", str(panoptic.masks), "--json_file", str(json_file)]
    flags += ["--num_workers", "1", "--num_files_per_shard", "2"]
    assert prepare(["coco_panoptic", "--output_dir", str(tmp_path / "whole"), *flags]) == 0
    with mounted(tmp_path / "disk", "256k") as disk:
        (disk / "out").mkdir()
        filler = fill(disk, pages)
        call = ["coco_panoptic", "--output_dir", str(disk / "out"), *flags]
        capsys.readouterr()
        assert prepare(call) == 3
        said = capsys.readouterr().err
        assert f"error: output_dir {disk / 'out'}: No space left on device; run the same command to resume" in said
        assert "Traceback" not in said and not list((disk / "out").glob("*.tmp"))
        filler.unlink()
        assert prepare(call) == 0
        found, whole = (
            {p.name: p.read_bytes() for p in folder.iterdir()} for folder in (disk / "out", tmp_path / "whole")
        )
        assert found == whole


@pytest.mark.parametrize("name", [{"a": 1}, ["sky"], 5, True])
def test_a_category_name_that_is_no_text_is_refused(panoptic: Set, name: Any) -> None:
    panoptic.json["categories"] = [{"id": 1, "name": name}, {"id": 2, "name": "car"}]
    with pytest.raises(
        OsmError, match="set.json: (category 1: name .* is not a text|every category needs .* a 'name')"
    ):
        panoptic.convert()
    panoptic.json["categories"][0] = {"id": 1, "name": "sky", "synonyms": [name]}
    with pytest.raises(OsmError, match="set.json: category 1: synonym .* is not a text"):
        panoptic.convert()
