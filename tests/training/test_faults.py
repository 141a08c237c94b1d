"""What goes wrong on the way: losses that are not finite, loaders that die, full disks, files that are not right."""

from __future__ import annotations

import math
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PATIENCE_S
from small_disk import mounted
from stream_sets import bands, panoptic, write_shard
from tiny_run import Workshop, finish, launcher, losses, start

from osm.data import shard_index, stages
from osm.errors import OsmError, RunStopped
from osm.training import sharded_layout
from osm.training.checkpoints import readable_checkpoints
from osm.training.run_config import parse
from osm.training.stopping import report_closed_workers, report_dead_workers
from osm.training.tracking import read_log
from osm.training.train_cli import main
from osm.training.trainer import train

# train.py, but the loss of one rank is nan at the steps named.
NAN = """
import os, sys
from osm.training import step
from osm.training.train_cli import main

steps = {int(number) for number in sys.argv[1].split(",")}
task = step.Stepper._backward
taken = step.Stepper.step
now = {}

def stepping(self, micro_batches, number, meter, stop):
    now["step"] = number
    return taken(self, micro_batches, number, meter, stop)

def backward(self, batch, *args):
    if now["step"] in steps and os.environ.get("RANK", "1") == "1":
        batch.tokens = None
        batch.canvas = batch.canvas.clone()
        model = self.forward.module.model if hasattr(self.forward, "module") else self.forward.model
        spoil = lambda module, args, out: out._replace(prefix_RPW=out.prefix_RPW * float("nan"))  # noqa: E731
        handle = model.bridge.register_forward_hook(spoil)
        try:
            return task(self, batch, *args)
        finally:
            handle.remove()
    return task(self, batch, *args)

step.Stepper.step, step.Stepper._backward = stepping, backward
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    path = tmp_path / "spoilt.py"
    path.write_text(NAN)
    return path


# Losses that are not finite.


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--fsdp",)])
def test_a_nan_on_one_of_two_skips_the_step_on_both(
    workshop: Workshop, tmp_path: Path, spoilt: Path, flags: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    arguments = workshop.arguments(run, *flags, sets={"pan": (2, 24)})
    finish(start(["1,3", *arguments], launcher(2), spoilt))
    records = read_log(run)
    assert [record["skipped_steps"] for record in records] == [0, 1, 1, 2, 2, 2]
    assert [math.isfinite(record["grad_norm"]) for record in records] == [True, False, True, False, True, True]
    document = torch.load(run / "checkpoint_0.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in document["model_state_dict"].values())
    # Both skipped: had one of them not, its optimizer would have counted it.
    assert {int(own["step"]) for own in document["optimizer_state_dict"]["state"].values()} == {4}
    assert document["progress"]["skipped_steps"] == 2


def test_too_many_skipped_steps_in_a_row_end_the_run(workshop: Workshop, tmp_path: Path, spoilt: Path) -> None:
    arguments = workshop.arguments(tmp_path / "run", "--max_skipped_steps", "3", sets={"pan": (1, 12)})
    process = start(["1,2,4,5,6", *arguments], (), spoilt)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, said
    assert "error: step 7: the loss or its gradient was not finite in 3 consecutive steps (--max_skipped_steps)" in said
    assert "Traceback" not in said


# Data.


def test_a_dead_loader_ends_the_run_with_its_reason(workshop: Workshop, tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(
        "import os, signal, sys\n"
        "from torch.utils.data import get_worker_info\n"
        "from osm.data import stages\n"
        "from osm.training.train_cli import main\n"
        "made = stages.make_batch\n"
        "def batch(samples, name, processor, supervise, number):\n"
        "    if number == 3 and get_worker_info() is not None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return made(samples, name, processor, supervise, number)\n"
        "stages.make_batch = batch\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = workshop.arguments(tmp_path / "run", "--workers", "2", sets={"pan": (1, 12)})
    process = start(arguments, (), script)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, said
    # The second reason is that of a worker that was killed while the main process received one of its batches.
    assert re.search(r"error: a data-loader worker died \((DataLoader worker|its connection was closed)", said), said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "DataLoader worker (pid 7) is killed",
        ),
        (
            ConnectionResetError(104, "Connection reset by peer"),
            "its connection was closed: [Errno 104] Connection reset",
        ),
        (EOFError(), "its connection was closed: EOFError"),
    ],
)
def test_each_sign_of_a_dead_loader_is_explained(error: Exception, reason: str) -> None:
    with (
        pytest.raises(RunStopped, match=rf"a data-loader worker died \({re.escape(reason)}.*resume"),
        report_dead_workers(),
        report_closed_workers(2),
    ):
        raise error


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="^shape mismatch$"), report_dead_workers():
        raise RuntimeError("shape mismatch")
    with pytest.raises(EOFError, match="^cut off$"), report_closed_workers(0):  # no worker, but a file
        raise EOFError("cut off")


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("how", ["gone", "a folder"])
def test_a_shard_that_vanishes_ends_the_run_and_is_named(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, workers: str, how: str
) -> None:
    flags = mixed(workshop, tmp_path / "set", 0)
    lost = tmp_path / "set" / "001.tar"
    made = stages.make_batch

    def batch(samples: Any, name: str, processor: Any, supervise: str, number: int) -> Any:
        if number == 3:
            lost.unlink(missing_ok=True)
            if how == "a folder":
                lost.mkdir(exist_ok=True)
        return made(samples, name, processor, supervise, number)

    monkeypatch.setattr(stages, "make_batch", batch)
    monkeypatch.setattr(shard_index, "_OPEN", 1)  # of two: what is open is read on, gone or not
    sets = {"pan": (1, 200)}
    arguments = workshop.arguments(tmp_path / "run", *flags, "--workers", workers, "--shuffle_buffer", "1", sets=sets)
    assert main(arguments) == 3
    said = capsys.readouterr().err.splitlines()
    error = next(line for line in said if line.startswith("error: "))
    assert error == said[-1] and str(lost) in error and "run the same command to resume" in error
    assert not any("Traceback" in line or "correct annotation format" in line for line in said)


def test_a_set_without_a_usable_sample_is_told_without_a_traceback(
    workshop: Workshop, tmp_path: Path, capsys: Any
) -> None:
    """Of a worker, too."""
    flags = mixed(workshop, tmp_path / "set", 40)
    assert main(workshop.arguments(tmp_path / "run", *flags, "--workers", "1", sets={"pan": (1, 4)})) == 2
    said = capsys.readouterr().err
    assert "samples in a row were unusable" in said and "Traceback" not in said and "Caught" not in said


def mixed(workshop: Workshop, folder: Path, broken: int) -> list[str]:
    """Flags of a set of 40 samples in two shards, of which so many have a broken picture."""
    for shard in range(2):
        samples = {}
        for number in range(20 * shard, 20 * shard + 20):
            samples[f"s{number:02d}"] = panoptic(bands(64, 48, (1, 2, 3)))
            if number % 20 < broken // 2:
                members = samples[f"s{number:02d}"]
                members["image.png"] = members["image.png"][:100]
        write_shard(folder / f"{shard:03d}.tar", samples)
    return ["--pan_shards", f"{folder}/{{000..001}}.tar"]


def test_broken_samples_are_counted_and_bounded(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    sets = {"pan": (2, 160)}
    few = mixed(workshop, tmp_path / "few", 4)
    records = workshop.train(tmp_path / "run", *few, "--max_bad_samples", "0.3", sets=sets)
    assert records[-1]["names"] == 160 and records[-1]["skipped_samples"]["image_truncated"] > 3
    many = mixed(workshop, tmp_path / "many", 20)
    capsys.readouterr()
    assert main(workshop.arguments(tmp_path / "other", *many, "--max_bad_samples", "0.3", sets=sets)) == 3
    said = capsys.readouterr().err
    assert "--pan_shards:" in said and "'image_truncated'" in said and "exceeds --max_bad_samples 0.3" in said


def test_a_truncated_tar_in_the_mix(workshop: Workshop, tmp_path: Path) -> None:
    flags = mixed(workshop, tmp_path / "set", 0)
    cut = tmp_path / "set" / "001.tar"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    records = workshop.train(tmp_path / "run", *flags, sets={"pan": (2, 40)})
    assert records[-1]["names"] == 40 and set(records[-1]["skipped_samples"]) == {"broken_tar"}


# Disks and files.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    with mounted(tmp_path / "disk") as disk:
        yield disk


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_the_old_checkpoint_and_names_it(
    workshop: Workshop, tmp_path: Path, small_disk: Path, processes: int
) -> None:
    run = small_disk / "run"
    flags = ("--checkpoint_every_steps", "1", "--keep_checkpoints", "100", "--workers", "0")
    arguments = workshop.arguments(run, *flags, sets={"pan": (1, 40 * processes)})
    process = start(arguments, launcher(processes) if processes > 1 else ())
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (3 if processes == 1 else 1), said
    whole = readable_checkpoints(run)
    assert whole and f"The newest intact checkpoint: {whole[0]}" in said and "No space left on device" in said, said
    assert not list((run / "checkpoints").glob("*.tmp"))
    for path in whole[1:]:
        shutil.rmtree(path)
    made_room = workshop.arguments(run, sets={"pan": (1, 40 * processes)})
    ended = start([*made_room, "--checkpoint_every_steps", "0"], launcher(processes) if processes > 1 else ())
    assert f"resumed from {whole[0]}" in finish(ended)
    assert read_log(run)[-1]["step"] == 40


def mid_run(workshop: Workshop, run: Path) -> tuple[Path, list[Path]]:
    workshop.train(run, "--checkpoint_every_steps", "2", "--keep_checkpoints", "9", sets={"pan": (1, 8)})
    (run / "checkpoint_0.pt").unlink()
    return run, readable_checkpoints(run)


def test_half_of_a_checkpoint_is_not_taken_for_one(workshop: Workshop, tmp_path: Path, capsys: Any) -> None:
    whole = workshop.train(tmp_path / "whole", sets={"pan": (1, 8)})
    run, (newest, before, first) = mid_run(workshop, tmp_path / "run")
    data = next(newest.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])  # a copy that broke off
    (before / "run.json").unlink()  # one that was never finished
    left = run / "checkpoints" / "step_00000009.tmp"
    left.mkdir()
    capsys.readouterr()
    assert losses(workshop.train(run, sets={"pan": (1, 8)})) == losses(whole)
    said = capsys.readouterr().out
    assert f"warning: checkpoint {newest} is broken" in said and "set aside as step_00000006.broken" in said
    assert f"warning: checkpoint {before / 'run.json'}: No such file" in said and f"resuming from {first}" in said
    assert f"resumed from {first}: epoch 0, step 2" in said and not left.exists()
    assert {path.name for path in first.parent.glob("*.broken")} == {"step_00000004.broken", "step_00000006.broken"}


def test_a_checkpoint_of_another_model_or_none_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    run, found = mid_run(workshop, tmp_path / "run")
    with pytest.raises(OsmError, match=r"does not fit this model[\s\S]*missing: [\s\S]*choose a different folder"):
        train(parse(workshop.arguments(run, sets={"inst": (1, 8)})))
    for path in found:
        for data in path.glob("*.distcp"):
            data.write_bytes(b"nothing")
    with pytest.raises(
        OsmError, match="none of the 3 checkpoints in --run_name .* is intact"
    ):  # not begun anew in silence
        train(parse(workshop.arguments(run, sets={"pan": (1, 8)})))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_an_evil_checkpoint_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    """torch's own reader would unpickle whatever a checkpoint's metadata name."""
    run, (newest, *_) = mid_run(workshop, tmp_path / "run")
    victim = tmp_path / "made by the file"
    good = (newest / ".metadata").read_bytes()
    (newest / ".metadata").write_bytes(pickle.dumps(Evil(victim)))
    with pytest.raises(OsmError, match="refers to posix.mkdir, which is not allowed; the checkpoint was not loaded"):
        sharded_layout.read_tensors(newest)
    given = workshop.arguments(run, "--resume_from_checkpoint", str(newest), sets={"pan": (1, 8)})
    with pytest.raises(OsmError, match=r"\.metadata does not match its stored checksum|\.metadata has \d+ bytes"):
        train(parse(given))
    assert not victim.exists()
    # Files outside of the folder are not read either, and nothing but tensors is.
    (newest / ".metadata").write_bytes(good)
    metadata = sharded_layout._TensorReader(newest).read_metadata()
    place = next(iter(metadata.storage_data.values()))
    place.relative_path = "../step_00000004/__0_0.distcp"
    (newest / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(OsmError, match="refers to a file outside its folder"):
        sharded_layout.read_tensors(newest)
    (newest / ".metadata").write_bytes(good[: len(good) // 2])
    with pytest.raises(sharded_layout.UnreadableCheckpoint):
        sharded_layout.read_tensors(newest)


def test_the_metadata_alone_may_not_ask_for_memory(workshop: Workshop, tmp_path: Path) -> None:
    _, (newest, *_) = mid_run(workshop, tmp_path / "run")
    metadata = sharded_layout._TensorReader(newest).read_metadata()
    name = next(name for name in metadata.state_dict_metadata if name.endswith("window_pos_embed"))
    metadata.state_dict_metadata[name].size = torch.Size((1 << 40,))
    (newest / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(OsmError, match="its files are smaller than the tensors listed in its metadata"):
        sharded_layout.read_tensors(newest)


def test_a_run_stopped_by_its_data_can_go_on(workshop: Workshop, tmp_path: Path) -> None:
    """`RunStopped` is no user's mistake: an exit code of its own, that a scheduler can tell from one."""
    assert issubclass(RunStopped, OsmError)
    assert main(["--config", "no such config"]) == 2
