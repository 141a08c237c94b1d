"""Trains, kills, resumes, loads and names in every precision and layout, in a few minutes on one GPU.

    python scripts/gpu_smoke.py --out docs/benchmarks/gpu_smoke/h100.json
    python scripts/gpu_smoke.py --device cpu --cases fp32,fsdp --steps 6

The script needs only this repository and its requirements: osm_nano's tower and LLM come with the package, and the
images are synthetic. In each case, a run of `osm train` is killed (SIGKILL) after its first checkpoint and started
again. It has to resume from that checkpoint and to finish. Then the trained folder and the epoch's `.pt` file have to
load and to name a synthetic scene. The exit code is 1 if a case fails. The results (seconds per step, peak memory, the
reason of a failure) are written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from processes import kill_tree  # noqa: E402

LIMIT = 200.0  # seconds that one start of a run may take
NAME = """
import sys, numpy as np, osm
from PIL import Image
recognizer = osm.load_recognizer(sys.argv[1], device=sys.argv[3])
recognizer.set_image(sys.argv[2])
width, height = recognizer.image_size
(answers,) = recognizer.name(boxes=[[0, 0, width // 2, height // 2]], modes=["any"])
assert 0 <= answers[0].prob <= 1 and not answers[0].skipped, answers
print("named:", answers[0].text)
"""


@dataclass(frozen=True)
class Case:
    """A precision or layout, and its flags of `osm train`."""

    name: str
    flags: tuple[str, ...]
    processes: int = 1


CASES = (
    Case("fp32", ("--precision", "fp32")),
    Case("tf32", ("--precision", "fp32", "--tf32")),
    Case("fp16", ("--precision", "fp16")),
    Case("bf16", ("--precision", "amp_bf16", "--gradient_checkpointing")),
    Case("ddp", ("--precision", "amp_bf16"), 2),
    Case("fsdp", ("--precision", "amp_bf16", "--fsdp"), 2),
)


def osm(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "osm", *map(str, arguments)]


def environment() -> dict[str, str]:
    settings = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, "PYTHONPATH": str(REPO), **settings}


def checked(command: Sequence[str]) -> str:
    """Runs a command to its end; raises RuntimeError with the end of its output where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def prepare(folder: Path) -> None:
    """Draws a set of scenes and packs it."""
    scenes = folder / "scenes"
    checked(osm("scenes", scenes, "--split", "train", "--images", 24, "--sets", "scenes_plain"))
    parts = ("--image_dir", scenes / "train/images", "--ann_dir", scenes / "train/panoptic")
    table = scenes / "train/scenes_plain.json"
    checked(osm("prepare_panoptic", *parts, "--json_file", table, "--output_dir", folder / "shards"))
    rows = {"scenes_plain": {"form": "coco_panoptic", "labels": str(table)}}
    (folder / "sets.yaml").write_text(json.dumps({"datasets": rows}))  # json is YAML


def command(case: Case, folder: Path, device: str, steps: int) -> list[str]:
    """Returns the command of a run with one epoch of so many steps and a checkpoint after a third of them."""
    samples = 2 * steps * case.processes
    layout = device_flags(case, device)
    arguments = [
        *("train", "--config", "osm_nano", "--datasets", folder / "sets.yaml", "--run_name", folder / case.name),
        *("--scenes_plain_shards", folder / "shards/000000000.tar", "--batch_size_scenes_plain", 2),
        *("--train_num_samples_scenes_plain", samples, "--checkpoint_every_steps", max(1, steps // 3)),
        *("--logging_steps", 1, "--warmup_steps", 2, *layout, *case.flags),
    ]
    if case.processes == 1:
        return osm(*arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = f"-m torch.distributed.run --nnodes=1 --nproc_per_node={case.processes} --master_addr=127.0.0.1"
    return [sys.executable, *launcher.split(), f"--master_port={port}", *osm(*arguments)[1:]]


def device_flags(case: Case, device: str) -> tuple[str, ...]:
    """Two processes on one GPU exchange gradients by gloo: NCCL refuses a GPU that two processes share."""
    if case.processes == 1 or device == "cpu":
        return "--device", device
    import torch

    if torch.cuda.device_count() >= case.processes:
        return ("--device", "cuda")
    return "--device", "cuda:0", "--dist_backend", "gloo"


class Run:
    """A start of the training."""

    def __init__(self, words: Sequence[str]) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )

    def read(self, until: str = "") -> bool:
        """Reads lines up to one that `until` matches, or to the end; returns whether there was one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if until and re.search(until, line):
                return True
        return False

    def kill(self) -> None:
        if self.process.poll() is None:
            kill_tree(self.process.pid)
        self.process.wait()

    @property
    def end(self) -> str:
        """What a failure shows: the lines that name an error, and the last ones."""
        errors = [line for line in self.lines[:-10] if re.search(r"\w*Error\b|error:", line)]
        crashed = next((i for i, line in enumerate(self.lines) if "Fatal Python error" in line), None)
        stacks = self.lines[len(self.lines) if crashed is None else crashed :]
        frames = [line for line in stacks if line.startswith(("  File", "Thread", "Current"))]
        return "".join([*errors[:4], *frames[:60], *self.lines[-10:]])


def try_case(case: Case, folder: Path, device: str, steps: int) -> dict[str, Any]:
    """Runs a case; returns its figures. Raises RuntimeError at what is not as it has to be."""
    words = command(case, folder, device, steps)
    first = Run(words)
    try:
        if not first.read(r"checkpoint written: \S+step_\d+"):
            raise RuntimeError(f"no checkpoint was written: {first.end}")
    finally:
        first.kill()
    begun = time.monotonic()
    second = Run(words)
    try:
        second.read()
        code = second.process.wait()
    finally:
        second.kill()
    if code or not any("resumed from" in line and "step_" in line for line in second.lines):
        raise RuntimeError(f"the run did not go on from its checkpoint to its end (exit code {code}): {second.end}")
    records = [json.loads(line) for line in (folder / case.name / "log.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    if sorted(losses) != list(range(1, steps + 1)) or not all(value == value for value in losses.values()):
        raise RuntimeError(f"the log holds the losses {losses}, one for each of {steps} steps is needed")
    picture = sorted((folder / "scenes/train/images").iterdir())[0]
    for path in ("final", "checkpoint_0.pt"):
        checked([sys.executable, "-c", NAME, str(folder / case.name / path), str(picture), device])
    last = records[-1]
    # The median: the first steps after a start load kernels.
    times = statistics.median(record["seconds_per_step"] for record in records if "seconds_per_step" in record)
    return {
        "seconds_per_step": round(times, 4),
        "memory_gib": round(last["memory_gib"], 3),
        "skipped_steps": last["skipped_steps"],
        "loss": [round(losses[1], 4), round(losses[steps], 4)],
        "seconds_to_resume_and_end": round(time.monotonic() - begun, 1),
    }


def machine(device: str) -> dict[str, Any]:
    import torch
    import transformers

    found = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    name = torch.cuda.get_device_name(0) if device != "cpu" else f"{platform.machine()}, {os.cpu_count()} cores"
    return {"device": name, **found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--cases", default=",".join(case.name for case in CASES), help="comma-separated [all]")
    parser.add_argument("--steps", type=int, default=12, help="of each run")
    parser.add_argument("--out", type=Path, help="writes the figures there, as json")
    args = parser.parse_args(argv)
    chosen = args.cases.split(",")
    unknown = sorted(set(chosen) - {case.name for case in CASES})
    if unknown or args.steps < 3:
        parser.error(f"--cases {unknown} are not among {[case.name for case in CASES]}, or --steps is less than 3")
    begun, results, failed = time.monotonic(), dict[str, Any](), False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for case in CASES:
            if case.name not in chosen:
                continue
            try:
                results[case.name] = {"ok": True, **try_case(case, folder, args.device, args.steps)}
            except (RuntimeError, subprocess.TimeoutExpired, OSError, KeyError) as error:
                results[case.name], failed = {"ok": False, "error": str(error)[-4000:]}, True
            print(json.dumps({case.name: results[case.name]}), flush=True)
    document = {**machine(args.device), "seconds": round(time.monotonic() - begun), "cases": results}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
