#!/usr/bin/env python3
"""Leaves classes of photos out of training, and measures what the model then calls them.

    python3 scripts/open_ended.py DATA OUT --seed 0

DATA as for `scripts/osm_small.sh`, which trains osm-small with 8 of the clothing classes never asked about (their
pixels are in the photos), and names all val masks. Of the classes left out are then reported: what they are called, how
near that is in meaning, and whether the model is less sure of them. Interrupted, it goes on where it was.
Writes OUT/open_ended.json and prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from left_out_classes import RESULT, SET, answers, choose, measure, table  # noqa: E402

from osm.datasets.table import DatasetTable  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.files import read_json, write_output  # noqa: E402


def train(data: Path, out: Path, left_out: list[int]) -> None:
    """Trains and predicts, or goes on with it; refuses a folder that another choice was trained in."""
    chosen = out / "left_out.json"
    if chosen.exists() and read_json(chosen, "classes left out")[0] != left_out:
        raise OsmError(f"{out} was begun with other classes left out ({chosen}); give another OUT, or remove it")
    # Going on with what osm_small.sh trained would measure a model that was taught the classes.
    if not chosen.exists() and (out / "run").exists():
        raise OsmError(f"{out / 'run'}: trained without {chosen.name}, so with all classes; give another OUT")
    write_output(chosen, "OUT", [json.dumps(left_out) + "\n"])
    settings = {f"IGNORED_{SET.upper()}": ", ".join(map(str, left_out)), "ONLY_PREDICT": "1", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "osm_small.sh"), str(data), str(out)]
    if (status := subprocess.run(command, env={**os.environ, **settings}, stdout=sys.stderr).returncode) != 0:
        raise OsmError(f"{' '.join(command)} ended with {status}; the same command goes on where it was")


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("data", type=Path)
    out.add_argument("out", type=Path)
    out.add_argument("--classes", type=int, default=8, help="that are left out [%(default)s]")
    out.add_argument("--seed", type=int, default=0, help="of their choice [%(default)s]")
    args = out.parse_args()
    try:
        left_out = choose(args.data, args.classes, args.seed)
        train(args.data, args.out, left_out)
        row = DatasetTable().with_yaml(args.out / "sets.yaml")[SET]
        document = {"seed": args.seed, **measure(args.data, row.label_set, left_out, answers(row, args.out))}
        write_output(args.out / RESULT, "OUT", [json.dumps(document, indent=1) + "\n"])
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
