#!/usr/bin/env python3
"""Updates the tables with the scores of osm_small in README.md and docs/ from the JSON files in docs/benchmarks.

python3 benchmarks/shipped_tables.py docs/benchmarks .

The second argument is the folder of the project. `scripts/shipped.sh` makes the scores in docs/benchmarks/shipped. In
val.json, `before` has the scores of the earlier version, and `difference` those of `osm compare` with its predictions.
`benchmarks/vocabularies.py` makes those in docs/benchmarks/vocabularies/osm_small.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_tables import percent, read, table, with_interval, write_pages

SETS = {
    "coco_panoptic": "COCO, panoptic masks",
    "coco_mini": "COCO, instance masks",
    "camvid": "CamVid",
    "clothing": "Clothing Co-Parsing",
}
LISTS = {"coco": "COCO", "camvid": "CamVid", "clothing": "Clothing"}
WAYS = ("free", "constrained", "scored", "mapped")


def readme(figures: Path) -> dict[str, str]:
    """The table of README.md."""
    scores = read(figures / "shipped" / "val.json")
    after = scores["after"]["folders"]
    rows = (
        (
            SETS[name].replace("COCO,", "COCO photos,"),
            str(after[name]["own"]["masks"]),
            with_interval(after[name]["own"]),
            percent(after[name]["any"]["value"]),
            probe(scores, name),
        )
        for name in SETS
    )
    return {
        "shipped": table(("dataset", "val masks", "own mode", "`any` mode", "ridge probe on the frozen tower"), rows)
    }


def models(figures: Path) -> dict[str, str]:
    """The tables of docs/models.md: the accuracy, the version before, and the calibration."""
    shipped = figures / "shipped"
    scores = read(shipped / "val.json")
    head = ("validation photos", "photos", "masks", "own mode Acc", "`any` Acc", "ridge probe")
    rows = [accuracy_row(name, title, scores) for name, title in {**SETS, "all": "all"}.items()]
    compared = [comparison_row(name, title, scores) for name, title in SETS.items()]
    head_compared = ("validation photos", "before: own mode Acc", "difference, own mode", "difference, `any`")
    names = ("masks", "names", "ECE before", "ECE after", "ECE if perfect", "wrong at 0.5 or more", "wrong below 0.5")
    calibrations = (
        ("the two models on the other half of the photos, cross-fitted", "calibration", "cross_fitted"),
        ("`osm_small` on the validation photos, stored calibration", "calibration_val", "stored"),
    )
    found = (calibration_row(title, read(shipped / f"{file}.json"), after) for title, file, after in calibrations)
    return {
        "shipped": table(head, rows),
        "compared": table(head_compared, compared),
        "calibration": table(("names of", *names), found),
    }


def accuracy_row(name: str, title: str, scores: dict[str, Any]) -> tuple[str, ...]:
    own, anyone = (scores["after"]["folders"][name][mode] for mode in ("own", "any"))
    return (
        title,
        str(own["images"]),
        str(own["masks"]),
        with_interval(own),
        with_interval(anyone),
        probe(scores, name) if name in SETS else "",
    )


def comparison_row(name: str, title: str, scores: dict[str, Any]) -> tuple[str, ...]:
    """The version before, and the paired differences."""
    differences = (with_interval(scores["difference"][name][mode], "+") for mode in ("own", "any"))
    return (title, with_interval(scores["before"]["folders"][name]["own"]), *differences)


def probe(scores: dict[str, Any], name: str) -> str:
    """The accuracy of the ridge probe."""
    return str(scores["ridge_probe"][name]["ridge"])


def calibration_row(title: str, document: dict[str, Any], after: str) -> tuple[str, ...]:
    eces = (document["raw"]["ece"], document[after]["ece"], document["ece_if_perfectly_calibrated"]["mean"])
    shares = (
        f"{document[part]['wrong']} of {document[part]['names']} "
        f"({100 * document[part]['wrong'] / document[part]['names']:.0f}%)"
        for part in ("sure", "unsure")
    )
    return (title, str(document["masks"]), str(document["names"]), *map(percent, eces), *shares)


def results(figures: Path) -> dict[str, str]:
    """The tables of docs/results.md: the accuracy of free names and of three ways of choosing from a list, and ECEs."""
    cases = {(one["way"], one["set"]): one for one in read(figures / "vocabularies" / "osm_small.json")["cases"]}
    titles = [
        f"{title}, {cases['constrained', name]['list']} names ({cases['constrained', name]['masks']} masks)"
        for name, title in LISTS.items()
    ]
    kinds = {"before": "expected_calibration_error", "after": "after_calibration"}
    rows, errors = [], []
    for way in WAYS:
        values = [cases[way, name]["accuracy"]["own"] for name in LISTS]
        rows.append((way, *map(percent, values), percent(sum(values) / len(values))))
        errors.append((way, *(percent(cases[way, name][kind]["own"]) for name in LISTS for kind in kinds.values())))
    heads = [f"{title}, {when}" for title in LISTS.values() for when in kinds]
    return {
        "shipped_ways": table(("way", *titles, "mean"), rows),
        "shipped_ways_ece": table(("way", *heads), errors),
    }


PAGES: dict[str, Callable[[Path], dict[str, str]]] = {
    "README.md": readme,
    "docs/models.md": models,
    "docs/results.md": results,
}


if __name__ == "__main__":
    sys.exit(write_pages((__doc__ or "").splitlines()[0], PAGES))
