"""The forms of the nine sets: what is asked about in each, in both layouts, and what is wrong with a bad sample."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import nine_sets
import numpy as np
import pytest
from nine_sets import boxes, grey, parts, published, semantic, tif
from PIL import Image
from stream_sets import SIZE, bands, panoptic_png, processor, write_shard

from osm.data.processor import BOX_PROMPTS, Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.shards import RawSample, read_shard
from osm.datasets.labels import LabelSet
from osm.datasets.table import PUBLISHED_MODES, Dataset, DatasetTable, Rules
from osm.errors import SampleError
from osm.forms import Form, read_sample
from osm.io.images import read_ids
from osm.io.views import View

TABLE = DatasetTable()
NINE = [TABLE[name] for name in PUBLISHED_MODES[:-1]]
FULL = View(SIZE, SIZE, 0, 0, SIZE, SIZE, flip=False)
LABELS = LabelSet.from_categories(
    [
        {"id": 0, "name": "Quadruped Head", "supercategory": "Quadruped"},
        {"id": 1, "name": "Quadruped Foot", "supercategory": "Quadruped"},
        {"id": 2, "name": "Car Tire", "supercategory": "Car"},
        {"id": 300, "name": "sky", "isthing": 0},
    ],
    "the test's parts",
)
OBJECTS = LabelSet.from_categories([{"id": 0, "name": "Impala"}, {"id": 7, "name": "Gila monster"}], "objects")
PARTS = Rules(whole_labels=OBJECTS)
NOTHING = 255


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


def read(row: Dataset, members: dict[str, bytes]) -> Form:
    return read_sample(row.form, members, row.label_set, row.rules)


def full(value: int, side: int = SIZE) -> np.ndarray:
    return np.full((side, side), value)


# The table.


def test_the_nine_rows() -> None:
    assert tuple(TABLE)[:9] == PUBLISHED_MODES[:-1]
    sizes = {row.name: len(row.label_set.classes) for row in NINE}
    assert sizes == dict(
        coco=133,
        lvis=1203,
        v3det=13204,
        a847=847,
        pc459=459,
        partimagenet=40,
        pascal_part=269,
        ade20k=150,
        cityscapes=19,
    )
    titles = [TABLE[name].title for name in ("coco", "ade20k", "cityscapes", "lvis", "a847", "pc459")]
    assert titles == [
        "COCO Panoptic",
        "ADE20K Panoptic",
        "Cityscapes Panoptic",
        "LVIS Instance",
        "A-847 Semantic",
        "PC-459 Semantic",
    ]
    whole = TABLE["partimagenet"].rules.whole_labels
    assert whole is not None and len(whole.classes) == 158
    for row in NINE:
        assert all(name == name.lower().strip() for c in row.label_set.classes.values() for name in c.names)
    for label in TABLE["partimagenet"].label_set.classes.values():
        assert label.target.startswith(f"{label.supercategory} ")


def test_tables_are_read_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("osm.datasets.table.load_labels", lambda source: asked.append(source) or LABELS)
    table = DatasetTable((replace(TABLE["coco"]), replace(TABLE["partimagenet"])))
    assert not asked
    assert table["partimagenet"].rules.whole_labels is LABELS and asked == ["partimagenet_whole"]
    assert table["partimagenet"].label_set is LABELS and asked[1:] == ["partimagenet"]


@pytest.mark.parametrize("row", NINE, ids=lambda row: row.name)
def test_both_layouts_of_every_set_give_equal_samples(row: Dataset, prepared: Processor, tmp_path: Path) -> None:
    plain = {f"k{i}": nine_sets.sample(row, i) for i in range(3)}
    packed = {key: published(members) for key, members in plain.items()}
    found = []
    for layout, samples in (("plain", plain), ("published", packed)):
        transform = SampleTransform(SampleConfig(masks_per_image=3, mask2box_prob=0.5), prepared)
        rng = np.random.default_rng(0)
        for raw in read_shard(str(write_shard(tmp_path / f"{layout}.tar", samples))):
            assert isinstance(raw, RawSample)
            found.append(transform(read(row, raw.members), raw.key, rng))
    assert len(found) == 6
    for first, second in zip(found[:3], found[3:], strict=True):
        assert first.targets == second.targets and first.prompts == second.prompts and first.key == second.key
        assert first.masks.equal(second.masks) and first.masks.flatten(1).sum(1).min() > 100
        np.testing.assert_array_equal(first.pixels, second.pixels)
        assert set(first.targets) <= row.label_set.vocabulary or row.rules.whole_labels is not None


# Semantic maps.


def test_semantic_ids_are_categories_of_16_bits() -> None:
    ids = np.where(bands(SIZE, SIZE, (0, 300, 65535)) == 0, 0, bands(SIZE, SIZE, (0, 300, 65535)))
    target = read_sample("semantic", semantic(ids), LABELS, Rules(frozenset({65535})))
    found = target.pick(FULL, 9, np.random.default_rng(0))
    assert sorted(s.category_id for s in found) == [0, 300]  # 0 is a class like any other
    for segment in found:
        np.testing.assert_array_equal(segment.mask, ids == segment.category_id)


def test_ignored_ids_are_never_asked_about() -> None:
    ids = bands(SIZE, SIZE, (430, 65535, 12))
    target = read(TABLE["pc459"], semantic(ids))
    assert [s.category_id for s in target.pick(FULL, 9, np.random.default_rng(0))] == [12]
    assert "unknown" in TABLE["pc459"].label_set.vocabulary  # yet it is part of the vocabulary
    nothing = read(TABLE["a847"], semantic(full(65535)))
    assert not nothing.has_segments() and not nothing.pick(FULL, 1, np.random.default_rng(0))


def test_an_unknown_id_is_a_sample_left_out() -> None:
    with pytest.raises(SampleError, match="id 900 of the label map is neither in .* nor ignored") as caught:
        read(TABLE["a847"], semantic(full(900))).pick(FULL, 1, np.random.default_rng(0))
    assert caught.value.reason == "unknown_category"


def test_nothing_to_name_is_said_at_once(prepared: Processor) -> None:
    with pytest.raises(SampleError, match="has no segment with a name to train on"):
        transform = SampleTransform(SampleConfig(), prepared)
        transform(read(TABLE["a847"], semantic(full(65535))), "key", np.random.default_rng(0))


# Boxes.


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([10, 20, 30, 15], (10, 20, 40, 35)),
        ([10.4, 20.6, 29.2, 14.1], (10, 20, 40, 35)),  # outwards
        ([-5.5, -3, 25.5, 20], (0, 0, 20, 17)),
        ([40, 40, 1000, 1000], (40, 40, SIZE, SIZE)),
    ],
)
def test_boxes_are_rounded_outwards_and_clamped(
    bbox: list[float], expected: tuple[int, ...], prepared: Processor
) -> None:
    target = read_sample("boxes", boxes(SIZE, SIZE, [(bbox, 1)]), LABELS)
    (segment,) = target.pick(FULL, 1, np.random.default_rng(0))
    left, top, right, bottom = expected
    shown = np.zeros((SIZE, SIZE), bool)
    shown[top:bottom, left:right] = True
    np.testing.assert_array_equal(segment.mask, shown)
    flipped = target.pick(replace(FULL, flip=True), 1, np.random.default_rng(0))[0].mask
    np.testing.assert_array_equal(flipped, shown[:, ::-1])
    for config in (SampleConfig(), SampleConfig(mask2box_prob=1.0)):
        sample = SampleTransform(config, prepared)(target, "key", np.random.default_rng(1))
        assert sample.prompts[0] in BOX_PROMPTS  # always


def test_boxes_follow_the_view_as_masks_do(prepared: Processor) -> None:
    rng = np.random.default_rng(3)
    transform = SampleTransform(SampleConfig(resize="always"), prepared)
    mask = np.zeros((50, 90), bool)
    mask[11:37, 20:61] = True
    target = read_sample("boxes", boxes(90, 50, [([20, 11, 41, 26], 1)]), LABELS)
    for _ in range(50):
        view = transform.draw_view(target, rng)
        found = target.pick(view, 1, rng)
        shown = view.labels(mask)
        assert bool(found) == (shown.sum() > 100)
        if found:
            np.testing.assert_array_equal(found[0].mask, shown)


@pytest.mark.parametrize(
    "bbox", [None, [1, 2, 3], [1, 2, 3, "four"], [1, 2, float("nan"), 4], [1, 2, float("inf"), 4], [True, 2, 3, 4]]
)
def test_bad_boxes_have_a_reason(bbox: object) -> None:
    with pytest.raises(SampleError) as caught:
        read_sample("boxes", boxes(SIZE, SIZE, [(bbox, 1)]), LABELS).pick(FULL, 1, np.random.default_rng(0))
    assert caught.value.reason == "bad_box"


@pytest.mark.parametrize("bbox", [[10, 10, 10, 10], [10, 10, 0, 40], [10, 10, -20, 40], [200, 200, 50, 50]])
def test_small_boxes_do_not_count(bbox: list[int]) -> None:
    assert not read_sample("boxes", boxes(SIZE, SIZE, [(bbox, 1)]), LABELS).pick(FULL, 1, np.random.default_rng(0))


# Parts.


def part_scene(part: np.ndarray, whole: np.ndarray) -> Form:
    return read_sample("parts", parts(part, whole), LABELS, PARTS)


def test_parts_and_whole_objects() -> None:
    ids = bands(SIZE, SIZE, (0, 1, 40))  # 40: of no class
    whole = np.where(ids == 40, NOTHING, 7)
    target = part_scene(ids, whole)
    rng = np.random.default_rng(0)
    found = target.pick(FULL, 9, rng)
    assert sorted(s.category_id for s in found) == [0, 1] and not any(s.whole for s in found)
    (segment,) = target.pick(FULL, 1, rng, whole_prob=1.0)
    assert segment.whole and target.target(segment, rng, 1.0) == "gila monster"
    np.testing.assert_array_equal(segment.mask, whole == 7)
    # Several masks: where there are fewer objects than were drawn, parts fill up.
    both = target.pick(FULL, 3, rng, whole_prob=1.0)
    assert [s.whole for s in both] == [True, False, False]


def test_a_part_is_named_after_its_object() -> None:
    target, rng = part_scene(bands(SIZE, SIZE, (0, 1, 2)), full(7)), np.random.default_rng(0)
    names = {s.category_id: target.target(s, rng, 1.0) for s in target.pick(FULL, 3, rng)}
    assert names == {0: "gila monster head", 1: "gila monster foot", 2: "gila monster tire"}
    names = {s.category_id: target.target(s, rng, 0.0) for s in target.pick(FULL, 3, rng)}
    assert names == {0: "quadruped head", 1: "quadruped foot", 2: "car tire"}


@pytest.mark.parametrize("whole", [full(NOTHING), bands(SIZE, SIZE, (0, 7))], ids=["none", "two"])
def test_a_part_of_no_single_object_is_left_out(whole: np.ndarray, prepared: Processor) -> None:
    target = part_scene(full(0), whole)
    dropped = 0
    for seed in range(200):
        transform = SampleTransform(SampleConfig(part_in_use_whole_prob=0.0), prepared)
        try:
            assert transform(target, "key", np.random.default_rng(seed)).targets == ["quadruped head"]
        except SampleError as error:
            assert error.reason == "not_one_object"
            dropped += 1
    assert 135 < dropped < 182  # 0.8


def test_pascal_part_ids_are_three_bytes_and_come_from_the_table(prepared: Processor) -> None:
    row = TABLE["pascal_part"]
    ignored = next(i for i in range(1, 317) if i not in row.label_set)  # a part with an empty name
    ids = bands(SIZE, SIZE, (0, 2, 310, ignored))
    members = parts(ids, full(1), "rgb")
    target = read(row, members)
    found = target.pick(FULL, 9, np.random.default_rng(0), whole_prob=1.0)
    assert sorted(s.category_id for s in found) == [2, 310] and not any(s.whole for s in found)
    assert target.target(found[0], np.random.default_rng(0), 1.0) == found[0].label.target
    assert read(row, {k: v for k, v in members.items() if k != "whole.png"}).has_segments()  # not needed here
    with pytest.raises(SampleError) as caught:
        read(row, {**members, "part.png": grey(ids % 256)})
    assert caught.value.reason == "mask_not_rgb"


def test_fixed_views_do_not_depend_on_the_share_of_whole_objects(prepared: Processor) -> None:
    part = full(NOTHING, 80)
    part[30:50, 20:40] = 0
    target = part_scene(part, np.where(part == 0, 7, NOTHING))
    views = [
        SampleTransform(SampleConfig(resize="always", part_in_use_whole_prob=p), prepared, views=1).fixed_view(
            target, "k", 0
        )
        for p in (0.0, 0.2, 1.0)
    ]
    assert views[0] == views[1] == views[2]
    found = target.pick(views[0], 1, np.random.default_rng(0), fixed_view=True, whole_prob=1.0)
    assert len(found) == 1


# Faults.


def test_bad_maps_have_a_reason() -> None:
    good = semantic(full(12))
    cases = {
        "mask_not_ids": {**good, "tif": panoptic_png(full(12))},
        "size_mismatch": {**good, "tif": tif(full(12, 20))},
        "missing_member": {"jpg": good["jpg"], "json": good["json"]},
        "image_unreadable": {**good, "tif": b"II*\0"},
        "image_truncated": {**good, "tif": good["tif"][:2000]},
        "bad_json": {**good, "json": b'{"width": '},
    }
    for reason, members in cases.items():
        with pytest.raises(SampleError) as caught:
            read(TABLE["a847"], members)
        assert caught.value.reason == reason
    row = TABLE["partimagenet"]
    members = parts(full(0), full(5))
    for name in ("part.png", "whole.png"):
        with pytest.raises(SampleError, match=name.replace(".png", "_seg_base64")):
            read(row, {key: value for key, value in members.items() if key != name})
    with pytest.raises(SampleError, match="width 57 in the json, 56 in the image"):
        read(row, {**members, "json": json.dumps({"width": 57}).encode()})


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_label_maps_never_raise_anything_else() -> None:
    rng, good = np.random.default_rng(0), tif(bands(60, 60, (1, 2, 3)))
    stream = io.BytesIO()
    Image.fromarray(bands(60, 60, (1, 2, 3)).astype(np.uint16)).save(stream, "TIFF", compression="tiff_lzw")
    broken = 0
    for turn in range(600):
        data = bytearray((good, stream.getvalue())[turn % 2])
        # Half of the damage where a TIFF's directory is.
        places = (
            rng.integers(0, len(data), 4) if turn % 4 < 2 else (len(data) - 1 - rng.integers(0, 200, 4)) % len(data)
        )
        for place in places:
            data[place] = rng.integers(256)
        try:
            read_ids(bytes(data))
        except SampleError:
            broken += 1
    assert broken > 50


def test_id_maps_of_8_and_16_bits_and_palettes() -> None:
    ids = bands(20, 10, (0, 3, 200))
    for data in (tif(ids), grey(ids)):
        np.testing.assert_array_equal(read_ids(data), ids)
    image, stream = Image.fromarray(ids.astype(np.uint8), "L"), io.BytesIO()
    image.putpalette([0, 0, 0] * 256)
    image.save(stream, "PNG")
    np.testing.assert_array_equal(read_ids(stream.getvalue()), ids)
