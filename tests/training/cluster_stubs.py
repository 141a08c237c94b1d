"""Stubs in place of torchrun and Slurm, for the tests of the scripts that submit jobs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from processes import PATIENCE_S
from tiny_run import ENVIRONMENT, TRAIN
from torch.distributed import run as torchrun

from osm.datasets.table import DatasetTable
from osm.training import train_flags

ROOT = TRAIN.parents[1]
STUBS = {
    "python": 'printf "%s\\0" "$@" > "$STUBS/python.said"; exec bash "$STUBS/job"',
    "torchrun": 'printf "%s\\0" "$@" > "$STUBS/torchrun.said"; exec bash "$STUBS/job"',
    "srun": """
        echo "$SRUN_CPUS_PER_TASK" > "$STUBS/srun.cpus"
        while [[ $1 == --* ]]; do echo "$1" >> "$STUBS/srun.said"; shift; done
        exec "$@" """,
    "scontrol": """
        echo "$*" >> "$STUBS/scontrol.said"
        case "$1 $2" in
        "show hostnames") printf "node1\\nnode2\\n" ;;
        "show job") echo "JobId=$3 JobState=${JOB_STATE:-RUNNING} Reason=None" ;;
        esac""",
    "scancel": 'echo "$*" >> "$STUBS/scancel.said"; kill -TERM "$(cat "$STUBS/pid")"',
}


class Cluster:
    """Stubs on PATH that write down how they were called; `job` is what a stub torchrun does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, body in STUBS.items():
            self.stub(name, body)
        self.job(":")

    def stub(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (self.folder / name).chmod(0o755)

    def job(self, body: str) -> None:
        (self.folder / "job").write_text(body)

    def said(self, name: str) -> str:
        path = self.folder / f"{name}.said"
        return path.read_text() if path.exists() else ""

    def start(self, script: str, *flags: str, **environment: str) -> subprocess.Popen[str]:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        own = {k: v for k, v in os.environ.items() if k not in ("SETS", "CONFIG", "RUN", "FSDP", "GPUS", "TORCHRUN")}
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / script), *flags],
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**own, **ENVIRONMENT, "PATH": path, "STUBS": str(self.folder), "SAVE_PATH": "/shards", **environment},
        )

    def run(self, script: str, *flags: str, code: int = 0, **environment: str) -> str:
        process = self.start(script, *flags, **environment)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, said
        return said

    def launched(self) -> tuple[Any, dict[str, Any], list[str]]:
        """torchrun's own reading of its flags, the flags that train.py was given, and its words without FSDP's."""
        launcher = torchrun.parse_args(self.said("torchrun").split("\0")[:-1])
        words = launcher.training_script_args
        given = vars(train_flags.train_parser(DatasetTable()).parse_args(words))
        rest = re.sub(r"--fsdp(_sharding_strategy \w+)?(\s|$)", "", shlex.join(words))
        return launcher, given, shlex.split(rest)
