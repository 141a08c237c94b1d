"""The models that `train_step.py` trains (pretrained, or random of the published size), and their batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small_tokenizer import small_tokenizer

from osm.config import load_yaml
from osm.data.batch import Batch
from osm.data.processor import Processor
from osm.data.sample_config import SampleConfig
from osm.datasets.labels import load_labels
from osm.datasets.table import ANY_MODE
from osm.errors import OsmError
from osm.models.bridges import BRIDGES
from osm.models.bridges.gated import FlamingoConfig
from osm.models.bridges.maskqformer import QFormerConfig
from osm.models.factory import base_config, build
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel

SET = "coco"  # whose names are the answers, and whose mode half of the rows have
# InstructBLIP with Vicuna-7B. The spread of its weights matters for the time, too: a GPU multiplies zeros faster, and
# the tower of an untrained InstructBLIP is all but zero.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vision_config": {
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "initializer_range": 0.02,
    },
    "qformer_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 1408,
        "vocab_size": 30523,
    },
    "text_config": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32001,
    },
}
TINY = {"layers": 2, "heads": 4, "divisor": 16}


def pretrained(name: str, published_prompts: bool = False) -> tuple[OmniScientModel, Processor]:
    """The model of a config with its own frozen weights.

    `published_prompts` replaces the config's own prompt, and places the bridge's prefix as published.
    """
    config = base_config(name).with_modes([SET])
    if published_prompts:
        config = replace(config, prompt="", prompt_first=False)
        if isinstance(config.bridge, QFormerConfig):
            config = replace(config, bridge=replace(config.bridge, direct_first=False))
    return build(config)


def random_model(config: ModelConfig, tiny: bool, device: torch.device, frozen: torch.dtype) -> OmniScientModel:
    """Return the published model with random weights. The frozen parts have the dtype `frozen`, the bridge float32."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

    if tiny and isinstance(config.bridge, FlamingoConfig):
        config = replace(config, bridge=replace(config.bridge, width=64, layers=1, every=1, gated_width=64))
    sections = {name: shrunk(section) if tiny else section for name, section in PUBLISHED.items()}
    torch.manual_seed(0)
    with torch.device(device):
        with default_dtype(frozen):
            base = InstructBlipForConditionalGeneration(InstructBlipConfig(**sections))
        sizes = (config.input_size, config.sliding_window_size, config.sliding_window_stride)
        return OmniScientModel.from_instructblip(base, *sizes, config=config.with_modes([SET]))


def random_processor(config: ModelConfig) -> Processor:
    """Return the processor of a `random_model`.

    Its vocabulary is so small that a text has about as many tokens as with Vicuna's tokenizer.
    """
    tokenizer = small_tokenizer(sorted(load_labels(SET).vocabulary), vocabulary=600)
    has_prefix = BRIDGES.get(config.bridge.kind).has_prefix
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    return Processor(tokenizer, tokenizer, config.input_size, mean, std, has_prefix, config.prompt, config.prompt_first)


def shrunk(section: dict[str, Any]) -> dict[str, Any]:
    widths = ("hidden_size", "intermediate_size", "encoder_hidden_size")
    small = {name: value // TINY["divisor"] if name in widths else value for name, value in section.items()}
    small["num_hidden_layers"] = TINY["layers"]
    small |= {name: TINY["heads"] for name in section if name.endswith("_heads")}
    return small


def published_base(name: str) -> ModelConfig:
    """Return the config for `--random_weights`. Raise OsmError if it is not based on an InstructBLIP model."""
    config = base_config(name)
    if not config.base_model_name:
        others = "osm and osm_flamingo_instructblip are"
        raise OsmError(f"--config {name} is not built around an InstructBLIP, as --random_weights needs; {others}")
    return config


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def supervise(config_name: str) -> str:
    """Return the `supervise` setting of a config, which determines at how many positions the LM head runs."""
    sample = load_yaml(config_name).get("training", {}).get("sample") or {}
    return sample.get("supervise", SampleConfig().supervise)


def make_batches(
    processor: Processor, images: int, masks: int, count: int, supervised: str, seed: int = 0
) -> list[Batch]:
    """Return batches like those of the loader. Their images are noise, and their masks rectangles and ellipses."""
    rng, size = np.random.default_rng(seed), processor.input_size
    names = sorted(load_labels(SET).vocabulary)
    rows, prompts = images * masks, processor.training_prompts(boxed=False)
    batches = []
    for number in range(count):
        pixels = [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(images)]
        asked = [prompts[i] for i in rng.integers(len(prompts), size=rows)]
        targets = [names[i] for i in rng.integers(len(names), size=rows)]
        text = processor.training_text(asked, targets, supervised)
        batches.append(
            Batch(
                [SET] * rows,
                [SET] * (rows // 2) + [ANY_MODE] * (rows - rows // 2),
                processor.padded_batch(pixels),
                None,
                torch.arange(images).repeat_interleave(masks),
                torch.from_numpy(np.stack([_mask(rng, size) for _ in range(rows)])[:, None]),
                text,
                [f"{number}/{image}" for image in range(images)],
                targets,
            )
        )
    return batches


def _mask(rng: np.random.Generator, size: int) -> np.ndarray:
    height, width = (int(side) for side in rng.integers(size // 20 + 1, size // 2, size=2))
    top, left = int(rng.integers(size - height)), int(rng.integers(size - width))
    inside = np.ones((height, width), bool)
    if rng.random() < 0.5:
        y, x = (np.linspace(-1, 1, side) for side in (height, width))
        inside = y[:, None] ** 2 + x[None] ** 2 <= 1
        inside[height // 2, width // 2] = True
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = inside
    return mask


def on_meta(batch: Batch) -> Batch:
    """A batch without values but where the model asks for them: masks, labels, and which image a row is of."""
    text = replace(
        batch.text,
        **{name: value.to("meta") for name, value in vars(batch.text).items() if name != "labels"},
    )
    assert batch.canvas is not None
    return replace(batch, canvas=batch.canvas.to("meta"), text=text)
