"""Mask counts for the report: per class, per confusion, per part of a class name, and for names in any vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from osm.datasets.table import ANY_MODE
from osm.evaluation.metrics import normalize, wilson_interval
from osm.evaluation.metrics.evaluate import SetResult
from osm.evaluation.metrics.scores import PART, PARTS, EitherVocabulary, PartsOfNames, score_masks
from osm.evaluation.predict.records import SetRecords


@dataclass
class Breakdown:
    """Mask counts of one dataset in one prediction folder, for the report's tables.

    Attributes:
        classes: in the dataset's own mode, (correct, total) mask counts by category id.
        confusions: in the dataset's own mode, the number of masks for each pair (class name, wrong prediction).
        parts: in the dataset's own mode, over the masks whose class has a name of several words: `total`, `full_right`,
            `head_right` (the last word is right) and `modifiers_right` (the words before the last are right).
        either: in mode `any`, over the masks that have the field `names`: `total` and `correct`.
    """

    classes: dict[int, tuple[int, int]] = field(default_factory=dict)
    confusions: Counter[tuple[str, str]] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    either: Counter[str] = field(default_factory=Counter)

    def commonest(self, count: int) -> list[tuple[str, str, int]]:
        """Return the most frequent confusions as (class name, prediction, count) tuples, with ties ordered by name."""
        ordered = sorted(self.confusions.items(), key=lambda entry: (-entry[1], entry[0]))
        return [(*pair, times) for pair, times in ordered[:count]]

    def as_json(self) -> dict[str, Any]:
        """Return `parts_of_names` and `either_vocabulary` as JSON-compatible values. Rates without masks are None."""
        total, either = self.parts["total"], self.either["total"]
        parts = {key: self.parts[key] for key in PARTS}
        return {
            "parts_of_names": {
                "total": total,
                **parts,
                "intervals": {key: wilson_interval(count, total) for key, count in parts.items()},
            },
            "either_vocabulary": {
                "total": either,
                "correct": self.either["correct"],
                "acc": self.either["correct"] / either if either else None,
                "interval": wilson_interval(self.either["correct"], either),
            },
        }


def break_down(records: SetRecords) -> Breakdown:
    """Count the correct and wrong names of one dataset in a prediction folder."""
    result = Breakdown()
    row = records.row
    own = score_masks(records, row.name, metrics=[PartsOfNames()])
    for mask, right in zip(own.masks, own.columns["acc"] > 0, strict=True):
        correct, total = result.classes.get(mask.category_id, (0, 0))
        result.classes[mask.category_id] = (correct + int(right), total + 1)
        if not right:
            name = normalize(mask.predictions[row.name].name)
            result.confusions[row.label_set[mask.category_id].target, name] += 1
    for key in PARTS:
        total, count = _counted(own.columns.get(PART + key))
        result.parts["total"], result.parts[key] = total, count
    either = score_masks(records, ANY_MODE, metrics=[EitherVocabulary()])
    result.either["total"], result.either["correct"] = _counted(either.columns.get(EitherVocabulary.name))
    return result


def _counted(column: np.ndarray | None) -> tuple[int, int]:
    """Return the number of masks to which a 0/1 column applies, and the number of masks with a score of 1."""
    if column is None:
        return 0, 0
    counted = column[~np.isnan(column)]
    return len(counted), int(counted.sum())


def intervals(result: SetResult) -> dict[str, Any]:
    """Return the 95% confidence intervals of Acc and NIV in both modes, or None for a mode without predictions."""
    return {
        mode: {
            "acc": wilson_interval(score.correct, score.total),
            "niv": wilson_interval(score.not_in_vocabulary, score.total),
        }
        for mode, score in (("specific", result.specific), ("agnostic", result.agnostic))
    }
