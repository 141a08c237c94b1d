"""Towers of open_clip: its own ViT and timm's within it, beside open_clip's own output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import tiny_model_section
from torch import Tensor

import osm
from osm.config import TowerConfig
from osm.errors import OsmError
from osm.model.open_clip_tower import open_clip_hub_id, open_clip_tower
from osm.model.towers import CLIP_MEAN

SMALL: dict[str, Any] = {"layers": 2, "width": 64, "head_width": 16}
SIDE = 64


def whole_model(window: int = SIDE, **vision: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"patch_size": 16, **SMALL, **vision, "image_size": window}
    text = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 20, "context_length": 8}
    return open_clip.CLIP(512, sizes, text).eval()


def windows(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def config(**changes: Any) -> TowerConfig:
    return TowerConfig(kind="open_clip", name="ViT-B-16", options={**SMALL, **changes})


def test_it_gives_what_open_clip_gives() -> None:
    """Class token and patches after the final norm: what open_clip projects is this class token."""
    model = whole_model()
    tower = open_clip_tower(config(), SIDE, model.state_dict())
    assert (tower.patch, tower.width, tower.class_tokens, tower.window) == (16, 64, 1, SIDE)
    with torch.no_grad():
        prefix, patches = tower(windows())
        model.visual.output_tokens = True
        pooled, tokens = model.visual(windows())
    torch.testing.assert_close(prefix[:, 0] @ model.visual.proj, pooled)
    torch.testing.assert_close(patches, tokens)
    assert tower.mean == CLIP_MEAN


def test_weights_of_another_window_size_are_resampled() -> None:
    state = whole_model(96).state_dict()
    tower = open_clip_tower(config(), SIDE, state)
    assert tower.visual.positional_embedding.shape[0] == 1 + 16 != state["visual.positional_embedding"].shape[0]
    assert torch.equal(tower.visual.conv1.weight, state["visual.conv1.weight"])


def test_a_vit_of_timm_within_it() -> None:
    """As EVA is: the trunk is timm's."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
    model = whole_model(160, **vision)
    tower = open_clip_tower(config(**vision), 160, model.state_dict())
    assert (tower.patch, tower.width, tower.class_tokens) == (16, 64, 1)
    with torch.no_grad():
        prefix, patches = tower(windows(160))
        expected = model.visual.trunk.forward_features(windows(160))
    torch.testing.assert_close(torch.cat([prefix, patches], 1), expected)


def test_a_whole_model_is_built_around_one(tmp_path: Path) -> None:
    """By a folder of weights, as the hub has them."""
    folder = tmp_path / "clip"
    folder.mkdir()
    state = {key: value.contiguous() for key, value in whole_model(32).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    tower = {"kind": "open_clip", "name": "ViT-B-16", "weights": str(folder), "options": SMALL}
    section = tiny_model_section(tmp_path, variant="flamingo", tower=tower)
    section |= {"input_size": 64, "sliding_window_size": 32, "sliding_window_stride": 32}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": section}))
    model, processor = osm.create_model_and_transforms(str(tmp_path / "model.yaml"))
    assert model.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 4 + 16, 64)
    assert model.config.tower.source == "folder" and processor.mean == CLIP_MEAN


def test_tags_are_known() -> None:
    named = TowerConfig(kind="open_clip", name="ViT-L-14", weights="laion2b_s32b_b82k")
    assert open_clip_hub_id(named) == "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    assert open_clip_hub_id(TowerConfig(kind="open_clip", name="ViT-L-14", weights="me/mine")) == "me/mine"


@pytest.mark.parametrize(
    ("name", "options", "spoil", "message"),
    [
        ("ViT-Z-99", {}, None, "model.tower.name 'ViT-Z-99' is not a model of open_clip"),
        ("ViT-B-16", {}, "visual.conv1.weight", "weights for ViT-B-16 lack 1 entries, the first is 'conv1.weight'"),
        ("ViT-B-16", {"width": 32}, None, "model.tower 'ViT-B-16' with windows of 64 pixels"),
        ("ViT-B-16", {"depth": 3}, None, "model.tower 'ViT-B-16' with windows of 64 pixels"),
        ("RN50", {}, None, "model.tower"),
    ],
)
def test_what_does_not_fit_is_named(name: str, options: dict[str, Any], spoil: str | None, message: str) -> None:
    state = whole_model().state_dict()
    state.pop(spoil, None)
    given = {} if name == "RN50" else {**SMALL, **options}
    with pytest.raises(OsmError, match=message):
        open_clip_tower(TowerConfig(kind="open_clip", name=name, options=given), SIDE, state)


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(OsmError, match=r"pip install 'osm-recognition\[open_clip\]'"):
        open_clip_tower(config(), SIDE, {})
