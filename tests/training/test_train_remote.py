"""Training from an object store: two ranks of two workers, killed and started again, as if nothing had been."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from processes import PATIENCE_S, kill_tree
from servers import S3Server
from tiny_run import Workshop, finish, launcher, losses, start

from osm.data.shard_index import Indexes
from osm.training.tracking import read_log
from osm.training.train_cli import main

pytestmark = pytest.mark.slow
FLAGS = ["--workers", "2", "--shuffle_buffer", "4", "--checkpoint_every_steps", "2"]


def arguments(workshop: Workshop, run: Path, shards: str, *more: str) -> list[str]:
    found = workshop.arguments(run, *FLAGS, "--pan_shards", shards, *more, sets={"pan": (1, 16)})
    return [flag for flag in found if flag != "--dataset_resampled"]


def test_killed_and_resumed_from_s3(workshop: Workshop, tmp_path: Path) -> None:
    with S3Server() as server:
        server.bucket("training")
        server.put_folder("training", workshop.root / "pan", "sets/pan/")
        environment = {**server.environment, "OSM_CACHE": str(tmp_path / "osm"), "OSM_RETRY_SECONDS": "0,0"}
        shards = "s3://training/sets/pan/{000..001}.tar"
        local = f"{workshop.root}/pan/{{000..001}}.tar"
        finish(start(arguments(workshop, tmp_path / "local", local), launcher(2)))
        expected = losses(read_log(tmp_path / "local"))
        assert len(expected) == 8
        cached = ["--shard_cache", str(tmp_path / "shards"), "--shard_cache_gb", "0.1"]
        command = arguments(workshop, tmp_path / "remote", shards, *cached)
        said = _until(start(command, launcher(2), **environment), r"checkpoint written: \S+step_0*4\b")
        resumed = finish(start(command, launcher(2), **environment))
        assert "resumed from" in resumed
        assert losses(read_log(tmp_path / "remote")) == expected
        for number in range(2):  # once to make its index, and once into the cache
            name = f"training/sets/pan/{number:03d}.tar"
            assert server.sent(name) <= 2 * len(server.read("training", name.partition("/")[2]))
        assert server.SECRET not in said + resumed
        written = [path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file()]
        assert not any(server.SECRET.encode() in data for data in written)


def _until(process: subprocess.Popen[str], line: str) -> str:
    """Reads a run's lines up to one, and kills all of its processes; returns what it said."""
    assert process.stdout is not None
    said = ""
    for text in process.stdout:
        said += text
        if re.search(line, text):
            break
    else:
        raise AssertionError(f"{line} is not in {said}")
    kill_tree(process.pid)
    process.wait()
    return said


def test_a_store_that_fails_ends_the_run_with_a_sentence(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with S3Server() as server:
        server.bucket("training")
        server.put_folder("training", workshop.root / "pan", "pan/")
        environment = {**server.environment, "OSM_CACHE": str(tmp_path / "osm"), "OSM_RETRY_SECONDS": "0,0"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        Indexes().prepare([f"s3://training/pan/{number:03d}.tar" for number in range(2)])  # into $OSM_CACHE
        server.status = {f"training/pan/{number:03d}.tar": 503 for number in range(2)}
        server.methods = {"GET"}
        run = start(arguments(workshop, tmp_path / "again", "s3://training/pan/{000..001}.tar"), **environment)
        said, _ = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 3, said
        assert re.search(
            r"error: s3://training/pan/00[01].tar: .*tried 3 times.; run the same command again to resume", said
        )
        assert "Traceback" not in said and server.SECRET not in said


def test_a_pipeline_of_ones_own_trains(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_pipeline.py").write_text(
        "import webdataset as wds\n"
        "def samples(shards, lane):\n"
        "    return wds.DataPipeline(wds.SimpleShardList(list(shards)), wds.tarfile_to_samples())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    shards = f"{workshop.root}/pan/{{000..001}}.tar"
    runs = [tmp_path / name for name in ("first", "second")]
    for run in runs:
        assert main(arguments(workshop, run, shards, "--pipeline", "own_pipeline:samples")) == 0
    first, second = (losses(read_log(run)) for run in runs)
    assert first == second and len(first) == 16
    assert main(arguments(workshop, tmp_path / "no", shards, "--pipeline", "own_pipeline:nothing")) == 2
    flags = ["--pipeline", "own_pipeline:samples", "--shard_cache", str(tmp_path / "cache")]
    assert main(arguments(workshop, tmp_path / "no", shards, *flags)) == 2
