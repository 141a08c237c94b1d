#!/usr/bin/env python3
"""Runs all benchmarks that measure speed, and writes their figures to one JSON document. `benchmarks/all.sh` starts it.

    bash benchmarks/all.sh OUT                     all that can run here; goes on where it stopped
    SMALL=1 bash benchmarks/all.sh OUT             the smallest sizes, which show that the commands work
    bash benchmarks/all.sh OUT --only loader,startup
    bash benchmarks/all.sh OUT --list              what would run, and what would not

OUT/all.json has the machine, the commit, and for each figure its median, lowest and highest value, number of repeats,
unit, command, and raw values in OUT/raw. The environment variables DATA, NANO, QUERIES, SETS and OLD name the inputs
(`benchmarks/speed_inputs.py`). A benchmark that has no input is skipped and listed.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from raw_figures import last_document, summaries  # noqa: E402
from speed_benchmarks import BENCHMARKS, STDOUT, WALL_TIME, SpeedBenchmark  # noqa: E402
from speed_inputs import INPUTS, SpeedInputs  # noqa: E402
from speed_machine import code_state, machine_state  # noqa: E402

from osm.errors import OsmError, did_you_mean  # noqa: E402
from osm.files import lock, read_json, write_output  # noqa: E402

LAST_LINES = 15  # of the log of a failed benchmark
SMALL_NOTE = "a small run, which shows that the commands work: its values are no figures"


@dataclass
class SpeedRun:
    """A run of benchmarks, which a later run with the same folder continues.

    Attributes:
        out: the folder of all results.
        benchmarks: the benchmarks of the run, in order.
        inputs: what they need.
        small: whether the smallest sizes are run.
        root: the checkout.
        machine: the facts of the machine.
        code: the state of the checkout. A benchmark that was finished with other code is repeated.
        records: what is known of each benchmark, by its name.
    """

    out: Path
    benchmarks: Sequence[SpeedBenchmark]
    inputs: SpeedInputs
    small: bool = False
    root: Path = ROOT
    machine: dict[str, Any] = field(default_factory=machine_state)
    code: dict[str, Any] = field(init=False)
    records: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.code = code_state(self.root, self.out)
        self.records = self._kept_records()

    def run(self) -> list[str]:
        """Run what is not finished. Returns the names of the benchmarks that failed."""
        failed = []
        for benchmark in self.benchmarks:
            self.code = code_state(self.root, self.out)  # it may change during a long run
            command, lacking = self.command(benchmark)
            record = self.records.get(benchmark.name, {})
            if record.get("status") == "done" and record["command"] == command:
                say(f"{benchmark.name}: finished before")
                continue
            if lacking:
                say(f"{benchmark.name}: skipped, {lacking}")
                self.records[benchmark.name] = {"status": "skipped", "reason": lacking, **self._origin()}
            else:
                self._measure(benchmark, command)
                failed += [benchmark.name] if self.records[benchmark.name]["status"] == "failed" else []
            self.write()
        return failed

    def command(self, benchmark: SpeedBenchmark) -> tuple[str, str]:
        """Return the command as a shell takes it, and what it lacks here, which is empty if it can run."""
        if benchmark.gpu and not self.machine["gpu"]:
            return "", "there is no GPU"
        found, lacking = {"work": str(self._work(benchmark))}, []
        for name in benchmark.inputs(self.small):
            path = self.inputs.find(name)
            if path is None:
                variable, what = INPUTS[name]
                lacking.append(f"{variable} is not set ({what})")
            found[name] = str(path or "")
        words = [word.format(**found) for word in benchmark.words(self.small)]
        threads = f"OMP_NUM_THREADS={benchmark.threads} " if benchmark.threads else ""
        return threads + shlex.join(["python3", *words]), "; ".join(lacking)

    def _measure(self, benchmark: SpeedBenchmark, command: str) -> None:
        """Run a benchmark as often as it needs, and keep a record after each time."""
        record = self.records.get(benchmark.name, {})
        if record.get("status") != "started" or record["command"] != command:
            record = {"status": "started", "command": command, "runs": [], **self._origin()}
        self.records[benchmark.name] = record
        try:
            for name in benchmark.inputs(self.small):
                self.inputs.make(name)
            for number in range(len(record["runs"]) + 1, (1 if self.small else benchmark.runs) + 1):
                say(f"{benchmark.name}, run {number}: {command}")
                record["runs"].append(self._run_once(benchmark, command, number))
                self.write()
            documents = [read_json(self.out / run["raw"], "OUT")[0] for run in record["runs"]]
            record["figures"] = summaries(documents, benchmark.figures)
        except OsmError as error:
            record |= {"status": "failed", "reason": str(error)}
            say(f"{benchmark.name} failed: {error}")
            return
        record |= {"status": "done", "finished": now()}

    def _run_once(self, benchmark: SpeedBenchmark, command: str, number: int) -> dict[str, Any]:
        """Run a command, and keep its JSON document. Raises OsmError if it fails, with the end of its log."""
        work, name = self._work(benchmark), f"{benchmark.name}_{number}"
        shutil.rmtree(work, ignore_errors=True)
        for folder in (work, self.out / "logs", self.out / "raw"):
            folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.root), "PYTHONUNBUFFERED": "1"}
        words = shlex.split(command)
        if benchmark.threads:
            setting, _, value = words.pop(0).partition("=")
            environment[setting] = value
        output, log = self.out / "logs" / f"{name}.out", self.out / "logs" / f"{name}.log"
        begun, load = time.monotonic(), os.getloadavg()[0]
        with output.open("w") as standard, log.open("w") as errors:
            done = subprocess.run(
                [sys.executable, *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=standard,
                stderr=errors,
                cwd=self.root,
                env=environment,
                preexec_fn=_end_with_parent,
            )
        seconds = round(time.monotonic() - begun, 2)
        if done.returncode:
            lines = (output.read_text(errors="replace") + log.read_text(errors="replace")).splitlines()
            last = "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
            raise OsmError(f"exit code {done.returncode}, and the log {log} ends with\n{last}")
        document = self._document(benchmark, output, work, seconds)
        summaries([document], benchmark.figures)  # before hours of further runs, whether it has all figures
        write_output(self.out / "raw" / f"{name}.json", "OUT", [json.dumps(document, indent=1) + "\n"])
        return {"raw": f"raw/{name}.json", "seconds": seconds, "load_before": round(load, 2)}

    def _document(self, benchmark: SpeedBenchmark, output: Path, work: Path, seconds: float) -> Any:
        if benchmark.result == WALL_TIME:
            return {"seconds": seconds}
        if benchmark.result == STDOUT:
            return last_document(output.read_text(encoding="utf-8", errors="replace"))
        return read_json(Path(benchmark.result.format(work=work)), "the result")[0]

    def write(self) -> None:
        """Write OUT/all.json."""
        figures = []
        for name, record in self.records.items():
            for figure in record.get("figures", ()) if record["status"] == "done" else ():
                key = f"{'small run: ' if self.small else ''}{name}/{figure['key']}"
                raw = [run["raw"] for run in record["runs"]]
                commit = {"commit": record["commit"], "dirty": record["dirty"]}
                figures.append({**figure, "key": key, "command": record["command"], "raw": raw, **commit})
        document = {
            "small": self.small,
            **({"note": SMALL_NOTE} if self.small else {}),
            "date": now(),
            **self.code,
            "machine": self.machine,
            "spread": "lowest and highest of all repeats",
            "figures": figures,
            "benchmarks": self.records,
        }
        write_output(self.out / "all.json", "OUT", [json.dumps(document, indent=1) + "\n"])

    def _kept_records(self) -> dict[str, dict[str, Any]]:
        """The records of an earlier run that are of the same code, machine and sizes."""
        path = self.out / "all.json"
        if not path.exists():
            return {}
        earlier = read_json(path, "OUT")[0].get("benchmarks", {})
        kept = {
            name: record
            for name, record in earlier.items()
            if {key: record.get(key) for key in self._origin()} == self._origin()
        }
        if len(kept) < len(earlier):
            say(f"repeated, as their code, machine or sizes were others: {', '.join(sorted(set(earlier) - set(kept)))}")
        return kept

    def _origin(self) -> dict[str, Any]:
        return {**self.code, "machine": self.machine, "small": self.small}

    def _work(self, benchmark: SpeedBenchmark) -> Path:
        return self.out / "work" / benchmark.name


def _end_with_parent() -> None:
    """End a benchmark if this program is killed: it would disturb the measurements of the next run."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def chosen(benchmarks: Sequence[SpeedBenchmark], names: str) -> list[SpeedBenchmark]:
    """Return the benchmarks of a list of names. Raises OsmError for a name that no benchmark has."""
    known = {benchmark.name: benchmark for benchmark in benchmarks}
    for name in names.split(",") if names else ():
        if name not in known:
            raise OsmError(f"--only {name}: expected some of {', '.join(known)}{did_you_mean(name, known)}")
    return [benchmark for benchmark in benchmarks if not names or benchmark.name in names.split(",")]


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("out", type=Path, help="folder of the results")
    out.add_argument("--only", default="", help="names of benchmarks, separated by commas [all]")
    out.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    out.add_argument("--fresh", action="store_true", help="repeat what an earlier run has finished")
    return out


def main(argv: Sequence[str] | None = None, table: Sequence[SpeedBenchmark] = BENCHMARKS, root: Path = ROOT) -> int:
    """Run the benchmarks of a table in a checkout. Returns the exit code: 1 if a benchmark failed."""
    args = parser().parse_args(argv)
    out, small = args.out.resolve(), os.environ.get("SMALL", "0") not in ("", "0")
    try:
        benchmarks = chosen(table, args.only)
        inputs = SpeedInputs.from_environment(out, small, root)
        out.mkdir(parents=True, exist_ok=True)
        with (out / ".lock").open("w") as held:
            if not lock(held):
                raise OsmError(f"{out} is used by another run: expected a folder that no run writes to")
            run = SpeedRun(out, benchmarks, inputs, small, root)
            for benchmark in benchmarks if args.fresh else ():
                run.records.pop(benchmark.name, None)
            if args.list:
                for benchmark in benchmarks:
                    command, lacking = run.command(benchmark)
                    print(f"{benchmark.name}: {f'skipped, {lacking}' if lacking else command}")
                return 0
            failed = run.run()
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    states = [run.records[benchmark.name]["status"] for benchmark in benchmarks]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "skipped", "failed"))
    say(f"{counts}; {out / 'all.json'}")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
