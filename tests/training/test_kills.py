"""Runs that are killed or stopped anywhere and started again: as if nothing had been."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import PATIENCE_S
from tiny_run import Workshop, finish, launcher, losses, start

import osm
from osm.cli import main as osm_command
from osm.models.bridges import BRIDGES
from osm.training import sharded_layout
from osm.training.checkpoints import readable_checkpoints
from osm.training.tracking import read_log

# Two epochs of 8 steps, with dropout; two sets, accumulation 2, and in the last step of an epoch a single micro-batch.
OPTIONS: dict[str, Any] = {"sets": {"pan": (1, 15), "inst": (2, 30)}}
FLAGS = ("--num_epochs", "2", "--gradient_accumulation_steps", "2", "--warmup_steps", "5", "--shuffle_buffer", "4")
EVERY_2 = ("--checkpoint_every_steps", "2")

# train.py, but at a micro-batch of a step this process gets a signal; once, where a marker is named.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from osm.training import step
from osm.training.train_cli import main

number, at, micro_batch, rank, marker = sys.argv[1:6]
backward = step.Stepper._backward
now = {"step": -1, "backwards": 0}
taken = step.Stepper.step

def stepping(self, micro_batches, number, meter, stop):
    now.update(step=number, backwards=0)
    return taken(self, micro_batches, number, meter, stop)

def hit(self, *args):
    now["backwards"] += 1
    here = (now["step"], now["backwards"]) == (int(at), int(micro_batch))
    if here and os.environ.get("RANK", "0") == rank and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), int(number))
    return backward(self, *args)

step.Stepper.step, step.Stepper._backward = stepping, hit
sys.exit(main(sys.argv[6:]))
"""


class Struck:
    """Starts runs that a signal hits."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.script = folder / "struck.py"
        self.script.write_text(SCRIPT)

    def __call__(
        self,
        arguments: list[str],
        number: int,
        step: int,
        micro_batch: int = 1,
        rank: int = 0,
        launcher: tuple[str, ...] = (),
    ) -> tuple[int, str]:
        """The exit code, and what was said."""
        self.count += 1
        marker = self.folder / f"struck{self.count}"
        where = [str(int(number)), str(step), str(micro_batch), str(rank), str(marker)]
        process = start([*where, *arguments], launcher, self.script)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert marker.exists(), said
        return process.returncode, said


@pytest.fixture
def struck(tmp_path: Path) -> Struck:
    return Struck(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "kills"), [(0, 1), (2, 1), *(pytest.param(workers, 3, marks=pytest.mark.long) for workers in (0, 2))]
)
def test_killed_at_random_steps(workshop: Workshop, tmp_path: Path, struck: Struck, workers: int, kills: int) -> None:
    """The same run, killed: every loss after it is the same to the last bit.

    `scripts/full_check.sh kills` kills a run 30 times.
    """
    flags = (*FLAGS, *EVERY_2, "--workers", str(workers))
    options: dict[str, Any] = {"sets": {"pan": (1, 16), "inst": (2, 32)}} if workers else OPTIONS
    whole = workshop.train(tmp_path / "whole", *flags, **options)
    assert len(whole) == 16
    arguments = workshop.arguments(tmp_path / "run", *flags, **options)
    steps = sorted(np.random.default_rng(workers).choice(np.arange(1, 16), kills, replace=False).tolist())
    for number, step in enumerate(steps):
        code, said = struck(arguments, signal.SIGKILL, step, micro_batch=1 + (workers + number) % 2)
        assert code == -signal.SIGKILL, said
    assert workshop.train(tmp_path / "run", *flags, **options)
    found = read_log(tmp_path / "run")
    assert losses(found) == losses(whole)
    for name in ("names", "learning_rate", "epoch", "skipped_steps", "skipped_samples"):
        assert [record[name] for record in found] == [record[name] for record in whole], name


def test_a_signal_in_mid_accumulation_ends_the_step_first(
    workshop: Workshop, tmp_path: Path, struck: Struck, capsys: Any
) -> None:
    """Two stops: in the first epoch, and at the last step of it; SIGTERM and SIGINT."""
    whole = workshop.train(tmp_path / "whole", *FLAGS, **OPTIONS)
    run = tmp_path / "run"
    arguments = workshop.arguments(run, *FLAGS, **OPTIONS)
    code, said = struck(arguments, signal.SIGTERM, 2, micro_batch=2)
    assert code == 75 and "SIGTERM: stopping at the end of this step" in said
    assert "stopped by a signal after step 3" in said and "Traceback" not in said
    assert json.loads((run / "stopped").read_text()) == {"step": 3, "signal": int(signal.SIGTERM)}
    assert [path.name for path in readable_checkpoints(run)] == ["step_00000003"]
    code, said = struck(arguments, signal.SIGINT, 7)  # the epoch's last step
    assert code == 75 and "resumed from" in said and "epoch 0, step 3" in said
    assert [path.name for path in readable_checkpoints(run)] == ["checkpoint_0.pt", "step_00000003"]
    capsys.readouterr()
    assert losses(workshop.train(run, *FLAGS, **OPTIONS)) == losses(whole)
    assert "checkpoint_0.pt: epoch 1, step 8" in capsys.readouterr().out
    assert not (run / "stopped").exists() and (run / "final" / "config.json").is_file()


@pytest.mark.slow
def test_torchrun_starts_again_where_one_of_two_died(workshop: Workshop, tmp_path: Path, struck: Struck) -> None:
    """Rank 1 is killed; --max-restarts goes on from the last checkpoint, bitwise as if nothing had been."""
    flags = (*FLAGS, *EVERY_2)
    options: dict[str, Any] = {"sets": {"pan": (1, 30), "inst": (2, 60)}}
    finish(start(workshop.arguments(tmp_path / "whole", *flags, **options), launcher(2)))
    arguments = workshop.arguments(tmp_path / "run", *flags, **options)
    code, said = struck(arguments, signal.SIGKILL, 5, rank=1, launcher=launcher(2, "--max-restarts=1"))
    assert code == 0, said
    assert "checkpoints/step_0000000" in said.split("resumed from")[1]
    assert losses(read_log(tmp_path / "run")) == losses(read_log(tmp_path / "whole"))


TWO_SETS: dict[str, Any] = {"sets": {"pan": (1, 36), "inst": (2, 72)}}


def saved_on_two(workshop: Workshop, struck: Struck, run: Path) -> None:
    """A run of two processes with FSDP that a signal ended after step 4 of 18."""
    arguments = workshop.arguments(run, *FLAGS, "--fsdp", **TWO_SETS)
    code, said = struck(arguments, signal.SIGTERM, 3, micro_batch=2, rank=1, launcher=launcher(2))
    assert code != 0 and "stopped by a signal after step 4" in said, said
    assert [path.name for path in readable_checkpoints(run)] == ["step_00000004"]
    kept = {path.name for path in (run / "checkpoints" / "step_00000004").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "run.json"} == kept


@pytest.mark.slow
@pytest.mark.long
def test_saved_on_two_processes_and_gone_on_with_three(workshop: Workshop, tmp_path: Path, struck: Struck) -> None:
    """Three processes cannot share out the samples of two in the same way, and draw others."""
    whole = workshop.train(tmp_path / "whole", *FLAGS, "--emulate_world_size", "2", **TWO_SETS)
    run = tmp_path / "run"
    saved_on_two(workshop, struck, run)
    said = finish(start(workshop.arguments(run, *FLAGS, "--keep_checkpoints", "9", **TWO_SETS), launcher(3)))
    # 4 of 9 steps were done, which are 3 of 6 when three processes share the samples.
    assert "resuming at step 3, epoch 0, at the same point of the schedule" in said
    records = [record for record in read_log(run) if record["step"] > 3]
    assert [record["step"] for record in records] == list(range(4, 13))
    assert records[-1]["learning_rate"] == whole[-1]["learning_rate"]


@pytest.mark.slow
def test_saved_on_two_processes_and_gone_on_with_one(
    workshop: Workshop, tmp_path: Path, struck: Struck, capsys: Any
) -> None:
    """One process takes the samples of both, and its losses are theirs."""
    whole = workshop.train(tmp_path / "whole", *FLAGS, "--emulate_world_size", "2", **TWO_SETS)
    assert len(whole) == 18
    run = tmp_path / "run"
    saved_on_two(workshop, struck, run)
    capsys.readouterr()
    workshop.train(run, *FLAGS, **TWO_SETS)
    assert "resuming the sample streams of 2 processes on 1" in capsys.readouterr().out
    found = read_log(run)
    assert len(found) == 18
    for one, other in zip(whole, found, strict=True):
        assert one["names"] == other["names"]
        for name, value in one.items():
            if name.startswith("loss"):
                assert other[name] == pytest.approx(value, abs=1e-5, rel=1e-5), (one["step"], name)


def test_checkpoints_are_kept_and_pruned(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    workshop.train(run, "--checkpoint_every_steps", "1", "--keep_checkpoints", "3", sets={"pan": (1, 8)})
    assert [path.name for path in readable_checkpoints(run)] == [
        "checkpoint_0.pt",
        *(f"step_0000000{n}" for n in (7, 6, 5)),
    ]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {f"step_0000000{n}" for n in (5, 6, 7)}


def test_what_is_written_is_the_state_of_its_step(workshop: Workshop, tmp_path: Path) -> None:
    """Written beside the training, which goes on changing the tensors."""
    runs = {every: tmp_path / str(every) for every in (1, 4)}
    for every, run in runs.items():
        flags = ("--checkpoint_every_steps", str(every), "--keep_checkpoints", "9")
        workshop.train(run, *flags, sets={"pan": (1, 5)})
    first, second = (sharded_layout.read_tensors(run / "checkpoints" / "step_00000004") for run in runs.values())
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
    before = sharded_layout.read_tensors(runs[1] / "checkpoints" / "step_00000003")
    assert any((first[name] != before[name]).any() for name in first)


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_a_checkpoint_of_mid_run_is_exported(workshop: Workshop, tmp_path: Path, capsys: Any, variant: str) -> None:
    run = tmp_path / "run"
    workshop.train(run, "--checkpoint_every_steps", "2", sets={"pan": (1, 3)}, variant=variant)
    step = run / "checkpoints" / "step_00000002"
    for out in (tmp_path / "model", tmp_path / "model.pt"):
        assert osm_command(["export", str(step), str(out)]) == 0
    model, _, _ = osm.load_model(tmp_path / "model")
    kept = sharded_layout.read_tensors(step)
    named = dict(model.named_parameters())
    trained = [name.removeprefix("model.") for name in kept if name.startswith("model.")]
    assert trained and all(torch.equal(named[name], kept[f"model.{name}"]) for name in trained)
    other, _, _ = osm.load_model(tmp_path / "model.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    # A run's folder stands for its newest: the end of the epoch, not the step before it.
    capsys.readouterr()
    assert osm_command(["export", str(run), str(tmp_path / "newest")]) == 0
    assert "checkpoint_0.pt" in capsys.readouterr().out
