"""The recipes for SigLIP 2, DINOv3 and PE towers: in their smallest shape, a step is trained and a mask is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import BOS, EOS, PAD, randomise, tiny_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from osm.config import load_yaml
from osm.data.batch import make_batch
from osm.data.processor import TEST_PROMPT
from osm.data.sample import Sample
from osm.models.factory import build
from osm.models.model_config import load_model_config
from osm.models.towers.timm_tower import import_timm
from osm.recognition.recognizer import Recognizer
from osm.training.optimization import make_optimizer
from osm.training.task import TrainTask

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    path for tower in ("siglip2", "dinov3", "pe") for path in (ROOT / "configs").glob(f"osm_{tower}_*gb.yaml")
)
OPTIONS: dict[str, Any] = {"depth": 1, "embed_dim": 48, "num_heads": 2}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 of two layers, with its tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3")
    tokenizer = tiny_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config).eval()
    randomise(model, 0)
    model.save_pretrained(folder)
    return folder


def test_there_are_nine() -> None:
    assert len(RECIPES) == 9


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_step_is_trained_and_a_mask_is_named(recipe: Path, llm: Path, tmp_path: Path) -> None:
    whole = load_model_config(str(recipe))
    windows = whole.input_size // whole.sliding_window_size
    assert windows * whole.sliding_window_size == whole.input_size
    patch = 14 if "patch14" in whole.tower.name else 16
    window = 4 * patch
    torch.manual_seed(0)
    tower: Any = import_timm().create_model(whole.tower.name, num_classes=0, img_size=window, **OPTIONS)
    save_file({key: value.contiguous() for key, value in tower.state_dict().items()}, tmp_path / "model.safetensors")
    bridge = {"layers": 2, "width": 24, "heads": 2, "mlp_width": 48, "mask_queries": 2, "context_queries": 2}
    values = {
        "input_size": windows * window,
        "sliding_window_size": window,
        "sliding_window_stride": window,
        "tower.options": str(OPTIONS),
        "tower.weights": str(tmp_path),
        "llm.name": str(llm),
        **{f"bridge.{name}": value for name, value in bridge.items()},
    }
    config = load_model_config(str(recipe), [f"model.{name}={value}" for name, value in values.items()])
    model, processor = build(config.with_modes(["coco"]))
    assert model.tower.patch == patch and model.windows.count == windows**2

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (config.input_size, config.input_size, 3), np.uint8)
    mask = np.zeros(pixels.shape[:2], bool)
    mask[5:40, 10:50] = True
    masks = torch.from_numpy(np.stack([mask, ~mask])[:, None])
    sample = Sample("a", pixels, masks, ["cup", "dog"], [TEST_PROMPT] * 2)
    batch = make_batch([sample], "coco", processor, "all", 0)
    task = TrainTask(model.train(), processor)
    optimizer = make_optimizer(task, 1e-2, 0.0)
    losses = []
    for _ in range(2):
        loss = task(batch)[0].sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert all(np.isfinite(losses)) and losses[1] < losses[0]

    recognizer = Recognizer(model.eval(), processor, max_new_tokens=3)
    recognizer.set_image(Image.fromarray(pixels))
    ((answer,),) = recognizer.name([mask], modes=["any"])
    assert answer.token_probs and not answer.skipped


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_training_section_names_its_datasets(recipe: Path) -> None:
    section = load_yaml(str(recipe))["training"]
    assert list(section["sets"]) == ["coco", "lvis", "ade20k"] and section["precision"] == "amp_bfloat16"
