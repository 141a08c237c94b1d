"""Checkpoints on servers: a run that goes on from one, or starts from one, does what it does with a local one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from servers import FileServer, S3Server
from tiny_run import Workshop, losses

from osm.training.sharded_layout import step_folders
from osm.training.train_cli import main

FLAGS = ("--checkpoint_every_steps", "3", "--keep_checkpoints", "9")
SETS = {"pan": (1, 4)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSM_RETRY_SECONDS", "0,0")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def run(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    workshop.train(folder, *FLAGS, sets=SETS)
    return folder


def test_resume(
    workshop: Workshop,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (step,) = step_folders(run)
    found = []
    with S3Server() as s3, FileServer(run) as server:
        for key, value in s3.environment.items():
            monkeypatch.setenv(key, value)
        s3.bucket("bkt")
        s3.put_folder("bkt", run, "runs/a/")
        server.status = {f"checkpoints/{step.name}/": 403}  # it need not be listed
        url = server.url(f"checkpoints/{step.name}")
        for number, place in enumerate((str(step), f"s3://bkt/runs/a/checkpoints/{step.name}", f"{url}?sig=hunter2")):
            more = ("--resume_from_checkpoint", place)
            found.append(losses(workshop.train(tmp_path / str(number), *FLAGS, *more, sets=SETS)))
            assert f"resumed from {place.partition('?')[0]}: epoch 0, step 3" in capsys.readouterr().out
            written = [path.read_text() for path in (tmp_path / str(number)).rglob("*.json*")]
            assert written and "hunter2" not in "".join(written)
        assert found[0] == found[1] == found[2] != []
        broken = s3.put("bkt", f"runs/a/checkpoints/{step.name}/run.json", b"{}")
        arguments = workshop.arguments(
            tmp_path / "no", "--resume_from_checkpoint", broken.rpartition("/")[0], sets=SETS
        )
        assert main(arguments) == 2
        server.status = {"checkpoint_0.pt": 500}
        more = ("--resume_from_checkpoint", server.url("checkpoint_0.pt"))
        assert main(workshop.arguments(tmp_path / "no", *more, sets=SETS)) == 3
        assert "--resume_from_checkpoint http" in capsys.readouterr().err


def test_start(workshop: Workshop, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    with FileServer(run) as server:
        for number, place in enumerate((f"{run}/final", server.url("final"), server.url("checkpoint_0.pt"))):
            found.append(losses(workshop.train(tmp_path / str(number), "--start_from", place, sets=SETS)))
        assert found[0] == found[1] == found[2] != []
        missing = workshop.arguments(tmp_path / "no", "--start_from", server.url("nothing"), sets=SETS)
        assert main(missing) == 2
        assert f"--start_from {server.url('nothing/config.json')}: there is no such file" in capsys.readouterr().err
    assert json.loads((tmp_path / "1" / "final" / "config.json").read_text()) == json.loads(
        (tmp_path / "0" / "final" / "config.json").read_text()
    )
    shutil.rmtree(tmp_path / "0")
