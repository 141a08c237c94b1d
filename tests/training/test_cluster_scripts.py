"""`train_8gpu.sh` and `slurm_train.sh`, with stubs in place of torchrun and Slurm; then two real torchruns."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_stubs import ROOT, Cluster
from processes import PATIENCE_S, free_port, wait_until
from tiny_run import TRAIN, Workshop, finish, losses, start

from osm.datasets.table import PUBLISHED_MODES
from osm.training import run_config
from osm.training.tracking import read_log

SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "benchmarks").glob("*.sh")])
NINE = set(PUBLISHED_MODES) - {"any"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_SUBMIT_DIR": str(ROOT),
    "SLURM_CPUS_PER_TASK": "8",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_shellcheck_have_nothing_to_say(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, "-x", str(path)], check=True, cwd=ROOT)


@pytest.mark.parametrize("script", ["train_8gpu.sh", "slurm_train.sh"])
def test_the_published_training_is_what_they_run(cluster: Cluster, script: str) -> None:
    cluster.run(script, **SLURM)
    launcher, given, words = cluster.launched()
    assert launcher.training_script == str(TRAIN) and launcher.nproc_per_node == "8"
    assert given["fsdp"] and given["fsdp_sharding_strategy"] == {"t": "full", "s": "hybrid"}[script[0]]
    ours = run_config.parse(words)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ").replace("$SAVE_PATH", "/shards")
    command = next(line for line in readme.splitlines() if "--run_name osm_final_partseg_det" in line)
    published = run_config.parse(shlex.split(command.split("train/train.py")[1]))
    assert ours.model == published.model and set(ours.training.used_sets) == NINE
    found, wanted = vars(ours.training), vars(published.training)
    assert {name for name in wanted if found[name] != wanted[name]} == {"run_name"}


@pytest.mark.parametrize("script", ["train_8gpu.sh", "slurm_train.sh"])
def test_everything_can_be_said_otherwise(cluster: Cluster, script: str) -> None:
    cluster.run(
        script, "--num_epochs", "3", "--batch_size_coco", "5", "--precision", "fp32",
        GPUS="2", SETS="coco ade20k", RUN="runs/other", FSDP="", CONFIG="osm_small", **SLURM,
    )  # fmt: skip
    launcher, given, words = cluster.launched()
    run = run_config.parse(words).training
    assert launcher.nproc_per_node == "2" and "fsdp" not in given
    assert set(run.used_sets) == {"coco", "ade20k"} and given["config"] == "osm_small"
    assert (run.run_name, run.num_epochs, run.precision, run.sets["coco"].batch_size) == ("runs/other", 3, "fp32", 5)

    own = ["--datasets", "sets with a space.yaml", "--coco_shards", "a b/{000..001}.tar", "--batch_size_coco", "1"]
    cluster.run(script, *own, SETS="", SAVE_PATH="", **SLURM)
    assert cluster.launched()[0].training_script_args[-len(own) :] == own
    assert "SAVE_PATH: is the folder of the shards" in cluster.run(script, code=1, **{**SLURM, "SAVE_PATH": ""})
    assert "no published set is called 'cocoa'" in cluster.run(script, code=2, SETS="coco cocoa", **SLURM)


def test_one_machine_ends_as_torchrun_does(cluster: Cluster) -> None:
    cluster.job("echo $$ $TORCH_ELASTIC_SHUTDOWN_TIMEOUT; exit 7")
    process = cluster.start("train_8gpu.sh")
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 7 and said.split() == [str(process.pid), "100"]  # itself, not a child of the script
    assert cluster.launched()[0].standalone


def test_the_nodes_meet_at_the_first_one(cluster: Cluster) -> None:
    cluster.run("slurm_train.sh", **SLURM)
    launcher, _, _ = cluster.launched()
    assert (launcher.nnodes, launcher.max_restarts, launcher.rdzv_backend) == ("2", 3, "c10d")
    assert (launcher.rdzv_endpoint, launcher.rdzv_id) == ("node1:24711", "4711-0")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(cluster.said("srun").split())
    assert (cluster.folder / "srun.cpus").read_text() == "8\n"
    assert "requeue" not in cluster.said("scontrol")

    cluster.run("slurm_train.sh", RESTARTS="0", PORT="29400", **{**SLURM, "SLURM_JOB_NUM_NODES": "1"})
    launcher, given, _ = cluster.launched()
    assert (launcher.max_restarts, launcher.rdzv_endpoint) == (0, "node1:29400")
    assert given["fsdp_sharding_strategy"] == "full"
    cluster.run("slurm_train.sh", SLURM_RESTART_COUNT="2", **SLURM)
    assert cluster.launched()[0].rdzv_id == "4711-2"


def test_what_slurm_is_asked_for_stands_before_the_first_command() -> None:
    lines = (ROOT / "scripts" / "slurm_train.sh").read_text().splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if line and not line.startswith("#"))]
    asked = [line for line in lines if line.startswith("#SBATCH")]
    assert [line for line in head if line.startswith("#SBATCH")] == asked
    assert "#SBATCH --signal=B:TERM@120" in asked and "#SBATCH --requeue" in asked


def test_outside_of_slurm_it_says_so(cluster: Cluster) -> None:
    environment = {k: v for k, v in SLURM.items() if k != "SLURM_JOB_ID"}
    assert "submit it: sbatch" in cluster.run("slurm_train.sh", code=1, **environment, SLURM_JOB_ID="")
    elsewhere = {**SLURM, "SLURM_SUBMIT_DIR": str(cluster.folder)}
    assert "which is not the repository's root" in cluster.run("slurm_train.sh", code=2, **elsewhere)


STOPS = """
    mkdir -p runs/osm_final
    test ! -e runs/osm_final/stopped || exit 9
    trap 'echo "{\\"step\\": $STEP, \\"signal\\": \\"SIGTERM\\"}" > runs/osm_final/stopped; exit 1' TERM
    echo $$ > "$STUBS/pid"
    while :; do sleep 0.05; done
"""


def stopped_run(cluster: Cluster, code: int = 0, **environment: str) -> str:
    """A job whose time is up: the batch script is sent SIGTERM."""
    (cluster.folder / "pid").unlink(missing_ok=True)
    cluster.job(STOPS)
    process = cluster.start("slurm_train.sh", **{**SLURM, "STEP": "12", **environment})
    pid = cluster.folder / "pid"
    wait_until(lambda: pid.exists() and pid.read_text(), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, said
    return said


def test_a_job_whose_time_is_up_writes_and_goes_back_into_the_queue(cluster: Cluster) -> None:
    said = stopped_run(cluster)
    assert cluster.said("scancel") == "--signal=TERM 4711\n"
    assert "stopped at step 12, requeued" in said and cluster.said("scontrol").splitlines()[-1] == "requeue 4711"
    assert "stopped at step 15, requeued" in stopped_run(cluster, STEP="15")
    assert cluster.said("scontrol").count("requeue") == 2
    assert "is too short for a step; not requeued" in stopped_run(cluster, STEP="15", code=75)
    assert cluster.said("scontrol").count("requeue") == 2


def test_a_cancelled_job_stays_cancelled(cluster: Cluster) -> None:
    assert "cancelled at step 12" in stopped_run(cluster, JOB_STATE="CANCELLED", code=75)
    assert "requeue" not in cluster.said("scontrol")


@pytest.mark.parametrize(("ends", "code", "requeued"), [(0, 0, False), (1, 1, False), (2, 2, False), (75, 0, True)])
def test_a_job_that_ends_by_itself(cluster: Cluster, ends: int, code: int, requeued: bool) -> None:
    """Only what says that it was stopped is started again; what an earlier start left says nothing."""
    (cluster.folder / "mine").mkdir()
    (cluster.folder / "mine" / "stopped").write_text('{"step": 3, "signal": "SIGTERM"}')
    cluster.job(f"exit {ends}")
    cluster.run("slurm_train.sh", "--run_name=mine", code=code, **SLURM)
    assert ("requeue" in cluster.said("scontrol")) == requeued
    assert not (cluster.folder / "mine" / "stopped").exists()


def test_the_docs_lines_run(cluster: Cluster) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"SAVE_PATH=.*scripts/\w+\.sh", line)]
    assert {name for line in lines for name in re.findall(r"\w+\.sh", line)} == {"train_8gpu.sh", "slurm_train.sh"}
    for line in lines:
        words = shlex.split(line.split(" #")[0])
        at = next(number for number, word in enumerate(words) if word.endswith(".sh"))
        environment = dict(word.split("=", 1) for word in words[:at] if "=" in word and not word.startswith("-"))
        cluster.run(Path(words[at]).name, *words[at + 1 :], **{**SLURM, **environment})
        assert run_config.parse(cluster.launched()[2]).training.used_sets, line


# Real torchruns: what srun would start on two nodes is started on this machine, and meets by c10d.

LAUNCHER = f"{sys.executable} -m torch.distributed.run --local_addr=localhost"


def two_nodes(cluster: Cluster) -> None:
    cluster.stub("scontrol", 'echo "$*" >> "$STUBS/scontrol.said"; [ "$2" != hostnames ] || echo localhost')
    cluster.stub(
        "srun",
        """
        while [[ $1 == --* ]]; do shift; done
        for node in 0 1; do
            "$@" > "$STUBS/node$node.log" 2>&1 & nodes+=($!)
            echo $! > "$STUBS/agent$node.pid"
        done
        status=0
        for node in "${nodes[@]}"; do wait "$node" || status=$?; done
        cat "$STUBS"/node*.log
        exit $status""",
    )


STOPPABLE = """
import os, signal, sys, time
rank, out = os.environ["RANK"], os.environ["STUBS"]
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1.5)  # writes a checkpoint
    if rank == "0":
        open("run/stopped", "w").write('{"step": 5, "signal": "SIGTERM"}')
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
os.makedirs("run", exist_ok=True)
with open(f"{out}/worker{rank}.pid", "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_torchrun_lets_them_write_and_does_not_start_them_again(cluster: Cluster) -> None:
    """A stand-in for train.py: it is about the way of the signal, which all processes of a job get, as from scancel."""
    two_nodes(cluster)
    cluster.stub("scancel", 'cat "$STUBS"/*.pid | xargs kill -TERM')
    (cluster.folder / "train").mkdir()
    (cluster.folder / "train" / "train.py").write_text(STOPPABLE)
    shutil.copytree(ROOT / "scripts", cluster.folder / "scripts")
    environment = {**SLURM, "SLURM_SUBMIT_DIR": str(cluster.folder), "RUN": "run", "TORCHRUN": LAUNCHER}
    process = cluster.start("slurm_train.sh", PORT=str(free_port()), GPUS="1", **environment)
    try:
        wait_until(lambda: len(list(cluster.folder.glob("worker*.pid"))) == 2, process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped at step 5, requeued" in said, said
    assert "requeue 4711" in cluster.said("scontrol")
    for rank in (0, 1):
        assert len((cluster.folder / f"worker{rank}.pid").read_text().splitlines()) == 1


@pytest.mark.slow
def test_two_torchruns_train_as_one(workshop: Workshop, tmp_path: Path, cluster: Cluster) -> None:
    options: dict[str, Any] = {"sets": {"pan": (1, 12), "inst": (2, 24)}}
    one, two = (
        workshop.arguments(tmp_path / name, "--num_threads", "1", "--num_epochs", "1", **options) for name in ("1", "2")
    )
    two_nodes(cluster)
    process = cluster.start(
        "slurm_train.sh", *two, PORT=str(free_port()), GPUS="1", SETS="", FSDP="", TORCHRUN=LAUNCHER, **SLURM
    )
    try:
        said = finish(process)
    finally:
        process.kill()
    nodes = [(tmp_path / f"node{number}.log").read_text() for number in (0, 1)]
    assert said.count("2 process(es) on cpu") == 1 and sum("epoch 0 step" in text for text in nodes) == 1
    finish(start(one, ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")))
    logs = [read_log(tmp_path / name) for name in ("1", "2")]
    assert len(logs[0]) == 6 and losses(logs[0]) == losses(logs[1])
    assert (tmp_path / "2" / "checkpoint_0.pt").is_file() and (tmp_path / "2" / "final" / "config.json").is_file()
