"""Kills a training run at random moments, while its batch size and number of processes change twice.

    python tests/training/kill_series.py --kills 30 --out docs/benchmarks/reliability/kills.json

The run is tiny (a random tower and LLM). After every kill the next start has to take the last announced checkpoint
("checkpoint written: ..."), or a later one. In each of the three phases every loss, also of steps taken twice, has
to equal to the last bit that of a run that goes on from the same files and is never killed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), *(str(REPO / "tests" / name) for name in (".", "data", "training"))]

from processes import kill_tree  # noqa: E402
from tiny_run import TRAIN, Workshop, launcher  # noqa: E402

# Batch size and processes of each phase: other steps an epoch each time, fewer and then more.
PHASES = ((1, 1), (2, 1), (1, 2))
FLAGS = ("--num_epochs", "50", "--checkpoint_every_steps", "2", "--keep_checkpoints", "2", "--workers", "0")
WRITTEN = re.compile(r"checkpoint written: (\S+)")
STEP = re.compile(r"epoch \d+ step (\d+):")
RESUMED = re.compile(r"resumed from (\S+): epoch \d+, step (\d+)")


class Failed(AssertionError):
    """A run that lost what it had announced, or went on otherwise than one that was never killed."""


class Run:
    """One start of the training; its lines are read as they come."""

    def __init__(self, arguments: list[str], processes: int) -> None:
        start = launcher(processes) if processes > 1 else ()
        self.process = subprocess.Popen(
            [sys.executable, *start, str(TRAIN), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        )
        self.announced: list[str] = []
        self.resumed: tuple[str, int] | None = None
        self.steps = 0
        self.lines: list[str] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            kill_tree(self.process.pid)
        self.process.wait()

    def read_until(self, steps: int) -> None:
        """Reads lines until so many steps were taken."""
        assert self.process.stdout is not None
        while self.steps < steps:
            line = self.process.stdout.readline()
            if not line:
                raise Failed("the run ended by itself:\n" + "".join(self.lines[-20:]))
            self._take(line)

    def _take(self, line: str) -> None:
        self.lines.append(line)
        self.announced += WRITTEN.findall(line)
        self.steps += bool(STEP.search(line))
        if found := RESUMED.search(line):
            self.resumed = found[1], int(found[2])

    def end(self, number: signal.Signals) -> int:
        """Kills all of its processes, or asks it to stop (SIGTERM); reads what is left of its output."""
        if number == signal.SIGKILL:
            kill_tree(self.process.pid)
        else:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._take(line)
        return self.process.wait()


def records(run: Path, after: int) -> list[tuple[int, float, float]]:
    """Returns (step, loss, gradient norm) of every log line from line `after` on; a half line is left out."""
    found = []
    for line in (run / "log.jsonl").read_text().splitlines()[after:]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "loss" in record:
            found.append((record["step"], record["loss"], record["grad_norm"]))
    return found


def lines_of(run: Path) -> int:
    return len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").exists() else 0


def check_start(run: Run, announced: str | None, counters: dict[str, int], folder: Path) -> None:
    """Raises Failed where a start took an older checkpoint than the last one that was announced."""
    if announced is None:
        return
    if run.resumed is None:
        raise Failed(f"announced {announced}, but the next start began anew:\n" + "".join(run.lines[-20:]))
    taken = run.resumed[0]
    if taken != announced and counters.get(taken, 1 << 60) < counters[announced]:
        raise Failed(f"announced {announced}, but the next start took {taken}")


def series(
    folder: Path, kills: int, seed: int, most_steps: int, phases: Sequence[tuple[int, int]] = PHASES
) -> dict[str, Any]:
    """Runs the series; returns its figures. Raises Failed at the first loss of work or difference."""
    rng, begun = random.Random(seed), time.monotonic()
    workshop, run = Workshop(folder / "workshop"), folder / "run"
    counters: dict[str, int] = {}
    announced, result = None, list[dict[str, Any]]()
    for phase, (batch, processes) in enumerate(phases):
        arguments = workshop.arguments(run, *FLAGS, sets={"pan": (batch, 40)})
        before = folder / f"before_{phase}"
        if run.exists():
            shutil.copytree(run, before)
        first_line, lost = lines_of(run), []
        for _ in range(kills // len(phases) + (phase < kills % len(phases))):
            with Run(arguments, processes) as started:
                started.read_until(rng.randint(1, most_steps))
                time.sleep(rng.random() * 0.3)  # anywhere within a step, or a checkpoint that is being written
                started.end(signal.SIGKILL)
            check_start(started, announced, counters, run)
            for path in started.announced:
                counters[path] = len(counters) + 1 if path not in counters else max(counters.values()) + 1
                announced = path
            lost.append(started.steps)
        with Run(arguments, processes) as last:  # one that is stopped as a scheduler does it, to end the phase
            last.read_until(2)
            code = last.end(signal.SIGTERM)
        check_start(last, announced, counters, run)
        if code not in (75, 1):  # torchrun makes 1 of its processes' codes
            raise Failed(f"SIGTERM: exit code {code}\n" + "".join(last.lines[-20:]))
        for path in last.announced:
            counters[path] = max(counters.values(), default=0) + 1
            announced = path
        steps = check_equal(workshop, folder, run, before, first_line, batch, processes)
        result.append({"batch_size": batch, "processes": processes, "steps_per_start": lost, "equal_losses": steps})
    return {
        "kills": kills,
        "seed": seed,
        "phases": result,
        "seconds": round(time.monotonic() - begun),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def check_equal(
    workshop: Workshop, folder: Path, run: Path, before: Path, first_line: int, batch: int, processes: int
) -> int:
    """Compares a phase with a run from the same files that is never killed; returns how many losses were compared."""
    found = records(run, first_line)
    reference = folder / f"reference_{batch}_{processes}"
    if before.exists():
        shutil.copytree(before, reference)
    wanted = len({step for step, _, _ in found})
    with Run(workshop.arguments(reference, *FLAGS, sets={"pan": (batch, 40)}), processes) as started:
        started.read_until(wanted)
        started.end(signal.SIGKILL)
    expected = {step: values for step, *values in records(reference, first_line)}
    for step, *values in found:
        if values != expected[step]:
            raise Failed(f"step {step}: loss and gradient {values}, {expected[step]} in the run that was never killed")
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="decides where the kills come")
    parser.add_argument("--most_steps", type=int, default=7, help="a start is killed after 1 to so many steps")
    parser.add_argument("--out", type=Path, help="writes the figures there, as json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = series(Path(folder), args.kills, args.seed, args.most_steps)
        except Failed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
