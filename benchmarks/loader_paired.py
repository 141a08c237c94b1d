#!/usr/bin/env python3
"""Compares the CPU time of a training sample in the loaders of two checkouts.

One process of each checkout stays open. In every case, the two take turns on the same synthetic shards, so that other
programs on the machine slow both alike. The result of a case is the median of new / old over all rounds, with the
quartiles. Above 1, the new code is slower.

    python3 benchmarks/loader_paired.py OLD_CHECKOUT NEW_CHECKOUT [--rounds 20] [--samples 24] > result.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# This program runs inside a checkout. It reads one case per line, and answers with the CPU seconds of a sample.
CHILD = """
import json, sys, time
sys.path.insert(0, "benchmarks")
import loader, torch
torch.set_num_threads(1)
processor, table = loader.make_processor(int(sys.argv[1])), loader.DatasetTable()
for line in sys.stdin:
    name, shard, samples = json.loads(line)
    begun = time.process_time()
    loader.ours(table[name], [shard], processor, samples, None)
    print((time.process_time() - begun) / samples, flush=True)
"""


class Side:
    """The process of a checkout. It reads one line of JSON for each case, and answers with seconds."""

    def __init__(self, checkout: Path, argument: Any, program: str = CHILD) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, str(argument)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True)

    def seconds(self, *case: Any) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self._process.args!r} ended with {self._process.wait()}")
        return float(answer)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def take_turns(sides: Sequence[Side], case: Sequence[Any], rounds: int) -> dict[str, Any]:
    """Measure a case in both checkouts in turns. Return the medians in ms, and new / old with its quartiles."""
    turns: list[list[float]] = [[], []]
    for number in range(rounds):
        for k in (0, 1) if number % 2 else (1, 0):
            turns[k].append(sides[k].seconds(*case))
    ratios = [new / old for old, new in zip(*turns, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "old_ms": round(1000 * statistics.median(turns[0]), 2),
        "new_ms": round(1000 * statistics.median(turns[1]), 2),
        "new_over_old": round(statistics.median(ratios), 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
    }


def revision(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def print_result(args: argparse.Namespace, cases: Mapping[str, Any], **settings: Any) -> None:
    """Print the results of all cases as JSON, with the revisions, the settings and the state of the machine."""
    result = {
        "old": revision(args.old),
        "new": revision(args.new),
        **settings,
        "rounds": args.rounds,
        "cases": dict(cases),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=1))


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("old", type=Path)
    out.add_argument("new", type=Path)
    out.add_argument("--rounds", type=int, default=20, help="turns of each [%(default)s]")
    out.add_argument("--samples", type=int, default=24, help="of each case and turn [%(default)s]")
    out.add_argument("--images", type=int, default=16, help="drawn pictures of each size [%(default)s]")
    out.add_argument("--sizes", default="640x480,1280x960", help="of the drawn pictures [%(default)s]")
    out.add_argument("--input_size", type=int, default=1120, help="S [%(default)s]")
    args = out.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from loader_shards import make_shards

    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        todo = []
        for size in args.sizes.split(","):
            width, height = (int(side) for side in size.split("x"))
            for (name, layout), shard in make_shards(Path(folder), width, height, args.images).items():
                todo.append((f"{name} {layout} {size}", name, shard))
        sides = [Side(checkout.resolve(), args.input_size) for checkout in (args.old, args.new)]
        for title, name, shard in todo:
            for side in sides:
                side.seconds(name, shard, 8)  # fills the caches
            cases[title] = take_turns(sides, (name, shard, args.samples), args.rounds)
            print(f"{title}: {cases[title]}", file=sys.stderr)
        for side in sides:
            side.close()
    print_result(args, cases, samples=args.samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
