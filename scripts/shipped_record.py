#!/usr/bin/env python3
"""Records the results of scripts/shipped.sh in docs/benchmarks/shipped, and copies the model to osm/weights/osm_small.

    python3 scripts/shipped_record.py OUT BEFORE

OUT is the folder of scripts/shipped.sh. BEFORE contains the predictions of the previous version for the same photos
(scripts/score_folders.py), with which those in OUT/val are compared (`osm compare`). The scores that were recorded last
become those of the previous version. A ridge probe that was not run again (an empty OUT/probe_NAME.json) is kept. It
has to be run again if the tower or the windows of the config have changed. benchmarks/shipped_tables.py then updates
the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from osm.errors import OsmError, run_command  # noqa: E402
from osm.files import read_json, write_atomically  # noqa: E402

FIGURES, WEIGHTS = ROOT / "docs" / "benchmarks" / "shipped", ROOT / "osm" / "weights" / "osm_small"
PARTS = 2  # scripts/score_folders.py uses two processes
MODES = {"own": "specific", "any": "agnostic"}


def paired(before: Path, after: Path, name: str) -> dict[str, Any]:
    """Return the paired differences of the accuracy on one folder, for each mode."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compared.json"
        words = ["compare", before / name, after / name, "--parts", PARTS, "--datasets", after / f"{name}.yaml"]
        command = [sys.executable, "-m", "osm", *map(str, words), "--metrics", "published", "--json", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise OsmError(f"osm compare for {name} failed: {done.stderr.strip()}")
        [row] = json.loads(out.read_text())["sets"].values()
    return {mode: row[key]["rates"]["acc"]["difference"] for mode, key in MODES.items()}


def scores_of(out: Path) -> dict[str, Any]:
    """Return the scores that scripts/score_folders.py printed last."""
    try:
        return json.loads((out / "val.txt").read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:
        raise OsmError(f"{out / 'val.txt'}: expected the output of scripts/score_folders.py ({error})") from None


def record(out: Path, before: Path) -> None:
    last, _ = read_json(FIGURES / "val.json", "val.json")
    after = scores_of(out)
    # If the same results are recorded again, the previous version stays the same.
    previous = last["before"] if last["after"]["folders"] == after["folders"] else last["after"]
    names = [name for name in after["folders"] if name != "all"]
    probes = last["ridge_probe"]
    for name in names:
        path = out / f"probe_{name}.json"
        if path.exists() and path.stat().st_size:
            probe, _ = read_json(path, "probe")
            [probes[name]] = probe["sets"].values()  # benchmarks/linear_probe.py was run for this set alone
    document = {
        "machine": last["machine"],
        "after": {**after, "checkpoint": "osm_small"},
        "before": previous,
        "difference": {name: paired(before, out / "val", name) for name in names},
        "ridge_probe": probes,
    }
    for name in ("calibration", "calibration_val"):
        shutil.copyfile(out / f"{name}.json", FIGURES / f"{name}.json")
    shutil.copyfile(out / "run" / "log.jsonl", FIGURES / "log.jsonl")
    shutil.copyfile(out / "reliability.png", ROOT / "docs" / "images" / "reliability.png")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(out / "model" / name, WEIGHTS / name)
    write_atomically(FIGURES / "val.json", [json.dumps(document, indent=1) + "\n"])  # when all else is there


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder of scripts/shipped.sh")
    parser.add_argument("before", type=Path, help="the predictions of the previous version")
    args = parser.parse_args()
    return run_command(lambda _: record(args.out.resolve(), args.before.resolve()), args)


if __name__ == "__main__":
    sys.exit(main())
