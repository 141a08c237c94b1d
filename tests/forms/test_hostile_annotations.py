"""Annotations of odd types, sizes and depths: a reason each, in little memory, and no crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_sets import Set
from hostile import run_python, seconds
from nine_sets import boxes, semantic
from pycocotools import mask as coco_mask
from stream_sets import LABELS, bands, instances, panoptic, scene

from osm.datasets.labels import load_labels
from osm.errors import OsmError, SampleError, shown
from osm.forms import base, read_sample
from osm.forms import instances as instances_form
from osm.forms.base import Entry
from osm.io.segmentation import decode_segmentation
from osm.io.views import View
from osm.prepare.build import _json

WIDTH, HEIGHT = 60, 40
VIEW = View(WIDTH, HEIGHT, 0, 0, 56, HEIGHT, flip=False)
AREA = WIDTH * HEIGHT
GIGANTIC = 10**4000  # json reads integers of up to 4300 digits


def nested(depth: int, inner: Any = 1) -> Any:
    for _ in range(depth):
        inner = [inner]
    return inner


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


def zigzag(points: int, reach: float) -> list[list[float]]:
    return [[value for i in range(points) for value in (reach if i % 2 else -reach, i % HEIGHT)]]


# Segmentations.

SEGMENTATIONS = {
    "null": None,
    "a word": "mask",
    "a number": GIGANTIC,
    "deeply nested": nested(900),
    "polygons deeply nested": [nested(900)],
    "polygons of words": [["0", "0", "9", "zero", "9", "9"]],
    "polygons of truths": [[True] * 6],
    "two points": [[0, 0, 9, 9]],
    "an odd number": [[0, 0, 9, 0, 9, 9, 1]],
    "a polygon of nan": [[0, 0, 9, 0, 9, float("nan")]],
    "a polygon of infinities": [[0, 0, 9, 0, 9, float("-inf")]],
    "a polygon of gigantic integers": [[0, 0, 9, 0, 9, GIGANTIC]],
    "a polygon of large floats": [[0, 0, 9, 0, 9, 1e308]],
    "a polygon far outside": [[0, 0, 9, 0, 9, 601]],
    "a polygon of a long outline": zigzag(20_000, 599.5),
    "polygons of a long outline": zigzag(100, 599.5) * 200,
    "an rle without counts": {"size": [HEIGHT, WIDTH]},
    "an rle without a size": {"counts": [AREA]},
    "an rle of another size": rle([AREA], (WIDTH, HEIGHT)),
    "an rle of a gigantic size": rle([AREA], (GIGANTIC, 1)),
    "an rle of a deep size": rle([AREA], nested(900)),
    "an rle of fractions": rle([AREA], (40.5, 60.0)),
    "an rle of sizes that are true": rle([1], (True, True)),
    "counts that are null": rle(None),
    "counts that are deep": rle(nested(900)),
    "counts that are fractions": rle([AREA - 0.5, 0.5]),
    "counts that are infinite": rle([float("inf")]),
    "counts that are true": rle([True] * AREA),
    "counts too few": rle([AREA - 1]),
    "counts too many": rle([AREA, 1]),
    "counts that are negative": rle([AREA + 1, -1]),
    "counts that cancel out": rle([GIGANTIC, -GIGANTIC, AREA]),
    "counts over 64 bits": rle([2**64, AREA]),
    "more runs than pixels": rle([0] * (AREA + 1) + [AREA]),
    "a text of more runs than pixels": rle("0" * 10**6),
    "a text that overflows": rle("o" * 100),
    "a text that ends early": rle("P"),
    "a text of other letters": rle("é\ud800\0"),
    "a text of negative runs": rle("OO"),
}


REASONS = {
    "null": "annotation_without_mask",
    "a word": "segmentation_malformed",
    "a number": "segmentation_malformed",
    "deeply nested": "polygon_not_numbers",
    "polygons deeply nested": "polygon_not_numbers",
    "two points": "polygon_too_short",
    "an odd number": "polygon_too_short",
    "a polygon of large floats": "polygon_outside",
    "a polygon far outside": "polygon_outside",
    "a polygon of a long outline": "polygon_outline",
    "polygons of a long outline": "polygon_outline",
    "an rle of another size": "rle_size",
    "an rle of a gigantic size": "rle_size",
}


@pytest.mark.parametrize("case", SEGMENTATIONS)
def test_a_segmentation_that_is_none_has_its_reason(case: str) -> None:
    members = instances(WIDTH, HEIGHT, [{"category_id": 2, "segmentation": SEGMENTATIONS[case]}])
    with seconds(20), pytest.raises(SampleError) as caught:
        scene(members, "coco_instances").pick(VIEW, 1, np.random.default_rng(0))
    expected = REASONS.get(case, "polygon_not_numbers" if "polygon" in case else "rle_malformed")
    assert caught.value.reason == expected and len(str(caught.value)) < 500


def test_a_long_outline_does_not_end_the_process() -> None:
    """pycocotools asks for memory in proportion to it, and does not look whether it was given any."""
    code = (
        "from osm.io.segmentation import decode_segmentation\n"
        "zigzag = [[value for i in range(4000) for value in (99_999 if i % 2 else -99_999, i)]]\n"
        "decode_segmentation(zigzag, (10_000, 10_000), 'the polygon')"
    )
    done = run_python(code)
    assert done.returncode == 1 and "SampleError: the polygon: 1 polygons have a total outline of" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_polygons_are_merged_as_one_merge_would() -> None:
    rng = np.random.default_rng(0)
    polygons = [(rng.uniform(0, 40, 6) + rng.uniform(-5, 25)).tolist() for _ in range(70)]
    for count in (1, 2, 16, 17, 70):
        found = decode_segmentation(polygons[:count], (HEIGHT, WIDTH), "here")
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons[:count], HEIGHT, WIDTH)))
        np.testing.assert_array_equal(found, expected.astype(bool))


def test_as_many_runs_as_pixels_are_fine() -> None:
    counts = [1] * AREA
    for given in (counts, [0, *counts], coco_mask.frPyObjects(rle(counts), HEIGHT, WIDTH)["counts"].decode()):
        found = decode_segmentation(rle(given), (HEIGHT, WIDTH), "here")
        assert found.sum() == AREA // 2


def test_masks_that_were_drawn_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each has two specks in opposite corners: too few pixels to be named, and a patch of the image's size.
    corners = rle([1, 3, AREA - 5, 1])
    members = instances(WIDTH, HEIGHT, [{"category_id": 2, "segmentation": corners}] * 50)
    target, rng = scene(members, "coco_instances"), np.random.default_rng(0)
    monkeypatch.setattr(instances_form, "_KEPT_PIXELS", 5 * AREA)
    for _ in range(200):
        assert not target.pick(VIEW, 1, rng)
        held = sum(patch.size for patch, _, _ in target._patches.values())  # type: ignore[attr-defined]
        assert held <= 7 * AREA


# The rest of the json.


def with_json(members: dict[str, bytes], document: Any) -> dict[str, bytes]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return {**members, "json": data}


def depths() -> range:
    """Depths at which json can still be read, and a message about it might not be written any more."""
    return range(100, 1200, 50)


ENTRY = {"id": 1000, "category_id": 1}
BAD = {
    "a byte that is no utf-8": b'{"segments_info": "\xff"}',
    "utf-16": '{"segments_info": '.encode("utf-16"),
    "a million digits": b'{"segments_info": ' + b"1" * 10**6 + b"}",
    "zeros": bytes(1000),
    "nothing": b"",
    "null": None,
    "a list": [ENTRY],
    "segments that are null": {"segments_info": None},
    "segments that are an object": {"segments_info": {"id": 1}},
    "segments of segments": {"segments_info": [[ENTRY]]},
    "an id that is a fraction": {"segments_info": [{**ENTRY, "id": 1000.5}]},
    "an id that is true": {"segments_info": [{**ENTRY, "id": True}]},
    "a category that is true": {"segments_info": [{**ENTRY, "category_id": True}]},
    "a category that is a list": {"segments_info": [{**ENTRY, "category_id": [1]}]},
    "an image that is no text": {"segments_info": [ENTRY], "image_base64": [1]},
}


@pytest.mark.parametrize("case", BAD)
def test_a_json_that_is_none_has_its_reason(case: str) -> None:
    with seconds(20), pytest.raises(SampleError) as caught:
        members = with_json(panoptic(bands(WIDTH, HEIGHT)), BAD[case])
        scene({"json": members["json"]} if "image" in case else members)
    assert caught.value.reason == ("missing_member" if "image" in case else "bad_json")
    assert len(str(caught.value)) < 500


def test_gigantic_integers_are_no_ids() -> None:
    members = panoptic(bands(WIDTH, HEIGHT))
    entries = [{"id": GIGANTIC, "category_id": 1}, {"id": 2000, "category_id": 2}]
    found = scene(with_json(members, {"segments_info": entries})).pick(VIEW, 9, np.random.default_rng(0))
    assert [segment.category_id for segment in found] == [2]
    with pytest.raises(SampleError) as caught:
        scene(with_json(members, {"segments_info": [{"id": 1, "category_id": GIGANTIC}]}))
    assert caught.value.reason == "unknown_category" and len(str(caught.value)) < 300


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("value", [GIGANTIC, -1, "61", [60], True, 60.5], ids=str.__class__)
def test_sizes_of_other_types_are_other_sizes(side: str, value: Any) -> None:
    members = instances(WIDTH, HEIGHT, [], **{side: value})
    with pytest.raises(SampleError) as caught:
        scene(members, "coco_instances")
    assert caught.value.reason == "size_mismatch" and len(str(caught.value)) < 300


@pytest.mark.parametrize("place", ["document", "width", "segments", "entry", "id", "segmentation", "bbox"])
def test_no_depth_is_too_deep_for_a_message(place: str) -> None:
    reasons = set()
    for depth in depths():
        deep: Any = b"[" * depth + b"1" + b"]" * depth
        entry: Any = b'{"id": %s, "category_id": 2, "segmentation": %s, "bbox": %s}'
        text = {
            "document": b"%s" % deep,
            "width": b'{"width": %s, "segments_info": []}' % deep,
            "segments": b'{"segments_info": %s}' % deep,
            "entry": b'{"segments_info": [%s]}' % deep,
            "id": b'{"segments_info": [%s]}' % (entry % (deep, b"[]", b"[]")),
            "segmentation": b'{"segments_info": [%s]}' % (entry % (b"1", deep, b"[]")),
            "bbox": b'{"segments_info": [%s]}' % (entry % (b"1", b"[]", deep)),
        }[place]
        form = {"id": "coco_panoptic", "bbox": "boxes"}.get(place, "coco_instances")
        with pytest.raises(SampleError) as caught:
            scene(with_json(panoptic(bands(WIDTH, HEIGHT)), text), form).pick(VIEW, 1, np.random.default_rng(0))
        reasons.add(caught.value.reason)
    own = {"width": "size_mismatch", "segmentation": "polygon_not_numbers", "bbox": "bad_box"}.get(place, "bad_json")
    assert own in reasons and reasons <= {own, "bad_json"}


def test_a_json_of_too_many_values_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    members = panoptic(bands(WIDTH, HEIGHT))
    values = sum(members["json"].count(mark) for mark in (b",", b":", b"[", b"{"))
    monkeypatch.setattr(base, "MAX_VALUES", values)
    assert scene(members).has_segments()
    monkeypatch.setattr(base, "MAX_VALUES", values - 1)
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("read"))
    with pytest.raises(SampleError, match="values .maximum") as caught:
        scene(members)
    assert caught.value.reason == "bad_json"


@pytest.mark.parametrize(
    "bbox", [[GIGANTIC, 0, 1, 1], [-GIGANTIC, 0, GIGANTIC, 1], [1e308, 0, 1e308, 9], nested(900), {}, "1"]
)
def test_gigantic_boxes_have_their_reason(bbox: Any) -> None:
    with pytest.raises(SampleError) as caught:
        members = boxes(WIDTH, HEIGHT, [(bbox, 1)])
        read_sample("boxes", members, LABELS).pick(VIEW, 1, np.random.default_rng(0))
    assert caught.value.reason == "bad_box" and len(str(caught.value)) < 300


def test_semantic_maps_do_not_believe_the_json() -> None:
    members = semantic(np.ones((HEIGHT, WIDTH), int))
    assert read_sample("semantic", members, LABELS).has_segments()
    with pytest.raises(SampleError) as caught:
        read_sample("semantic", with_json(members, {"width": [WIDTH], "height": HEIGHT}), LABELS)
    assert caught.value.reason == "size_mismatch"


# Files that describe a set.


@pytest.mark.parametrize(
    "content", [b"1" * 5000, b"[" * 10**5, b"\xff", b'{"categories": [' + b"[" * 900 + b"]" * 901 + b"}"]
)
def test_a_label_file_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    deep = b"[" * 900 + b"1" + b"]" * 900
    (tmp_path / "labels.json").write_bytes(content % deep if b"%" in content else content)
    with pytest.raises(OsmError, match="labels.json") as error:
        load_labels(tmp_path / "labels.json")
    assert len(str(error.value)) < 500


def test_a_converter_counts_what_a_float_cannot_hold(tmp_path: Path) -> None:
    made = Set(tmp_path, "coco_instances")
    rows = made.json["annotations"]
    rows[0]["bbox"] = [GIGANTIC, 0, 1, 1]
    rows[1]["segmentation"] = [[GIGANTIC, 0, 9, 0, 9, 9], *rows[1]["segmentation"]]
    rows[2]["segmentation"] = {"size": [16, 24], "counts": "no runs"}
    result = made.convert(max_bad_samples=0.5)
    assert result["left_out"] == {"no_masks": 1}
    assert result["warnings"] == {"polygon_unusable": 1, "rle_malformed": 1}


def test_a_converter_counts_what_is_nested_too_deeply(tmp_path: Path) -> None:
    made = Set(tmp_path, "coco_instances")
    made.json["images"][1]["width"] = nested(300)  # states no size
    assert made.convert()["left_out"] == {}
    with pytest.raises(SampleError) as caught:
        _json({"segments_info": nested(10**5)}, Entry(tmp_path, {}, {}))
    assert caught.value.reason == "annotation_malformed"


def test_values_are_shown_briefly() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = {"a": [deep]}
    for value in (deep, nested(5000), "x" * 10**6, list(range(10**5)), 10**5000, {i: i for i in range(10**4)}):
        assert len(shown(value)) < 200
    assert shown([1, "a"]) == "[1, 'a']"
