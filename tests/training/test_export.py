"""`osm export` and `osm import`: models from one form of file into the other, and sources that are refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_instructblip_folder, tiny_model_section, tiny_model_yaml
from tiny_run import Workshop, losses
from torch import Tensor

from osm.cli import main
from osm.config import from_dict
from osm.datasets.table import PUBLISHED_MODES
from osm.models import checkpoint
from osm.models.factory import base_config, build, load_folder
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel
from osm.training import export
from osm.training.tracking import read_log

SIZES = {"input_size": 56, "sliding_window_size": 28, "sliding_window_stride": 28}
SIZE_FLAGS = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]


def randomised(model: OmniScientModel) -> OmniScientModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.trainable_state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OmniScientModel:
    section = tiny_model_section(tmp_path_factory.mktemp("model"), modes=["any", "coco", "my-toys"])
    return randomised(build(from_dict(ModelConfig, section, "model"))[0])


@pytest.fixture
def source(model: OmniScientModel, tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of two epochs, as train.py writes them, and `final`."""
    state = model.trainable_state_dict()
    for epoch in (9, 10):
        document = {
            "epoch": epoch,
            "model_state_dict": {name: value + epoch for name, value in state.items()},
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.5}]},
            "lr_scheduler_state_dict": {"last_epoch": 4},
            "config": checkpoint.config_document(model),
            "progress": {"step": 4},
        }
        path = tmp_path / "run" / f"checkpoint_{epoch}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save(document, path)
    return path


def ran(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*words: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert "error: " in error and "Traceback" not in error  # after the bars of loading weights
        return error[error.index("error: ") :]

    return run


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- export ------------------------------------------------------------------------------------------------------------


def test_from_form_to_form_nothing_changes(model: OmniScientModel, source: Path, tmp_path: Path, capsys: Any) -> None:
    ran("export", source, tmp_path / "first.pt")
    ran("export", tmp_path / "first.pt", tmp_path / "deep" / "folder")
    ran("export", tmp_path / "deep" / "folder", tmp_path / "second.pt")
    ran("export", tmp_path / "second.pt", tmp_path / "again")
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()
    assert content(tmp_path / "deep" / "folder") == content(tmp_path / "again")
    assert set(content(tmp_path / "again")) == set(export.FOLDER_FILES)
    assert "modes any, coco, my-toys" in capsys.readouterr().out

    document = torch.load(tmp_path / "first.pt", weights_only=True)
    assert set(document) == {"model_state_dict", "config"}
    given = torch.load(source, weights_only=True)["model_state_dict"]
    assert_equal(document["model_state_dict"], given)
    assert list(document["model_state_dict"]) == list(model.trainable_state_dict())
    assert document["config"] == json.loads(json.dumps(checkpoint.config_document(model)))

    loaded = load_folder(tmp_path / "again")[0]
    assert_equal(loaded.trainable_state_dict(), given)
    assert loaded.config == model.config
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").read_bytes() == (tmp_path / "again" / "config.json").read_bytes()
    assert list(load_file(tmp_path / "saved" / "model.safetensors")) == list(
        load_file(tmp_path / "again" / "model.safetensors")
    )


def test_the_frozen_parts_are_not_needed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = torch.load(source, weights_only=True)
    document["config"]["model"]["llm"]["name"] = str(tmp_path / "gone")
    document["config"]["model"]["base_model_name"] = "nobody/nothing"
    torch.save(document, source)
    ran("export", source, tmp_path / "out")
    ran("export", tmp_path / "out", tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt", weights_only=True)["config"]["model"]["base_model_name"] == "nobody/nothing"


def test_a_runs_folder_stands_for_its_newest_checkpoint(source: Path, tmp_path: Path, refused: Any) -> None:
    ran("export", source.parent, tmp_path / "of_run.pt")
    ran("export", source, tmp_path / "of_file.pt")
    assert source.name == "checkpoint_10.pt"
    assert (tmp_path / "of_run.pt").read_bytes() == (tmp_path / "of_file.pt").read_bytes()
    for path in source.parent.iterdir():
        path.unlink()
    assert "contains no model: neither a checkpoint" in refused("export", source.parent, tmp_path / "x")
    ran("export", tmp_path / "of_run.pt", source.parent / "final")
    assert f"did you mean {source.parent / 'final'}?" in refused("export", source.parent, tmp_path / "x")


def test_the_optimizer_comes_along_where_it_is_asked_for(source: Path, tmp_path: Path, refused: Any) -> None:
    ran("export", source, tmp_path / "all.pt", "--with_optimizer")
    given, found = (torch.load(path, weights_only=True) for path in (source, tmp_path / "all.pt"))
    assert set(found) == set(given)
    for name in ("epoch", "lr_scheduler_state_dict", "progress"):
        assert found[name] == given[name]
    assert torch.equal(found["optimizer_state_dict"]["state"][0]["exp_avg"], torch.ones(3))

    assert "cannot store the optimizer state; choose a name that ends in .pt" in refused(
        "export", source, tmp_path / "folder", "--with_optimizer"
    )
    ran("export", source, tmp_path / "folder")
    assert "folder has no optimizer state (key optimizer_state_dict)" in refused(
        "export", tmp_path / "folder", tmp_path / "x.pt", "--with_optimizer"
    )
    assert not (tmp_path / "x.pt").exists()


def test_half_the_size(source: Path, tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran("export", source, tmp_path / "whole")
    ran("export", source, tmp_path / "shipped" / "little", "--half")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "shipped/little")]
    assert sizes[1] < 0.6 * sizes[0]
    rounded = load_folder(tmp_path / "shipped" / "little")[0].trainable_state_dict()
    given = torch.load(source, weights_only=True)["model_state_dict"]
    for name, value in given.items():
        assert rounded[name].dtype == value.dtype == torch.float32
        torch.testing.assert_close(rounded[name], value, rtol=2**-11, atol=2**-24)
    both = ("--half", "--with_optimizer")
    assert "--half cannot be combined with --with_optimizer" in refused("export", source, tmp_path / "x.pt", *both)
    document = torch.load(source, weights_only=True)
    document["model_state_dict"]["context_query"][0, 0, 0] = 1e6
    torch.save(document, source)
    assert "float16 cannot represent some values of the tensor context_query" in refused(
        "export", source, tmp_path / "x", "--half"
    )
    # What lies in the package's folder of weights is found by its name, unless there is a folder of that name.
    monkeypatch.setattr("osm.shipped.shipped_folder", lambda: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    assert_equal(load_folder("little")[0].trainable_state_dict(), rounded)
    ran("export", tmp_path / "whole", tmp_path / "little")
    assert_equal(load_folder("little")[0].trainable_state_dict(), given)


def test_training_goes_on_from_an_export(workshop: Workshop, tmp_path: Path) -> None:
    whole = workshop.train(tmp_path / "whole", "--num_epochs", "2")
    ran("export", tmp_path / "whole" / "checkpoint_0.pt", tmp_path / "other" / "checkpoint_0.pt", "--with_optimizer")
    workshop.train(tmp_path / "other", "--num_epochs", "2")
    assert losses(read_log(tmp_path / "other")) == losses(whole)[len(whole) // 2 :]
    ran("export", tmp_path / "other", tmp_path / "exported")
    assert content(tmp_path / "exported") == content(tmp_path / "whole" / "final")


def test_names_of_ddp_and_views_come_out_plain(source: Path, tmp_path: Path) -> None:
    document = torch.load(source, weights_only=True)
    state = document["model_state_dict"]
    ran("export", source, tmp_path / "plain.pt")
    large = torch.zeros(100, *state["mask_query"].shape)
    large[3] = state["mask_query"]
    document["model_state_dict"] = {f"module.{name}": value for name, value in state.items()}
    document["model_state_dict"]["module.mask_query"] = large[3]
    document["model_state_dict"]["module.context_query"] = state["context_query"][0]  # a leading axis of 1 less
    torch.save(document, source)
    ran("export", source, tmp_path / "named.pt")
    assert (tmp_path / "named.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()


def test_what_is_there_is_replaced_only_by_force(source: Path, tmp_path: Path, refused: Any) -> None:
    file, folder = tmp_path / "out.pt", tmp_path / "out"
    for out in (file, folder):
        ran("export", source.with_name("checkpoint_9.pt"), out)
    (folder / "notes.txt").write_text("mine")
    before, model_before = file.read_bytes(), (folder / "model.safetensors").read_bytes()
    for out in (file, folder):
        assert refused("export", source, out).endswith(
            f"{out} already exists: choose a different name, or replace it with --force\n"
        )
    assert file.read_bytes() == before and (folder / "model.safetensors").read_bytes() == model_before
    for out in (file, folder):
        ran("export", source, out, "--force")
    assert file.read_bytes() != before and (folder / "model.safetensors").read_bytes() != model_before
    assert sorted(content(folder)) == ["config.json", "model.safetensors", "notes.txt"]

    (tmp_path / "empty").mkdir()
    ran("export", source, tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    assert "contains no model, so it is not replaced" in refused("export", source, tmp_path / "photos", "--force")
    assert "contains no model, so it is not replaced" in refused("export", source, tmp_path / "photos/a.jpg", "--force")
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder, but a name ending in .pt" in refused("export", source, tmp_path / "folder.pt", "--force")
    assert "cannot be written" in refused("export", source, tmp_path / "photos" / "a.jpg" / "out")


@pytest.mark.parametrize("name", ["out.pt", "out"])
def test_a_write_that_fails_leaves_what_was_there(
    source: Path, tmp_path: Path, name: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(checkpoint, "save_file", full)
    assert "out" in (said := refused("export", source, tmp_path / name)) and "No space left" in said
    assert not (tmp_path / name).exists() and not (tmp_path / f"{name}.tmp").is_file()
    monkeypatch.undo()
    ran("export", source, tmp_path / name)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("command", ["export", "import"])
def test_files_that_are_no_checkpoint_are_refused(command: str, tmp_path: Path, refused: Any) -> None:
    out = tmp_path / "out"
    assert "nowhere.pt: no such file or folder" in refused(command, tmp_path / "nowhere.pt", out)
    (tmp_path / "text.pt").write_text("hello")
    assert "checkpoint" in refused(command, tmp_path / "text.pt", out)
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.pt")
    assert "has no 'model_state_dict'" in refused(command, tmp_path / "other.pt", out)
    torch.save({"model_state_dict": {}, "epoch": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    assert "holds more than tensors and plain values" in refused(command, tmp_path / "bomb.pt", out)
    assert not (tmp_path / "ran").exists() and not out.exists()


def less(document: dict[str, Any]) -> None:
    del document["model_state_dict"]["mode_query.coco"]


def more(document: dict[str, Any]) -> None:
    document["model_state_dict"]["llm.lm_head.weight"] = torch.ones(2, 2)


def reshaped(document: dict[str, Any]) -> None:
    document["model_state_dict"]["mask_query"] = torch.ones(1, 5, 24)


def foreign(document: dict[str, Any]) -> None:
    document["model_state_dict"] = {"conv.weight": torch.ones(2)}


def no_config(document: dict[str, Any]) -> None:
    document["config"] = {"format": 7}


def odd_field(document: dict[str, Any]) -> None:
    document["config"]["model"]["colour"] = "red"


def odd_mode(document: dict[str, Any]) -> None:
    document["config"]["model"]["modes"] = ["any", "a.b"]


def not_plain(document: dict[str, Any]) -> None:
    document["config"]["frozen"]["tower"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (less, "missing: mode_query.coco"),
        (more, "unexpected: llm.lm_head.weight"),
        (reshaped, "shape of mask_query: (1, 5, 24) in the file, (1, 4, 24) in the model"),
        (foreign, "has no entry window_pos_embed with 3 dimensions"),
        (no_config, "not an OmniScientModel config"),
        (odd_field, "unknown field 'colour'"),
        (odd_mode, "the sizes or modes in its config are invalid"),
        (not_plain, "the config contains values that JSON does not support"),
    ],
)
def test_what_does_not_hang_together_is_refused(
    source: Path, tmp_path: Path, change: Any, message: str, refused: Any
) -> None:
    document = torch.load(source, weights_only=True)
    change(document)
    torch.save(document, source)
    said = refused("export", source, tmp_path / "out")
    assert message in said and str(source) in said and not (tmp_path / "out").exists()


# -- import ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_instructblip_folder(folder)
    return folder


@pytest.fixture(scope="module")
def zoo(base: Path) -> Path:
    """What the published code writes: DDP's names, an old library's buffer, no config."""
    model = randomised(build(base_config(str(base), **SIZES))[0])
    state = {f"module.{name}": value for name, value in model.trainable_state_dict().items()}
    state["module.base_model.qformer.embeddings.position_ids"] = torch.arange(40)[None]
    path = base.parent / "osm_final.pt"
    torch.save({"epoch": 9, "model_state_dict": state, "optimizer_state_dict": {}}, path)
    return path


def plain(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, weights_only=True)["model_state_dict"]
    return {key.removeprefix("module."): value for key, value in state.items() if "position_ids" not in key}


def test_a_published_file_becomes_ours(base: Path, zoo: Path, tmp_path: Path) -> None:
    flags = ["--config", "osm", "--base_model_name", str(base), *SIZE_FLAGS]
    ran("import", zoo, tmp_path / "ours", *flags, "--llm_channel", "40", "--backbone_output_stride", "14")
    loaded = load_folder(tmp_path / "ours")[0]
    assert_equal(loaded.trainable_state_dict(), plain(zoo))
    assert loaded.config.modes == PUBLISHED_MODES and loaded.config.mask_to_grid == "nearest"
    ran("import", zoo, tmp_path / "ours.pt", *flags)
    ran("export", tmp_path / "ours", tmp_path / "published.pt")
    assert_equal(plain(tmp_path / "published.pt"), plain(zoo))
    assert_equal(plain(tmp_path / "ours.pt"), plain(zoo))
    configs = [torch.load(tmp_path / name, weights_only=True)["config"] for name in ("ours.pt", "published.pt")]
    assert json.dumps(configs[0]) == json.dumps(configs[1])


def test_modes_beyond_the_published_are_kept(zoo: Path, base: Path, tmp_path: Path) -> None:
    document = torch.load(zoo, weights_only=True)
    for table, width in (("mode_query", 40), ("qformer_mode_query", 24)):
        document["model_state_dict"][f"module.{table}.toys"] = torch.full((1, 1, width), 2.0)
    torch.save(document, tmp_path / "more.pt")
    ran("import", tmp_path / "more.pt", tmp_path / "ours", "--base_model_name", base, *SIZE_FLAGS)
    assert load_folder(tmp_path / "ours")[0].config.modes == (*PUBLISHED_MODES, "toys")


def test_another_base_or_other_sizes_are_refused(zoo: Path, base: Path, tmp_path: Path, refused: Any) -> None:
    out = tmp_path / "ours"
    other = refused("import", zoo, out, "--config", tiny_model_yaml(tmp_path))
    assert "missing: " in other and "does not fit this model" in other
    assert f"the weights in this file do not fit --config {tmp_path / 'tiny.yaml'}" in other
    flags = ["--base_model_name", base, *SIZE_FLAGS]
    smaller = refused("import", zoo, out, *flags, "--input_size", "28")
    assert "shape of window_pos_embed: (1, 20, 32) in the file, (1, 5, 32) in the model" in smaller
    assert "--input_size 28" in smaller
    assert "--llm_channel is 4096, but the base model" in refused("import", zoo, out, *flags, "--llm_channel", "4096")
    assert "nowhere" in refused("import", zoo, out, *SIZE_FLAGS, "--base_model_name", tmp_path / "nowhere")
    document = torch.load(zoo, weights_only=True)
    del document["model_state_dict"]["module.mode_query.lvis"]
    torch.save(document, tmp_path / "less.pt")
    assert "missing: mode_query.lvis" in refused("import", tmp_path / "less.pt", out, *flags)
    assert not out.exists()


def test_each_command_names_the_other(source: Path, zoo: Path, tmp_path: Path, refused: Any) -> None:
    out = tmp_path / "out"
    assert f"osm export {source} {out}" in refused("import", source, out)
    assert "use osm export for folders" in refused("import", source.parent, out)
    assert f"osm import {zoo} {out} --config" in refused("export", zoo, out)
    shutil.copy(zoo, out.with_suffix(".pt"))
    assert "replace it with --force" in refused("import", zoo, out.with_suffix(".pt"))
