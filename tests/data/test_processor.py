"""Pictures and words to tensors: the published sizes, padding, normalisation and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import BOS, EOS, PAD, tiny_tokenizer
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from transformers import BertTokenizer

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS, MAX_TEXT_TOKENS, TEST_PROMPT, Processor
from osm.errors import OsmError, SampleError
from osm.io.resizing import fitted_size

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
LONG_PROMPT = "Which of the things in this picture is the one that " * 4 + "the mask marks? Assistant:"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def processor(tokenizer: Any) -> Processor:
    return Processor(tokenizer, None, 56, MEAN, STD)


# Pictures.


@pytest.mark.parametrize(
    ("width", "height", "target", "expected"),
    [
        (2000, 2001, 1120, (1119, 1119)),
        (2001, 2000, 1120, (1119, 1119)),
        (640, 480, 1120, (1120, 840)),
        (480, 640, 1120, (840, 1120)),
        (1120, 1120, 1120, (1120, 1120)),
        (37, 37, 1120, (1120, 1120)),
        (5000, 3, 1120, (1120, 1)),
    ],
)
def test_sizes_by_hand(width: int, height: int, target: int, expected: tuple[int, int]) -> None:
    assert fitted_size(width, height, target) == expected


def test_sizes_are_those_of_torchvision() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height, target = (int(value) for value in rng.integers((8, 8, 16), (400, 400, 260)))
        if width == height:
            continue
        blank = torch.zeros(1, height, width, dtype=torch.uint8)
        resized = resize(blank, [target - 1], InterpolationMode.NEAREST, max_size=target)
        assert fitted_size(width, height, target) == (resized.shape[2], resized.shape[1])


@pytest.mark.parametrize("target", [1, 2, 3])
def test_a_tiny_target_still_gives_a_picture(target: int) -> None:
    for width, height in ((5, 5), (100, 7), (7, 100)):
        assert min(fitted_size(width, height, target)) >= 1


def test_canvas_is_the_resized_picture_and_zeros(processor: Processor) -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (60, 97, 3), np.uint8)
    image = Image.fromarray(pixels)
    canvas = processor.canvas(image)
    width, height = fitted_size(97, 60, 56)
    assert (width, height) == (56, 35) and canvas.shape == (3, 56, 56) and canvas.dtype == torch.uint8
    expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(canvas.permute(1, 2, 0)[:height, :width], expected)
    assert (canvas[:, height:] == 0).all() and (canvas[:, :, width:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_canvas_takes_other_modes(processor: Processor, mode: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    np.testing.assert_array_equal(processor.canvas(image), processor.canvas(image.convert("RGB")))


def test_pixel_values_are_scaled_then_normalised(processor: Processor) -> None:
    canvas = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    canvas[:, :, 40:] = 0
    values = processor.pixel_values(canvas)
    assert values.dtype == torch.float32
    for channel in range(3):
        expected = (canvas[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(values[:, channel].double(), expected, atol=1e-5, rtol=0)
        # Padding is black before the normalisation, hence not 0 after it.
        torch.testing.assert_close(values[:, channel, 40:].unique(), torch.tensor([-MEAN[channel] / STD[channel]]))


def test_masks_are_resized_as_pillow_does(tokenizer: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        width, height = (int(value) for value in rng.integers(3, 150, 2))
        processor = Processor(tokenizer, None, int(rng.integers(20, 120)), MEAN, STD)
        masks = rng.random((2, height, width)) < 0.4
        found = processor.canvas_masks(masks)
        new_width, new_height = fitted_size(width, height, processor.input_size)
        assert found.dtype == torch.bool and found.shape == (2, 1, processor.input_size, processor.input_size)
        for mask, canvas in zip(masks, found[:, 0].numpy(), strict=True):
            resized = Image.fromarray(mask.astype(np.uint8)).resize((new_width, new_height), Image.Resampling.NEAREST)
            rows, columns = without_ties(height, new_height), without_ties(width, new_width)
            expected = (np.asarray(resized) == 1)[rows][:, columns]
            np.testing.assert_array_equal(canvas[:new_height, :new_width][rows][:, columns], expected)
            assert not canvas[new_height:].any() and not canvas[:, new_width:].any()


def without_ties(size: int, resized: int) -> np.ndarray:
    """Indices whose centre does not fall between two source pixels: there Pillow's rounding errors decide."""
    index = np.arange(resized)
    return index[(2 * index + 1) * size % (2 * resized) != 0]


# Words.


def test_training_text_supervises_prompt_answer_and_end(processor: Processor, tokenizer: Any) -> None:
    prompts, targets = [TEST_PROMPT, BOX_PROMPTS[0]], ["dog", "stop sign"]
    text = processor.training_text(prompts, targets)
    for row in range(2):
        length = int(text.attention_mask[row].sum())
        ids, labels = text.input_ids[row], text.labels[row]
        assert (text.attention_mask[row, :length] == 1).all() and (text.attention_mask[row, length:] == 0).all()
        assert ids[0] == BOS and ids[length - 1] == EOS and (ids[length:] == PAD).all()
        assert labels[0] == -100 and (labels[length:] == -100).all()
        assert torch.equal(labels[1:length], ids[1:length])
        assert tokenizer.decode(ids[1 : length - 1]) == f"{prompts[row]} {targets[row]}"
    assert text.input_ids.shape[1] == text.attention_mask.sum(1).max()


@pytest.mark.parametrize(
    ("generated", "name"),
    [
        (" stop  sign ", "stop sign"),
        ("baseball\n\n    I'm not sure", "baseball I'm not sure"),
        ("a\tb\x00c\x1b[31m\x85\u2028d", "a b c [31m d"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # a zero-width non-joiner is a part of words
        ("\n", ""),
    ],
)
def test_a_name_is_one_line(processor: Processor, tokenizer: Any, generated: str, name: str) -> None:
    ids = tokenizer(generated, add_special_tokens=False).input_ids
    assert processor.name(ids) == name


@pytest.mark.parametrize("prompt", [*MASK_PROMPTS, *BOX_PROMPTS, LONG_PROMPT])
@pytest.mark.parametrize("target", ["dog", "sports ball", "zyx-qj"])
def test_answer_alone_can_be_supervised(processor: Processor, tokenizer: Any, prompt: str, target: str) -> None:
    text = processor.training_text([prompt], [target], supervise="answer")
    supervised = text.labels[0] != -100
    assert tokenizer.decode(text.labels[0][supervised]) == f" {target}</s>"
    assert torch.equal(text.labels[0][supervised], text.input_ids[0][supervised])


def test_a_long_text_is_cut_on_the_left(processor: Processor, tokenizer: Any) -> None:
    text = processor.training_text([LONG_PROMPT], ["traffic light"])
    assert text.input_ids.shape == (1, MAX_TEXT_TOKENS)
    assert text.input_ids[0, 0] == BOS and text.input_ids[0, -1] == EOS
    kept = tokenizer.decode(text.input_ids[0, 1:-1])
    assert f"{LONG_PROMPT} traffic light".endswith(kept) and kept.endswith("Assistant: traffic light")
    assert (text.labels[0, 1:] == text.input_ids[0, 1:]).all()


def test_an_answer_fits_whole_or_not_at_all(processor: Processor, tokenizer: Any) -> None:
    room, fitted, refused = MAX_TEXT_TOKENS - 2, 0, 0
    for letters in range(1, 60, 3):
        target = "zq7"[letters % 3] * letters
        tokens = len(tokenizer(f" {target}", add_special_tokens=False)["input_ids"])
        if tokens <= room:
            text = processor.training_text([TEST_PROMPT], [target], supervise="answer")
            assert tokenizer.decode(text.labels[0][text.labels[0] != -100]) == f" {target}</s>"
            fitted += 1
        else:
            with pytest.raises(SampleError, match=f"'{target}' takes over 30 tokens") as caught:
                processor.training_text([TEST_PROMPT], [target])
            assert caught.value.reason == "answer_too_long"
            refused += 1
    assert fitted > 3 and refused > 3


def test_the_end_token_is_supervised_where_it_also_pads(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.pad_token = tokenizer.eos_token
    text = Processor(tokenizer, None, 56, MEAN, STD).training_text([TEST_PROMPT] * 2, ["dog", "traffic light zqx"])
    lengths = text.attention_mask.sum(1)
    assert lengths[0] < lengths[1]
    for row, length in enumerate(lengths.tolist()):
        assert text.labels[row, length - 1] == EOS and (text.labels[row, length:] == -100).all()
        assert (text.input_ids[row, length:] == EOS).all()


def test_a_tokenizer_without_bos_or_pad_works_and_without_end_token_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.bos_token = tokenizer.pad_token = None
    text = Processor(tokenizer, None, 56, MEAN, STD).training_text([TEST_PROMPT], ["dog"])
    assert text.input_ids[0, 0] != BOS and text.labels[0, 0] == text.input_ids[0, 0]
    tokenizer.eos_token = None
    with pytest.raises(OsmError, match="no end-of-sequence token"):
        Processor(tokenizer, None, 56, MEAN, STD)


def test_prompts_alone_have_no_end_and_no_labels(processor: Processor, tokenizer: Any) -> None:
    text = processor.prompts([TEST_PROMPT, MASK_PROMPTS[1]])
    assert (text.labels == -100).all()
    for row, prompt in enumerate((TEST_PROMPT, MASK_PROMPTS[1])):
        ids = text.input_ids[row][text.attention_mask[row] == 1].tolist()
        assert ids == [BOS, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        seen = text.qformer_ids[row][text.qformer_mask[row] == 1].tolist()
        assert seen == ids[1:]  # the instruction goes through the LLM's tokenizer here


def test_instruction_through_a_tokenizer_of_its_own(tokenizer: Any) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "the", "mask"]
    bert = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    processor = Processor(tokenizer, bert, 56, MEAN, STD)
    text = processor.training_text(["What is the mask", "What " * 40], ["dog", "dog"])
    assert text.qformer_ids[0][text.qformer_mask[0] == 1].tolist() == [2, 5, 6, 7, 8, 3]
    assert (text.qformer_ids[0][text.qformer_mask[0] == 0] == 0).all()
    assert text.qformer_ids[1].tolist() == [2, *[5] * 30, 3]  # cut to 32, [SEP] kept


def test_generated_ids_to_a_name(processor: Processor, tokenizer: Any) -> None:
    ids = tokenizer(" traffic light", add_special_tokens=False)["input_ids"]
    assert processor.name([*ids, EOS, PAD]) == "traffic light"
    assert processor.name([]) == ""


def test_there_are_nineteen_prompts_of_each_kind_and_the_test_prompt_is_one() -> None:
    assert TEST_PROMPT == "What is in the segmentation mask? Assistant:" and TEST_PROMPT in MASK_PROMPTS
    for prompts in (MASK_PROMPTS, BOX_PROMPTS):
        assert len(set(prompts)) == 19 and all(prompt.endswith(" Assistant:") for prompt in prompts)
    assert not set(MASK_PROMPTS) & set(BOX_PROMPTS)
