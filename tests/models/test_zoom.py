"""Zoom windows: where they are, what they show, and models whose direct path reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torch import Tensor, nn
from torchvision.ops import roi_align

from osm.config import as_dict
from osm.data.processor import TEST_PROMPT, Processor
from osm.errors import OsmError, SampleError
from osm.models.factory import build, load_folder
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel
from osm.models.towers.tower import Tower
from osm.models.zoom import LEAST_SIDE, sampled_by_roi_align, sampled_squares, zoom_boxes, zoom_tokens
from osm.planning.simulate import simulate_naming
from osm.recognition import encode
from osm.recognition.encode import opened_image
from osm.recognition.recognizer import Recognizer

SIZE, PATCH = 112, 14


class Pixels(Tower):
    """A stand-in for a tower, whose tokens are the mean colors of the patches."""

    patch = PATCH

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, windows: Tensor) -> tuple[None, Tensor]:
        return None, nn.functional.avg_pool2d(windows, PATCH).flatten(2).transpose(1, 2)


def blob(top: int, left: int, height: int, width: int, size: int = SIZE) -> Tensor:
    """A mask (1, size, size) with holes that keeps its bounding box."""
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    inside = torch.rand(height, width, generator=torch.Generator().manual_seed(top)) < 0.6
    inside[0, 0] = inside[-1, -1] = True
    mask[0, top : top + height, left : left + width] = inside
    return mask


@pytest.mark.parametrize(
    ("box", "enlarge", "expected"),
    [
        ((40, 30, 20, 40), 0.5, (20, 20, 80, 80)),  # (top, left, height, width) -> (left, top, right, bottom)
        ((40, 30, 20, 40), 0.0, (30, 30, 70, 70)),
        ((0, 0, 40, 40), 0.5, (0, 0, 60, 60)),  # moved inside
        ((72, 92, 40, 20), 0.5, (52, 52, 112, 112)),
        ((50, 60, 1, 1), 0.5, (44.5, 34.5, 76.5, 66.5)),  # not smaller than LEAST_SIDE
        ((0, 0, 112, 112), 0.5, (0, 0, 112, 112)),
    ],
)
def test_the_squares(box: tuple[int, int, int, int], enlarge: float, expected: tuple[float, ...]) -> None:
    assert LEAST_SIDE == 32
    assert zoom_boxes(blob(*box)[None], enlarge)[0].tolist() == list(expected)


@pytest.mark.parametrize("shrink", [1, 2])
def test_the_windows_are_plain_crops(shrink: int) -> None:
    """Squares of the window's size are cut out, and those of twice that size are averaged over 2 x 2 pixels."""
    side, pixels = 42, torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    length = side * shrink - 4
    masks = torch.stack([blob(10 + row, 8 + 2 * row, length, length) for row in range(10)])
    image_index = torch.tensor([1, 0] * 5)
    found = zoom_tokens(Pixels(), pixels, image_index, masks, side, 4 / length)
    assert found.class_logits_RA is None
    for row in range(10):
        square = (slice(8 + row, 8 + row + side * shrink), slice(6 + 2 * row, 6 + 2 * row + side * shrink))
        window, mask = pixels[image_index[row]][:, *square], masks[row][:, *square].float()
        window, mask = (nn.functional.avg_pool2d(x, shrink) for x in (window, mask))
        colors, cover = (nn.functional.avg_pool2d(x, PATCH).flatten(1) for x in (window, mask))
        expected = (colors * cover).sum(1) / cover.sum()
        torch.testing.assert_close(found.tokens_RUC[row, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("inside", [True, 255, 0.5])
def test_a_cutout_shows_the_mask_alone(inside: Any) -> None:
    """The cut-out is a plain crop of the pixels times the mask, whatever value is inside the mask."""
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    masks, index = torch.stack([blob(10 + row, 8 + 2 * row, 42, 42) for row in range(4)]), torch.tensor([1, 0, 1, 0])
    alone = zoom_tokens(Pixels(), pixels, index, masks, 42, 0.0)
    given = torch.where(masks, torch.tensor(inside), 0)
    both = zoom_tokens(Pixels(), pixels, index, given, 42, 0.0, cutout=True)
    for row in range(4):
        square = (slice(10 + row, 52 + row), slice(8 + 2 * row, 50 + 2 * row))
        share = masks[row][:, *square].float()
        cutout = nn.functional.avg_pool2d(pixels[index[row]][:, *square] * share, PATCH).flatten(1)
        cover = nn.functional.avg_pool2d(share, PATCH).flatten(1)
        expected = torch.stack([alone.tokens_RUC[row, 0], (cutout * cover).sum(1) / cover.sum()])
        torch.testing.assert_close(both.tokens_RUC[row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize(("bins", "points"), [(42, 0), (8, 14), (112, 0)])
def test_the_samples_are_those_of_roi_align(dtype: torch.dtype, bins: int, points: int) -> None:
    """Squares of all sizes, at the edges and between pixels, of several images."""
    generator = torch.Generator().manual_seed(0)
    images = (2 * torch.randn(3, 2, SIZE, SIZE, generator=generator)).abs().to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    side = torch.cat([torch.tensor([32.0, 32.0, SIZE, 111.0]), 32 + 80 * torch.rand(40, generator=generator)])
    corner = (SIZE - side)[:, None] * torch.rand(len(side), 2, generator=generator)
    corner[0], corner[1] = 0, SIZE - 32
    boxes = torch.cat([corner, corner + side[:, None]], 1)
    index = torch.randint(3, (len(side),), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        found = sampled_squares(images, index, boxes, bins, points)
    rows = torch.cat([index[:, None].float(), boxes], 1)
    expected = roi_align(images.float(), rows, bins, sampling_ratio=points or -1, aligned=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sampled_by_roi_align(images, index, boxes, bins, points), expected)
    for sampled in (sampled_squares, sampled_by_roi_align):
        assert sampled(images, index[:0], boxes[:0], bins, points).shape == (0, 2, bins, bins)


def test_a_mask_between_the_sampled_points_stands_for_its_window() -> None:
    """The mask is two pixels in opposite corners of a large image, and none of the sampled points is near them."""
    mask = torch.zeros(1, 1, 1120, 1120, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 0, -1, -1] = True
    found = zoom_tokens(Pixels(), torch.ones(1, 3, 1120, 1120), torch.zeros(1).long(), mask, 14, 0.0)
    torch.testing.assert_close(found.tokens_RUC, torch.ones(1, 1, 3))


def test_an_empty_mask_has_no_window() -> None:
    with pytest.raises(SampleError, match="mask 0 is empty"):
        zoom_boxes(torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool), 0.5)


# Models.

ZOOM = {"direct_tokens": 3, "direct_width": 16, "direct_zoom": 42}


@pytest.fixture(params=[("maskqformer", False), ("flamingo", False), ("pooled", True)], ids=lambda param: param[0])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[OmniScientModel, Processor]:
    torch.manual_seed(0)
    variant, cutout = request.param
    model, processor = build(tiny_config(tmp_path, variant, **ZOOM, direct_zoom_cutout=cutout))
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval(), processor


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (48, 56, 3), np.uint8)


BOXES = [[2.0, 2.0, 20.0, 30.0], [20.0, 10.0, 30.0, 20.0], [5.0, 5.0, 1.0, 1.0]]


def test_masks_of_several_images_are_named_as_one_by_one(built: tuple[OmniScientModel, Processor]) -> None:
    recognizer = Recognizer(*built)
    masks = [np.zeros((3, 48, 56), bool) for _ in range(2)]
    for number, of_image in enumerate(masks):
        for mask, (x, y, width, height) in zip(of_image, np.array(BOXES, int), strict=True):
            mask[y + number : y + height, x : x + width] = True
    masks[0][1] = False  # is skipped
    together = recognizer.name_batch([image(0), image(1)], masks)
    encoded = recognizer.encode_images([image(0), image(1)])
    assert all(one.canvas_13SS is not None and one.bytes > one.canvas_13SS.numel() for one in encoded)
    for number in range(2):
        recognizer.set_image(image(number))
        for mask, answers in zip(masks[number], together[number], strict=True):
            [[alone]] = recognizer.name([mask])
            assert alone.skipped == answers[0].skipped and alone.text == answers[0].text
            assert alone.prob == pytest.approx(answers[0].prob, rel=1e-3, abs=0)


def test_the_answer_depends_on_what_the_window_shows(built: tuple[OmniScientModel, Processor]) -> None:
    recognizer = Recognizer(*built)
    recognizer.set_image(image())
    before = [answer[0].prob for answer in recognizer.name(boxes=BOXES)]
    shown = recognizer._image
    assert shown is not None and shown.canvas_13SS is not None
    recognizer._image = replace(shown, canvas_13SS=255 - shown.canvas_13SS)
    assert [answer[0].prob for answer in recognizer.name(boxes=BOXES)] != pytest.approx(before, rel=1e-3, abs=0)


def test_the_published_interface_and_the_training_task_agree(built: tuple[OmniScientModel, Processor]) -> None:
    from osm.data.batch import Batch
    from osm.models.losses import reduce_losses
    from osm.training.task import TrainTask

    model, processor = built
    size = model.config.input_size
    masks = torch.stack([blob(5, 9, 20, 30, size), blob(20, 3, 9, 9, size)])
    canvas = torch.randint(0, 255, (1, 3, size, size), dtype=torch.uint8)
    text = processor.training_text([TEST_PROMPT] * 2, ["cat", "dog"])
    index = torch.zeros(2, dtype=torch.long)
    batch = Batch(["a"] * 2, ["any"] * 2, canvas, None, index, masks, text, ["k"], ["cat", "dog"])
    losses, counts = TrainTask(model, processor)(batch)
    arguments = (
        processor.pixel_values(canvas),
        text.qformer_ids,
        text.qformer_mask,
        text.input_ids,
        text.attention_mask,
        text.labels,
        masks,
        context_mask(masks, model.config.context_enlarge_ratio),
    )
    published = model(*arguments, image_index=index)
    torch.testing.assert_close(published, reduce_losses(losses, torch.ones(2) / counts.sum()))
    cached = replace(batch, tokens=model.tower_tokens(processor.pixel_values(canvas)))
    torch.testing.assert_close(TrainTask(model, processor)(cached)[0], losses)
    with pytest.raises(OsmError, match="pixel_values is missing: this model cuts a window of 42 pixels out"):
        model.mask_features(masks, masks)
    with pytest.raises(OsmError, match="image_index has values from 0 to 1; expected 0 to 0"):
        model(*arguments, image_index=torch.tensor([0, 1]))


def test_views_and_kept_tokens(built: tuple[OmniScientModel, Processor]) -> None:
    """A single view is named as ever, and so is an image whose tokens a segmenter has computed."""
    recognizer = Recognizer(*built)
    mask = np.zeros((48, 56), bool)
    mask[5:30, 9:40] = True
    [[alone]] = recognizer.name_batch([image()], [[mask]])[0]
    [found] = recognizer.name_views([(image(), mask), (image(), np.zeros_like(mask))])
    assert (found.text, found.token_probs) == (alone.text, pytest.approx(alone.token_probs, rel=1e-3, abs=0))
    recognizer.encoder.keeps_tokens = True
    recognizer.encoder.image_tokens(opened_image(image()))
    [[again]] = recognizer.name_batch([image()], [[mask]])[0]
    assert (again.text, again.token_probs) == (alone.text, pytest.approx(alone.token_probs, rel=1e-3, abs=0))


def test_only_so_many_windows_are_encoded_at_once(
    built: tuple[OmniScientModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = built
    passes: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[-1] == 42:
            passes.append(len(inputs[0]))

    model.tower.register_forward_pre_hook(count)
    recognizer = Recognizer(model, processor)
    recognizer.set_image(image())
    boxes = [[2.0 + 3 * k, 2.0 + k, 20.0 - k, 30.0 - 2 * k] for k in range(5)]
    together = recognizer.name(boxes=boxes)
    each = model.windows_per_mask
    assert passes == [5 * each]
    monkeypatch.setattr(encode, "ZOOM_PIXELS", 2 * 42**2 + 1)
    recognizer.set_image(image())
    few = recognizer.name(boxes=boxes)
    assert passes == ([5, 2, 2, 1] if each == 1 else [10, 2, 2, 2, 2, 2])
    for [one], [other] in zip(few, together, strict=True):
        assert (one.text, one.token_probs) == (other.text, pytest.approx(other.token_probs, rel=1e-3, abs=0))


def test_the_plan_counts_the_windows_of_each_mask_once(built: tuple[OmniScientModel, Processor]) -> None:
    config = built[0].config
    plain = replace(config, bridge=replace(config.bridge, direct_zoom=0, direct_zoom_cutout=False))
    one, two, without = (
        simulate_naming(each, 1, 3, modes, gpu=False) for each, modes in ((config, 1), (config, 2), (plain, 2))
    )
    share = built[0].windows_per_mask * (42 / config.input_size) ** 2
    assert one.mask_flops == two.mask_flops == pytest.approx(share * two.tower_flops, rel=0.01)
    assert without.mask_flops == 0 and without.row_flops == pytest.approx(two.row_flops, rel=0.1)


def test_the_files(built: tuple[OmniScientModel, Processor], tmp_path: Path) -> None:
    model = built[0]
    model.save_pretrained(tmp_path / "saved")
    again = load_folder(tmp_path / "saved")[0]
    assert again.config == model.config and again.zoom == 42
    for name, value in model.trainable_state_dict().items():
        assert torch.equal(again.trainable_state_dict()[name], value), name


def test_a_config_without_zoom_windows_is_stored_as_before(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "maskqformer", direct_tokens=3)
    assert "direct_zoom" not in str(as_dict(config)) and "direct_tokens" in str(as_dict(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direct_zoom": 42}, "direct_zoom 42 needs direct_tokens of 1 or more"),
        ({**ZOOM, "direct_zoom": -1}, "direct_zoom -1 is not 0 to 2048"),
        ({**ZOOM, "direct_zoom_enlarge": -0.5}, "direct_zoom_enlarge -0.5 is not 0 to 100"),
        (
            {**ZOOM, "direct_zoom": 40},
            r"model.bridge.direct_zoom 40 is not a multiple of the tower.s patch \(14\)",
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        build(tiny_config(tmp_path, "maskqformer", **settings))


def test_a_cutout_needs_zoom_windows(tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="direct_zoom_cutout needs direct_zoom"):
        tiny_config(tmp_path, "pooled", **{**ZOOM, "direct_zoom": 0}, direct_zoom_cutout=True)
