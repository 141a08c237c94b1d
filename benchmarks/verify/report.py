"""The check of the counts and Wilson intervals of `osm report`, with scipy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from osm.datasets.table import Dataset
from verify.checks import Checks
from verify.files import Mask, read_masks
from verify.names import clean, first_words_right, is_name, last_word_right

TOLERANCE = 1e-9


def check_report(checks: Checks, row: Dataset, paths: list[Path], found: Mapping[str, Any]) -> None:
    """Check one dataset of `results.json`."""
    where = f"{paths[0].parent}/{row.name}_pred_*_of_{len(paths)}.json"
    masks = [mask for mask in read_masks(row, paths) if mask.scored]
    names = {i: label.names for i, label in row.label_set.classes.items()}
    vocabulary = {name for several in names.values() for name in several}
    for mode, key in ((row.name, "specific"), ("any", "agnostic")):
        said = _said(masks, mode)
        right = sum(is_name(name, names[mask.category_id]) for mask, name in said)
        outside = sum(clean(name) not in vocabulary for _, name in said)
        for rate, count in (("acc", right), ("niv", outside)):
            _check_wilson(checks, f"{where}, mode {mode}: {rate}", found["intervals"][key][rate], count, len(said))
    several = [(mask, name) for mask, name in _said(masks, row.name) if len(names[mask.category_id][0].split()) > 1]
    parts = found["parts_of_names"]
    checks.same("report: parts of names", where, parts["total"], len(several))
    for part, holds in (("full", is_name), ("head", last_word_right), ("modifiers", first_words_right)):
        count, key = sum(holds(name, names[mask.category_id]) for mask, name in several), f"{part}_right"
        checks.same("report: parts of names", f"{where}: {key}", parts[key], count)
        _check_wilson(checks, f"{where}: {key}", parts["intervals"][key], count, len(several))
    listed = [(mask, name) for mask, name in _said(masks, "any") if mask.names is not None]
    count = sum(is_name(name, [clean(one) for one in mask.names or ()]) for mask, name in listed)
    either = found["either_vocabulary"]
    checks.same("report: any vocabulary", where, (either["correct"], either["total"]), (count, len(listed)))
    _check_wilson(checks, f"{where}: any vocabulary", either["interval"], count, len(listed))


def _said(masks: list[Mask], mode: str) -> list[tuple[Mask, str]]:
    return [(mask, mask.predictions[mode][0]) for mask in masks if mode in mask.predictions]


def _check_wilson(checks: Checks, where: str, found: Any, count: int, total: int) -> None:
    if not total or found is None:
        checks.same("report: Wilson intervals", where, found, None if not total else (count, total))
        return
    own = binomtest(count, total).proportion_ci(confidence_level=0.95, method="wilson")
    for given, limit in zip(found, (own.low, own.high), strict=True):
        checks.same("report: Wilson intervals", where, given, float(limit), TOLERANCE)
