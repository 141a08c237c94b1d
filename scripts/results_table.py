#!/usr/bin/env python3
"""Prints the tables of docs/results.md from the results of scripts/osm_small.sh in the folder OUT.

If OUT/open_ended has the results of scripts/open_ended.py, their tables are printed too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from left_out_classes import RESULT  # noqa: E402
from left_out_classes import table as open_ended_table  # noqa: E402

from osm.evaluation.metrics.measure import title_of  # noqa: E402
from osm.training.tracking import read_log  # noqa: E402


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    try:
        return _print(out)
    except (OSError, KeyError, ValueError) as error:
        print(f"error: {out}: {error!r}; expected a folder that scripts/osm_small.sh filled", file=sys.stderr)
        return 2


def _print(out: Path) -> int:
    runs = {name: read(out / f"{name}.json") for name in ("predictions", "shuffled_masks", "blank_image")}
    probe = read(out / "linear_probe.json")["sets"]
    print("| dataset | masks | own mode Acc | `any` Acc | own NIV | `any` NIV | linear probe | majority class |")
    print("|---|---|---|---|---|---|---|---|")
    for name, result in runs["predictions"].items():
        own, anyone = result["specific"], result["agnostic"]
        print(
            f"| {name} | {own['total']} | **{percent(own['acc'])}** | {percent(anyone['acc'])} | {percent(own['niv'])} "
            f"| {percent(anyone['niv'])} | {probe[name]['ridge']} | {probe[name]['majority']} |"
        )
    print("\n| dataset | own mode | with the mask of a different image | with a gray image | majority class |")
    print("|---|---|---|---|---|")
    for name, result in runs["predictions"].items():
        altered = [percent(runs[run][name]["specific"]["acc"]) for run in ("shuffled_masks", "blank_image")]
        own = percent(result["specific"]["acc"])
        print(f"| {name} | {own} | {altered[0]} | {altered[1]} | {probe[name]['majority']} |")
    print()
    metrics_table({name: result["metrics"] for name, result in runs["predictions"].items()})
    records = read_log(out / "run")
    names = [0, *(record["names"] for record in records)]
    seconds = sum((b - a) / r["names_per_second"] for a, b, r in zip(names, names[1:], records, strict=False))
    last = records[-1]
    print(f"\n{last['step']} steps, {last['names']} names, {seconds / 3600:.2f} h of training")
    if (out / "open_ended" / RESULT).is_file():
        print("\n" + open_ended_table(read(out / "open_ended" / RESULT)))
    return 0


def metrics_table(sets: dict[str, Any]) -> None:
    """All metrics with their intervals, own mode and any; shares of relations that no mask has are left out."""
    modes = [(name, key) for name in sets for key in ("specific", "agnostic")]
    head = [f"{name}, {'own' if key == 'specific' else '`any`'}" for name, key in modes]
    print(f"| metric | {' | '.join(head)} |\n|{'---|' * (1 + len(head))}")
    for key in dict.fromkeys(key for name, mode in modes for key in sets[name][mode]["rates"]):
        rates = [sets[name][mode]["rates"].get(key) for name, mode in modes]
        if any(rate and rate["value"] for rate in rates):
            print(f"| {title_of(key)} | {' | '.join(map(rate_cell, rates))} |")
    errors = [sets[name][mode]["calibration"]["ece"] for name, mode in modes]
    print(f"| ECE, 15 bins | {' | '.join(map(percent, errors))} |")


def rate_cell(rate: dict[str, Any] | None) -> str:
    if not rate or rate["value"] is None:
        return ""
    span = "" if rate["interval"] is None else f" ({'–'.join(map(percent, rate['interval']))})"
    return f"{percent(rate['value'])}{span}"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
