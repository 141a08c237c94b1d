"""Towers of timm from a config and a folder of weights: any layout of maps, any window, or a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import tiny_model_section
from torch import Tensor, nn

from osm.config import from_dict
from osm.errors import OsmError
from osm.models.factory import build, build_tower
from osm.models.fast_inference import speed_up_tower
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel
from osm.models.towers import timm_tower
from osm.models.towers.timm_tower import TimmTower, TimmTowerConfig
from osm.models.towers.tower import RandomTower, Tower

Build = Callable[..., tuple[Tower, nn.Module]]


def windows(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds a tower from a folder with a random model's weights; returns it and the whole model."""

    def build_one(name: str, strides: tuple[int, ...], window: int, **options: Any) -> tuple[Tower, nn.Module]:
        torch.manual_seed(0)
        whole = timm.create_model(name, **options).eval()
        folder = tmp_path / "weights" / name
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, folder / "model.safetensors")
        monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path / "weights"))
        tower = TimmTowerConfig(name=name, strides=strides, options=options, source="folder")
        config = ModelConfig("", window, window, window, tower=tower)
        return build_tower(config)[0].eval(), whole

    return build_one


def grid(tower: Tower, side: int) -> Tensor:
    """The patches (2, C, h, h), after a look at all that the tower promises."""
    with torch.no_grad():
        prefix, patches = tower(windows(side))
    cells = side // tower.patch
    assert prefix.shape == (2, tower.class_tokens, tower.width)
    assert patches.shape == (2, cells**2, tower.width)
    return patches.transpose(1, 2).reshape(2, tower.width, cells, cells)


def normed(features: Tensor) -> Tensor:
    return nn.functional.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)


SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]}
MAPS = [  # name, strides, window, index of the finest map in forward_intermediates, options
    ("swin_tiny_patch4_window7_224", (8, 16), 224, 1, SWIN),  # maps with channels last
    ("swinv2_tiny_window8_256", (8, 16), 256, 1, SWIN),
    ("mambaout_femto", (8, 16), 64, 1, {"depths": [1, 1, 1, 1]}),
    ("dla46_c", (8, 16), 64, 3, {}),  # timm leaves its first map out unless it is asked for
    ("levit_128s", (16, 32), 224, 0, {}),  # weights under the whole model's names, maps by timm's getter
    ("hiera_tiny_224", (8,), 224, 1, {"embed_dim": 24, "stages": [1, 1, 1, 1]}),
    ("xcit_nano_12_p16_224", (16,), 64, -1, {"depth": 3}),
    ("twins_svt_small", (8, 16), 64, 1, {"depths": [1, 1, 1, 1]}),
    ("visformer_tiny", (16, 32), 224, 1, {}),
    ("vit_tiny_patch16_224", (16,), 224, -1, {"depth": 3}),
]


@pytest.mark.parametrize(("name", "strides", "window", "place", "options"), MAPS, ids=[case[0] for case in MAPS])
def test_maps_of_any_layout_lie_on_the_grid(
    built: Build, name: str, strides: tuple[int, ...], window: int, place: int, options: dict[str, Any]
) -> None:
    """The finest map is what timm's own forward_intermediates gives, with the folder's weights."""
    tower, whole = built(name, strides, window, **options)
    assert (tower.patch, tower.class_tokens, tower.window) == (strides[0], 0, None)
    found = grid(tower, window)
    with torch.no_grad():
        maps = whole.forward_intermediates(windows(window), intermediates_only=True, output_fmt="NCHW")
    expected = normed(maps[place])
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [("swin_tiny_patch4_window7_224", SWIN), ("coatnet_nano_rw_224", {"depths": [1, 1, 1, 1]})],
)
def test_models_of_one_size_are_built_for_other_windows(built: Build, name: str, options: dict[str, Any]) -> None:
    """Their weights are brought to these windows by timm; the tower then takes no others."""
    tower, _ = built(name, (8, 16), 128, **options)
    grid(tower, 128)
    with pytest.raises(OsmError, match="--sliding_window_size 224: this tower only supports windows of 128 pixels"):
        tower.check_window(224)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "convnext_atto"])
def test_a_classifying_tower_has_the_models_own_logits(built: Build, name: str) -> None:
    """Its tokens are those of the tower without a classifier, and cells without weight do not matter."""
    plain, whole = built(name, (16, 32), 64)
    config = TimmTowerConfig(name=name, strides=(16, 32), classes=1000, source="folder")
    tower = build_tower(ModelConfig("", 64, 64, 64, tower=config))[0].eval()
    assert (tower.classes, plain.classes, tower.patch, tower.width) == (1000, 0, 16, plain.width)
    with torch.no_grad():
        even = torch.full((2, 16), 1 / 16)
        tokens, logits = tower.tokens_and_classes(windows(64), even)
        assert torch.equal(tokens, plain(windows(64))[1]) and torch.equal(tokens, tower(windows(64))[1])
        torch.testing.assert_close(logits, whole(windows(64)), atol=1e-4, rtol=1e-4)
        corner = torch.zeros(2, 4, 4)
        corner[:, :2, 2:] = torch.tensor([[0.4, 0.3], [0.2, 0.1]])  # the cells of the map's upper right quarter
        found = tower.tokens_and_classes(windows(64), corner.flatten(1))[1]
        last = whole.forward_features(windows(64))
        expected = whole.forward_head(last[:, :, :1, 1:].expand(-1, -1, 2, 2))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        before = found
        speed_up_tower(tower, 64)
        found = tower.tokens_and_classes(windows(64), corner.flatten(1))[1]
        torch.testing.assert_close(found, before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "strides", "classes", "message"),
    [
        ("efficientnet_lite0", (16, 32), 5, "model.tower.classes is 5, but .* has 1000 classes"),
        ("vit_tiny_patch16_224", (16,), 1000, "does not read the mean of its last feature map"),
        ("swin_tiny_patch4_window7_224", (8, 16), 1000, "does not read the mean of its last feature map"),
        ("vgg11", (8, 16), 1000, "does not read the mean of its last feature map"),
        ("vit_tiny_patch16_224", (), 1000, "classes 1000 needs strides"),
        ("efficientnet_lite0", (16, 32), -1, "classes -1 is not 0 to"),
    ],
)
def test_classifiers_that_cannot_be_used(name: str, strides: tuple[int, ...], classes: int, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        TimmTower.blank(TimmTowerConfig(name=name, strides=strides, classes=classes), 224)


VITS = [  # name, window, patch, class tokens, options
    ("vit_tiny_r_s16_p8_224", 64, 32, 1, {"depth": 1}),  # a convolutional stem before the patches
    ("vitamin_small_224", 64, 16, 0, {}),
    ("vit_base_mci_224", 64, 16, 1, {"depth": 1}),
    ("tnt_s_legacy_patch16_224", 224, 16, 1, {"depth": 1}),
    ("naflexvit_base_patch16_gap", 64, 16, 0, {"depth": 1, "embed_dim": 48, "num_heads": 1}),
    ("mvitv2_tiny", 64, 32, 0, {}),
]


@pytest.mark.parametrize(
    ("name", "window", "patch", "class_tokens", "options"),
    VITS,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tokens_of_vits_with_other_stems(
    built: Build, name: str, window: int, patch: int, class_tokens: int, options: dict[str, Any]
) -> None:
    tower, _ = built(name, (), window, **options)
    assert (tower.patch, tower.class_tokens) == (patch, class_tokens)
    grid(tower, window)


@pytest.mark.parametrize(
    ("name", "strides", "window", "message"),
    [
        ("inception_v3", (8, 16), 64, r"the feature map at stride 8 .* \(288, 5, 5\); expected \(288, 8, 8\)"),
        ("levit_128s", (16,), 128, "128 and model.tower.strides.*does not run.*own window size is 224 pixels"),
        ("visformer_tiny", (8, 16), 64, "visformer_tiny.*does not run"),
    ],
)
def test_towers_off_the_grid_are_refused_at_once(
    built: Build, name: str, strides: tuple[int, ...], window: int, message: str
) -> None:
    """Not at the first image of a training, and by a sentence with the model and the window."""
    with pytest.raises(OsmError, match=message) as error:
        built(name, strides, window)
    assert name in str(error.value) and f"--sliding_window_size {window}" in str(error.value)


class Odd(RandomTower):
    """Gives a token too many."""

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        prefix, patches = super().forward(windows_W3ww)
        return prefix, torch.cat([patches, patches[:, :1]], 1)


class Unsaid(RandomTower):
    """Gives a class token that it does not promise."""

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        self.class_tokens = 1
        found = super().forward(windows_W3ww)
        self.class_tokens = 0
        return found


def test_a_tower_of_ones_own_is_tried_as_well(tmp_path: Path) -> None:
    model, _ = build(from_dict(ModelConfig, tiny_model_section(tmp_path), "model"))
    with pytest.raises(OsmError, match=r"windows of 28: the patch tokens have shape \(1, 5, 32\), but .* \(1, 4, 32\)"):
        OmniScientModel(Odd(14, 32, True, 0), model.bridge, model.llm, model.config)
    with pytest.raises(OsmError, match=r"class tokens have shape \(1, 1, 32\), but .* imply \(1, 0, 32\)"):
        OmniScientModel(Unsaid(14, 32, True, 0), model.bridge, model.llm, model.config)


@pytest.mark.parametrize(("name", "strides"), [("test_vit", ()), ("resnet18", (8, 16))])
def test_trying_a_tower_leaves_the_random_state(built: Build, name: str, strides: tuple[int, ...]) -> None:
    """A bridge's start follows torch's seed and what timm draws, as it did before towers were tried."""
    tower, _ = built(name, strides, 64)  # the weights' file is there from here on
    config = TimmTowerConfig(name=name, strides=strides, source="folder")
    torch.manual_seed(3)
    build_tower(ModelConfig("", 64, 64, 64, tower=config))
    found = torch.rand(4)
    torch.manual_seed(3)
    if strides:
        timm.create_model(name, features_only=True)
        timm.create_model(name, features_only=True, out_indices=[2, 3])
    else:
        timm.create_model(name, num_classes=0, img_size=64)
    assert torch.equal(found, torch.rand(4))
    assert not tower.training and 64 in tower.tried


def test_a_large_tower_is_tried_without_computing(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device; its own weights stay where they are."""
    seen = set()
    monkeypatch.setattr("osm.models.towers.tower._LARGE", 0)
    hook = nn.modules.module.register_module_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].device.type))
    try:
        tower, _ = built("vit_wee_patch16_reg1_gap_256", (), 64, depth=1)
    finally:
        hook.remove()
    assert seen == {"meta"} and {p.device.type for p in tower.parameters()} == {"cpu"}
    grid(tower, 64)


# -- mean and std ------------------------------------------------------------------------------------------------------

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5,) * 3, (0.5,) * 3)


def tower_of(folder: Path, **changes: Any) -> Tower:
    tower = TimmTowerConfig(**{"name": "test_vit", "weights": str(folder), **changes})
    return build_tower(ModelConfig("", 64, 64, 64, tower=tower))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As timm's save_for_hf writes one: both kinds of files, and a config."""
    path = tmp_path_factory.mktemp("test_vit")
    timm.models.save_for_hf(timm.create_model("test_vit"), path, safe_serialization="both")
    assert {"config.json", "model.safetensors", "pytorch_model.bin"} <= {file.name for file in path.iterdir()}
    return path


def rewrite(folder: Path, to: Path, mean: Any, std: Any, flat: bool = False) -> Path:
    to.mkdir()
    (to / "model.safetensors").symlink_to(folder / "model.safetensors")
    document = json.loads((folder / "config.json").read_text())
    config = document if flat else document["pretrained_cfg"]
    if flat:
        del document["pretrained_cfg"]
    config |= {"mean": mean, "std": std}
    (to / "config.json").write_text(json.dumps(document))
    return to


@pytest.mark.parametrize("flat", [False, True])
def test_a_folders_config_gives_mean_and_std(folder: Path, tmp_path: Path, flat: bool) -> None:
    assert (tower_of(folder).mean, tower_of(folder).std) == HALVES
    tower = tower_of(rewrite(folder, tmp_path / "other", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], flat))
    assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / "other" / "config.json").write_text("{}")
    assert tower_of(tmp_path / "other").mean == HALVES[0]


def test_a_config_beside_a_single_file_counts_for_its_own_model(folder: Path, tmp_path: Path) -> None:
    other = rewrite(folder, tmp_path / "other", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert tower_of(other / "model.safetensors").mean == (0.1, 0.2, 0.3)
    document = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**document, "architecture": "resnet18"}))
    assert tower_of(other / "model.safetensors").mean == HALVES[0]


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.1, 0.2], [0.4, 0.5, 0.6], r"pretrained_cfg.mean is \[0.1, 0.2\]; expected three numbers"),
        (
            [0.1, 0.2, 0.3],
            [0.4, 0, 0.6],
            r"pretrained_cfg.std is \[0.4, 0, 0.6\]; expected three numbers greater than 0",
        ),
        ([0.1, "x", 0.3], [0.4, 1, 0.6], "pretrained_cfg.mean"),
    ],
)
def test_a_config_that_cannot_be_is_refused(folder: Path, tmp_path: Path, mean: Any, std: Any, message: str) -> None:
    with pytest.raises(OsmError, match=message):
        tower_of(rewrite(folder, tmp_path / "other", mean, std))


@pytest.mark.parametrize("config", [True, False])
def test_weights_of_the_hub_bring_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch, config: bool) -> None:
    """DINO's ViT is fed ImageNet's mean and std; the model's default tag is fed 0.5. With or without a config.json."""
    asked: list[str] = []

    def download(repository: str, name: str, **_: Any) -> str:
        asked.append(repository)
        if name == "config.json" and not config:
            raise FileNotFoundError(name)
        return str(rewritten / name)

    rewritten = rewrite(folder, folder.parent / f"hub_{config}", *map(list, IMAGENET))
    for module in ("osm.models.weights", "osm.models.towers.timm_tower"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    monkeypatch.setattr(timm_tower, "timm_tower", lambda *_: RandomTower(16, 8, True, 0))
    name, weights = "vit_base_patch16_224", "timm/vit_base_patch16_224.dino"
    tower = tower_of(folder, name=name, weights=weights, source="hub")
    assert (tower.mean, tower.std) == IMAGENET and set(asked) == {weights}
