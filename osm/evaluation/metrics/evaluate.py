"""Scores of prediction files: the published lines, recomputed from the files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError
from osm.evaluation.metrics import in_vocabulary, is_correct, majority_class, ratio
from osm.evaluation.predict.prediction_files import list_predictions, listing, prediction_path
from osm.evaluation.predict.records import MaskRecord, SetRecords, read_files


@dataclass
class Score:
    """One mode of one set: masks with a prediction, the right ones, and those outside of the vocabulary."""

    total: int = 0
    correct: int = 0
    not_in_vocabulary: int = 0

    def line(self) -> str:
        """The published line's content; nothing is divided where no mask has a prediction in the mode."""
        if not self.total:
            return "no prediction in this mode"
        return (
            f"Acc: {self.correct}/{self.total} = {ratio(self.correct, self.total)}, "
            f"Not-In-Vocab: {self.not_in_vocabulary}/{self.total} = {ratio(self.not_in_vocabulary, self.total)}"
        )

    def as_json(self) -> dict[str, Any]:
        """The same figures; null where nothing was counted."""
        return {
            "correct": self.correct,
            "not_in_vocabulary": self.not_in_vocabulary,
            "total": self.total,
            "acc": self.correct / self.total if self.total else None,
            "niv": self.not_in_vocabulary / self.total if self.total else None,
        }


@dataclass
class SetResult:
    """The result of one set.

    Attributes:
        records: what the files say.
        agnostic, specific: in mode `any`, and in the set's own.
        without_prediction: annotations with no prediction at all (not counted above), crowd left out.
        crowd: crowd annotations with no prediction.
        ignored: annotations with a prediction whose class the row's `ignored_ids` name (not counted above).
        categories: masks with a prediction by category id.
    """

    records: SetRecords
    agnostic: Score = field(default_factory=Score)
    specific: Score = field(default_factory=Score)
    without_prediction: int = 0
    crowd: int = 0
    ignored: int = 0
    categories: Counter[int] = field(default_factory=Counter)

    @property
    def row(self) -> Dataset:
        return self.records.row

    @property
    def meta(self) -> Mapping[str, Any]:
        """The first meta file's content; empty where there is none."""
        return self.records.meta

    def lines(self) -> str:
        """The published output."""
        return f"{self.row.title} evaluation:\nAgnostic: {self.agnostic.line()}\nSpecific: {self.specific.line()}"

    def as_json(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        majority = majority_class(self.categories)
        return {
            "title": self.row.title,
            "agnostic": self.agnostic.as_json(),
            "specific": self.specific.as_json(),
            "without_prediction": self.without_prediction,
            "crowd": self.crowd,
            "majority_class": majority
            and {"category_id": majority[0], "name": self.row.label_set[majority[0]].target, "acc": majority[1]},
            "checkpoint": self.meta.get("checkpoint"),
            "alter": self.meta.get("alter"),
            "limit": self.meta.get("limit"),
            "vocabulary": self.meta.get("vocabulary"),
        }


def evaluate_folder(out_dir: Path, parts: int, table: Mapping[str, Dataset]) -> tuple[list[SetResult], list[str]]:
    """Evaluates every set of the table that has prediction files in a folder.

    Returns:
        The results, and a line for each set left out because it has none.

    Raises:
        OsmError: no prediction file at all, a part missing, parts that overlap or are of different runs, or a file that
            is not right.
    """
    if parts < 1:
        raise OsmError(f"number of parts {parts}: expected the n that generate_pred.py was run with, 1 or more")
    if not out_dir.is_dir():
        raise OsmError(f"{out_dir} is not a folder; expected the out_dir of generate_pred.py")
    present = list(list_predictions(out_dir))
    results, notes = [], []
    for row in table.values():
        paths = [prediction_path(out_dir, row.name, part, parts) for part in range(parts)]
        if any(path.exists() for path in paths):
            results.append(evaluate_set(row, paths))
        else:
            others = sorted({n for name, n in present if name == row.name})
            hint = f"; there are parts of {', '.join(map(str, others))}" if others else ""
            notes.append(f"{row.name}: left out, no {row.name}_pred_<i>_of_{parts}.json in {out_dir}{hint}")
    notes += [
        f"{name}: left out, its predictions are in {out_dir}, but it is not in the table of sets (see --datasets)"
        for name in sorted({name for name, _ in present} - set(table))
    ]
    if not results:
        raise OsmError("; ".join([f"{out_dir}: no prediction file for {parts} parts", *notes]))
    checkpoints = {str(result.meta["checkpoint"]): result.row.name for result in results if "checkpoint" in result.meta}
    if len(checkpoints) > 1:
        raise OsmError(f"{out_dir}: predictions of different checkpoints: {listing(checkpoints)}")
    return results, notes


def evaluate_set(row: Dataset, paths: list[Path]) -> SetResult:
    """Evaluates the prediction files of one set, all its parts together."""
    result = SetResult(read_files(row, paths))
    for image in result.records.images:
        for mask in image.masks:
            _count(result, mask)
    return result


def _count(result: SetResult, mask: MaskRecord) -> None:
    """Counts one annotation of a prediction file."""
    if not mask.predictions:
        if mask.crowd:
            result.crowd += 1
        else:
            result.without_prediction += 1
        return
    if mask.ignored:
        result.ignored += 1
        return
    labels = result.row.label_set
    result.categories[mask.category_id] += 1
    for mode, score in ((ANY_MODE, result.agnostic), (result.row.name, result.specific)):
        if mode in mask.predictions:
            name = mask.predictions[mode].name
            score.total += 1
            score.correct += is_correct(name, labels[mask.category_id].names)
            score.not_in_vocabulary += not in_vocabulary(name, labels)
