"""The checkpoints of a run's folder: the newest is known whatever changed in between, and no broken one is believed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import Workshop, losses

from osm.training import checkpoint_layout, checkpoints, published_layout, sharded_layout
from osm.training.checkpoints import readable_checkpoints, scan
from osm.training.distributed import World
from osm.training.step import Stepper
from osm.training.tracking import read_log
from osm.training.train_cli import main

StopAt = Callable[[int], None]
FLAGS = ("--num_epochs", "2", "--checkpoint_every_steps", "2", "--keep_checkpoints", "2")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> StopAt:
    """Sends this process a SIGTERM while it trains the step of that number (from 1), once."""
    taken = Stepper.step

    def set_up(step: int) -> None:
        def stepping(self: Stepper, micro_batches: Any, number: int, *rest: Any) -> Any:
            if number + 1 == step:
                monkeypatch.setattr(Stepper, "step", taken)
                os.kill(os.getpid(), signal.SIGTERM)
            return taken(self, micro_batches, number, *rest)

        monkeypatch.setattr(Stepper, "step", stepping)

    return set_up


def stopped(workshop: Workshop, run: Path, stop_at: StopAt, step: int, batch: int, *more: str) -> None:
    stop_at(step)
    assert main(workshop.arguments(run, *FLAGS, *more, sets={"pan": (batch, 12)})) == 75


def test_a_run_that_goes_on_with_fewer_steps_keeps_its_new_checkpoints(
    workshop: Workshop, tmp_path: Path, stop_at: StopAt, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 steps an epoch, then 6, then 12 again: what a stop announced is there, and is what the next start takes."""
    run = tmp_path / "run"
    for step, batch, start in ((10, 1, None), (8, 2, 10), (18, 1, 8)):
        capsys.readouterr()
        stopped(workshop, run, stop_at, step, batch)
        printed = capsys.readouterr()
        assert f"stopped by a signal after step {step}" in printed.err
        assert start is None or f"resumed from {run / f'checkpoints/step_{start:08d}'}: " in printed.out
        assert readable_checkpoints(run)[0].name == f"step_{step:08d}"
        assert len(sharded_layout.step_folders(run)) <= 2
    capsys.readouterr()
    records = workshop.train(run, *FLAGS, sets={"pan": (1, 12)})
    assert f"resumed from {run / 'checkpoints/step_00000018'}" in capsys.readouterr().out
    assert [record["step"] for record in records][-6:] == list(range(19, 25))


def test_the_log_of_a_run_that_numbered_its_steps_anew(workshop: Workshop, tmp_path: Path, stop_at: StopAt) -> None:
    run = tmp_path / "run"
    stopped(workshop, run, stop_at, 10, 1)
    assert [record["step"] for record in read_log(run)] == list(range(1, 11))
    stopped(workshop, run, stop_at, 7, 2)  # 10 of 12 steps were done, which are 5 of 6
    assert [record["step"] for record in read_log(run)] == list(range(1, 8))


def run_of_eight(workshop: Workshop, run: Path) -> list[dict[str, Any]]:
    """Eight steps in two epochs; checkpoints after the steps 2, 6 and, as `.pt` files, 4 and 8."""
    return workshop.train(run, *FLAGS, "--keep_checkpoints", "9", sets={"pan": (1, 4)})


def eight(workshop: Workshop) -> Path:
    """Returns the folder of one run of eight steps for all tests that copy it."""
    folder = workshop.root / "eight"
    if not (folder / "final").exists():
        run_of_eight(workshop, folder)
    return folder


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    """A bad block: the values of a tensor become zeros, and nothing else changes."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 512] = bytes(512)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [empty, cut, zeros])
@pytest.mark.parametrize("name", ["checkpoint_0.pt", "checkpoints/step_00000006"])
def test_a_broken_newest_checkpoint_is_set_aside(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    """Whichever kind is newest: the one before it is taken, and the run ends as one that was never broken."""
    run, newest = tmp_path / "run", tmp_path / "run" / name
    shutil.copytree(eight(workshop), run)
    whole = read_log(run)
    later = ("checkpoint_1.pt", "checkpoints/step_00000006", "checkpoint_0.pt")
    for path in later[: later.index(name)]:
        (shutil.rmtree if (run / path).is_dir() else os.unlink)(run / path)
    damage(newest / "__0_0.distcp" if newest.is_dir() else newest)
    capsys.readouterr()
    assert losses(run_of_eight(workshop, run)) == losses(whole)
    printed = capsys.readouterr().out
    before = run / ("checkpoint_0.pt" if newest.is_dir() else "checkpoints/step_00000002")
    assert f"warning: checkpoint {newest}" in printed and "broken" in printed and f"resuming from {before}" in printed
    assert newest.with_name(newest.name + ".broken").exists()
    assert newest.exists()  # written anew on the way


@pytest.mark.parametrize("damage", [empty, zeros])
def test_a_broken_file_that_is_named_is_refused(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(eight(workshop), run)
    damage(run / "checkpoint_0.pt")
    arguments = workshop.arguments(run, "--resume_from_checkpoint", str(run / "checkpoint_0.pt"), sets={"pan": (1, 4)})
    assert main(arguments) == 2
    assert f"error: checkpoint {run / 'checkpoint_0.pt'} is broken" in capsys.readouterr().err
    assert (run / "checkpoint_0.pt").exists()


def test_a_changed_run_file_is_not_believed(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(eight(workshop), run)
    path = run / "checkpoints/step_00000006/run.json"
    path.write_text(path.read_text().replace('"step": 6', '"step": 7'))
    with pytest.raises(
        checkpoint_layout.UnreadableCheckpoint,
        match=r"run\.json is broken: its content does not match its stored checksum",
    ):
        sharded_layout.read_run_document(path.parent)
    assert path.parent in scan(run)[1] and path.parent not in readable_checkpoints(run)


def test_a_save_replaces_what_has_its_name(
    workshop: Workshop, tmp_path: Path, stop_at: StopAt, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder, as a kill while pruning left it in older versions, does not stand in the way of a stop."""
    run = tmp_path / "run"
    stopped(workshop, run, stop_at, 3, 1)
    (run / "checkpoints/step_00000007").mkdir()
    stopped(workshop, run, stop_at, 7, 1)
    assert readable_checkpoints(run)[0] == run / "checkpoints/step_00000007"
    checkpoints.verify(run / "checkpoints/step_00000007")
    capsys.readouterr()
    workshop.train(run, *FLAGS, sets={"pan": (1, 12)})
    assert "epoch 0, step 7" in capsys.readouterr().out


def test_a_kill_between_the_last_file_and_the_name_loses_nothing(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(eight(workshop), run)
    (run / "checkpoint_1.pt").unlink()
    step = run / "checkpoints/step_00000006"
    step.rename(step.with_name("step_00000006.tmp"))
    assert checkpoints.newest_intact(run, World(0, 1, torch.device("cpu")), {}) == step


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epoch": 10**30}, "must be an integer from 0|epoch is"),
        ({"epoch": 10**9}, "epoch 1000000000, but the run has only 2"),
        ({"batches": 10**6}, "batch 1000000, but an epoch has only 4"),
        (
            {"positions": {"pan": {"0": [2, {"0": 10**12}]}}},
            "drawn 1000000000000 samples for 2 batches, but it can have drawn at most",
        ),
        ({"positions": {"pan": {"0": [10**12, {"0": 2}]}}}, "is at batch 1000000000000, but an epoch has only 4"),
        ({"streams": 10**9}, "streams is 1000000000, but must be an integer from 0"),
        ({"step": -1}, "step is -1"),
        ({"best": "x" * 9999}, "the checkpoint's progress cannot be read"),
    ],
)
def test_counters_are_bounded_by_the_size_of_the_run(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], sentence: str
) -> None:
    """A run file with valid checksums and counters that no run can have: one sentence, and no endless drawing."""
    run = tmp_path / "run"
    shutil.copytree(eight(workshop), run)
    step = run / "checkpoints/step_00000006"
    document = sharded_layout.read_run_document(step)
    document["progress"] |= change
    (step / "run.json").unlink()
    sharded_layout.write_run_document(step, {name: part for name, part in document.items() if name != "files"})
    arguments = workshop.arguments(run, *FLAGS, "--resume_from_checkpoint", str(step), sets={"pan": (1, 4)})
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, line) and len(line) < 600, line


def test_files_of_older_code_are_ordered_by_epoch(workshop: Workshop, tmp_path: Path) -> None:
    """They have neither counters nor checksums; whatever is saved after them is newer."""
    run = tmp_path / "run"
    shutil.copytree(eight(workshop), run)
    for step in sharded_layout.step_folders(run):
        document = json.loads((step / "run.json").read_text())
        del document["files"], document["sha256"], document["progress"]["saves"]
        (step / "run.json").write_text(json.dumps(document))
    for path in published_layout.epoch_files(run).values():
        document = torch.load(path, weights_only=True)
        del document["progress"]["saves"]
        torch.save(document, path)
    names = [path.name for path in readable_checkpoints(run)]
    assert names == ["checkpoint_1.pt", "step_00000006", "checkpoint_0.pt", "step_00000002"]
    for name in ("checkpoint_1.pt",):
        (run / name).unlink()
    workshop.train(run, *FLAGS, "--num_epochs", "3", sets={"pan": (1, 4)})
    assert [entry.counter > 0 for entry in scan(run)[0]][:3] == [True, True, True]


def test_records_of_a_pt_file_carry_checksums(workshop: Workshop, tmp_path: Path) -> None:
    """`check_whole` relies on the CRC-32 that torch writes for every record."""
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": {"a": torch.arange(1000.0)}}, path)
    checkpoints.verify(path)
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    data = bytearray(path.read_bytes())
    data[record.header_offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(checkpoint_layout.UnreadableCheckpoint, match="does not match its stored checksum"):
        checkpoints.verify(path)
