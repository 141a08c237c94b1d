#!/usr/bin/env python3
"""Prints the tables of docs/results.md from a folder that scripts/osm_small.sh filled: `results_table.py OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from osm.training.tracking import read_log  # noqa: E402


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    runs = {name: read(out / f"{name}.json") for name in ("predictions", "shuffled_masks", "blank_image")}
    probe = read(out / "linear_probe.json")["sets"]
    print("| set | masks | own mode Acc | `any` Acc | own NIV | `any` NIV | linear probe | majority class |")
    print("|---|---|---|---|---|---|---|---|")
    for name, result in runs["predictions"].items():
        own, anyone = result["specific"], result["agnostic"]
        print(
            f"| {name} | {own['total']} | **{percent(own['acc'])}** | {percent(anyone['acc'])} | {percent(own['niv'])} "
            f"| {percent(anyone['niv'])} | {probe[name]['ridge']} | {probe[name]['majority']} |"
        )
    print("\n| set | own mode | with the mask of another image | with a grey image | majority class |")
    print("|---|---|---|---|---|")
    for name, result in runs["predictions"].items():
        altered = [percent(runs[run][name]["specific"]["acc"]) for run in ("shuffled_masks", "blank_image")]
        own = percent(result["specific"]["acc"])
        print(f"| {name} | {own} | {altered[0]} | {altered[1]} | {probe[name]['majority']} |")
    records = read_log(out / "run")
    names = [0, *(record["names"] for record in records)]
    seconds = sum((b - a) / r["names_per_second"] for a, b, r in zip(names, names[1:], records, strict=False))
    last = records[-1]
    print(f"\n{last['step']} steps, {last['names']} names, {seconds / 3600:.2f} h of training")
    return 0


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
