#!/usr/bin/env python3
"""Train without some classes of photos, and measure which names the model then gives them.

    python3 scripts/open_ended.py DATA OUT --seed 0

DATA is the folder of `scripts/osm_small.sh`. That script trains osm-small without the names of 8 clothing classes,
whose pixels are still in the photos, and names all val masks. This script then reports which names the classes that
were left out receive, how similar these names are in meaning, and whether the model is less confident about them. It
writes OUT/open_ended.json and prints the results as a table. An interrupted run can be resumed.
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
    """Train and predict, or resume. Raise OsmError if the folder belongs to a training with other classes."""
    chosen = out / "left_out.json"
    if chosen.exists() and read_json(chosen, "classes left out")[0] != left_out:
        raise OsmError(f"{out} contains a training without other classes ({chosen}); give another OUT, or remove it")
    # A run of osm_small.sh itself was trained with the classes, so resuming it would measure the wrong model.
    if not chosen.exists() and (out / "run").exists():
        raise OsmError(f"{out / 'run'}: has no {chosen.name}, so it was trained with all classes; give another OUT")
    write_output(chosen, "OUT", [json.dumps(left_out) + "\n"])
    settings = {f"IGNORED_{SET.upper()}": ", ".join(map(str, left_out)), "ONLY_PREDICT": "1", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "osm_small.sh"), str(data), str(out)]
    if (status := subprocess.run(command, env={**os.environ, **settings}, stdout=sys.stderr).returncode) != 0:
        raise OsmError(f"{' '.join(command)} ended with {status}; run the same command again to resume")


def main() -> int:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("data", type=Path)
    out.add_argument("out", type=Path)
    out.add_argument("--classes", type=int, default=8, help="number of classes that are left out [%(default)s]")
    out.add_argument("--seed", type=int, default=0, help="random seed of the choice of classes [%(default)s]")
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
