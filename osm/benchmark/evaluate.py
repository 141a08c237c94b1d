"""Scores of prediction files: the published lines, recomputed from the files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osm.benchmark.files import list_predictions, meta_path, partial_path, prediction_path
from osm.benchmark.items import FIELD, SPLITS, no_split
from osm.benchmark.metrics import accepted_forms, in_vocabulary, majority_class, normalize, ratio
from osm.data.datasets import ANY_MODE, Dataset
from osm.errors import OsmError, shown
from osm.files import read_json

_SAME_IN_ALL_PARTS = ("annotations", "modes", "limit", "alter", "seed")


@dataclass
class Score:
    """One mode of one set: masks with a prediction, the right ones, and those outside of the vocabulary."""

    total: int = 0
    correct: int = 0
    not_in_vocabulary: int = 0

    def line(self) -> str:
        """The published line's content."""
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
        agnostic, specific: in mode `any`, and in the set's own.
        without_prediction: annotations with no prediction at all (not counted above), crowd left out.
        crowd: crowd annotations with no prediction.
        categories: masks with a prediction by category id.
        meta: the first meta file's content; empty where there is none.
    """

    row: Dataset
    agnostic: Score = field(default_factory=Score)
    specific: Score = field(default_factory=Score)
    without_prediction: int = 0
    crowd: int = 0
    categories: Counter[int] = field(default_factory=Counter)
    meta: Mapping[str, Any] = field(default_factory=dict)

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
        }


def evaluate_folder(out_dir: Path, parts: int, table: Mapping[str, Dataset]) -> tuple[list[SetResult], list[str]]:
    """Evaluates every set of the table that has prediction files in a folder.

    Returns:
        The results, and a line for each set left out because it has none.

    Raises:
        OsmError: no prediction file at all, a part missing, parts of different runs, or a file that is not right.
    """
    if parts < 1:
        raise OsmError(f"number of parts {parts}: expected the n that generate_pred.py was run with, 1 or more")
    if not out_dir.is_dir():
        raise OsmError(f"{out_dir} is not a folder; expected the out_dir of generate_pred.py")
    present = list(list_predictions(out_dir))
    results, notes = [], []
    for row in table.values():
        if row.form not in SPLITS:
            notes.append(f"{row.name}: left out, {no_split(row)}")
            continue
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
    checkpoints = {result.meta["checkpoint"]: result.row.name for result in results if "checkpoint" in result.meta}
    if len(checkpoints) > 1:
        raise OsmError(f"{out_dir}: predictions of different checkpoints: {_listing(checkpoints)}")
    return results, notes


def evaluate_set(row: Dataset, paths: list[Path]) -> SetResult:
    """Evaluates the prediction files of one set, all its parts together."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        names = ", ".join(path.name for path in missing)
        unfinished = [path.name for path in missing if partial_path(path).exists()]
        hint = f" (unfinished, go on with generate_pred.py: {', '.join(unfinished)})" if unfinished else ""
        raise OsmError(f"set {row.name!r}: {len(missing)} of {len(paths)} parts are missing: {names}{hint}")
    result = SetResult(row, meta=_common_meta(paths))
    accepted: dict[int, frozenset[str]] = {}
    for path in paths:
        document, _ = read_json(path, "predictions")
        try:
            for annotation in SPLITS[row.form].annotations_in(document):
                _count(result, annotation, accepted, path)
        except OsmError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OsmError(f"predictions {path}: not in the format of form {row.form} ({error!r})") from None
    return result


def _count(result: SetResult, annotation: Any, accepted: dict[int, frozenset[str]], path: Path) -> None:
    """Counts one annotation of a prediction file."""
    predictions = annotation.get(FIELD)
    if not predictions:
        if annotation.get("iscrowd"):
            result.crowd += 1
        else:
            result.without_prediction += 1
        return
    row = result.row
    category_id = annotation.get(SPLITS[row.form].category_key)
    if type(category_id) is not int or category_id not in row.label_set:
        where = f"predictions {path}: annotation {annotation.get('id')}"
        raise OsmError(f"{where}: category_id {category_id!r} is not in the label set {row.label_set.source}")
    if category_id not in accepted:
        accepted[category_id] = accepted_forms(row.label_set[category_id].names)
    result.categories[category_id] += 1
    for mode, score in ((ANY_MODE, result.agnostic), (row.name, result.specific)):
        if mode in predictions:
            name = normalize(predictions[mode]["class"])
            score.total += 1
            score.correct += name in accepted[category_id]
            score.not_in_vocabulary += not in_vocabulary(name, row.label_set)


def _common_meta(paths: list[Path]) -> dict[str, Any]:
    """The first meta file's content, after a check that all that are there come from one run."""
    metas: dict[str, dict[str, Any]] = {}
    for path in paths:
        if meta_path(path).exists():
            meta, _ = read_json(meta_path(path), "meta file")
            if not isinstance(meta, dict):
                raise OsmError(f"meta file {meta_path(path)}: expected an object, found {shown(meta)}")
            metas[path.name] = meta
    checkpoints = {str(meta.get("checkpoint")): name for name, meta in metas.items()}
    if len(checkpoints) > 1:
        raise OsmError(f"parts of different checkpoints: {_listing(checkpoints)}")
    first_name, first = next(iter(metas.items()), ("", {}))
    for name, meta in metas.items():
        changed = [key for key in _SAME_IN_ALL_PARTS if meta.get(key) != first.get(key)]
        if changed:
            raise OsmError(
                f"{name} and {first_name} were made with another {', '.join(changed)}; make one of them anew"
            )
    return first


def _listing(checkpoints: Mapping[str, str]) -> str:
    return ", ".join(f"{name} of {checkpoint}" for checkpoint, name in checkpoints.items())
