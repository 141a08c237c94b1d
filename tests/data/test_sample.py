"""Training samples: the published rules of scale, flip and crop, and which masks are asked about."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stream_sets import COLOURS, SIZE, bands, instances, panoptic, processor, rectangle, scene

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS, Processor
from osm.data.sample import Sample, SampleTransform
from osm.data.sample_config import SampleConfig
from osm.datasets.labels import LabelSet
from osm.errors import OsmError, SampleError
from osm.forms import Form, read_sample
from osm.io.resizing import fitted_size
from osm.io.views import View

DRAWS = 2000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


def draw(
    prepared: Processor, target: Form, config: SampleConfig, count: int, seed: int = 0
) -> tuple[SampleTransform, list[Sample]]:
    transform, rng = SampleTransform(config, prepared), np.random.default_rng(seed)
    return transform, [transform(target, "key", rng) for _ in range(count)]


def blocks(width: int, height: int) -> Form:
    return scene(panoptic(bands(width, height)))


# Views.


@pytest.mark.parametrize(("side", "resize"), [(40, "published"), (40, "always"), (90, "always")])
def test_scale_is_uniform_where_it_applies(prepared: Processor, side: int, resize: str) -> None:
    transform = SampleTransform(SampleConfig(resize=resize), prepared)
    rng, target = np.random.default_rng(0), blocks(side, side)
    sides = np.array([transform.draw_view(target, rng).width for _ in range(DRAWS)])
    assert sides.min() == int(0.5 * SIZE) and sides.max() == int(1.5 * SIZE) - 1
    # A square goes to int(u * S), so u is known to 1 / S; the largest gap of the distributions (Kolmogorov-Smirnov).
    u = np.sort((sides + 0.5) / SIZE)
    gap = np.abs(u - 0.5 - (np.arange(DRAWS) + 0.5) / DRAWS).max()
    assert gap < 1.63 / DRAWS**0.5 + 1 / SIZE


def test_a_large_image_is_resized_only_by_always(prepared: Processor) -> None:
    target, rng = blocks(90, 70), np.random.default_rng(0)
    by_rule = {
        rule: [SampleTransform(SampleConfig(resize=rule), prepared).draw_view(target, rng) for _ in range(50)]
        for rule in ("published", "always")
    }
    assert {(view.width, view.height) for view in by_rule["published"]} == {(90, 70)}
    allowed = {fitted_size(90, 70, side) for side in range(28, 85)}
    sizes = {(view.width, view.height) for view in by_rule["always"]}
    assert len(sizes) > 20 and sizes <= allowed
    # The short side decides: 55 is under S.
    small = SampleTransform(SampleConfig(), prepared).draw_view(blocks(90, 55), rng)
    assert (small.width, small.height) in {fitted_size(90, 55, side) for side in range(28, 85)}


def test_flip_and_crop_are_uniform(prepared: Processor) -> None:
    transform = SampleTransform(SampleConfig(resize="published"), prepared)
    rng, target = np.random.default_rng(0), blocks(76, 61)
    views = [transform.draw_view(target, rng) for _ in range(DRAWS)]
    assert 0.46 < np.mean([view.flip for view in views]) < 0.54
    assert {(view.crop_width, view.crop_height) for view in views} == {(SIZE, SIZE)}
    for values, count in (([v.left for v in views], 21), ([v.top for v in views], 6)):
        seen = np.bincount(values, minlength=count)
        assert len(seen) == count
        expected = DRAWS / count
        assert (((seen - expected) ** 2) / expected).sum() < 2.2 * count  # chi square; 2.2 per place is far out
    assert abs(np.corrcoef([v.left for v in views], [v.top for v in views])[0, 1]) < 0.08
    small = transform.draw_view(blocks(30, 20), rng)
    assert (small.left, small.top) == (max(0, small.left), max(0, small.top))
    assert small.crop_width == min(small.width, SIZE) and small.crop_height == min(small.height, SIZE)


@pytest.mark.parametrize("shape", [(40, 31), (97, 130), (200, 60)])
def test_image_crop_is_resize_then_crop(prepared: Processor, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (shape[1], shape[0], 3), np.uint8)
    image, target = Image.fromarray(noise), blocks(*shape)
    transform, rng = SampleTransform(SampleConfig(resize="always"), prepared), np.random.default_rng(5)
    for _ in range(30):
        view = transform.draw_view(target, rng)
        whole = np.asarray(image.resize((view.width, view.height), Image.Resampling.BICUBIC)).astype(int)
        expected = whole[view.top : view.top + view.crop_height, view.left : view.left + view.crop_width]
        expected = expected[:, ::-1] if view.flip else expected
        assert np.abs(view.image(noise) - expected).max() <= 1


def test_unresized_crop_is_exact_and_labels_are_nearest(prepared: Processor) -> None:
    rng = np.random.default_rng(6)
    noise = rng.integers(0, 256, (70, 90, 3), np.uint8)
    view = SampleTransform(SampleConfig(resize="published"), prepared).draw_view(blocks(90, 70), rng)
    expected = noise[view.top : view.top + SIZE, view.left : view.left + SIZE]
    np.testing.assert_array_equal(view.image(noise), expected[:, ::-1] if view.flip else expected)
    transform = SampleTransform(SampleConfig(resize="always"), prepared)
    ids = rng.integers(0, 2**20, (70, 90))
    for _ in range(30):
        view = transform.draw_view(blocks(90, 70), rng)
        resized = Image.fromarray(ids.astype(np.int32)).resize((view.width, view.height), Image.Resampling.NEAREST)
        whole = np.asarray(resized)
        expected = whole[view.top : view.top + view.crop_height, view.left : view.left + view.crop_width]
        np.testing.assert_array_equal(view.labels(ids), expected[:, ::-1] if view.flip else expected)


def test_image_and_mask_stay_aligned(prepared: Processor) -> None:
    categories = bands(80, 50)
    categories[25:, :30] = 2  # no symmetry that a flip could hide behind
    target, names = scene(panoptic(categories)), {"sky": 1, "car": 2, "dog": 3}
    transform, samples = draw(prepared, target, SampleConfig(masks_per_image=3, resize="always"), 100)
    for sample in samples:
        assert sample.pixels is not None
        canvas = transform.processor.padded(sample.pixels).permute(1, 2, 0).numpy().astype(int)
        nearest = np.abs(canvas[:, :, None] - COLOURS[None, None].astype(int)).sum(-1).argmin(-1)
        for mask, name in zip(sample.masks[:, 0].numpy(), sample.targets, strict=True):
            shown = nearest == names[name]
            assert (mask & shown).sum() / (mask | shown).sum() > 0.85
        height, width = sample.pixels.shape[:2]
        assert not sample.masks[:, :, height:].any() and not sample.masks[..., width:].any()
        assert (canvas[height:] == 0).all() and (canvas[:, width:] == 0).all()


# Segments.


def test_a_segment_needs_more_than_100_pixels(prepared: Processor) -> None:
    categories = np.zeros((SIZE, SIZE), int)  # of size S: seen whole, unresized
    categories[:10, :10], categories[20:30, :10], categories[30, 0] = 1, 2, 2
    _, samples = draw(prepared, scene(panoptic(categories)), SampleConfig(), 40)
    assert {tuple(sample.targets) for sample in samples} == {("car",)}
    assert {int(sample.masks.sum()) for sample in samples} == {101}


def test_segments_are_drawn_uniformly_and_crowds_never(prepared: Processor) -> None:
    segments = [{"id": 1000 * i, "category_id": 77 if i == 1 else i, "iscrowd": int(i == 1)} for i in (1, 2, 3)]
    _, samples = draw(prepared, scene(panoptic(bands(SIZE, SIZE), segments)), SampleConfig(), 600)
    seen = Counter(sample.targets[0] for sample in samples)
    assert set(seen) == {"car", "dog"} and 240 < seen["car"] < 360  # the crowd's category need not even be known


def test_box_instead_of_mask_for_things_alone(prepared: Processor) -> None:
    categories = bands(SIZE, SIZE)
    categories[:20, 25:30] = 0  # a notch in the car's band
    target = scene(panoptic(categories))
    _, samples = draw(prepared, target, SampleConfig(mask2box_prob=0.3, masks_per_image=3), 500)
    boxed: Counter[str] = Counter()
    prompts: Counter[str] = Counter()
    for sample in samples:
        for mask, name, prompt in zip(sample.masks[:, 0].numpy(), sample.targets, sample.prompts, strict=True):
            prompts[prompt] += 1
            ys, xs = np.nonzero(mask)
            box = (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
            assert prompt in (BOX_PROMPTS if prompt not in MASK_PROMPTS else MASK_PROMPTS)
            boxed[name] += prompt in BOX_PROMPTS
            if name == "car":
                assert (mask.sum() == box) == (prompt in BOX_PROMPTS)
    assert boxed["sky"] == 0 and all(120 < boxed[name] < 180 for name in ("car", "dog"))
    assert set(prompts) == {*MASK_PROMPTS, *BOX_PROMPTS}
    assert min(prompts[prompt] for prompt in MASK_PROMPTS) > 0.6 * 1200 / 19  # uniform: 63 each


def test_synonyms_are_targets_as_often_as_is_asked(prepared: Processor) -> None:
    spelled = [
        {"id": 1, "name": "sky", "isthing": 0},
        {"id": 2, "name": "car", "synonyms": ["auto", "automobile"]},
        {"id": 3, "name": "dog", "synonyms": ["hound"]},
    ]
    labels = LabelSet.from_categories(spelled, "the test's categories")
    target = read_sample("coco_panoptic", panoptic(bands(SIZE, SIZE)), labels)
    _, samples = draw(prepared, target, SampleConfig(synonym_prob=0.4), 1500)
    seen = Counter(sample.targets[0] for sample in samples)
    assert set(seen) == {"sky", "car", "auto", "automobile", "dog", "hound"}
    assert seen["hound"] / (seen["dog"] + seen["hound"]) == pytest.approx(0.4, abs=0.08)
    assert (seen["auto"] + seen["automobile"]) / (seen["car"] + seen["auto"] + seen["automobile"]) == pytest.approx(
        0.4, abs=0.08
    )
    assert 0.6 < seen["auto"] / seen["automobile"] < 1.6
    # Without the setting, classes with synonyms give the very samples that classes without them give.
    _, plain = draw(prepared, target, SampleConfig(), 30)
    _, before = draw(prepared, blocks(SIZE, SIZE), SampleConfig(), 30)
    assert [sample.targets for sample in plain] == [sample.targets for sample in before]
    assert all(torch.equal(one.masks, other.masks) for one, other in zip(plain, before, strict=True))


def test_masks_of_one_image_differ(prepared: Processor) -> None:
    for wanted, expected in ((2, 2), (3, 3), (8, 3)):
        _, samples = draw(prepared, blocks(SIZE, SIZE), SampleConfig(masks_per_image=wanted), 40)
        for sample in samples:
            assert len(set(sample.targets)) == len(sample.masks) == len(sample.prompts) == expected
            assert (sample.masks.sum(0) <= 1).all()


def test_an_image_without_a_counting_segment_is_given_up(prepared: Processor) -> None:
    categories = np.zeros((SIZE, SIZE), int)
    categories[:10, :10] = 1
    with pytest.raises(SampleError, match="no segment larger than 100 pixels was found in 500 random crops") as caught:
        draw(prepared, scene(panoptic(categories)), SampleConfig(), 1)
    assert caught.value.reason == "no_segment"


def test_one_try_may_fail_and_the_next_succeed(prepared: Processor) -> None:
    categories = np.zeros((70, 70), int)
    categories[:12, :12] = 2  # 10 of 225 crops show enough of it
    _, samples = draw(prepared, scene(panoptic(categories)), SampleConfig(), 20)
    assert all(sample.targets == ["car"] and sample.masks.sum() > 100 for sample in samples)


# Fixed views.


def test_fixed_views_follow_from_seed_and_key(prepared: Processor) -> None:
    target, config = blocks(80, 60), SampleConfig(resize="always")
    first, again, other = (SampleTransform(config, prepared, views=3, seed=seed) for seed in (7, 7, 8))
    views = [first.fixed_view(target, "key", number) for number in range(3)]
    assert views == [again.fixed_view(target, "key", number) for number in range(3)]
    assert len(set(views)) == 3
    assert views != [other.fixed_view(target, "key", number) for number in range(3)]
    assert views[0] != first.fixed_view(target, "another key", 0)
    rng, seen = np.random.default_rng(1), set()
    for _ in range(60):
        sample = first(target, "key", rng)
        assert sample.pixels is None and sample.cached_view is not None
        seen.add(sample.cached_view)
        crop = views[sample.cached_view].labels(bands(80, 60))
        category = {"sky": 1, "car": 2, "dog": 3}[sample.targets[0]]
        shown = sample.masks[0, 0, : crop.shape[0], : crop.shape[1]]
        np.testing.assert_array_equal(shown, crop == category)
    assert seen == {0, 1, 2}


# Instances.


def test_instances_from_polygons_and_rle(prepared: Processor) -> None:
    runs = [SIZE * 20, SIZE * 10, SIZE * (SIZE - 30)]  # columns 20..29, column by column
    annotations = [
        {"category_id": 2, "segmentation": rectangle(2, 3, 14, 40)},
        {"category_id": 3, "segmentation": {"size": [SIZE, SIZE], "counts": runs}},
        {"category_id": 1, "segmentation": rectangle(0, 0, SIZE, SIZE), "iscrowd": 1},
        {"category_id": 1, "segmentation": rectangle(40, 40, 45, 45)},
    ]
    target = scene(instances(SIZE, SIZE, annotations), "coco_instances")
    transform, rng = SampleTransform(SampleConfig(masks_per_image=4), prepared), np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for _ in range(200):
        sample = transform(target, "key", rng)
        seen.update(sample.targets)
        for mask, name in zip(sample.masks[:, 0].numpy(), sample.targets, strict=True):
            ys, xs = np.nonzero(mask)
            xs = xs if xs.max() < 32 else SIZE - 1 - xs  # flipped back
            box = (xs.min(), ys.min(), xs.max(), ys.max())
            assert box == ((2, 3, 13, 39) if name == "car" else (20, 0, 29, SIZE - 1))
    assert set(seen) == {"car", "dog"}


def test_the_annotation_is_drawn_before_the_crop(prepared: Processor) -> None:
    # One annotation is in every crop, the other in few: drawn again, yet each is drawn often.
    annotations = [
        {"category_id": 2, "segmentation": rectangle(0, 0, 60, 60)},
        {"category_id": 3, "segmentation": rectangle(0, 0, 11, 11)},
    ]
    target = scene(instances(60, 60, annotations), "coco_instances")
    _, samples = draw(prepared, target, SampleConfig(), DRAWS)
    share = np.mean([sample.targets == ["dog"] for sample in samples])
    p = 3 / 25  # of 5 x 5 crops three show over 100 of its 121 pixels
    assert abs(share - p / (1 + p)) < 0.02  # crop first would be p / 2


# Faults.


def with_json(members: dict[str, bytes], text: str) -> dict[str, bytes]:
    return {**members, "json": text.encode()}


def test_bad_panoptic_samples_have_a_reason() -> None:
    good = panoptic(bands(30, 20))
    segment = '{"segments_info": [{"id": %s, "category_id": %s}]}'
    cases = {
        "unknown_category": [with_json(good, segment % (1000, 9))],
        "size_mismatch": [{**good, "png": panoptic(bands(30, 21))["png"]}],
        "missing_member": [
            {"png": good["png"], "json": good["json"]},
            {"image.png": good["image.png"], "json": good["json"]},
            {"image.png": good["image.png"], "png": good["png"]},
        ],
        "bad_json": [
            with_json(good, "[]"),
            with_json(good, "{"),
            with_json(good, "{}"),
            with_json(good, '{"segments_info": [5]}'),
            with_json(good, '{"segments_info": [{"id": 1000}]}'),
            with_json(good, segment % ("[1]", 2)),
            with_json(good, segment % (1000, '{"a": 1}')),
            with_json(good, segment % (1000, "1" * 5000)),
            with_json(good, "[" * 100_000),
            {**good, "json": b"\xff\xfe"},
            {"json": b'{"image_base64": "@@@", "segments_info": []}'},
            {"json": '{"image_base64": "é", "segments_info": []}'.encode()},
        ],
        "mask_not_rgb": [{**good, "png": grey_png(30, 20)}],
        "image_unreadable": [{**good, "image.png": b"no picture"}, {**good, "png": b"GIF89a"}],
        "image_truncated": [{**good, "png": good["png"][:-40]}],
    }
    for reason, samples in cases.items():
        for members in samples:
            with pytest.raises(SampleError) as caught:
                scene(members)
            assert caught.value.reason == reason, f"{members['json'][:80] if 'json' in members else members}"


def grey_png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_a_truncated_image_is_found_when_it_is_needed(prepared: Processor) -> None:
    good = panoptic(bands(60, 60))
    with pytest.raises(SampleError) as caught:
        draw(prepared, scene({**good, "image.png": good["image.png"][:-40]}), SampleConfig(), 1)
    assert caught.value.reason == "image_truncated"


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (5, "segmentation_malformed"),
        ([[1, 2, 3]], "polygon_too_short"),
        ([[1, 2, 3, 4, 5, float("nan")]], "polygon_not_numbers"),
        ([[0, 0, 9, 0, 9, 10**400]], "polygon_not_numbers"),
        ({"size": [30, 20], "counts": [600]}, "rle_size"),
        ({"size": [20, 30], "counts": [599]}, "rle_malformed"),
        ({"size": [20, 30], "counts": [700, -100]}, "rle_malformed"),
        ({"size": [20, 30], "counts": "not an rle"}, "rle_malformed"),
        ({"size": [20, 30]}, "rle_malformed"),
        ({"counts": [600]}, "rle_malformed"),
    ],
)
def test_bad_segmentations_have_a_reason(prepared: Processor, segmentation: object, reason: str) -> None:
    members = instances(30, 20, [{"category_id": 2, "segmentation": segmentation}])
    with pytest.raises(SampleError) as caught:
        draw(prepared, scene(members, "coco_instances"), SampleConfig(), 1)
    assert caught.value.reason == reason


def test_bad_instances_have_a_reason() -> None:
    annotation = {"category_id": 2, "segmentation": rectangle(0, 0, 9, 9)}
    for members, reason in (
        (instances(30, 20, [annotation], width=31), "size_mismatch"),
        (instances(30, 20, [{**annotation, "category_id": 9}]), "unknown_category"),
        (instances(30, 20, [{"category_id": 2}]), "bad_json"),
        ({"json": instances(30, 20, [annotation])["json"]}, "missing_member"),
    ):
        with pytest.raises(SampleError) as caught:
            scene(members, "coco_instances")
        assert caught.value.reason == reason


def test_damaged_pictures_never_raise_anything_else(tmp_path: Path) -> None:
    rng, good = np.random.default_rng(0), panoptic(bands(60, 60))
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)).save(stream, "JPEG")
    good = {**good, "jpg": stream.getvalue()}
    broken = 0
    for turn in range(400):
        name = ("jpg", "png")[turn % 2]
        data = bytearray(good[name])
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        try:
            scene({**good, name: bytes(data)}).pixels(View(60, 60, 0, 0, 60, 60, flip=False))
        except SampleError:
            broken += 1
    assert broken > 50


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("random_scale_min", 0.0, "--random_scale_min"),
        ("random_scale_max", 0.1, "--random_scale_max"),
        ("resize", "never", "--resize 'never'"),
        ("mask2box_prob", 1.5, "--mask2box_prob 1.5"),
        ("synonym_prob", -0.5, "--synonym_prob -0.5"),
        ("masks_per_image", 0, "--masks_per_image 0"),
        ("supervise", "prompt", "--supervise 'prompt'"),
    ],
)
def test_config_is_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        SampleConfig(**{field: value})  # type: ignore[arg-type]
