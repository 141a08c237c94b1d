"""Models whose LLM reads first what masks and modes share: the prompt, then the tokens of the direct path."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import randomise, tiny_config, tiny_llama_config, tiny_tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from osm.config import from_dict
from osm.data.batch import Batch
from osm.data.processor import MAX_TEXT_TOKENS, Processor
from osm.errors import OsmError, SampleError
from osm.models.bridges.bridge import Instruction
from osm.models.bridges.maskqformer import MaskQFormerBridge
from osm.models.checkpoint import start_from
from osm.models.factory import build, load_folder
from osm.models.fast_inference import speed_up
from osm.models.fast_llama import fast_llama
from osm.models.llm_forward import word_embeddings
from osm.models.masks import MaskFeatures, context_mask
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel
from osm.models.packed_linear import is_packing_right
from osm.recognition.recognizer import Recognizer
from osm.sharing.hf_model import HfOsmProcessor, save_processor
from osm.training.task import TrainTask

PROMPT = "What is it?"
BRIDGE = {"direct_tokens": 3, "direct_width": 16, "direct_first": True, "mask_queries": 2}
Built = tuple[OmniScientModel, Processor]


def make(folder: Path, **bridge: Any) -> Built:
    torch.manual_seed(0)
    config = tiny_config(folder, "maskqformer", **BRIDGE | bridge)
    model, processor = build(replace(config, prompt=PROMPT, prompt_first=True))
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval(), processor


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return make(tmp_path_factory.mktemp("model"))


def rectangles(rows: int, size: int) -> Tensor:
    masks = torch.zeros(rows, 1, size, size, dtype=torch.bool)
    for row in range(rows):
        masks[row, :, 3 * row : 20 + 5 * row, 10 : 18 + 4 * row] = True
    return masks


def batch_of(model: OmniScientModel, processor: Processor, names: list[str], modes: list[str]) -> Batch:
    """Rectangles of two images of noise."""
    size, generator = model.config.input_size, torch.Generator().manual_seed(0)
    masks = rectangles(len(names), size)
    canvas = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    text = processor.training_text([PROMPT] * len(names), names, "answer")
    return Batch(modes, modes, canvas, None, torch.arange(len(names)) % 2, masks, text, ["a", "b"], names)


def test_the_loss_is_that_of_each_name_after_prompt_and_prefix(built: Built) -> None:
    """In training and through the published interface, compared with an LLM that reads one row at a time."""
    model, processor = built
    names, modes = ["cat", "traffic light", "dog"], ["any", "coco", "any"]
    batch = batch_of(model, processor, names, modes)
    losses, counts = TrainTask(model, processor)(batch)
    text, pixels = batch.text, processor.pixel_values(batch.canvas)  # type: ignore[arg-type]
    context = context_mask(batch.masks, model.config.context_enlarge_ratio)
    instruction = Instruction(text.qformer_ids, text.qformer_mask)
    state = model.bridge.image_state(model.encode_image(pixels))
    prefix = model.bridge(
        state, batch.image_index, model.mask_features(batch.masks, context), instruction, modes
    ).prefix_RPW
    words, asked = word_embeddings(model.llm), processor.prompts([PROMPT]).input_ids[0]
    for row, name in enumerate(names):
        answer = torch.tensor(
            [*processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id]
        )
        whole = torch.cat([words(asked), prefix[row], words(answer)])
        logits = model.llm(inputs_embeds=whole[None], use_cache=False).logits[0, len(asked) + prefix.shape[1] - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, answer, reduction="sum")
        torch.testing.assert_close(losses[row], expected, atol=1e-4, rtol=1e-4)
        assert counts[row] == len(answer)

    arguments = (pixels, text.qformer_ids, text.qformer_mask, text.input_ids, text.attention_mask, text.labels)
    given: dict[str, Any] = {"dataset_type": modes, "image_index": batch.image_index}
    published = model(*arguments, batch.masks, context, **given, prompt_tokens=processor.prompt_tokens)
    torch.testing.assert_close(published, losses.sum() / counts.sum())
    with pytest.raises(OsmError, match=r"prompt_tokens is missing.*pass prompt_tokens=processor\.prompt_tokens"):
        model(*arguments, batch.masks, context, **given)


def test_the_published_interface_generates_after_the_prefix(built: Built) -> None:
    model, processor = built
    batch = batch_of(model, processor, ["cat", "dog"], ["any"] * 2)
    pixels, asked = processor.pixel_values(batch.canvas), processor.prompts([PROMPT] * 2)  # type: ignore[arg-type]
    context = torch.ones_like(batch.masks)
    instructions = asked.qformer_ids, asked.qformer_mask
    said = model.generate(
        pixels, *instructions, asked.input_ids, asked.attention_mask, batch.masks, context, max_new_tokens=4
    )
    state = model.bridge.image_state(model.encode_image(pixels))
    features = model.mask_features(batch.masks, context)
    prefix = model.bridge(state, torch.arange(2), features, Instruction(*instructions), ["any"] * 2).prefix_RPW
    inputs = torch.cat([word_embeddings(model.llm)(asked.input_ids), prefix], 1)
    logits = model.llm(inputs_embeds=inputs, use_cache=False).logits[:, -1]
    assert said[:, 0].tolist() == logits.argmax(-1).tolist()


def bridge_inputs(model: OmniScientModel, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, MaskFeatures]:
    """Image tokens, the image of each row, and the features of some rectangles."""
    generator = torch.Generator().manual_seed(seed)
    masks = rectangles(rows, model.config.input_size)
    tokens = torch.randn(2, *model.window_pos_embed.shape[1:], generator=generator)
    features = model.mask_features(masks, context_mask(masks, 0.5))
    return tokens, torch.arange(rows) % 2, features


@torch.no_grad()
def test_direct_first_only_moves_the_direct_tokens(built: Built) -> None:
    model, _ = built
    bridge = model.bridge
    assert isinstance(bridge, MaskQFormerBridge)
    tokens, images, features = bridge_inputs(model, 3)
    given = bridge.image_state(tokens), images, features, Instruction(torch.ones(3, 2).long(), torch.ones(3, 2))
    first = bridge(*given, ["any"] * 3).prefix_RPW
    bridge.config = replace(bridge.config, direct_first=False)
    last = bridge(*given, ["any"] * 3).prefix_RPW
    bridge.config = replace(bridge.config, direct_first=True)
    torch.testing.assert_close(first, last[:, [2, 3, 4, 0, 1, 5]], atol=0, rtol=0)


@torch.no_grad()
def test_rows_of_a_mask_have_the_same_direct_tokens(built: Built) -> None:
    """Only rows of the same mask in the same image have equal direct tokens, and only at inference."""
    model, _ = built
    path: Any = model.bridge.direct
    tokens, _, features = bridge_inputs(model, 3)
    features, images = features.select(torch.tensor([0, 0, 0, 1, 1, 2])), torch.tensor([0, 0, 1, 1, 1, 1])
    found = path.once_per_mask(tokens, tokens.mean(1), images, features).embeddings_RDW
    expected = path(tokens, tokens.mean(1), images, features).embeddings_RDW
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    same = [(found[row] == found[row - 1]).all().item() for row in range(1, 6)]
    assert same == [True, False, False, True, False]
    path.train()
    dropped = path.once_per_mask(tokens, tokens.mean(1), images, features).embeddings_RDW
    path.eval()
    assert not torch.equal(dropped[0], dropped[1])


def regions(size: int, count: int) -> list[np.ndarray]:
    masks = [np.zeros((size, size), bool) for _ in range(count)]
    for number, mask in enumerate(masks):
        mask[2 + 3 * number : 20 + 2 * number, 4 * number : 12 + 4 * number] = True
    return masks


@pytest.mark.skipif(not is_packing_right(), reason="this PyTorch has no packed product")
def test_the_faster_model_reads_shared_positions_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same answers: the prompt once, the direct tokens once for each mask, and the rest for each mode."""
    tokenizer = tiny_tokenizer(tmp_path / "llm")
    llm = LlamaForCausalLM(tiny_llama_config(len(tokenizer), width=128)).eval()  # narrower layers are not packed
    randomise(llm, 0)
    llm.save_pretrained(tmp_path / "llm")
    model, processor = make(tmp_path)
    image, masks = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8)), regions(56, 4)

    def answers(recognizer: Recognizer) -> list[tuple[str, float]]:
        recognizer.set_image(image)
        found = recognizer.name(masks, modes=["any", "coco"])
        return [(answer.text, answer.prob) for of_mask in found for answer in of_mask]

    expected = answers(Recognizer(model, processor))
    speed_up(model)
    fast = fast_llama(model.llm)
    assert fast is not None
    read: list[int] = []
    layer = fast.layers[0].qkv
    real = type(layer).forward
    monkeypatch.setattr(
        type(layer), "forward", lambda self, x: (read.append(len(x)) if self is layer else None) or real(self, x)
    )
    found = answers(Recognizer(model, processor))
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [prob for _, prob in found] == pytest.approx([prob for _, prob in expected], abs=1e-4)
    assert processor.prompt_tokens is not None
    tokens = processor.prompt_tokens + 4 * 3 + 4 * 2 * 3  # two mask queries and the mode's embedding
    assert tokens <= read[0] < tokens + 8  # rounded up to a multiple of 8
    assert max(read[1:], default=0) <= 8


def test_training_texts(built: Built) -> None:
    """The prompt has the tokens of naming, and is never truncated."""
    processor = built[1]
    asked = processor.prompts([PROMPT]).input_ids[0].tolist()
    for name in ("cat", "(a) dog", "!", "é"):
        row, start = processor.training_row(PROMPT, name)
        assert row[:start] == asked and start == processor.prompt_tokens
    room = MAX_TEXT_TOKENS - len(asked) - 1  # without the end token

    def tokens(name: str) -> int:
        return len(processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"])

    longest = " ".join(["q"] * (room // 2))
    assert tokens(longest) <= room
    processor.training_row(PROMPT, longest)
    longer = longest
    while tokens(longer) <= room:
        longer += " q"
    published = Processor(processor.tokenizer, None, 56, processor.mean, processor.std, prompt=PROMPT)
    published.training_row(PROMPT, longer)  # fits with a truncated prompt
    for name in (longer, 4 * longer):
        with pytest.raises(SampleError, match=rf"over {room} tokens; use a shorter model\.prompt"):
            processor.training_row(PROMPT, name)
    with pytest.raises(OsmError, match=r"supervise 'all' cannot be combined with model\.prompt_first.*'answer'"):
        processor.training_text([PROMPT], ["cat"])


class Merging:
    """Stands for a tokenizer with a token for the prompt's last character and the space after it."""

    eos_token_id, bos_token_id, is_fast = 0, 1, True
    pieces = ("Na", "me", ":", ": ", " ", "cat")

    def __call__(self, text: str, add_special_tokens: bool, return_offsets_mapping: bool = False) -> dict[str, Any]:
        ids, offsets, place = [], [], 0
        while place < len(text):
            piece = max((one for one in self.pieces if text.startswith(one, place)), key=len)
            ids.append(2 + self.pieces.index(piece))
            offsets.append((place, place + len(piece)))
            place += len(piece)
        return {"input_ids": ids, "offset_mapping": offsets}


def test_a_token_across_prompt_and_answer_belongs_to_the_answer() -> None:
    first, last = (
        Processor(Merging(), None, 56, (0.5,) * 3, (0.5,) * 3, prompt="Name:", prompt_first=one)
        for one in (True, False)
    )
    assert last.training_row("Name:", "cat") == ([1, 2, 3, 5, 7, 0], 3)
    assert first.training_row("Name:", "cat") == ([1, 2, 3, 4, 5, 7, 0], 4)
    assert first.prompt_tokens == 4


def test_settings_that_do_not_fit(built: Built, tmp_path: Path) -> None:
    with pytest.raises(
        OsmError,
        match=r"model\.prompt_first true needs a prompt.*set model\.prompt, or set model\.prompt_first to false",
    ):
        from_dict(ModelConfig, {"prompt_first": True}, "model")
    with pytest.raises(OsmError, match="direct_first true needs direct_tokens of 1 or more; set direct_tokens, or set"):
        tiny_config(tmp_path, "maskqformer", direct_first=True)
    with pytest.raises(
        OsmError, match="prompt_first true has no effect with the bridge 'flamingo'.*prompt_first to false"
    ):
        build(replace(tiny_config(tmp_path, "flamingo"), prompt=PROMPT, prompt_first=True))
    model, _ = built
    model.save_pretrained(tmp_path / "saved")
    other, _ = build(replace(model.config, prompt_first=False))
    with pytest.raises(OsmError, match=r"different settings.*: model\.prompt_first was True, and is False"):
        start_from(other, tmp_path / "saved")


def test_files(built: Built, tmp_path: Path) -> None:
    model, processor = built
    model.save_pretrained(tmp_path / "saved")
    again, loaded = load_folder(tmp_path / "saved")
    assert again.config.prompt_first and loaded.prompt_tokens == processor.prompt_tokens
    assert "prompt_first" not in replace(model.config, prompt_first=False).stored()
    save_processor(processor, 0.5, tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["prompt_first"] is True
    assert HfOsmProcessor.from_pretrained(tmp_path).processor.prompt_first
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    for wrong in ({"prompt_first": "false"}, {"prompt": ""}):
        (tmp_path / "processor_config.json").write_text(json.dumps(settings | wrong))
        with pytest.raises(
            OsmError, match=r"processor_config\.json: prompt_first .*: expected false or, with a prompt"
        ):
            HfOsmProcessor.from_pretrained(tmp_path)
