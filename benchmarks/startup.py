#!/usr/bin/env python3
"""Measures the time until the first name, its parts, and the time of `--help`.

    python3 benchmarks/startup.py [--tree OTHER_CHECKOUT] [--rounds 5] [--photo photo.jpg]

Each measurement is a new process. With `--tree`, another checkout of the project (for instance an older commit, from
`git worktree add`) is measured in the same run, in turn. The parts are wall-clock seconds since the process began:
Python itself, importing torch and the recognizer, loading the model (which imports timm and transformers), encoding the
photo, and naming one box. Prints one JSON document last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HELP = ("name", "train", "export", "evaluate", "demo")

PARTS = """
import sys, time
marks = [("python", time.time())]
try:
    from osm.startup import in_command
    from osm.startup import quick_loading
except ImportError:  # an older checkout
    try:
        from osm.startup import without_collections as quick_loading
    except ImportError:
        from contextlib import nullcontext as quick_loading
        in_command = lambda main: main
@in_command
def main():
    with quick_loading():
        from osm.recognition.recognizer import load_recognizer
        marks.append(("imports", time.time()))
        recognizer = load_recognizer("osm_small")
    marks.append(("model", time.time()))
    recognizer.set_image(sys.argv[1])
    marks.append(("image", time.time()))
    recognizer.name(boxes=[[10, 10, 100, 100]])
    marks.append(("name", time.time()))
    return 0
main()
import json
print(json.dumps(marks))
"""


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}


def timed(tree: Path, *words: str) -> float:
    """Return the seconds that a command takes in a checkout. Raises RuntimeError if it fails."""
    started = time.time()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment(tree), cwd=tree)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} in {tree}: {done.stderr[-2000:]}")
    return time.time() - started


def parts(tree: Path, photo: Path) -> dict[str, float]:
    """Measure, in seconds, each step that leads to the first predicted name in a checkout."""
    started = time.time()
    words = [sys.executable, "-c", PARTS, str(photo)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(tree), cwd=tree)
    if done.returncode:
        raise RuntimeError(f"naming in {tree}: {done.stderr[-2000:]}")
    found, last = {}, started
    for name, at in json.loads(done.stdout.splitlines()[-1]):
        found[name], last = at - last, at
    return found


def measure(tree: Path, photo: Path) -> dict[str, float]:
    """Return all measurements of one round in a checkout, in seconds."""
    box = ["--box", "10,10,100,100"]
    found = {f"part: {name}": seconds for name, seconds in parts(tree, photo).items()}
    found["osm name --box"] = timed(tree, "-m", "osm", "name", str(photo), *box)
    return found | {f"osm {name} --help": timed(tree, "-m", "osm", name, "--help") for name in HELP}


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--tree", type=Path, help="another checkout that is measured in turn")
    out.add_argument("--rounds", type=int, default=5, help="measurements of each, after one that is not counted [5]")
    out.add_argument("--photo", type=Path, help="the photo [a gray one of 640 x 480 pixels]")
    args = out.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = args.photo or Path(folder) / "photo.png"
        if args.photo is None:
            from PIL import Image

            Image.new("RGB", (640, 480), (120, 130, 140)).save(photo)
        trees = {"here": ROOT, **({"there": args.tree.resolve()} if args.tree else {})}
        found: dict[str, dict[str, list[float]]] = {title: {} for title in trees}
        bare: list[float] = []
        for number in range(args.rounds + 1):
            bare += [timed(ROOT, "-c", "pass")]
            for title, tree in trees.items():
                for name, seconds in measure(tree, photo.resolve()).items():
                    if number:
                        found[title].setdefault(name, []).append(seconds)
            print(f"round {number} of {args.rounds}", file=sys.stderr, flush=True)
    print("| | " + " | ".join(f"{title}, s" for title in trees) + " |\n|---|" + "---|" * len(trees))
    for name in found["here"]:
        cells = [f"{statistics.median(found[title][name]):.2f}" for title in trees if name in found[title]]
        print(f"| {name} | {' | '.join(cells)} |")
    machine: dict[str, Any] = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": sys.version.split()[0]}
    document = {"rounds": args.rounds, **machine, "python_start": statistics.median(bare), "seconds": found}
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
