"""The tutorial docs/finetuning.md, run as it stands; and what `--start_from` does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATIENCE_S
from tiny_run import Workshop

import osm
from osm.errors import OsmError
from osm.models.checkpoint import start_from
from osm.models.factory import build
from osm.training.run_config import parse
from osm.training.tracking import read_log
from osm.training.train_cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "finetuning.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    assert words[0] == "osm"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = osm.create_model_and_transforms("osm_nano")  # stands for the quickstart's trained one
    model.save_pretrained(tmp_path / "runs" / "quickstart" / "run" / "final")
    (yaml_block,) = blocks("yaml")
    (tmp_path / re.match(r"# (\S+)\n", yaml_block)[1]).write_text(yaml_block)
    commands = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    commands = [line for line in commands if not line.startswith("osm finetune ")]  # tests/test_finetune.py
    assert len(commands) == 7
    said = [run(command, tmp_path) for command in commands]
    assert "Specific: Acc: " in said[5]
    losses = [record["loss"] for record in read_log(tmp_path / "runs" / "toys")]
    assert losses[-1] < losses[0]
    results = json.loads((tmp_path / "runs" / "toys" / "report" / "results.json").read_text())
    assert results["predictions"]["fine-tuned"]["toys"]["specific"]["total"] > 50
    assert "toys" in osm.load_namer(tmp_path / "runs" / "toys" / "final").modes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, Path]:
    root = tmp_path_factory.mktemp("finetuning")
    workshop = Workshop(root)
    workshop.train(root / "first")
    return workshop, root / "first"


def without_config(arguments: list[str]) -> list[str]:
    place = arguments.index("--config")
    return arguments[:place] + arguments[place + 2 :]


def test_a_folder_brings_its_own_model_config(trained: tuple[Workshop, Path], tmp_path: Path) -> None:
    workshop, first = trained
    arguments = workshop.arguments(tmp_path / "second", "--start_from", str(first / "final"), sets={"inst": (2, 12)})
    resolved = parse(without_config(arguments))
    assert resolved.model.bridge.width == 24 and {"pan", "inst"} <= set(resolved.model.modes)
    with pytest.raises(OsmError, match="--input_size cannot change the model of --start_from .*; remove the flag"):
        parse([*without_config(arguments), "--input_size", "112"])


def test_the_second_run_starts_with_the_weights_of_the_first(trained: tuple[Workshop, Path], tmp_path: Path) -> None:
    workshop, first = trained
    flags = ("--start_from", str(first / "final"), "--save_initial", "--learning_rate", "0")
    arguments = workshop.arguments(tmp_path / "second", *flags, sets={"inst": (2, 12)})
    assert main(without_config(arguments)) == 0
    before, after = (
        osm.load_model(path)[0].trainable_state_dict() for path in (first / "final", tmp_path / "second/final")
    )
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    for table in ("mode_query", "qformer_mode_query"):
        assert torch.equal(after[f"{table}.inst"], before[f"{table}.any"])
        assert not torch.equal(after[f"{table}.pan"], before[f"{table}.any"])


def test_a_pt_file_serves_too(trained: tuple[Workshop, Path]) -> None:
    workshop, first = trained
    (checkpoint,) = first.glob("checkpoint_*.pt")
    trainer = workshop.trainer(first.parent / "third", "--start_from", str(checkpoint))
    expected = osm.load_model(first / "final")[0].trainable_state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.trainable_state_dict().items())


def test_a_pt_file_brings_its_config_and_its_modes(trained: tuple[Workshop, Path], tmp_path: Path) -> None:
    workshop, first = trained
    (checkpoint,) = first.glob("checkpoint_*.pt")
    for path in (checkpoint, first / "final"):
        arguments = workshop.arguments(tmp_path / "second", "--start_from", str(path), sets={"inst": (2, 12)})
        own, named = parse(without_config(arguments)).model, parse(arguments).model
        assert own.bridge.width == named.bridge.width == 24
        assert {"pan", "inst"} <= set(own.modes) & set(named.modes)
        assert not start_from(build(named)[0], path)[1:] and "inst" in named.modes


def test_a_run_does_not_start_from_itself(trained: tuple[Workshop, Path], capsys: pytest.CaptureFixture[str]) -> None:
    workshop, first = trained
    assert main(workshop.arguments(first, "--start_from", str(first / "final"))) == 2
    assert "is inside --run_name" in capsys.readouterr().err


@pytest.mark.parametrize("frozen", [None, 3, {"wings": "abc"}])
def test_a_broken_config_is_an_error(trained: tuple[Workshop, Path], tmp_path: Path, frozen: object) -> None:
    _, first = trained
    shutil.copytree(first / "final", tmp_path / "copy")
    config = tmp_path / "copy" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "frozen": frozen}))
    with pytest.raises(OsmError, match="'frozen' may only contain hashes of tower, llm"):
        start_from(osm.load_model(first / "final")[0], tmp_path / "copy")


def test_what_does_not_fit_is_named(trained: tuple[Workshop, Path], tmp_path: Path) -> None:
    workshop, first = trained
    model, _, _ = osm.load_model(first / "final")
    state = {**model.trainable_state_dict()}
    del state["window_pos_embed"]
    torch.save({"model_state_dict": state}, tmp_path / "lacking.pt")
    with pytest.raises(OsmError, match=r"--start_from .*lacking.pt does not fit[\s\S]*missing: window_pos_embed"):
        start_from(model, tmp_path / "lacking.pt")
    with pytest.raises(OsmError, match="nowhere"):
        start_from(model, tmp_path / "nowhere.pt")
