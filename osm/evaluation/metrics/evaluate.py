"""The published metrics Acc and Not-In-Vocab, computed from prediction files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError
from osm.evaluation.metrics import majority_class, ratio
from osm.evaluation.metrics.scores import PUBLISHED, MaskScores, score_masks, select_metrics
from osm.evaluation.predict.prediction_files import list_predictions, listing, prediction_path
from osm.evaluation.predict.records import MaskRecord, SetRecords, read_files


@dataclass
class Score:
    """The mask counts of one dataset in one vocabulary mode.

    Attributes:
        total: the number of masks with a prediction in the mode.
        correct: the number of masks whose predicted name is correct.
        not_in_vocabulary: the number of masks whose predicted name is not a name of any class of the dataset.
    """

    total: int = 0
    correct: int = 0
    not_in_vocabulary: int = 0

    @classmethod
    def of(cls, scores: MaskScores) -> Score:
        """Return the numbers of scored masks, correct names and out-of-vocabulary names."""
        acc, niv = scores.columns["acc"], scores.columns["niv"]
        return cls(len(scores.masks), int(acc.sum()), int(niv.sum()))

    def line(self) -> str:
        """Return an output line in the published script's format, or a note if no mask has a prediction."""
        if not self.total:
            return "no prediction in this mode"
        return (
            f"Acc: {self.correct}/{self.total} = {ratio(self.correct, self.total)}, "
            f"Not-In-Vocab: {self.not_in_vocabulary}/{self.total} = {ratio(self.not_in_vocabulary, self.total)}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the counts and rates as JSON-compatible values.

        The rates are None if no mask has a prediction in this vocabulary mode.
        """
        return {
            "correct": self.correct,
            "not_in_vocabulary": self.not_in_vocabulary,
            "total": self.total,
            "acc": self.correct / self.total if self.total else None,
            "niv": self.not_in_vocabulary / self.total if self.total else None,
        }


@dataclass
class SetResult:
    """The evaluation result of one dataset.

    Attributes:
        records: the content of the prediction files.
        agnostic: the counts in the open-vocabulary mode `any`.
        specific: the counts in the dataset's own mode.
        without_prediction: the number of annotations without a prediction, except crowds. No other count includes
            them.
        crowd: the number of crowd annotations, even if the file contains a prediction for them. No other count includes
            them.
        ignored: the number of annotations with a prediction whose class is in the row's `ignored_ids`, except crowds.
            No other count includes them.
        categories: for each category id, the number of scored masks.
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
        """The dataset's row in the dataset table."""
        return self.records.row

    @property
    def meta(self) -> Mapping[str, Any]:
        """The contents of the first meta file, or an empty mapping if no meta file exists."""
        return self.records.meta

    def lines(self) -> str:
        """Return the result of the dataset in the format of the published evaluation script."""
        return f"{self.row.title} evaluation:\nAgnostic: {self.agnostic.line()}\nSpecific: {self.specific.line()}"

    def as_json(self) -> dict[str, Any]:
        """Return all metrics of the dataset as JSON-compatible values, for `--json`."""
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


def evaluate_folder(
    out_dir: Path, parts: int, table: Mapping[str, Dataset], asked: Collection[str] = ()
) -> tuple[list[SetResult], list[str]]:
    """Evaluate every dataset in the table for which the folder contains prediction files.

    Args:
        out_dir: the folder written by generate_pred.py.
        parts: the number of parts that generate_pred.py was run in.
        table: the rows of the datasets, by dataset name.
        asked: datasets that are reported if they have no prediction files.

    Returns:
        The results, and a line for each dataset that is skipped: an asked one without prediction files, one whose
        predictions are in another number of parts, and one that is not in the table.

    Raises:
        OsmError: There is no prediction file, a part is missing, parts overlap or come from different runs, or the
            content of a file is invalid.
    """
    if parts < 1:
        raise OsmError(f"number of parts {parts}: expected at least 1; use the n that was passed to generate_pred.py")
    if not out_dir.is_dir():
        raise OsmError(f"{out_dir} is not a folder; expected the out_dir that was passed to generate_pred.py")
    present = list(list_predictions(out_dir))
    results, notes = [], []
    for row in table.values():
        paths = [prediction_path(out_dir, row.name, part, parts) for part in range(parts)]
        if any(path.exists() for path in paths):
            results.append(evaluate_set(row, paths))
        else:
            others = sorted({n for name, n in present if name == row.name})
            if not others and row.name not in asked:
                continue
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
        raise OsmError(f"{out_dir} mixes predictions from different checkpoints: {listing(checkpoints)}")
    return results, notes


def evaluate_set(row: Dataset, paths: list[Path]) -> SetResult:
    """Evaluate one dataset from its prediction files (one file per part)."""
    result = SetResult(read_files(row, paths))
    for image in result.records.images:
        for mask in image.masks:
            _count(result, mask)
    published = select_metrics(PUBLISHED)
    result.agnostic = Score.of(score_masks(result.records, ANY_MODE, metrics=published))
    result.specific = Score.of(score_masks(result.records, row.name, metrics=published))
    return result


def _count(result: SetResult, mask: MaskRecord) -> None:
    """Update the dataset's counts, except those for Acc and NIV, with one annotation from a prediction file."""
    if mask.crowd:
        result.crowd += 1
        return
    if not mask.predictions:
        result.without_prediction += 1
        return
    if mask.ignored:
        result.ignored += 1
        return
    result.categories[mask.category_id] += 1
