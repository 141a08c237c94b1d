"""A model with a prompt of its own: how it is trained, asked, saved and planned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stream_sets import bands, panoptic, scene
from tiny import tiny_config

from osm.config import from_dict
from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS, TEST_PROMPT, Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.errors import OsmError
from osm.models.checkpoint import start_from
from osm.models.factory import build, load_folder
from osm.models.model_config import LONGEST_PROMPT, ModelConfig
from osm.models.osm import OmniScientModel
from osm.planning.simulate import simulate_naming
from osm.recognition.recognizer import Recognizer
from osm.sharing.hf_model import HfOsmProcessor, save_processor

PROMPT = "Name:"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[OmniScientModel, Processor]:
    torch.manual_seed(0)
    config = tiny_config(tmp_path_factory.mktemp("model"), "maskqformer")
    model, processor = build(replace(config, prompt=PROMPT))
    return model.eval(), processor


def test_training_asks_with_it_for_masks_and_boxes(built: tuple[OmniScientModel, Processor]) -> None:
    processor = built[1]
    transform, rng = SampleTransform(SampleConfig(mask2box_prob=0.5), processor), np.random.default_rng(0)
    target = scene(panoptic(bands(90, 70)))
    assert {prompt for _ in range(20) for prompt in transform(target, "key", rng).prompts} == {PROMPT}
    published = Processor(processor.tokenizer, None, processor.input_size, processor.mean, processor.std)
    assert published.training_prompts(False) == MASK_PROMPTS and published.training_prompts(True) == BOX_PROMPTS
    assert (published.naming_prompt(), published.naming_prompt(True)) == (TEST_PROMPT, BOX_PROMPTS[0])


def test_every_way_of_naming_asks_with_it(
    built: tuple[OmniScientModel, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, boxes and several views, with and without a list of names."""
    asked: list[str] = []
    made = Processor.prompts

    def prompts(self: Processor, texts: Any) -> Any:
        asked.extend(texts)
        return made(self, texts)

    monkeypatch.setattr(Processor, "prompts", prompts)
    recognizer, image = Recognizer(*built), np.zeros((48, 56, 3), np.uint8)
    mask = np.zeros((48, 56), bool)
    mask[5:30, 9:40] = True
    recognizer.set_image(image)
    options: dict[str, Any]
    for options in ({}, {"vocabulary": ["cat", "dog"]}, {"vocabulary": ["cat", "dog"], "method": "scored"}):
        recognizer.name([mask], boxes=[[2.0, 2.0, 20.0, 30.0]], **options)
    recognizer.name_views([(image, mask)])
    assert set(asked) == {PROMPT}


def test_it_is_saved_with_the_model(built: tuple[OmniScientModel, Processor], tmp_path: Path) -> None:
    model = built[0]
    model.save_pretrained(tmp_path)
    again, processor = load_folder(tmp_path)
    assert again.config.prompt == processor.prompt == PROMPT
    assert "prompt" not in replace(model.config, prompt="").stored()  # as in checkpoints of earlier versions


@pytest.mark.parametrize("earlier", [False, True])
def test_it_is_exported_to_transformers(
    built: tuple[OmniScientModel, Processor], tmp_path: Path, earlier: bool
) -> None:
    """The files of earlier versions have no prompt, which is the published one."""
    processor = built[1]
    save_processor(processor, 0.5, tmp_path)
    if earlier:
        path = tmp_path / "processor_config.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "prompt"}))
    inputs = HfOsmProcessor.from_pretrained(tmp_path)([Image.new("RGB", (30, 20))], [[np.ones((20, 30), bool)]])
    asked = processor.prompts([TEST_PROMPT if earlier else PROMPT])
    assert inputs["input_ids"].tolist() == asked.input_ids.tolist()


@pytest.mark.parametrize("prompt", ["x" * (LONGEST_PROMPT + 1), " ", "two\nlines", "Name: ", " Name:"])
def test_a_bad_prompt_is_named(prompt: str) -> None:
    with pytest.raises(
        OsmError, match=r"model\.prompt .*expected a line of at most 80 characters without spaces at its ends, such"
    ):
        from_dict(ModelConfig, {"prompt": prompt}, "model")


def test_the_plan_counts_its_tokens(built: tuple[OmniScientModel, Processor]) -> None:
    short, published = (
        simulate_naming(replace(built[0].config, prompt=prompt), 1, 2, 2, gpu=False) for prompt in (PROMPT, "")
    )
    assert short.row_flops < 0.8 * published.row_flops
    long = simulate_naming(replace(built[0].config, prompt="a " * 18 + "name:"), 1, 2, 2, gpu=False)
    assert long.row_flops > published.row_flops


def test_a_prompt_of_many_tokens_is_refused(built: tuple[OmniScientModel, Processor]) -> None:
    """Of few characters, but of as many tokens as bytes."""
    processor = built[1]
    arguments = (processor.tokenizer, None, processor.input_size, processor.mean, processor.std, True)
    with pytest.raises(OsmError, match=r"model\.prompt .* tokens; expected at most 20, because .* fit into 32"):
        Processor(*arguments, prompt="\u8fd9\u662f\u4ec0\u4e48" * 5)


def test_training_does_not_go_on_with_another(built: tuple[OmniScientModel, Processor], tmp_path: Path) -> None:
    model, _ = built
    model.save_pretrained(tmp_path / "saved")
    start_from(model, tmp_path / "saved")
    other, _ = build(replace(model.config, prompt=""))
    with pytest.raises(OsmError, match=r"different settings.*: model\.prompt was 'Name:', and is ''"):
        start_from(other, tmp_path / "saved")
