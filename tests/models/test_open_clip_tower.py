"""Towers of open_clip: its own ViT and timm's within it, beside open_clip's own output."""

from __future__ import annotations

import json
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
from osm.errors import OsmError
from osm.models.towers.open_clip_tower import Clip, OpenClipTowerConfig, load_clip, open_clip_hub_id, open_clip_tower
from osm.models.towers.tower import CLIP_MEAN, CLIP_STD
from osm.models.weights import Found

SIDE = 64
TEXT = {"layers": 1, "width": 16, "heads": 2, "vocab_size": 20, "context_length": 8}
VISIONS: dict[str, dict[str, Any]] = {
    "tiny-vit": {"patch_size": 16, "layers": 2, "width": 64, "head_width": 16},
    "tiny-timm": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "tiny-register": {"timm_model_name": "test_vit2", "timm_pool": "avg", "timm_proj": "linear"},
    "tiny-hybrid": {"timm_model_name": "vit_tiny_r_s16_p8_224", "timm_pool": "token", "timm_proj": "linear"},
    "tiny-cnn": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
    "tiny-coca": {"patch_size": 16, "layers": 2, "width": 64, "head_width": 16, "attentional_pool": True},
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small ones in open_clip's list, beside its own."""
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in VISIONS.items():
        document = {"embed_dim": 512, "vision_cfg": {**vision, "image_size": SIDE}, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(document))
    open_clip.add_model_config(folder)


def whole_model(name: str = "tiny-vit", window: int = SIDE, **more: Any) -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(512, {**VISIONS[name], "image_size": window}, TEXT, **more).eval()


def windows(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def config(name: str = "tiny-vit", **changes: Any) -> OpenClipTowerConfig:
    return OpenClipTowerConfig(name=name, **changes)


@pytest.mark.parametrize("quick", [False, True])
def test_it_gives_what_open_clip_gives(quick: bool) -> None:
    """Class token and patches after the final norm: what open_clip projects is this class token."""
    model = whole_model(quick_gelu=quick)
    tower = open_clip_tower(config(), SIDE, Clip(model.state_dict(), quick))
    assert (tower.patch, tower.width, tower.class_tokens, tower.window) == (16, 64, 1, SIDE)
    with torch.no_grad():
        prefix, patches = tower(windows())
        model.visual.output_tokens = True
        pooled, tokens = model.visual(windows())
        other = open_clip_tower(config(), SIDE, Clip(model.state_dict(), not quick))(windows())[1]
    torch.testing.assert_close(prefix[:, 0] @ model.visual.proj, pooled)
    torch.testing.assert_close(patches, tokens)
    assert (patches - other).abs().max() > 1e-3  # the activation that they were trained with matters


def test_weights_of_another_window_size_are_resampled() -> None:
    state = whole_model(window=96).state_dict()
    tower = open_clip_tower(config(), SIDE, Clip(state, False))
    assert tower.visual.positional_embedding.shape[0] == 1 + 16 != state["visual.positional_embedding"].shape[0]
    assert torch.equal(tower.visual.conv1.weight, state["visual.conv1.weight"])


def test_a_vit_of_timm_within_it() -> None:
    """As EVA is: the trunk is timm's."""
    model = whole_model("tiny-timm", 160)
    tower = open_clip_tower(config("tiny-timm"), 160, Clip(model.state_dict(), False))
    assert (tower.patch, tower.width, tower.class_tokens) == (16, 64, 1)
    with torch.no_grad():
        prefix, patches = tower(windows(160))
        expected = model.visual.trunk.forward_features(windows(160))
    torch.testing.assert_close(torch.cat([prefix, patches], 1), expected)


def test_a_vit_of_timm_takes_other_windows() -> None:
    """Its position embedding is resampled, as that of open_clip's own ViTs is."""
    model = whole_model("tiny-timm", 160)
    state = model.state_dict()
    tower = open_clip_tower(config("tiny-timm"), SIDE, Clip(state, False))
    assert tower.visual.trunk.pos_embed.shape[1] == 1 + 16 != state["visual.trunk.pos_embed"].shape[1]
    model.visual.trunk.set_input_size(img_size=(SIDE, SIDE))
    with torch.no_grad():
        prefix, patches = tower(windows())
        torch.testing.assert_close(torch.cat([prefix, patches], 1), model.visual.trunk.forward_features(windows()))


def test_a_register_is_no_class_token() -> None:
    tower = open_clip_tower(config("tiny-register"), 160, Clip(whole_model("tiny-register", 160).state_dict(), False))
    assert tower.visual.trunk.num_prefix_tokens == 1
    with torch.no_grad():
        prefix, patches = tower(windows(160))
    assert tower.class_tokens == 0 and prefix.shape == (2, 0, 64) and patches.shape == (2, 100, 64)


def test_a_convolutional_stem_counts_into_the_patch() -> None:
    """As ViTamin's and MobileCLIP-B's do: what the ViT calls its patch is of the stem's map."""
    tower = open_clip_tower(config("tiny-hybrid"), 224, Clip(whole_model("tiny-hybrid", 224).state_dict(), False))
    assert (tower.patch, tower.class_tokens) == (32, 1)


def test_options_that_timms_models_would_ignore_are_refused() -> None:
    state = whole_model("tiny-timm", 160).state_dict()
    with pytest.raises(OsmError, match=r"model.tower.options \{'layers': 1\}: tiny-timm wraps timm's test_vit"):
        open_clip_tower(config("tiny-timm", options={"layers": 1}), 160, Clip(state, False))


def test_a_whole_model_is_built_around_one(tmp_path: Path) -> None:
    """By a folder of weights, as the hub has them, with what they were trained with."""
    folder = tmp_path / "clip"
    folder.mkdir()
    state = {key: value.contiguous() for key, value in whole_model(window=32).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    torch.save(state, folder / "open_clip_pytorch_model.bin")  # repositories have both
    found = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(found))
    tower = {"kind": "open_clip", "name": "tiny-vit", "weights": str(folder)}
    section = tiny_model_section(tmp_path, variant="flamingo", tower=tower)
    section |= {"input_size": 64, "sliding_window_size": 32, "sliding_window_stride": 32}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": section}))
    model, processor = osm.create_model_and_transforms(str(tmp_path / "model.yaml"))
    assert model.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 4 + 16, 64)
    assert model.config.tower.source == "folder" and processor.mean == (0.5,) * 3 and processor.std == (0.25,) * 3
    assert "QuickGELU" in repr(model.tower.visual)
    found["preprocess_cfg"]["std"] = [0, 0, 0]
    (folder / "open_clip_config.json").write_text(json.dumps(found))
    with pytest.raises(OsmError, match="open_clip_config.json: not a valid open_clip config"):
        osm.create_model_and_transforms(str(tmp_path / "model.yaml"))


def test_what_weights_were_trained_with_is_known_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tag, of its repository by its own name, and of a folder: tags of one model differ."""
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file({"visual.x": torch.zeros(1)}, folder / "a.safetensors")
    monkeypatch.setattr("osm.models.towers.open_clip_tower._download", lambda *_: folder)
    here = Found("folder", str(folder))
    tagged = load_clip(config("ViT-L-14", weights="laion2b_s32b_b82k"), here)
    assert (tagged.mean, tagged.quick_gelu) == ((0.5,) * 3, False)
    repository = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    named = load_clip(config("ViT-L-14", weights=repository), Found("hub", repository))
    assert (named.mean, named.std) == (tagged.mean, tagged.std)
    openai = load_clip(config("ViT-L-14", weights="openai"), here)
    assert (openai.mean, openai.std, openai.quick_gelu) == (CLIP_MEAN, CLIP_STD, True)
    with pytest.raises(OsmError, match=r"has no open_clip_config.json. .* ViT-L-14's published checkpoints do not all"):
        load_clip(config("ViT-L-14", weights=str(folder)), here)
    assert load_clip(config(weights=str(folder)), here).mean == CLIP_MEAN  # a model without any tag


def test_tags_are_known() -> None:
    named = config("ViT-L-14", weights="laion2b_s32b_b82k")
    assert open_clip_hub_id(named) == "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    assert open_clip_hub_id(config("ViT-L-14", weights="me/mine")) == "me/mine"
    assert open_clip_hub_id(config("ViTamin-S", weights="datacomp1b")) == "jienengchen/ViTamin-S"


@pytest.mark.parametrize(
    ("name", "options", "window", "spoil", "message"),
    [
        ("ViT-Z-99", {}, SIDE, None, "model.tower.name 'ViT-Z-99' is not an open_clip model"),
        (
            "tiny-vit",
            {},
            SIDE,
            "visual.conv1.weight",
            r"weights for tiny-vit are missing 1 entries \(the first is 'conv1",
        ),
        ("tiny-vit", {"width": 32}, SIDE, None, "model.tower 'tiny-vit' with windows of 64 pixels"),
        ("tiny-vit", {"width": 0}, SIDE, None, "model.tower.options: width is 0, but open_clip towers only support"),
        ("tiny-vit", {"timm_model_name": "hf-hub:a/b"}, SIDE, None, "model.tower.options: timm_model_name"),
        ("tiny-vit", {}, 70, None, r"--sliding_window_size 70 is not a multiple of this tower's patch size \(16\)"),
        ("tiny-coca", {}, SIDE, None, "this model is not a plain ViT"),
        ("RN50", {}, SIDE, None, "this model is not a plain ViT"),
        ("tiny-cnn", {}, SIDE, None, "model.tower 'tiny-cnn' with windows of 64 pixels"),
    ],
)
def test_what_does_not_fit_is_named(
    name: str, options: dict[str, Any], window: int, spoil: str | None, message: str
) -> None:
    state = whole_model(
        "tiny-cnn" if name == "tiny-cnn" else "tiny-vit", window=80 if window == 70 else SIDE
    ).state_dict()
    state.pop(spoil, None)
    with pytest.raises(OsmError, match=message):
        open_clip_tower(config(name, options=options), window, Clip(state, False))


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(OsmError, match=r"pip install open_clip_torch"):
        open_clip_tower(config(), SIDE, Clip({}, False))
