"""Naming: what a caller gets for each mask, and the probability of a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import EOS, tiny_model_yaml

import osm
from osm.data.processor import TEST_PROMPT, Processor
from osm.errors import OsmError
from osm.models.bridges.bridge import Instruction
from osm.models.factory import build, load_model_config
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel
from osm.recognition.namer import Name, Namer

MODES = ["coco", "any"]


@pytest.fixture(scope="module", params=["maskqformer", "flamingo"])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OmniScientModel, Processor]:
    """A model whose every part matters; its queries are large enough to lead the LLM, and its gates are open."""
    torch.manual_seed(0)
    path = tiny_model_yaml(tmp_path_factory.mktemp("model"), variant=request.param)
    model, processor = build(load_model_config(str(path)))
    with torch.no_grad():
        for name, parameter in model.bridge.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(1.0)
        for parameter in model.bridge.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(3).add_(torch.randn_like(parameter) * 0.3)
        model.window_pos_embed.normal_()
    return model.eval(), processor


@pytest.fixture(scope="module")
def namer(built: tuple[OmniScientModel, Processor]) -> Namer:
    return Namer(*built, max_new_tokens=6)


def picture(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def some_masks(width: int = 70, height: int = 50) -> np.ndarray:
    masks = np.zeros((5, height, width), bool)
    masks[0, :20, :30], masks[1, 25:, 10:50], masks[2, 5:45, 60:], masks[3, 30:32, 30:32], masks[4] = (True,) * 5
    return masks


def named(names: list[dict[str, Name] | None]) -> list[dict[str, Name]]:
    assert None not in names
    return [name for name in names if name is not None]


def assert_same(first: dict[str, Name], second: dict[str, Name]) -> None:
    assert list(first) == list(second)
    for mode, name in first.items():
        assert name.text == second[mode].text and name.prob == pytest.approx(second[mode].prob, rel=1e-3)


def test_many_masks_are_named_as_each_alone(namer: Namer) -> None:
    image, masks = picture(0), some_masks()
    together = named(namer.name_image(image, masks, MODES))
    assert len(together) == 5
    for mask, names in zip(masks, together, strict=True):
        assert_same(names, named(namer.name_image(image, mask[None], MODES))[0])
    found = {(name.text, f"{name.prob:.3g}") for names in together for name in names.values()}
    assert len(found) > 6 and len({text for text, _ in found}) > 1  # masks and modes do matter
    assert all(0 < name.prob <= 1 for names in together for name in names.values())


def test_few_rows_at_a_time_change_nothing(built: tuple[OmniScientModel, Processor], namer: Namer) -> None:
    image, masks = picture(0), some_masks()
    small = Namer(*built, max_new_tokens=6, max_batch_tokens=60 * 3)
    for first, second in zip(
        named(namer.name_image(image, masks, MODES)), named(small.name_image(image, masks, MODES)), strict=True
    ):
        assert_same(first, second)


def test_images_in_turn_are_named_as_each_alone(built: tuple[OmniScientModel, Processor]) -> None:
    pictures = [(picture(1), some_masks()), (picture(2, 40, 64), some_masks(80, 64)[:, :, 40:] | True)]
    alone = [Namer(*built, max_new_tokens=6).name_image(image, masks, ["any"]) for image, masks in pictures]
    turned = Namer(*built, max_new_tokens=6)
    for _ in range(2):
        for (image, masks), expected in zip(pictures, alone, strict=True):
            for first, second in zip(named(expected), named(turned.name_image(image, masks, ["any"])), strict=True):
                assert_same(first, second)


@torch.no_grad()
def by_hand(namer: Namer, image: Image.Image, mask: np.ndarray, mode: str) -> tuple[list[int], list[float]]:
    """Greedy ids and their probabilities, the whole text run again for every token."""
    model, processor = namer.model, namer.processor
    pixels = processor.canvas_masks(mask[None])
    keys = model.mask_features(pixels, context_mask(pixels, model.config.context_enlarge_ratio))
    text = processor.prompts([TEST_PROMPT])
    tokens = model.encode_image(processor.pixel_values(processor.canvas(image)[None]))
    instruction = Instruction(text.qformer_ids, text.qformer_mask)
    condition = model.bridge(model.bridge.image_state(tokens), torch.zeros(1).long(), keys, instruction, [mode])
    ids, probs = text.input_ids, []
    for _ in range(namer.max_new_tokens):
        given = model.llm_inputs(condition, ids, torch.ones_like(ids))
        with given.conditioned():
            out = model.llm(inputs_embeds=given.embeds_RTW, attention_mask=given.mask_RT)
        scores = out.logits[0, -1].softmax(-1)
        best = int(scores.argmax())
        ids = torch.cat([ids, torch.tensor([[best]])], 1)
        probs.append(float(scores[best]))
        if best in (EOS, 0):
            break
    return ids[0, text.input_ids.shape[1] :].tolist(), probs


def test_the_probability_is_the_product_over_the_names_tokens(namer: Namer) -> None:
    image, masks = picture(0), some_masks()
    for mask, names in zip(masks, named(namer.name_image(image, masks, MODES)), strict=True):
        for mode, name in names.items():
            ids, probs = by_hand(namer, image, mask, mode)
            ended = ids[-1] in (EOS, 0)
            assert name.text == namer.processor.name(ids[:-1] if ended else ids)
            assert name.prob == pytest.approx(float(np.prod(probs[:-1] if ended else probs)), rel=1e-3)


class Pushed:
    """Makes the LLM say a fixed sequence of ids, with a logit of 5 over the others' 0."""

    def __init__(self, namer: Namer, ids: list[int]) -> None:
        self.llm, self.ids, self.step = namer.model.llm, ids, 0

    def __enter__(self) -> Pushed:
        def push(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            pushed = torch.zeros_like(output)
            pushed[:, -1, self.ids[min(self.step, len(self.ids) - 1)]] = 5.0
            self.step += 1
            return pushed

        self.handle = self.llm.lm_head.register_forward_hook(push)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_the_end_token_counts_only_for_an_empty_name(namer: Namer) -> None:
    image, masks = picture(0), some_masks()[:1]
    vocabulary = namer.model.llm.config.vocab_size
    sure = float(np.exp(5) / (np.exp(5) + vocabulary - 1))
    words = namer.processor.tokenizer(" traffic light", add_special_tokens=False)["input_ids"]
    for ids, text, counted in (
        ([*words, EOS], "traffic light", len(words)),
        ([EOS], "", 1),
        ([*words, 0], "traffic light", len(words)),  # id 0 ends a name, too
        (words[:1] * 9, None, namer.max_new_tokens),  # no end in sight
    ):
        with Pushed(namer, ids):
            name = named(namer.name_image(image, masks, ["any"]))[0]["any"]
        assert name.prob == pytest.approx(sure**counted, rel=1e-4)
        assert text is None or name.text == text


def test_empty_masks_have_no_name(namer: Namer) -> None:
    image, masks = picture(0, 400, 300), np.zeros((3, 300, 400), bool)
    masks[1, 40:200, 50:300] = True
    masks[2, 151, 201] = True  # one pixel of 400 x 300 that no pixel of the 56 x 41 takes
    canvas = namer.processor.canvas_masks(masks)
    assert canvas.flatten(1).any(1).tolist() == [False, True, False]
    names = namer.name_image(image, masks, ["any"])
    assert names[0] is None and names[2] is None and names[1] is not None
    assert_same(names[1], named(namer.name_image(image, masks[1:2], ["any"]))[0])
    assert namer.name_image(image, masks[:1], ["any"]) == [None]
    assert namer.name_image(image, masks[:0], ["any"]) == []


def test_modes_keep_their_order_and_are_named_once(namer: Namer) -> None:
    image, masks = picture(0), some_masks()
    names = named(namer.name_image(image, masks, ["any", "coco", "any", "ade20k"]))
    assert all(list(entry) == ["any", "coco", "ade20k"] for entry in names)
    for entry, again in zip(names, named(namer.name_image(image, masks, ["coco"])), strict=True):
        assert_same({"coco": entry["coco"]}, again)


def test_masks_of_other_kinds(namer: Namer) -> None:
    image, masks = picture(0), some_masks()
    expected = named(namer.name_image(image, masks, ["any"]))
    for first, second in zip(expected, named(namer.name_image(image, masks * np.uint8(255), ["any"])), strict=True):
        assert_same(first, second)
    grey = named(namer.name_image(image.convert("L"), masks, ["any"]))  # any mode of Pillow's
    assert len(grey) == len(masks)


def test_wrong_sizes_and_modes(namer: Namer) -> None:
    image, masks = picture(0), some_masks()
    for wrong in (masks[:, :-1], masks.transpose(0, 2, 1), masks[0]):
        with pytest.raises(OsmError, match=r"masks have shape .*; expected \(K, 50, 70\)"):
            namer.name_image(image, wrong, ["any"])
    with pytest.raises(OsmError, match="mode 'coca' is not one of this model's: coco, lvis"):
        namer.name_image(image, masks, ["any", "coca"])
    with pytest.raises(OsmError, match="modes must be a list, .* not the string 'any'"):
        namer.name_image(image, masks, "any")
    with pytest.raises(OsmError, match="image is a ndarray; expected a PIL image"):
        namer.name_image(np.asarray(image), masks, ["any"])  # type: ignore[arg-type]


def test_a_loaded_namer_says_the_same(namer: Namer, tmp_path: Path) -> None:
    namer.model.save_pretrained(tmp_path / "final")
    loaded = osm.load_namer(tmp_path / "final", device="cpu", max_new_tokens=6)
    assert loaded.fingerprint == namer.fingerprint and loaded.modes == namer.modes
    image, masks = picture(3), some_masks()
    for first, second in zip(
        named(namer.name_image(image, masks, MODES)), named(loaded.name_image(image, masks, MODES)), strict=True
    ):
        assert_same(first, second)
