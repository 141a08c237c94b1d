#!/usr/bin/env python3
"""Compares how well the probabilities of several models separate correct from wrong names.

    python3 benchmarks/risk_coverage.py OUT/val BEFORE

Each folder was written by scripts/score_folders.py, and contains the predictions of some datasets and a YAML file for
each. The names of all datasets and modes are sorted by their probability. The risk at a coverage is the share of wrong
names among the most probable ones, and the area under this curve is the mean risk over all coverages: 0% if all names
are correct, and the share of wrong names if the probabilities are random. Names with equal probabilities count with
their mean. The last line of the output is a JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from osm.errors import OsmError, run_command  # noqa: E402
from osm.evaluation.calibrate_cli import read_names  # noqa: E402

SHARES = (0.25, 0.5, 0.75, 1.0)


def risks(probs: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return, for each n, the share of wrong names (names,) among the n most probable ones."""
    _, group = np.unique(-probs, return_inverse=True)  # the group of each probability, the largest first
    sizes, wrong = np.bincount(group), np.bincount(group, weights=~correct)
    expected = np.repeat(wrong / sizes, sizes)  # of equally probable names, each is as wrong as their mean
    return np.cumsum(expected) / np.arange(1, len(probs) + 1)


def figures(folder: Path) -> dict[str, Any]:
    """Return the figures of one model as JSON-compatible values."""
    tables = sorted(folder.glob("*.yaml"))
    if not tables:
        raise OsmError(f"{folder}: contains no YAML file; expected a folder of scripts/score_folders.py")
    names = read_names([table.with_suffix("") for table in tables], list(map(str, tables)))
    risk = risks(names.probs, names.correct)
    counts = [round(share * len(risk)) for share in SHARES]
    return {
        "names": len(risk),
        "accuracy": float(names.correct.mean()),
        "area": float(risk.mean()),
        "risk": {f"{share:g}": float(risk[count - 1]) for share, count in zip(SHARES, counts, strict=True)},
    }


def _main(args: argparse.Namespace) -> None:
    found = {str(folder): figures(folder) for folder in args.folders}
    shares = [f"wrong among the most probable {share:.0%}" for share in SHARES]
    print(f"| folder | names | area under the curve | {' | '.join(shares)} |\n|---{'|---' * (2 + len(shares))}|")
    for folder, row in found.items():
        risk = " | ".join(f"{value:.1%}" for value in row["risk"].values())
        print(f"| {folder} | {row['names']} | {row['area']:.2%} | {risk} |")
    print(json.dumps(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    return run_command(_main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
