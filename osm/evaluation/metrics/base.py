"""The interface of all metrics.

A metric returns columns. A column contains either one score per mask or a single value for all masks. A column of
scores is reported as its mean with a bootstrap confidence interval; a single value is reported without an interval.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from osm.datasets.labels import LabelClass
from osm.datasets.table import Dataset
from osm.errors import OsmError
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.published import is_correct
from osm.evaluation.predict.records import MaskRecord

if TYPE_CHECKING:
    from osm.recognition.similarity import SentenceEncoder

Column = np.ndarray | float


@dataclass(frozen=True)
class Tools:
    """The sentence encoder and the WordNet database, which only some metrics need.

    Attributes:
        encoder: embeds names; None if its weights are not installed.
        lexicon: judges names by WordNet; None if WordNet is not installed.
        notes: for each missing tool, which metrics are skipped, and what to install.
    """

    encoder: SentenceEncoder | None = None
    lexicon: Lexicon | None = None
    notes: tuple[str, ...] = ()


@dataclass
class NamedMasks:
    """The masks of a dataset that have a predicted name in one vocabulary mode.

    Attributes:
        row: the dataset's row in the dataset table.
        mode: the mode of the predictions.
        masks: the masks, in the order of the prediction files.
        tools: models and databases for metrics that need them.
        frequencies: LVIS's frequency letter (r, c or f) by category id; None uses the frequencies in the dataset's
            labels.
        notes: messages from metrics that skipped masks or columns, with the reason.
    """

    row: Dataset
    mode: str
    masks: list[MaskRecord]
    tools: Tools = Tools()
    frequencies: Mapping[int, str] | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def labels(self) -> list[LabelClass]:
        """The annotated class of each mask."""
        return [self.row.label_set[mask.category_id] for mask in self.masks]

    @cached_property
    def predictions(self) -> list[str]:
        """The predicted name of each mask, exactly as in the prediction file."""
        return [mask.predictions[self.mode].name for mask in self.masks]

    @cached_property
    def pairs(self) -> list[tuple[str, LabelClass]]:
        """The predicted name and the annotated class of each mask."""
        return list(zip(self.predictions, self.labels, strict=True))

    @cached_property
    def correct(self) -> np.ndarray:
        """Float array of shape (masks,): 1 if the name is correct by the rule of the published evaluation, else 0.

        Every accuracy in the evaluation is a mean over values of `correct`.
        """
        return np.array([is_correct(name, label.names) for name, label in self.pairs], dtype=float)


class Metric(ABC):
    """A metric that is computed over all masks of a dataset that have a predicted name.

    Attributes:
        name: the metric's name in `METRICS`, also used as the column key of a metric with a single column.
        title: the title of that single column in tables.
        needs: the fields of `Tools` that must not be None. If any of these fields is None, the metric is skipped.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def titles(self) -> dict[str, str]:
        """Return the key and title of every column that the metric may compute, as a dict from key to title."""
        return {self.name: self.title}

    @abstractmethod
    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return the metric's columns by key.

        A column is either a float array of shape (masks,), with NaN for masks to which the metric does not apply, or a
        single float for all masks. A column without data may be absent.
        """


class MaskMetric(Metric):
    """A metric that scores each predicted name independently of all other masks."""

    @abstractmethod
    def score(self, prediction: str, label: LabelClass, mask: MaskRecord) -> float:
        """Return the score of one mask, or NaN if the metric does not apply to it.

        Args:
            prediction: the predicted name, exactly as in the prediction file.
            label: the annotated class. `label.target` is its first name, and `label.names` are all accepted names.
            mask: the mask's annotation in the prediction file.
        """

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return a single column with the score of each mask."""
        scores = [self.score(name, label, mask) for (name, label), mask in zip(masks.pairs, masks.masks, strict=True)]
        return {self.name: np.array(scores, dtype=float)}


def checked_columns(metric: Metric, masks: NamedMasks) -> dict[str, Column]:
    """Return the columns of a metric after checking their keys, shapes and values.

    Raises:
        OsmError: A column has no title, its length differs from the number of masks, or it has an infinite value.
    """
    found: dict[str, Column] = {}
    for key, column in metric.columns(masks).items():
        where = f"metric {metric.name!r}: column {key!r}"
        if key not in metric.titles():
            raise OsmError(f"{where} has no title; titles() only has {', '.join(metric.titles())}")
        values = np.asarray(column, dtype=float)
        if values.shape not in ((), (len(masks.masks),)):
            raise OsmError(
                f"{where} has shape {values.shape}; expected one value, or one value for each of the "
                f"{len(masks.masks)} masks"
            )
        if np.isinf(values).any():
            raise OsmError(f"{where} contains infinite values; expected finite values, or NaN for skipped masks")
        found[key] = values if values.shape else float(values)
    return found
