"""What the report counts beyond Acc and NIV: by class, by pair of names, by the parts of a name, in any vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from osm.datasets.table import ANY_MODE, Dataset
from osm.evaluation.metrics import (
    head_is_correct,
    is_correct,
    modifiers_are_correct,
    normalize,
    wilson_interval,
)
from osm.evaluation.metrics.evaluate import SetResult
from osm.evaluation.metrics.scores import PARTS
from osm.evaluation.predict.records import MaskRecord, SetRecords


@dataclass
class Breakdown:
    """The counts of one set in one folder.

    Attributes:
        classes: in the set's own mode, (right, masks) by category id.
        confusions: in the set's own mode, how often (the class's name, a wrong prediction) occurred.
        parts: in the set's own mode, over the masks whose class has a name of several words: `total`, `full_right`,
            `head_right` (last word) and `modifiers_right` (the words before).
        either: in mode `any`, over the masks that have the field `names`: `total` and `correct`.
    """

    classes: dict[int, tuple[int, int]] = field(default_factory=dict)
    confusions: Counter[tuple[str, str]] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    either: Counter[str] = field(default_factory=Counter)

    def commonest(self, count: int) -> list[tuple[str, str, int]]:
        """The commonest confusions: (given, predicted, how often); equals by name."""
        ordered = sorted(self.confusions.items(), key=lambda entry: (-entry[1], entry[0]))
        return [(*pair, times) for pair, times in ordered[:count]]

    def as_json(self) -> dict[str, Any]:
        """`parts_of_names` and `either_vocabulary`; null where nothing was counted."""
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
    """Counts one set of a folder."""
    result = Breakdown()
    for _, mask in records.counted():
        _count_own(result, records.row, mask)
        if mask.names is not None and ANY_MODE in mask.predictions:
            result.either["total"] += 1
            result.either["correct"] += is_correct(mask.predictions[ANY_MODE].name, map(normalize, mask.names))
    return result


def _count_own(result: Breakdown, row: Dataset, mask: MaskRecord) -> None:
    if row.name not in mask.predictions:
        return
    name = normalize(mask.predictions[row.name].name)
    category_id, label = mask.category_id, row.label_set[mask.category_id]
    right = is_correct(name, label.names)
    correct, total = result.classes.get(category_id, (0, 0))
    result.classes[category_id] = (correct + right, total + 1)
    if not right:
        result.confusions[label.target, name] += 1
    if len(label.target.split()) > 1:
        result.parts["total"] += 1
        result.parts["full_right"] += right
        result.parts["head_right"] += head_is_correct(name, label.names)
        result.parts["modifiers_right"] += modifiers_are_correct(name, label.names)


def intervals(result: SetResult) -> dict[str, Any]:
    """The 95 % intervals of a set's Acc and NIV in both modes; null where nothing was counted."""
    return {
        mode: {
            "acc": wilson_interval(score.correct, score.total),
            "niv": wilson_interval(score.not_in_vocabulary, score.total),
        }
        for mode, score in (("specific", result.specific), ("agnostic", result.agnostic))
    }
