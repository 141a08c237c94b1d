"""Configs that ask for more than the machine or their weights hold, and weights that are nan: refused at once."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import seconds
from tiny import tiny_llm, tiny_model_section

import osm
from osm.config import from_dict
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.factory import build, build_tower
from osm.models.llm import load_llm
from osm.models.model_config import LlmConfig, ModelConfig
from osm.models.osm import OmniScientModel
from osm.models.sizes import machine_memory
from osm.models.towers.timm_tower import TimmTowerConfig
from osm.models.weights import check_finite
from osm.sharing.export_cli import export_main, import_main

EXTRA = 300 << 10  # KiB of memory that a refusal may take


@pytest.fixture
def cheaply() -> Iterator[None]:
    """What runs takes no more than 30 s and 300 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with seconds(30):
        yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < EXTRA


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each variant, as `save_pretrained` leaves it."""
    found = {}
    for variant in ("maskqformer", "flamingo"):
        root = tmp_path_factory.mktemp(variant)
        made, _ = build(from_dict(ModelConfig, tiny_model_section(root, variant=variant), "model"))
        made.save_pretrained(root / "model")
        found[variant] = root / "model"
    return found


SIZES = {
    "width": ("maskqformer", "qformer", {"width": 65536, "heads": 1}),
    "layers": ("maskqformer", "qformer", {"layers": 65536}),
    "many wide layers": ("maskqformer", "qformer", {"layers": 200, "mlp_width": 60000}),
    "queries": ("maskqformer", "qformer", {"mask_queries": 65536}),
    "instruction": ("maskqformer", "qformer", {"instruction_dim": 65536}),
    "resampler": ("flamingo", "flamingo", {"width": 65536, "heads": 1}),
    "resampler's layers": ("flamingo", "flamingo", {"layers": 65536}),
    "gated": ("flamingo", "flamingo", {"gated_width": 65536, "gated_mlp_width": 65536, "gated_heads": 1}),
    "windows": ("maskqformer", "", {"input_size": 28000}),
    "tower": ("maskqformer", "tower", {"patch": 28, "width": 65536}),
    "a tower of gigabytes": ("maskqformer", "tower", {"patch": 65536, "width": 65536}),
}


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("form", ["folder", ".pt"])
def test_a_config_larger_than_its_checkpoint_is_refused_before_it_is_built(
    saved: dict[str, Path], tmp_path: Path, case: str, form: str, cheaply: None
) -> None:
    variant, section, changes = SIZES[case]
    document, state = checkpoint.read_folder(saved[variant])
    document["model"] |= {section: {**document["model"][section], **changes}} if section else changes
    path = tmp_path / "model"
    if form == "folder":
        shutil.copytree(saved[variant], path)
        (path / "config.json").write_text(json.dumps(document))
    else:
        path = tmp_path / "model.pt"
        torch.save({"model_state_dict": state, "config": document}, path)
    with pytest.raises(OsmError, match=str(path)) as error:
        osm.load_model(path)
    assert len(str(error.value)) < 20_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"qformer": {"width": 65536, "heads": 1, "layers": 500}},
            r"model.bridge \(maskqformer\): .* billion",
        ),
        (
            {"tower": {"kind": "random", "patch": 8192, "width": 65536}},
            r"model.tower \(random\): .* GB in",
        ),
        (
            {"input_size": 65536, "tower": {"kind": "random", "patch": 1, "width": 60000}},
            r"model.input_size and model.tower: .* this machine has",
        ),
    ],
)
def test_a_config_larger_than_the_machine_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, cheaply: None
) -> None:
    config = from_dict(ModelConfig, tiny_model_section(tmp_path, **changes), "model")
    with pytest.raises(OsmError, match=message):
        build(config)


@pytest.mark.parametrize("variant", ["maskqformer", "flamingo"])
def test_parameters_are_counted_from_below(saved: dict[str, Path], variant: str) -> None:
    document, state = checkpoint.read_folder(saved[variant])
    config = checkpoint.model_config(document, "config")
    there = sum(value.numel() for value in state.values())
    assert 0.1 * there < config.bridge.least_parameters() <= there
    published = from_dict(ModelConfig, {"base_model_name": "x"}, "model").bridge
    assert 100e6 < published.least_parameters() < 190e6 and machine_memory() > 1 << 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 65536},
            "a model with these layer sizes has at least .* but the weight files in this folder contain only",
        ),
        ({"intermediate_size": 1 << 20}, "a model with these layer sizes has at least"),
        ({"vocab_size": 1 << 24}, "a model with these layer sizes has at least"),
        ({"vocab_size": 1 << 40}, "vocab_size 1099511627776 exceeds"),
        ({"num_hidden_layers": 65536}, "num_hidden_layers 65536 exceeds the maximum of 1024"),
    ],
)
def test_an_llm_larger_than_its_weights_is_refused_before_it_is_built(
    tmp_path: Path, changes: dict[str, int], message: str, cheaply: None
) -> None:
    tiny_llm(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(OsmError, match=f"{path}: {message}"):
        load_llm(LlmConfig(str(tmp_path), "folder"))


@pytest.mark.parametrize("options", [{"depth": 65536}, {"embed_dim": 60000}, {"depth": 600, "embed_dim": 6000}])
def test_a_tower_larger_than_its_weights_is_refused_before_it_is_built(
    tmp_path: Path, options: dict[str, int], cheaply: None
) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"cls_token": torch.zeros(1, 1, 64), "norm.weight": torch.ones(64)}, path)
    tower = TimmTowerConfig("test_vit", "folder", str(path), options)
    section = {**tiny_model_section(tmp_path), "tower": {"kind": "random"}}
    config = from_dict(ModelConfig, section, "model")
    object.__setattr__(config, "tower", tower)
    with pytest.raises(
        OsmError, match="model.tower.options .* does not match the weights of .*vit.pth', which have .* 2 entries"
    ):
        build_tower(config)


# Values that are no numbers.


def spoil(state: dict[str, torch.Tensor], value: float, *names: str) -> dict[str, torch.Tensor]:
    spoilt = {name: tensor.clone() for name, tensor in state.items()}
    for name in names:
        spoilt[name].view(-1)[-1] = value
    return spoilt


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", ["folder", ".pt"])
def test_weights_that_are_not_finite_are_refused_by_name(
    saved: dict[str, Path], tmp_path: Path, value: float, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document, state = checkpoint.read_folder(saved["maskqformer"])
    spoilt = spoil(state, value, "mask_query", "mode_query.any")
    path = tmp_path / ("model" if form == "folder" else "model.pt")
    if form == "folder":
        checkpoint.write_folder(path, document, spoilt)
    else:
        torch.save({"model_state_dict": spoilt, "config": document}, path)
    message = rf"{path}.*: mask_query contains NaN or infinite values \(2 of {len(state)} entries\)"
    with pytest.raises(OsmError, match=message) as error:
        osm.load_model(path)
    assert "\n" not in str(error.value)
    assert export_main([str(path), str(tmp_path / "out.pt")]) == 2
    assert "mask_query contains NaN or infinite values" in capsys.readouterr().err
    model, _ = build(checkpoint.model_config(document, "config"))
    before = model.bridge.mask_query.clone()
    with pytest.raises(OsmError, match=f"--start_from {path}: mask_query contains NaN or infinite values"):
        checkpoint.start_from(model, path)
    assert torch.equal(model.bridge.mask_query, before) and not (tmp_path / "out.pt").exists()


def test_a_published_file_that_is_not_finite_is_not_imported(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, state = checkpoint.read_folder(saved["maskqformer"])
    zoo, config = tmp_path / "zoo.pt", tmp_path / "config.yaml"
    torch.save({"model_state_dict": {name: torch.full_like(value, float("nan")) for name, value in state.items()}}, zoo)
    config.write_text(json.dumps({"model": document["model"]}))
    assert import_main([str(zoo), str(tmp_path / "out"), "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert f"{zoo}" in said and f"NaN or infinite values ({len(state)} of {len(state)} entries)" in said
    assert not (tmp_path / "out").exists()


def llm_folder(folder: Path) -> Callable[[], Any]:
    llm = tiny_llm(folder)
    with torch.no_grad():
        llm.model.norm.weight[3] = float("nan")
    llm.save_pretrained(folder)
    return lambda: load_llm(LlmConfig(str(folder), "folder"))


def timm_file(folder: Path) -> Callable[[], Any]:
    folder.mkdir()
    path = folder / "vit.pth"
    torch.save({"norm.weight": torch.tensor([1.0, float("inf")])}, path)
    config = from_dict(ModelConfig, tiny_model_section(folder.parent), "model")
    object.__setattr__(config, "tower", TimmTowerConfig("test_vit", "folder", str(path)))
    return lambda: build_tower(config)


@pytest.mark.parametrize("make", [llm_folder, timm_file])
def test_frozen_weights_that_are_not_finite_are_refused(tmp_path: Path, make: Any) -> None:
    load = make(tmp_path / "frozen")
    with pytest.raises(OsmError, match=f"{tmp_path / 'frozen'}.*norm.weight contains NaN or infinite values"):
        load()


def test_every_kind_of_tensor_is_looked_at() -> None:
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2)
    good: dict[str, Any] = {str(kind): torch.tensor([1.0, -2.0]).to(kind) for kind in types}
    good |= {"none": torch.ones(0), "whole": torch.ones(2, dtype=torch.int8), "meta": torch.ones(2, device="meta")}
    good |= {
        "huge": torch.tensor([3e38, -3e38]),
        "half": torch.tensor([65504.0] * 9).half(),
        "view": torch.ones(4, 4).T,
    }
    check_finite(good.items(), "x")
    for kind in types:
        with pytest.raises(OsmError, match=f"x: {kind} contains NaN or infinite values"):
            check_finite({**good, str(kind): torch.tensor([1.0, float("nan")]).to(kind)}.items(), "x")


def test_a_model_that_is_right_still_loads(saved: dict[str, Path]) -> None:
    for folder in saved.values():
        assert isinstance(osm.load_model(folder)[0], OmniScientModel)
