"""What the report counts beyond Acc and NIV: by class, by pair of names, by the parts of a name, in any vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osm.benchmark.evaluate import SetResult
from osm.benchmark.files import prediction_path
from osm.benchmark.items import FIELD, SPLITS
from osm.benchmark.metrics import (
    accepted_forms,
    head_is_correct,
    is_correct,
    modifiers_are_correct,
    normalize,
    wilson_interval,
)
from osm.data.datasets import ANY_MODE, Dataset
from osm.errors import OsmError, shown
from osm.files import read_json

NAMES = "names"
"""The field of an annotation that lists every name that is right for it, in any vocabulary."""


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


PARTS = ("full_right", "head_right", "modifiers_right")


def break_down(row: Dataset, folder: Path, parts: int) -> Breakdown:
    """Counts one set of a folder that `evaluate_folder` has taken.

    Raises:
        OsmError: a field `names` that is no list of texts.
    """
    result = Breakdown()
    split = SPLITS[row.form]
    for part in range(parts):
        path = prediction_path(folder, row.name, part, parts)
        document, _ = read_json(path, "predictions")
        for annotation in split.annotations_in(document):
            if predictions := annotation.get(FIELD):
                where = f"predictions {path}: annotation {annotation.get(split.id_key)}"
                _count_own(result, row, annotation[split.category_key], predictions)
                _count_either(result, annotation, predictions, where)
    return result


def _count_own(result: Breakdown, row: Dataset, category_id: int, predictions: Mapping[str, Any]) -> None:
    if row.name not in predictions:
        return
    name = normalize(predictions[row.name]["class"])
    label = row.label_set[category_id]
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


def _count_either(result: Breakdown, annotation: Mapping[str, Any], predictions: Mapping[str, Any], where: str) -> None:
    if NAMES not in annotation or ANY_MODE not in predictions:
        return
    names = annotation[NAMES]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OsmError(f"{where}: {NAMES} {shown(names)} is not a list of texts, every name that is right for it")
    result.either["total"] += 1
    result.either["correct"] += normalize(predictions[ANY_MODE]["class"]) in accepted_forms(map(normalize, names))


def intervals(result: SetResult) -> dict[str, Any]:
    """The 95 % intervals of a set's Acc and NIV in both modes; null where nothing was counted."""
    return {
        mode: {
            "acc": wilson_interval(score.correct, score.total),
            "niv": wilson_interval(score.not_in_vocabulary, score.total),
        }
        for mode, score in (("specific", result.specific), ("agnostic", result.agnostic))
    }
