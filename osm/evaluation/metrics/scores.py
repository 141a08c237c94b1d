"""What every mask scores, metric by metric, and in which groups of masks: the columns that rates are means of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from osm.datasets.labels import FREQUENCIES, LabelClass
from osm.datasets.table import ANY_MODE, Dataset
from osm.evaluation.metrics.calibration import Calibration, calibrate
from osm.evaluation.metrics.lexical import RELATIONS, Lexicon, wups
from osm.evaluation.metrics.published import (
    head_is_correct,
    in_vocabulary,
    is_correct,
    modifiers_are_correct,
    normalize,
)
from osm.evaluation.metrics.semantic import best_semantic_iou, semantic_iou, semantic_similarities
from osm.evaluation.metrics.statistics import Bootstrap, ImageSums, Rate
from osm.evaluation.predict.records import MaskRecord, SetRecords

if TYPE_CHECKING:
    from osm.recognition.similarity import SentenceEncoder

# COCO's sizes by area in pixels (its evaluation code, areaRng): below 32^2, below 96^2, and the rest.
SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}
PARTS = ("full_right", "head_right", "modifiers_right")
SIZE, FREQUENCY, CLASS, LEXICAL, PART = "acc/size/", "acc/frequency/", "acc/class/", "lexical/", "parts_of_names/"


def size_of(area: float) -> str:
    """`small`, `medium` or `large`."""
    return next(name for name, limit in SIZES.items() if area < limit)


@dataclass(frozen=True)
class Tools:
    """What some metrics need; `notes` says of those that are not there why, and what would help."""

    encoder: SentenceEncoder | None = None
    lexicon: Lexicon | None = None
    notes: tuple[str, ...] = ()


@dataclass
class MaskScores:
    """One mode's scores of one set.

    Attributes:
        images: int (masks,), the number of each mask's image, of `image_count`.
        masks: the masks, in the files' order.
        columns: name -> float (masks,), nan where a mask does not count. Every name is described in docs/evaluation.md.
        probs: float (masks,), nan where the file has none.
        classes: str (masks,), the column that Acc of the mask's class is to have.
        by_head: masks of which a name was found in WordNet by its head alone; None without WordNet.
        notes: what was left out, and why.
    """

    images: np.ndarray
    image_count: int
    masks: list[MaskRecord]
    columns: dict[str, np.ndarray]
    probs: np.ndarray
    classes: np.ndarray
    by_head: int | None = None
    notes: list[str] = field(default_factory=list)

    def sums(self) -> ImageSums:
        return ImageSums(self.images, self.image_count, self.columns, ("acc", self.classes))

    def rates(self, bootstrap: Bootstrap) -> dict[str, Rate]:
        return self.sums().rates(bootstrap)

    def calibration(self) -> Calibration:
        return calibrate(self.probs, self.columns["acc"])


def score_masks(
    records: SetRecords, mode: str, tools: Tools | None = None, frequencies: Mapping[int, str] | None = None
) -> MaskScores:
    """Scores the counted masks of a set that have a prediction of one mode; see `score_rows`."""
    rows = [(number, mask) for number, mask in records.counted() if mode in mask.predictions]
    return score_rows(records.row, rows, records.image_count, mode, tools, frequencies)


def score_rows(
    row: Dataset,
    rows: Sequence[tuple[int, MaskRecord]],
    image_count: int,
    mode: str,
    tools: Tools | None = None,
    frequencies: Mapping[int, str] | None = None,
) -> MaskScores:
    """Scores masks.

    Args:
        row: whose masks they are.
        rows: for each mask its image's number, and the mask, with a prediction of the mode.
        tools: None = only what strings tell.
        frequencies: LVIS's r, c or f by category id; None = as the set's labels tell.
    """
    masks = [mask for _, mask in rows]
    labels = [row.label_set[mask.category_id] for mask in masks]
    said = [mask.predictions[mode].name for mask in masks]
    pairs = list(zip(said, labels, strict=True))
    columns = {
        "acc": _floats(is_correct(name, label.names) for name, label in pairs),
        "niv": _floats(not in_vocabulary(name, row.label_set) for name, _ in pairs),
        "semantic_iou": _floats(semantic_iou(name, label.target) for name, label in pairs),
        "semantic_iou_best": _floats(best_semantic_iou(name, label.names) for name, label in pairs),
    }
    probs = [mask.predictions[mode].prob for mask in masks]
    scores = MaskScores(
        np.array([number for number, _ in rows], dtype=int),
        image_count,
        masks,
        columns,
        np.array([np.nan if prob is None else prob for prob in probs]),
        np.array([f"{CLASS}{label.id}" for label in labels]),
    )
    _add_parts(scores, pairs)
    if mode == ANY_MODE:
        _add_other_names(scores, said)
    if tools:
        _add_similarity(scores, pairs, tools)
        _add_lexical(scores, pairs, tools)
    _add_groups(scores, labels, frequencies)
    return scores


def _floats(values: Iterable[float]) -> np.ndarray:
    return np.array(list(values), dtype=float)


def _add_parts(scores: MaskScores, pairs: list[tuple[str, LabelClass]]) -> None:
    """Whole name, last word and the words before, of masks whose class has a name of several words."""
    several = np.array([len(label.target.split()) > 1 for _, label in pairs], dtype=bool)
    if several.any():
        tests = dict(zip(PARTS, (is_correct, head_is_correct, modifiers_are_correct), strict=True))
        for key, test in tests.items():
            values = _floats(test(name, label.names) for name, label in pairs)
            scores.columns[PART + key] = np.where(several, values, np.nan)


def _add_other_names(scores: MaskScores, said: list[str]) -> None:
    """Right by any of the annotation's own `names`, where it has them."""
    given = [mask.names for mask in scores.masks]
    if any(names is not None for names in given):
        scores.columns["either_vocabulary"] = _floats(
            np.nan if names is None else is_correct(name, map(normalize, names))
            for name, names in zip(said, given, strict=True)
        )


def _add_similarity(scores: MaskScores, pairs: list[tuple[str, LabelClass]], tools: Tools) -> None:
    if tools.encoder is None:
        return
    places: dict[tuple[str, tuple[str, ...]], int] = {}
    rows = [places.setdefault((normalize(name), label.names), len(places)) for name, label in pairs]
    cosines = semantic_similarities(tools.encoder, list(places))[rows].reshape(-1, 2)
    scores.columns["semantic_similarity"], scores.columns["semantic_similarity_best"] = cosines.T


def _add_lexical(scores: MaskScores, pairs: list[tuple[str, LabelClass]], tools: Tools) -> None:
    if tools.lexicon is None:
        return
    found = [tools.lexicon.judge(normalize(name), label.names) for name, label in pairs]
    for relation in RELATIONS:
        scores.columns[LEXICAL + relation] = _floats(one.relation == relation for one in found)
    scores.columns["wups_0.0"] = _floats(one.similarity for one in found)
    scores.columns["wups_0.9"] = _floats(wups(one.similarity) for one in found)
    scores.by_head = sum(one.by_head for one in found)


def _add_groups(scores: MaskScores, labels: list[LabelClass], frequencies: Mapping[int, str] | None) -> None:
    """Acc within the masks of a size, and of classes of a frequency."""
    if not labels:
        return
    sizes = [None if mask.area is None else size_of(mask.area) for mask in scores.masks]
    _add_group(scores, SIZE, sizes, SIZES, "sizes", "the prediction files have no `area`")
    often = [label.frequency if frequencies is None else frequencies.get(label.id) or "" for label in labels]
    hint = "the labels have no `frequency` (evaluate_pred.py reads LVIS's: --frequencies SET=FILE)"
    _add_group(scores, FREQUENCY, [one or None for one in often], FREQUENCIES, "frequencies", hint)


def _add_group(
    scores: MaskScores, prefix: str, groups: list[str | None], known: Mapping[str, object], what: str, why: str
) -> None:
    without = sum(group is None for group in groups)
    if without == len(groups):
        scores.notes.append(f"Acc by {what}: left out, {why}")
        return
    if without:
        scores.notes.append(f"Acc by {what}: without {without} of {len(groups)} masks, of which {why}")
    places = np.array([str(group) for group in groups])
    for name in known:
        scores.columns[prefix + name] = np.where(places == name, scores.columns["acc"], np.nan)
