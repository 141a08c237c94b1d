#!/usr/bin/env python3
"""Prints the tables of docs/quickstart.md from the results of scripts/quickstart_study.sh in the folder OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FINE, PLAIN = "scenes_fine", "scenes_plain"


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    columns = ["training seed", "test seed", "masks", "own, fine", "own, plain", "in own vocabulary, fine / plain"]
    columns += ["`any`, either vocabulary", "held-out things", "right in full", "thing right", "attribute right"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for run in sorted(out.glob("seed_*")):
        seed = run.name.removeprefix("seed_")
        stages = read(run / "stages.json")
        reports = {stages["options"]["test_seed"]: run / "report"}
        reports |= {int(f.name.removeprefix("test_")): f / "report" for f in sorted(run.glob("test_*"))}
        for test, folder in reports.items():
            print(row(seed, test, read(folder / "results.json")["predictions"]))
    first = min(out.glob("seed_*"))
    print("\n| the same scenes, own mode | fine | plain |\n|---|---|---|")
    results = read(first / "report" / "results.json")["predictions"]
    for title in ("after training", "before training", "masks of other images", "grey images"):
        figures = results[title]
        print(
            f"| {title} ({figures[FINE]['specific']['total']} masks) | {own(figures[FINE])} | {own(figures[PLAIN])} |"
        )
    majority = [results["after training"][name]["majority_class"] for name in (FINE, PLAIN)]
    print("| commonest class | " + " | ".join(f"{percent(m['acc'])} ({m['name']})" for m in majority) + " |")
    for features, what in (("statistics", "ridge on color, area, Hu moments"), ("tower", "linear probe on the tower")):
        probe = read(out / f"probe_{features}.json")["sets"]
        print(f"| {what} | {probe[FINE]['ridge']} | {probe[PLAIN]['ridge']} |")
    seconds = read(first / "stages.json")["seconds"]
    print(f"\n| stage | seconds ({first.name.replace('_', ' ')}) |\n|---|---|")
    for stage, value in [*seconds.items(), ("all", sum(seconds.values()))]:
        print(f"| {stage} | {value:.0f} |")
    return 0


def row(seed: str, test: int, predictions: dict[str, Any]) -> str:
    fine, plain = (predictions["after training"][name] for name in (FINE, PLAIN))
    held_out = predictions["held-out pairs"][FINE]["parts_of_names"]
    parts = [percent(held_out[key] / held_out["total"]) for key in ("full_right", "head_right", "modifiers_right")]
    inside = " / ".join(percent(1 - figures["specific"]["niv"]) for figures in (fine, plain))
    cells = [seed, test, fine["specific"]["total"], own(fine), own(plain), inside]
    cells += [percent(fine["either_vocabulary"]["acc"]), held_out["total"], *parts]
    return "| " + " | ".join(map(str, cells)) + " |"


def own(figures: dict[str, Any]) -> str:
    return percent(figures["specific"]["acc"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main())
