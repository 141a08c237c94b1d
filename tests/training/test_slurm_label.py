"""`slurm_label.sh`, with stubs in place of Python and Slurm; then shares that really label."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from cluster_stubs import ROOT, Cluster
from noise_photos import noise_photos
from processes import PATIENCE_S, wait_until

from osm.labeling.label_cli import options_of, parser
from osm.labeling.parts.part_store import PartStore

SCRIPT = "slurm_label.sh"
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "4711",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "8",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "7",
    "SLURM_CPUS_PER_TASK": "4",
    "IMAGES": "s3://bucket/in/{000..099}.tar",
    "OUT": "s3://bucket/out",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def called(cluster: Cluster) -> list[str]:
    words = cluster.said("python").split("\0")[:-1]
    assert words[:3] == ["-m", "osm", "label"]
    return words[3:]


def test_a_task_labels_its_share(cluster: Cluster) -> None:
    cluster.run(SCRIPT, "--auto", **ARRAY)
    options = options_of(parser().parse_args(called(cluster)))
    assert options.shares() == (3, 8) and options.cpus_per_process == 4 and options.auto
    assert (options.images, options.destination) == (ARRAY["IMAGES"], ARRAY["OUT"])


def test_some_tasks_are_submitted_again(cluster: Cluster) -> None:
    again = {**ARRAY, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "5"}
    assert "set SHARES to the number of shares" in cluster.run(SCRIPT, code=2, **again)
    cluster.run(SCRIPT, **again, SHARES="8")
    assert options_of(parser().parse_args(called(cluster))).shares() == (3, 8)
    assert "but SHARES is 2" in cluster.run(SCRIPT, code=2, **ARRAY, SHARES="2")


@pytest.mark.parametrize("name", ["SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "IMAGES", "OUT"])
def test_what_is_missing_is_named(cluster: Cluster, name: str) -> None:
    said = cluster.run(SCRIPT, code=1, **{key: value for key, value in ARRAY.items() if key != name})
    assert name in said or "as an array" in said


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_task_ends_as_its_command_does(cluster: Cluster, code: int) -> None:
    cluster.job(f"exit {code}")
    cluster.run(SCRIPT, code=code, **ARRAY)
    assert "requeue" not in cluster.said("scontrol")


def stopped(cluster: Cluster, code: int = 0, **environment: str) -> str:
    """A task whose time is up: the script is sent SIGTERM."""
    (cluster.folder / "ready").unlink(missing_ok=True)
    cluster.job('trap "echo stopped; exit 143" TERM; touch "$STUBS/ready"; while :; do sleep 0.05; done')
    process = cluster.start(SCRIPT, **{**ARRAY, **environment})
    wait_until((cluster.folder / "ready").exists, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, said
    return said


def test_a_task_whose_time_is_up_goes_back_into_the_queue(cluster: Cluster) -> None:
    said = stopped(cluster)
    assert "stopped" in said and "the time of task 3 is up, requeued" in said
    assert cluster.said("scontrol").splitlines()[-1] == "requeue 4711_3"
    assert "has been started 2 times before" in stopped(cluster, 75, SLURM_RESTART_COUNT="2", RESTARTS="2")
    assert "task 3 cancelled" in stopped(cluster, 75, JOB_STATE="CANCELLED")
    assert cluster.said("scontrol").count("requeue") == 1


def test_the_lines_of_the_docs(cluster: Cluster) -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"IMAGES=.*scripts/slurm_label.sh", line)]
    assert lines
    for line in lines:
        words = shlex.split(line)
        at = next(number for number, word in enumerate(words) if word.endswith(".sh"))
        environment = dict(word.split("=", 1) for word in words[:at] if re.match(r"[A-Z]+=", word))
        cluster.run(SCRIPT, *words[at + 1 :], **{**ARRAY, **environment})
        options = options_of(parser().parse_args(called(cluster)))
        assert options.share == f"3/{environment.get('SHARES', 8)}" and options.images == environment["IMAGES"]


def test_tasks_label_everything_together(cluster: Cluster, checkpoint: Path, tmp_path: Path) -> None:
    photos, out = noise_photos(tmp_path / "data"), tmp_path / "out"
    flags = ["--masks", str(photos / "masks.json"), "--checkpoint", str(checkpoint), "--device", "cpu"]
    flags += ["--max_new_tokens", "4", "--part_images", "4"]
    array = {**ARRAY, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MAX": "1", "SLURM_CPUS_PER_TASK": "1"}
    array |= {"IMAGES": str(photos / "images"), "OUT": str(out), "PYTHON": sys.executable}
    array["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for task, code in (("1", 0), ("0", 1)):  # the first part has the image that cannot be read
        cluster.run(SCRIPT, *flags, code=code, **{**array, "SLURM_ARRAY_TASK_ID": task})
    assert len(PartStore(str(out)).names("parts")) == 3
