"""OmniScientModel against `reference_osm`: Hugging Face's own parts, one window and one mask at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from reference_osm import Reference, Row, enlarged_box
from tiny import BOS, EOS, PAD, tiny_instructblip
from torch import Tensor

from osm.errors import OsmError
from osm.models.bridges.bridge import Condition, Instruction
from osm.models.masks import VisibleKeys, context_mask
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel

MODES = ("coco", "any", "lvis", "ade20k")
TOLERANCE: dict[str, Any] = {"atol": 3e-5, "rtol": 3e-5}
# Windows that divide the input, that do not (the last is shifted back), and that overlap.
SIZES = ((56, 28, 28), (70, 28, 28), (56, 28, 14))


def make(text: str = "llama", sizes: tuple[int, int, int] = SIZES[0]) -> tuple[OmniScientModel, Reference]:
    """The model around a tiny random InstructBLIP, its trained parts shaken, and the reference with the same values."""
    base = tiny_instructblip(text)
    reference = Reference(copy.deepcopy(base), {}, *sizes[1:])
    torch.manual_seed(1)
    model = OmniScientModel.from_instructblip(base, *sizes).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # modes and queries alike would hide a mix-up
        for query in (
            model.bridge.mask_query,
            *model.bridge.qformer_mode_query.values(),
            *model.bridge.mode_query.values(),
        ):
            query.add_(torch.randn(query.shape, generator=generator))
    reference.load(model.trainable_state_dict())
    return model, reference


def make_rows(size: int, images: Sequence[int], seed: int = 0) -> list[Row]:
    """A row for each of `images`: blocky masks of at least a cell, texts and instructions of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, count: int = 1) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    rows = []
    for number, image in enumerate(images):
        mask = torch.zeros(size, size)
        for _ in range(2):
            (top, left), (height, width) = draw(0, size - 20, 2), draw(15, 30, 2)
            mask[top : top + height, left : left + width] = 1
        rows.append(
            Row(
                image,
                mask,
                enlarged_box(mask, 0.1),
                MODES[number % len(MODES)],
                draw(1, 61, 3 + number % 3),
                [BOS, *draw(3, 97, 5 + 2 * (number % 4)), EOS],
            )
        )
    return rows


def pad(rows: Sequence[list[int]], value: int = PAD, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (R, T)."""
    length = max(map(len, rows))
    fill = [[value] * (length - len(row)) for row in rows]
    seen = [
        [0] * len(f) + [1] * len(row) if left else [1] * len(row) + [0] * len(f)
        for f, row in zip(fill, rows, strict=True)
    ]
    return torch.tensor([f + row if left else row + f for f, row in zip(fill, rows, strict=True)]), torch.tensor(seen)


def batch(images: Tensor, rows: Sequence[Row], left: bool = False) -> dict[str, Any]:
    """The arguments of `forward`."""
    ids, seen = pad([row.text for row in rows], left=left)
    instruction, instruction_seen = pad([row.instruction for row in rows])
    labels = ids.masked_fill(seen == 0, -100)
    labels[torch.arange(len(rows)), seen.argmax(1)] = -100  # BOS
    return {
        "pixel_values": images,
        "qformer_input_ids": instruction,
        "qformer_attention_mask": instruction_seen,
        "input_ids": ids,
        "attention_mask": seen,
        "labels": labels,
        "segmentation_mask": torch.stack([row.mask for row in rows])[:, None],
        "input_context_mask": torch.stack([row.context for row in rows])[:, None],
        "dataset_type": [row.mode for row in rows],
        "image_index": torch.tensor([row.image for row in rows]),
    }


def prompts(images: Tensor, rows: Sequence[Row], left: bool = False) -> dict[str, Any]:
    """The arguments of `generate`."""
    return {key: value for key, value in batch(images, rows, left).items() if key != "labels"}


def pictures(size: int, count: int = 3) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def bridge_prefix(model: OmniScientModel, inputs: dict[str, Any]) -> tuple[VisibleKeys, Tensor]:
    keys = model.mask_features(inputs["segmentation_mask"], inputs["input_context_mask"])
    instruction = Instruction(inputs["qformer_input_ids"], inputs["qformer_attention_mask"])
    kv = model.bridge.image_state(model.encode_image(inputs["pixel_values"]))
    return keys, model.bridge(kv, inputs["image_index"], keys, instruction, inputs["dataset_type"]).prefix_RPW


@pytest.mark.parametrize(
    ("text", "sizes"), [*(("llama", sizes) for sizes in SIZES), ("opt", SIZES[1])], ids=lambda value: str(value)
)
def test_every_step_equals_the_reference(text: str, sizes: tuple[int, int, int]) -> None:
    """Image tokens, visible keys, prefix, logits and loss; rows unordered, one image with three, one with none."""
    model, reference = make(text, sizes)
    images, rows = pictures(sizes[0]), make_rows(sizes[0], [2, 0, 2, 0, 2])
    inputs = batch(images, rows)
    expected = [reference.image_tokens(image) for image in images]
    torch.testing.assert_close(model.encode_image(images), torch.stack(expected), **TOLERANCE)

    keys, prefix = bridge_prefix(model, inputs)
    given = model.llm_inputs(Condition(prefix), inputs["input_ids"], inputs["attention_mask"])
    logits = model.llm(inputs_embeds=given.embeds_RTW, attention_mask=given.mask_RT).logits
    for number, row in enumerate(rows):
        windows = len(reference.window_starts(sizes[0])) ** 2
        assert torch.equal(keys.mask_RL[number].float(), reference.visible(row.mask, windows))
        assert torch.equal(keys.context_RL[number].float(), reference.visible(row.context, windows))
        wanted = reference.prefix(expected[row.image], row)
        torch.testing.assert_close(prefix[number], wanted, **TOLERANCE)
        length = len(wanted) + len(row.text)
        torch.testing.assert_close(logits[number, :length], reference.logits(wanted, row.text), **TOLERANCE)
    torch.testing.assert_close(model(**inputs), reference.loss(images, rows), **TOLERANCE)


def test_gradients_equal_the_references() -> None:
    model, reference = make(sizes=SIZES[2])
    images, rows = pictures(56), make_rows(56, [1, 1, 0])
    reference.base.requires_grad_(True)
    reference.loss(images, rows).backward()
    model(**batch(images, rows)).backward()

    assert all(p.grad is None for part in (model.tower, model.llm) for p in part.parameters())
    torch.testing.assert_close(model.window_pos_embed.grad, reference.trained["window_pos_embed"].grad, **TOLERANCE)
    wanted = {f"qformer.{name}": p.grad for name, p in reference.base.qformer.named_parameters()}
    wanted |= {
        f"language_projection.{name}": p.grad for name, p in reference.base.language_projection.named_parameters()
    }
    wanted |= {name: value.grad for name, value in reference.trained.items() if name != "window_pos_embed"}
    for name, parameter in model.bridge.named_parameters():
        grad = wanted.pop(name)
        if not parameter.requires_grad:  # the text half of the last layer, which nothing reads
            assert name.startswith("qformer.encoder.layer.3.") and (grad is None or not grad.any()), name
            continue
        found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(found, torch.zeros_like(parameter) if grad is None else grad, **TOLERANCE)
    assert not wanted


def test_construction_copies_the_bases_bridge() -> None:
    base = tiny_instructblip()
    torch.manual_seed(0)
    model = OmniScientModel.from_instructblip(base, *SIZES[0])
    state = model.trainable_state_dict()
    for name in ("mask_query", "context_query", "base_model.query_tokens"):
        assert torch.equal(state[name], base.query_tokens)
    assert 0.9 < model.window_pos_embed.std() < 1.1
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("tower.", "llm.")) for name in trainable)
    model.train()
    assert model.bridge.training and not model.tower.training and not model.llm.training


def test_bases_that_the_bridge_cannot_copy_are_refused() -> None:
    with pytest.raises(OsmError, match="base_model is not an InstructBLIP model: LlamaForCausalLM has no vision_model"):
        OmniScientModel.from_instructblip(tiny_instructblip().language_model, *SIZES[0])
    base = tiny_instructblip()
    base.config.qformer_config.hidden_act = "relu"
    with pytest.raises(OsmError, match="the Q-Former's activation is 'relu'; expected 'gelu'"):
        OmniScientModel.from_instructblip(base, *SIZES[0])
    base = tiny_instructblip()
    base.config.use_decoder_only_language_model = False
    with pytest.raises(OsmError, match="encoder-decoder"):
        OmniScientModel.from_instructblip(base, *SIZES[0])
    with pytest.raises(OsmError, match="--sliding_window_size 42: this tower only supports windows of 28 pixels"):
        OmniScientModel.from_instructblip(tiny_instructblip(), 56, 42, 14)


def test_one_mode_for_all_rows_equals_the_same_mode_a_row() -> None:
    model, reference = make()
    images, rows = pictures(56), make_rows(56, [0, 1, 1])
    for mode in ("lvis", "any"):
        for row in rows:
            row.mode = mode
        loss = model(**{**batch(images, rows), "dataset_type": mode})
        torch.testing.assert_close(loss, reference.loss(images, rows), **TOLERANCE)


def test_masks_together_equal_a_call_a_mask() -> None:
    """Sharing an image's keys, other rows and their padding change no row."""
    model, _ = make(sizes=SIZES[1])
    images, rows = pictures(70), make_rows(70, [1, 2, 1, 1, 2])
    _, together = bridge_prefix(model, batch(images, rows))
    for number, row in enumerate(rows):
        alone = batch(images[row.image][None], [row])
        del alone["image_index"]
        _, prefix = bridge_prefix(model, {**alone, "image_index": torch.zeros(1, dtype=torch.long)})
        torch.testing.assert_close(together[number], prefix[0], **TOLERANCE)
        torch.testing.assert_close(model(**alone), model(**{**alone, "image_index": torch.tensor([0])}))
    shuffled = [rows[i] for i in (3, 1, 4, 0, 2)]
    _, other = bridge_prefix(model, batch(images, shuffled))
    torch.testing.assert_close(other, together[[3, 1, 4, 0, 2]], **TOLERANCE)


@pytest.mark.parametrize("text", ["llama", "opt"])
def test_padding_changes_no_rows_loss(text: str) -> None:
    model, reference = make(text)
    images, rows = pictures(56), make_rows(56, [0, 2, 2, 1])
    expected = torch.stack(
        [reference.row_loss(reference.prefix(reference.image_tokens(images[row.image]), row), row.text) for row in rows]
    )
    inputs = batch(images, rows)
    found, counts = model.row_losses(
        model.encode_image(images),
        inputs["image_index"],
        model.mask_features(inputs["segmentation_mask"], inputs["input_context_mask"]),
        Instruction(inputs["qformer_input_ids"], inputs["qformer_attention_mask"]),
        inputs["dataset_type"],
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs["labels"],
    )
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert counts.tolist() == [len(row.text) - 1 for row in rows]


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("text", ["llama", "opt"])
def test_generation_equals_the_reference(text: str, left: bool) -> None:
    """Prompts of different lengths, padded on either side; one row ends at the end token, one at id 0."""
    model, reference = make(text)
    images, rows = pictures(56), make_rows(56, [2, 0, 2, 1])
    starts = [reference.prefix(reference.image_tokens(images[row.image]), row) for row in rows]
    free = [reference.generate(start, row.text, 6, eos=-1)[0] for start, row in zip(starts, rows, strict=True)]
    eos = free[0][1]
    zero = next(token for token in free[1][1:] if token != eos)
    for llm in (model.llm, reference.base.language_model):
        llm.generation_config.eos_token_id = eos
        with torch.no_grad():  # what used to be said as `zero` is now id 0
            head = llm.get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
            head.weight[[0, zero]] = head.weight[[zero, 0]]
    wanted = [reference.generate(start, row.text, 6, eos) for start, row in zip(starts, rows, strict=True)]
    assert {ids[-1] for ids, _ in wanted if len(ids) < 6} == {eos, 0}, "both ways to end must occur"

    inputs = prompts(images, rows, left)
    found = model.generate(
        **inputs, max_new_tokens=6, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    assert torch.equal(model.generate(**inputs, max_new_tokens=6), found.sequences)
    for number, (ids, steps) in enumerate(wanted):
        row_ids = found.sequences[number].tolist()
        assert row_ids[: len(ids)] == ids and set(row_ids[len(ids) :]) <= {PAD}
        for scores in (found.scores, found.logits):
            row_scores = torch.stack([step[number] for step in scores[: len(ids)]])
            torch.testing.assert_close(row_scores, steps, **TOLERANCE)


def test_a_mask_that_vanishes_sees_class_tokens_only() -> None:
    """`nearest` looks at each cell's top-left pixel, which this mask misses everywhere."""
    model, reference = make()
    images, rows = pictures(56), make_rows(56, [0, 0])
    rows[1].mask = torch.zeros(56, 56)
    rows[1].mask[15:27, 16:25] = 1
    inputs = batch(images, rows)
    keys, prefix = bridge_prefix(model, inputs)
    assert keys.mask_RL[1, :4].all() and not keys.mask_RL[1, 4:].any() and keys.fallbacks == 0
    tokens = reference.image_tokens(images[0])
    torch.testing.assert_close(prefix[1], reference.prefix(tokens, rows[1]), **TOLERANCE)


def test_context_masks_equal_the_references() -> None:
    rows = make_rows(70, [0] * 6)
    masks = torch.stack([row.mask for row in rows])[:, None]
    for ratio in (0.0, 0.1, 0.5, 1.7, -1.0):
        expected = torch.stack([enlarged_box(mask[0], ratio) for mask in masks])[:, None]
        assert torch.equal(context_mask(masks, ratio), expected), ratio


@pytest.mark.parametrize(
    "part",
    [
        "tower.vision_model.post_layernorm.bias",
        "tower.vision_model.embeddings.position_embedding",
        "window_pos_embed",
        "bridge.context_query",
        "bridge.qformer_mode_query.any",
        "bridge.mode_query.any",
        "bridge.qformer.embeddings.word_embeddings.weight",
        "bridge.qformer.encoder.layer.0.output.dense.weight",
        "bridge.qformer.encoder.layer.2.crossattention.attention.key.weight",
        "llm.model.layers.1.mlp.up_proj.weight",
    ],
)
def test_the_comparison_notices_a_changed_weight(part: str) -> None:
    model, reference = make()
    images, rows = pictures(56), make_rows(56, [0, 1])
    expected = reference.loss(images, rows)
    torch.testing.assert_close(model(**batch(images, rows)), expected, **TOLERANCE)
    with torch.no_grad():  # noise: the same number everywhere would vanish in the next layer norm
        parameter = dict(model.named_parameters())[part]
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    assert abs(model(**batch(images, rows)) - expected) > 1e-3


@pytest.mark.parametrize("which", ["segmentation_mask", "input_context_mask", "pixel_values", "qformer_input_ids"])
def test_the_comparison_notices_a_changed_input(which: str) -> None:
    model, _ = make()
    inputs = batch(pictures(56), make_rows(56, [0, 1]))
    before = model(**inputs)
    changed = inputs[which].clone()
    if which == "qformer_input_ids":
        changed[0, 0] += 1
    else:
        changed[0, 0, :28, :28] = 1 - changed[0, 0, :28, :28]
    assert abs(model(**{**inputs, which: changed}) - before) > 1e-3


def test_dropout_works_in_training_alone() -> None:
    config = ModelConfig(base_model_name="(handed in)")
    base = tiny_instructblip()
    model = OmniScientModel.from_instructblip(base, *SIZES[0], config=config)
    inputs = batch(pictures(56), make_rows(56, [0, 1]))
    assert torch.equal(model.eval()(**inputs), model(**inputs))
    assert not torch.equal(model.train()(**inputs), model(**inputs))


def test_a_built_model_drops_nothing_until_it_is_trained() -> None:
    base = tiny_instructblip()
    model = OmniScientModel.from_instructblip(base.train(), 56, 28, 28)
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.bridge.training and not model.tower.training and not model.llm.training
