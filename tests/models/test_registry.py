"""Towers and bridges of other packages: found by name, trained and named with, without a change of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_model_section
from tiny_run import Workshop, finish, start
from torch import Tensor, nn

from osm.config import as_dict, from_dict
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.bridges import BRIDGES, register_bridge
from osm.models.factory import build, build_tower
from osm.models.model_config import ModelConfig, TowerConfig, load_model_config, stored_model_config
from osm.models.towers import TOWERS, register_tower
from osm.models.towers.tower import RandomTower, RandomTowerConfig, Tower
from osm.registry import Registry

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = """
import sys, numpy, osm
model, processor, _ = osm.load_model(sys.argv[1])
recognizer = osm.Recognizer(model, processor)
recognizer.set_image(numpy.full((48, 64, 3), 90, numpy.uint8))
mask = numpy.zeros((48, 64), bool); mask[5:30, 5:40] = True
print("kinds", model.config.tower.kind, model.config.bridge.kind, len(recognizer.name([mask])))
"""


class PlainTower(RandomTower):
    """A tower for `module:Class`."""


class WrongTower(RandomTower):
    """A tower whose tokens are not as wide as it says."""

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        prefix, patches = super().forward(windows_W3ww)
        return prefix, patches[..., :-1]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOWERS, "_registered", {})


@pytest.mark.parametrize(
    ("example", "section"),
    [
        ("tower", {"tower": {"kind": "colour_statistics", "width": 24}}),
        ("bridge", {"bridge": {"kind": "mask_mean", "width": 16}}),
    ],
)
def test_an_example_is_installed_trained_and_named_with(
    workshop: Workshop, tmp_path: Path, example: str, section: dict[str, Any]
) -> None:
    installed = tmp_path / "installed"
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--target", str(installed)]
    copy = tmp_path / "source"  # pip builds in the folder
    copy.mkdir()
    for file in (EXAMPLES / example).glob("*.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(copy)], check=True)
    model = tiny_model_section(workshop.root)
    if "bridge" in section:
        del model["qformer"]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {**model, **section}}))
    path = f"{installed}:{EXAMPLES.parent}"
    arguments = [*workshop.arguments(tmp_path / "run"), "--config", str(tmp_path / "model.yaml")]
    finish(start(arguments, PYTHONPATH=path))
    stored = json.loads((tmp_path / "run" / "final" / "config.json").read_text())["model"][example]
    assert stored.items() >= section[example].items()
    script = tmp_path / "names.py"
    script.write_text(NAMES)
    said = finish(start([str(tmp_path / "run" / "final")], script=script, PYTHONPATH=path))
    kinds = {"tower": "random", "bridge": "maskqformer"} | {example: section[example]["kind"]}
    assert f"kinds {kinds['tower']} {kinds['bridge']} 1" in said


def test_names_and_where_they_come_from(towers: None) -> None:
    @register_tower("mine")
    class Mine(RandomTower):
        pass

    assert TOWERS.get("mine") is Mine and TOWERS.get(f"{__name__}:PlainTower") is PlainTower
    assert "mine" in TOWERS and TOWERS.origin("mine") == "registered" and TOWERS.origin("timm") == "built in"
    assert {"instructblip", "open_clip", "timm", "random", "mine"} <= set(TOWERS.names())
    assert BRIDGES.builtin == ("maskqformer", "flamingo", "pooled")
    config = from_dict(TowerConfig, {"kind": "mine", "patch": 7}, "model.tower")
    assert isinstance(config, RandomTowerConfig) and (config.kind, config.patch) == ("mine", 7)


def test_mistakes_are_named(towers: None) -> None:
    with pytest.raises(OsmError, match=r"tower 'timn': expected one of .*timm.*, or module:Class"):
        TOWERS.get("timn")
    with pytest.raises(OsmError, match=r"expected a subclass of osm.models.towers.tower.Tower, found .*OrderedDict"):
        TOWERS.get("collections:OrderedDict")
    with pytest.raises(OsmError, match="no_such_module:Tower cannot be imported"):
        TOWERS.get("no_such_module:Tower")
    with pytest.raises(OsmError, match="another tower already has this name"):
        register_tower("timm")(PlainTower)
    with pytest.raises(OsmError, match="expected a subclass of osm.models.bridges.bridge.Bridge"):
        register_bridge("linear")(nn.Linear)
    with pytest.raises(OsmError, match="expected a letter"):
        register_tower("a:b")
    empty: Registry[Any] = Registry("tower", "osm.nothing", {}, "osm.models.towers.tower:Tower")
    assert empty.names() == []


def test_a_tower_with_wrong_tokens_is_refused(tmp_path: Path, towers: None) -> None:
    register_tower("wrong")(WrongTower)
    section = {**tiny_model_section(tmp_path), "tower": {"kind": "wrong", "width": 32}}
    with pytest.raises(OsmError, match=r"model.tower 'wrong' .*shape \(1, 4, 31\), but .* imply \(1, 4, 32\)"):
        build_tower(from_dict(ModelConfig, section, "model"))


def test_a_checkpoint_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {**tiny_model_section(tmp_path), "tower": {"kind": f"{__name__}:PlainTower", "width": 32}}
    config = from_dict(ModelConfig, section, "model")
    assert stored_model_config(json.loads(json.dumps(as_dict(config))), "model") == config
    (tmp_path / "harmful.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for part in ("tower", "bridge"):
        stored = {**as_dict(config), part: {"kind": "harmful:Part"}}
        with pytest.raises(OsmError, match=f"config.json: model.{part}.kind 'harmful:Part': modules that a checkpoint"):
            checkpoint.model_config({"format": 1, "model": stored}, "config.json")


# Old and new keys.


@pytest.mark.usefixtures("console")
def test_old_and_new_keys_mean_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tiny_model_section(tmp_path, variant="flamingo")
    new = {key: value for key, value in old.items() if key not in ("variant", "flamingo")}
    new["bridge"] = {"kind": "flamingo", **old["flamingo"]}
    paths = [tmp_path / "old.yaml", tmp_path / "new.yaml"]
    for path, section in zip(paths, (old, new), strict=True):
        path.write_text(yaml.safe_dump({"model": section}))
    configs = [load_model_config(str(path)) for path in (*paths, paths[0])]
    assert configs[0] == configs[1] == configs[2]
    assert capsys.readouterr().err.count("variant, flamingo: these older keys are still read") == 1
    stored = as_dict(configs[1])
    assert list(stored)[:2] == ["variant", "base_model_name"] and stored["flamingo"]["width"] == 24
    assert stored_model_config(stored, "model") == configs[1]
    torch.manual_seed(0)
    first = build(configs[0])[0].bridge.state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(value, first[name]) for name, value in build(configs[1])[0].bridge.state_dict().items())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"variant": "flamingo", "bridge": {}}, r"model\.variant was replaced by model\.bridge"),
        (
            {"bridge": {"kind": "maskqformer", "roi": 3}},
            r"model\.bridge: unknown field 'roi'; the fields are kind,",
        ),
        ({"bridge": {"kind": "maskqformer", "width": 30, "heads": 4}}, r"model\.bridge\.width 30 is not a multiple of"),
        ({"bridge": {"kind": "none"}}, r"model\.bridge\.kind: bridge 'none': expected one of flamingo, maskqformer"),
        ({"bridge": {"kind": 3}}, r"model\.bridge\.kind: expected str, found 3"),
        ({"tower": {"kind": "timm", "patch": 16}}, r"model\.tower\.patch 16 has no effect with kind 'timm'"),
        (
            {"tower": {"kind": "open_clip", "strides": [8]}},
            r"model\.tower\.strides \[8\] has no effect with",
        ),
        ({"tower": {"kind": "random", "patch": 0}}, r"model\.tower\.patch 0 is not 1 to"),
    ],
)
def test_mistakes_in_the_section_of_a_part(section: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        from_dict(ModelConfig, {"base_model_name": "b", **section}, "model")


def test_unused_settings_in_an_old_checkpoint_are_ignored() -> None:
    tower = {"kind": "timm", "name": "resnet18", "strides": [8], "patch": 3, "seed": 7}
    config = stored_model_config({"base_model_name": "b", "tower": tower}, "model")
    assert as_dict(config.tower)["patch"] == 14 and as_dict(config.tower)["strides"] == (8,)
    assert issubclass(TOWERS.get("timm"), Tower)
