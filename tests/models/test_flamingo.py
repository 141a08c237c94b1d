"""Variant `flamingo` as a whole: it starts as the frozen LLM, and trains its own parts alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_instructblip, tiny_model_section, tiny_model_yaml
from torch import Tensor

import osm
from osm.config import from_dict
from osm.data.processor import Processor
from osm.errors import OsmError
from osm.models.bridges.bridge import Instruction
from osm.models.bridges.flamingo import FlamingoBridge, ResamplerLayer, fourier
from osm.models.bridges.gated import FlamingoConfig, hidden_width
from osm.models.factory import build, load_folder
from osm.models.masks import context_mask
from osm.models.model_config import ModelConfig, load_model_config
from osm.models.osm import OmniScientModel

SIZE = 56


@pytest.fixture
def built(tmp_path: Path) -> tuple[OmniScientModel, Processor]:
    torch.manual_seed(0)
    return build(load_model_config(str(tiny_model_yaml(tmp_path, variant="flamingo"))))


def batch(processor: Processor, rows: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(rows, 1, SIZE, SIZE)
    for row in range(rows):
        masks[row, 0, 5 + row : 30, 9 * row : 9 * row + 13] = 1
    text = processor.training_text(["What is this?"] * rows, ["cat", "traffic light", "dog"][:rows])
    return {
        "pixel_values": torch.randn(2, 3, SIZE, SIZE, generator=generator),
        "qformer_input_ids": text.qformer_ids,
        "qformer_attention_mask": text.qformer_mask,
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask,
        "labels": text.labels,
        "segmentation_mask": masks,
        "input_context_mask": context_mask(masks, 0.5),
        "dataset_type": ["coco", "any", "coco"][:rows],
        "image_index": torch.tensor([1, 0, 1][:rows]),
    }


def logits(model: OmniScientModel, inputs: dict[str, Any]) -> Tensor:
    features = model.mask_features(inputs["segmentation_mask"], inputs["input_context_mask"])
    instruction = Instruction(inputs["qformer_input_ids"], inputs["qformer_attention_mask"])
    state = model.bridge.image_state(model.encode_image(inputs["pixel_values"]))
    condition = model.bridge(state, inputs["image_index"], features, instruction, inputs["dataset_type"])
    given = model.llm_inputs(condition, inputs["input_ids"], inputs["attention_mask"])
    with given.conditioned():
        return model.llm(inputs_embeds=given.embeds_RTW, attention_mask=given.mask_RT).logits


def test_it_starts_as_the_llm_bitwise_and_one_step_moves_the_new_parts_alone(
    built: tuple[OmniScientModel, Processor],
) -> None:
    model, processor = built
    inputs = batch(processor)
    other = {**inputs, "segmentation_mask": inputs["segmentation_mask"].flip(-1)}
    alone = model.llm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(logits(model, inputs), alone) and torch.equal(logits(model, other), alone)

    frozen = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(("tower.", "llm."))}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    moved: set[str] = set()
    for _ in range(3):
        model.train()
        model(**inputs).backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        moved |= with_gradient
        assert all(name.startswith("bridge.") or name == "window_pos_embed" for name in with_gradient)
        optimizer.step()
        optimizer.zero_grad()
    # Modes that no row has get none.
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == expected - {
        f"bridge.mode_query.{mode}" for mode in model.config.modes if mode not in ("coco", "any")
    }
    model.eval()
    for name, value in frozen.items():
        assert torch.equal(model.state_dict()[name], value), name
    found = logits(model, inputs)
    assert not torch.equal(found, alone)
    changed = logits(model, other)
    assert all((changed[row] - found[row]).abs().max() > 1e-6 for row in range(3))
    asked = logits(model, {**inputs, "dataset_type": ["any", "coco", "any"]})
    assert all((asked[row] - found[row]).abs().max() > 1e-6 for row in range(3))


def test_a_copy_is_a_model_of_its_own(built: tuple[OmniScientModel, Processor]) -> None:
    """Its LLM asks its own bridge, and not that of the model that it was copied from."""
    model, processor = built
    inputs = batch(processor)
    alone = logits(model, inputs)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.bridge.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.9)
    assert torch.equal(logits(model, inputs), alone)
    assert (logits(twin, inputs) - alone).abs().max() > 1e-3
    again = pickle.loads(pickle.dumps(twin))
    assert torch.equal(logits(again, inputs), logits(twin, inputs))


def test_a_batch_equals_one_by_one(built: tuple[OmniScientModel, Processor]) -> None:
    model, processor = built
    with torch.no_grad():
        for name, parameter in model.bridge.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.9)
    inputs = batch(processor)
    together = logits(model, inputs)
    texts = ("qformer_input_ids", "qformer_attention_mask", "input_ids", "attention_mask")
    for row in range(3):
        image = int(inputs["image_index"][row])
        one = {
            **{name: inputs[name][row : row + 1] for name in (*texts, "segmentation_mask", "input_context_mask")},
            "pixel_values": inputs["pixel_values"][image : image + 1],
            "image_index": torch.tensor([0]),
            "dataset_type": [inputs["dataset_type"][row]],
        }
        seen = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(logits(model, one)[0][seen], together[row][seen], atol=1e-5, rtol=1e-5)


def test_its_files_are_read_again_and_nothing_else_fits(
    built: tuple[OmniScientModel, Processor], tmp_path: Path
) -> None:
    model, processor = built
    with torch.no_grad():
        for parameter in model.bridge.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "saved")
    again = load_folder(tmp_path / "saved")[0]
    inputs = batch(processor)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert set(model.trainable_state_dict()) == {
        "window_pos_embed",
        *(name for name, _ in model.bridge.named_parameters()),
    }
    published, _ = build(load_model_config(str(tiny_model_yaml(tmp_path))))
    torch.save({"model_state_dict": published.trainable_state_dict()}, tmp_path / "other.pt")
    with pytest.raises(OsmError, match="does not fit this model"):
        model.load_checkpoint(tmp_path / "other.pt")


def test_around_an_instructblip() -> None:
    """Its ViT and LLM are taken, its Q-Former is not."""
    base = tiny_instructblip()
    section = {"flamingo": {"width": 24, "heads": 2, "every": 1, "gated_width": 16, "gated_heads": 2, "layers": 1}}
    config = from_dict(
        ModelConfig, {"variant": "flamingo", "base_model_name": "b", "mask_to_grid": "area", **section}, "test"
    )
    model = OmniScientModel.from_instructblip(base, SIZE, 28, 28, config=config)
    assert isinstance(model.bridge, FlamingoBridge) and len(model.bridge.gated.blocks) == 2
    assert model.tower.class_tokens == 1 and hidden_width(model.llm) == 40
    model.bridge.detach()


def test_the_resampler_sees_what_is_present_alone() -> None:
    torch.manual_seed(0)
    layer = ResamplerLayer(FlamingoConfig(width=24, heads=2, mlp_width=32)).eval()
    queries, tokens = torch.randn(2, 3, 24), torch.randn(2, 5, 24)
    present = torch.tensor([[True, True, False, True, False], [True] * 5])
    found = layer(queries, tokens, present)
    alone = layer(queries[:1], tokens[:1, [0, 1, 3]], present[:1, [0, 1, 3]])
    torch.testing.assert_close(found[:1], alone, atol=1e-6, rtol=1e-6)
    other = layer(queries, torch.where(present[..., None], tokens, 9.0), present)
    assert torch.equal(other, found)
    assert fourier(torch.tensor([[0.0, 0.5]])).shape == (1, 26)


def test_the_first_token_is_left_out_where_nothing_stands_before_it(
    built: tuple[OmniScientModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a prefix it is supervised: a tokenizer without a start token has no other place for it."""
    _, processor = built
    monkeypatch.setattr(Processor, "_bos", lambda self: [])
    labels = processor.training_text(["What?"], ["cat"]).labels[0]
    assert labels[0] == -100 and (labels[1:] != -100).all()
    processor.has_prefix = True
    processor._rows.clear()
    assert (processor.training_text(["What?"], ["cat"]).labels[0] != -100).all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mask_to_grid": "nearest"}, "model.mask_to_grid 'nearest': the flamingo bridge requires 'area'"),
        (
            {"flamingo": {"width": 30, "heads": 4}},
            "model.flamingo.width 30 is not a multiple of heads 4",
        ),
        ({"flamingo": {"gated_width": 30, "gated_heads": 4}}, "model.flamingo.gated_width 30 is not a multiple of"),
        ({"flamingo": {"roi": 0}}, "model.flamingo.roi 0 is not 1 to"),
        ({"flamingo": {"dropout": 1.0}}, "model.flamingo.dropout 1.0 is not between 0 and 1"),
        ({"flamingo": {"gate_gain": 0.0}}, "model.flamingo.gate_gain 0.0 must be greater than 0"),
        ({"flamingo": {"roi": 33}}, "model.flamingo.roi 33 exceeds the maximum of 32"),
        ({"qformer": {"layers": 3}}, "model.qformer has no effect with model.variant 'flamingo'"),
        ({"variant": "maskqformer", "flamingo": {"roi": 3}}, "model.flamingo has no effect with model.variant 'maskqf"),
        ({"variant": "kosmos"}, "model.variant 'kosmos': expected maskqformer or flamingo"),
    ],
)
def test_settings_that_do_not_fit_are_named(section: dict[str, Any], message: str) -> None:
    base = {"variant": "flamingo", "mask_to_grid": "area", "base_model_name": "b"}
    with pytest.raises(OsmError, match=message):
        from_dict(ModelConfig, {**base, **section}, "model")


def test_an_llm_of_few_layers_is_refused_by_its_setting(tmp_path: Path) -> None:
    section = tiny_model_section(tmp_path, variant="flamingo")
    section["flamingo"]["every"] = 3
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"model": section}))
    with pytest.raises(OsmError, match=r"model.bridge.every 3: the LLM has only 2 layers"):
        osm.create_model_and_transforms(str(tmp_path / "few.yaml"))
