"""The built-in metrics, and the functions that compute the selected metrics for all masks in one vocabulary mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from osm.datasets.labels import FREQUENCIES, LabelClass
from osm.datasets.table import ANY_MODE, Dataset
from osm.errors import OsmError
from osm.evaluation.metrics import BUILTIN_METRICS, METRICS
from osm.evaluation.metrics.base import Column, MaskMetric, Metric, NamedMasks, Tools, checked_columns
from osm.evaluation.metrics.calibration import Calibration, calibrate
from osm.evaluation.metrics.lexical import RELATIONS, wups
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

# COCO's size classes by area in pixels (areaRng in its evaluation code): below 32^2, below 96^2, and larger.
SIZES = {"small": 32.0**2, "medium": 96.0**2, "large": float("inf")}
PARTS = ("full_right", "head_right", "modifiers_right")
SIZE, FREQUENCY, CLASS, LEXICAL, PART = "acc/size/", "acc/frequency/", "acc/class/", "lexical/", "parts_of_names/"
PUBLISHED, ALL = "published", "all"
"""Values of `--metrics` that stand for several metrics: `published` (Acc and NIV) and `all` (every metric)."""


def size_of(area: float) -> str:
    """Return `small`, `medium` or `large` for an area in pixels."""
    return next(name for name, limit in SIZES.items() if area < limit)


def _floats(values: Iterable[float]) -> np.ndarray:
    return np.array(list(values), dtype=float)


def _target_and_best(metric: Metric) -> dict[str, str]:
    """Return the titles of two columns: the score for the class's first name, and the best score over all its names."""
    title = metric.title
    return {metric.name: f"{title}, target name", f"{metric.name}_best": f"{title}, best of the class's names"}


# -- the built-in metrics --------------------------------------------------------------------------------------------


class Accuracy(Metric):
    """Acc: the share of masks whose predicted name is one of the class's names, in the singular or plural."""

    name, title = "acc", "Acc"

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return 1 for each correctly named mask, else 0."""
        return {self.name: masks.correct}


class NotInVocabulary(Metric):
    """NIV: the share of masks whose predicted name is not a name of any class in the dataset."""

    name, title = "niv", "Not-In-Vocab"

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return 1 for each mask whose predicted name is out of vocabulary, else 0."""
        return {self.name: _floats(not in_vocabulary(name, masks.row.label_set) for name in masks.predictions)}


class SemanticIoU(Metric):
    """Semantic IoU: the number of words shared by two names, divided by the number of distinct words in both names."""

    name, title = "semantic_iou", "Semantic IoU"

    def titles(self) -> dict[str, str]:
        """Return the titles of the two Semantic IoU columns."""
        return _target_and_best(self)

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return two columns: the Semantic IoU with the class's first name, and the maximum over all its names."""
        return {
            self.name: _floats(semantic_iou(name, label.target) for name, label in masks.pairs),
            f"{self.name}_best": _floats(best_semantic_iou(name, label.names) for name, label in masks.pairs),
        }


class PartsOfNames(Metric):
    """Parts of names: whether the whole name, last word and modifiers are correct, for multi-word class names."""

    name, title = "parts_of_names", "parts of names"

    def titles(self) -> dict[str, str]:
        """Return the titles of the columns for the whole name, the last word and the modifiers."""
        return {PART + key: f"{self.title}: {key.replace('_', ' ')}" for key in PARTS}

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return one accuracy column each for the whole name, the last word and the modifiers.

        No columns are returned if all class names are single words.
        """
        several = np.array([len(label.target.split()) > 1 for label in masks.labels], dtype=bool)
        if not several.any():
            return {}
        head = _floats(head_is_correct(name, label.names) for name, label in masks.pairs)
        modifiers = _floats(modifiers_are_correct(name, label.names) for name, label in masks.pairs)
        columns = zip(PARTS, (masks.correct, head, modifiers), strict=True)
        return {PART + key: np.where(several, values, np.nan) for key, values in columns}


class EitherVocabulary(MaskMetric):
    """Acc in any vocabulary: the share of masks whose open-vocabulary prediction is in the annotation's `names`."""

    name, title = "either_vocabulary", "Acc in any vocabulary"

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return the accuracy column for the open-vocabulary mode `any` if at least one annotation has `names`."""
        given = masks.mode == ANY_MODE and any(mask.names is not None for mask in masks.masks)
        return super().columns(masks) if given else {}

    def score(self, prediction: str, label: LabelClass, mask: MaskRecord) -> float:
        """Return 1 if the predicted name is in the annotation's `names`, 0 if not, or NaN if there are no `names`."""
        return np.nan if mask.names is None else is_correct(prediction, map(normalize, mask.names))


class SemanticSimilarity(Metric):
    """Semantic Similarity: the cosine between sentence embeddings of the predicted name and the class's name."""

    name, title, needs = "semantic_similarity", "Semantic Similarity", ("encoder",)

    def titles(self) -> dict[str, str]:
        """Return the titles of the two Semantic Similarity columns."""
        return _target_and_best(self)

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return two columns: the cosine similarity to the class's first name, and the maximum over all its names."""
        assert masks.tools.encoder is not None
        places: dict[tuple[str, tuple[str, ...]], int] = {}
        rows = [places.setdefault((normalize(name), label.names), len(places)) for name, label in masks.pairs]
        target, best = semantic_similarities(masks.tools.encoder, list(places))[rows].reshape(-1, 2).T
        return {self.name: target, f"{self.name}_best": best}


class WordNetRelations(Metric):
    """WordNet relations: the share of masks whose predicted name has a given relation to the class's names."""

    name, title, needs = "wordnet", "WordNet", ("lexicon",)

    def titles(self) -> dict[str, str]:
        """Return the titles of the WordNet columns, one for each relation in `RELATIONS`."""
        return {LEXICAL + relation: f"{self.title}: {relation}" for relation in RELATIONS}

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return one 0/1 column for each relation in `RELATIONS`."""
        assert masks.tools.lexicon is not None
        judge = masks.tools.lexicon.judge
        found = [judge(normalize(name), label.names).relation for name, label in masks.pairs]
        return {LEXICAL + relation: _floats(one == relation for one in found) for relation in RELATIONS}


class WuPalmerSimilarity(Metric):
    """WUPS: the Wu-Palmer similarity in WordNet. In WUPS at 0.9, similarities below 0.9 are divided by 10."""

    name, title, needs = "wups", "WUPS", ("lexicon",)

    def titles(self) -> dict[str, str]:
        """Return the titles of the two WUPS columns."""
        return {"wups_0.0": f"{self.title} at 0.0", "wups_0.9": f"{self.title} at 0.9"}

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return the Wu-Palmer similarities, and a second column in which values below 0.9 are divided by 10."""
        assert masks.tools.lexicon is not None
        judge = masks.tools.lexicon.judge
        found = [judge(normalize(name), label.names).similarity for name, label in masks.pairs]
        return {"wups_0.0": _floats(found), "wups_0.9": _floats(map(wups, found))}


class AccuracyBySize(Metric):
    """Acc by mask size: the accuracy for small, medium and large masks, as defined by COCO."""

    name, title = "acc_by_size", "Acc by sizes"

    def titles(self) -> dict[str, str]:
        """Return the titles of the accuracy columns, one for each size in `SIZES`."""
        return {SIZE + size: f"Acc, {size} masks" for size in SIZES}

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return one accuracy column for each size in `SIZES`, or none if the prediction files contain no areas."""
        sizes = [None if mask.area is None else size_of(mask.area) for mask in masks.masks]
        return _by_group(masks, SIZE, sizes, SIZES, self.title, "the prediction files have no `area`")


class AccuracyByFrequency(Metric):
    """Acc by class frequency: the accuracy for rare, common and frequent classes, as defined by LVIS."""

    name, title = "acc_by_frequency", "Acc by frequencies"

    def titles(self) -> dict[str, str]:
        """Return the titles of the accuracy columns, one for each frequency in `FREQUENCIES`."""
        return {FREQUENCY + key: f"Acc, {name} classes" for key, name in FREQUENCIES.items()}

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return one accuracy column for each frequency in `FREQUENCIES`, or none if no class has a frequency."""
        given = masks.frequencies
        often = [label.frequency if given is None else given.get(label.id) or "" for label in masks.labels]
        hint = "the labels have no `frequency` (evaluate_pred.py reads LVIS's: --frequencies SET=FILE)"
        return _by_group(masks, FREQUENCY, [one or None for one in often], FREQUENCIES, self.title, hint)


def _by_group(
    masks: NamedMasks, prefix: str, groups: list[str | None], known: Iterable[str], title: str, why: str
) -> dict[str, Column]:
    """Return an Acc column for each group of masks. Masks without a group are skipped, and `why` gives the reason."""
    if not groups:
        return {}
    without = sum(group is None for group in groups)
    if without == len(groups):
        masks.notes.append(f"{title}: left out, {why}")
        return {}
    if without:
        masks.notes.append(f"{title}: without {without} of {len(groups)} masks, of which {why}")
    places = np.array([str(group) for group in groups])
    return {prefix + name: np.where(places == name, masks.correct, np.nan) for name in known}


# -- metrics by name -------------------------------------------------------------------------------------------------


def all_metrics() -> list[Metric]:
    """Return all registered metrics: the built-in metrics in table order, then all other metrics sorted by name."""
    return [METRICS.get(name)() for name in dict.fromkeys([*BUILTIN_METRICS, *METRICS.names()])]


def select_metrics(text: str) -> list[Metric]:
    """Return the metrics selected by a value of the flag `--metrics`.

    Args:
        text: comma-separated metric names, or classes as `module:Class`. `all` stands for all registered metrics and
            `published` for Acc and NIV. Acc is always included, because the accuracy of each class is computed from it.

    Raises:
        OsmError: A metric does not exist.
    """
    found: dict[type[Metric], Metric] = {Accuracy: Accuracy()}
    for name in text.split(","):
        if name == ALL:
            chosen = all_metrics()
        elif name == PUBLISHED:
            chosen = [Accuracy(), NotInVocabulary()]
        else:
            try:
                chosen = [METRICS.get(name)()]
            except OsmError as error:
                raise OsmError(f"--metrics {text!r}: {error}; or {ALL}, or {PUBLISHED}") from None
        for metric in chosen:
            found.setdefault(type(metric), metric)
    return list(found.values())


# -- scores of masks -------------------------------------------------------------------------------------------------


@dataclass
class MaskScores:
    """The scores of a dataset's masks in one vocabulary mode.

    Attributes:
        images: int (masks,), the index of each mask's image, below `image_count`.
        image_count: the number of images.
        masks: the masks, in the order of the prediction files.
        columns: key -> float (masks,), with nan for masks to which the column does not apply. docs/evaluation.md
            describes the built-in columns.
        figures: key -> the value of a column that has one value for all masks.
        titles: the title of each column and figure.
        probs: float (masks,), the predicted probabilities; nan where the file has no probability.
        classes: str (masks,), for each mask, the key of the column with the accuracy of the mask's class.
        by_head: the number of masks for which WordNet contains only the last words of the predicted name or of the
            class name. None without WordNet.
        notes: messages about skipped masks and metrics, with the reason.
    """

    images: np.ndarray
    image_count: int
    masks: list[MaskRecord]
    columns: dict[str, np.ndarray]
    probs: np.ndarray
    classes: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    by_head: int | None = None
    notes: list[str] = field(default_factory=list)

    def sums(self) -> ImageSums:
        """Return the per-image sums of all columns, and the per-image sums of Acc for each class."""
        return ImageSums(self.images, self.image_count, self.columns, ("acc", self.classes))

    def rates(self, bootstrap: Bootstrap) -> dict[str, Rate]:
        """Return the mean of every column with its interval, and the single-value metrics without intervals."""
        rates = self.sums().rates(bootstrap)
        images = len(np.unique(self.images))
        for key, value in self.figures.items():
            rates[key] = Rate(None if np.isnan(value) else value, len(self.masks), images)
        return rates

    def calibration(self) -> Calibration:
        """Return the reliability table of the predicted probabilities."""
        return calibrate(self.probs, self.columns["acc"])


def score_masks(
    records: SetRecords,
    mode: str,
    tools: Tools | None = None,
    frequencies: Mapping[int, str] | None = None,
    metrics: Sequence[Metric] | None = None,
) -> MaskScores:
    """Score all masks that have a prediction in the given mode and whose class is not ignored (see `score_rows`)."""
    rows = [(number, mask) for number, mask in records.counted() if mode in mask.predictions]
    return score_rows(records.row, rows, records.image_count, mode, tools, frequencies, metrics)


def score_rows(
    row: Dataset,
    rows: Sequence[tuple[int, MaskRecord]],
    image_count: int,
    mode: str,
    tools: Tools | None = None,
    frequencies: Mapping[int, str] | None = None,
    metrics: Sequence[Metric] | None = None,
) -> MaskScores:
    """Score masks with the selected metrics.

    Args:
        row: the row of the masks' dataset.
        rows: for each mask, the index of its image, and the mask, which must have a prediction in the mode.
        image_count: the number of images.
        mode: the mode of the predictions.
        tools: models and databases. If None, metrics that need a tool are skipped.
        frequencies: LVIS's frequency letter (r, c or f) by category id; None uses the frequencies in the dataset's
            labels.
        metrics: the metrics to compute, or None for all registered metrics. Acc is always computed.

    Raises:
        OsmError: A column has the wrong length or an infinite value, or two metrics return a column with the same key.
    """
    named = NamedMasks(row, mode, [mask for _, mask in rows], tools or Tools(), frequencies)
    probs = [mask.predictions[mode].prob for mask in named.masks]
    scores = MaskScores(
        np.array([number for number, _ in rows], dtype=int),
        image_count,
        named.masks,
        {},
        np.array([np.nan if prob is None else prob for prob in probs]),
        np.array([f"{CLASS}{label.id}" for label in named.labels]),
        notes=named.notes,
    )
    chosen = all_metrics() if metrics is None else metrics
    if not any(isinstance(metric, Accuracy) for metric in chosen):
        chosen = [Accuracy(), *chosen]
    for metric in chosen:
        _add_columns(scores, metric, named)
    if named.tools.lexicon is not None:
        judge = named.tools.lexicon.judge
        scores.by_head = sum(judge(normalize(name), label.names).by_head for name, label in named.pairs)
    return scores


def _add_columns(scores: MaskScores, metric: Metric, named: NamedMasks) -> None:
    if any(getattr(named.tools, need) is None for need in metric.needs):
        return
    titles = metric.titles()
    for key, column in checked_columns(metric, named).items():
        if key in scores.titles or key.startswith(CLASS):
            raise OsmError(f"metric {metric.name!r}: column {key!r} is already defined by another metric; rename it")
        scores.titles[key] = titles[key]
        if isinstance(column, np.ndarray):
            scores.columns[key] = column
        else:
            scores.figures[key] = column
