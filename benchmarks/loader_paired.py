#!/usr/bin/env python3
"""Two checkouts' loaders compared in one run: samples a second of each, case by case.

`loader.py` runs in both, in turns, each in a process of its own, on shards that it draws the same in both. A case's
figure is the best of all rounds, as in `loader.py` itself: what else runs on the machine can only slow it.

    python3 benchmarks/loader_paired.py OLD_CHECKOUT NEW_CHECKOUT [--rounds 3] [--samples 64] > result.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(checkout: Path, arguments: list[str]) -> dict[str, Any]:
    """One run of a checkout's loader.py; ends the program where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(checkout / "benchmarks" / "loader.py"), *arguments]
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: loader.py ended with {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def revision(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("old", type=Path)
    out.add_argument("new", type=Path)
    out.add_argument("--rounds", type=int, default=3, help="runs of each [%(default)s]")
    out.add_argument("--samples", type=int, default=64, help="of each case and round [%(default)s]")
    out.add_argument("--images", type=int, default=16, help="drawn pictures of each size [%(default)s]")
    out.add_argument("--sizes", default="640x480,1280x960", help="of the drawn pictures [%(default)s]")
    args = out.parse_args()
    flags = ["--samples", str(args.samples), "--images", str(args.images), "--sizes", args.sizes]
    best: dict[str, dict[str, float]] = {}
    for number in range(2 * args.rounds):
        side, checkout = (("old", args.old), ("new", args.new))[number % 2]
        document = run(checkout.resolve(), flags)
        for case in document["cases"]:
            name = f"{case['set']} {case.get('layout', case.get('shards', ''))} {case.get('size', '')}".strip()
            rates = best.setdefault(name, {"old": 0.0, "new": 0.0})
            rates[side] = max(rates[side], case["samples_per_second"]["ours"])
        print(f"round {number // 2 + 1}, {side}: done", file=sys.stderr)
    cases = {name: {**rates, "new_over_old": round(rates["new"] / rates["old"], 3)} for name, rates in best.items()}
    result = {
        "old": revision(args.old),
        "new": revision(args.new),
        "samples_per_second": cases,
        "rounds": args.rounds,
        "samples": args.samples,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
