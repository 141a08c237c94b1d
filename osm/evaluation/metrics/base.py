"""The interface of all metrics.

A metric gives columns. A column is either one score for each mask or a single figure of all masks. The mean of the
scores is reported with a bootstrap interval, and the figure without an interval.
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
    """Models and databases that some metrics need.

    Attributes:
        encoder: embeds names; None if its weights are not installed.
        lexicon: judges names by WordNet; None if WordNet is not installed.
        notes: for each missing tool, which metrics are left out, and what to install.
    """

    encoder: SentenceEncoder | None = None
    lexicon: Lexicon | None = None
    notes: tuple[str, ...] = ()


@dataclass
class NamedMasks:
    """The masks of a set that have a predicted name in one mode.

    Attributes:
        row: the set's row in the dataset table.
        mode: the mode of the predictions.
        masks: the masks, in the order of the prediction files.
        tools: models and databases for metrics that need them.
        frequencies: LVIS's r, c or f by category id. None: the frequencies of the set's labels.
        notes: metrics append to it what they left out, and why.
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
        """The predicted name of each mask, as the file has it."""
        return [mask.predictions[self.mode].name for mask in self.masks]

    @cached_property
    def pairs(self) -> list[tuple[str, LabelClass]]:
        """The predicted name and the annotated class of each mask."""
        return list(zip(self.predictions, self.labels, strict=True))

    @cached_property
    def correct(self) -> np.ndarray:
        """Float (masks,), 1 where the predicted name is right by the published rule, else 0.

        All accuracies of the evaluation are counted from this array.
        """
        return np.array([is_correct(name, label.names) for name, label in self.pairs], dtype=float)


class Metric(ABC):
    """A metric over the named masks of a set.

    Attributes of the class:
        name: the metric's name in `METRICS`. It is also the key of the column of a metric with one column.
        title: the name of that column in tables.
        needs: the fields of `Tools` that must not be None. Otherwise the metric is left out.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def titles(self) -> dict[str, str]:
        """Return the title of every column that the metric can have, by key."""
        return {self.name: self.title}

    @abstractmethod
    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return the metric's columns by key.

        The value of a column is float (masks,), with nan for masks that do not count, or one float for all masks. A
        column that has no data may be absent.
        """


class MaskMetric(Metric):
    """A metric that scores each predicted name by itself."""

    @abstractmethod
    def score(self, prediction: str, label: LabelClass, mask: MaskRecord) -> float:
        """Return the score of one mask, or nan if the mask does not count.

        Args:
            prediction: the predicted name, as the file has it.
            label: the annotated class. `label.target` is its first name, `label.names` are all accepted names.
            mask: the annotation of the prediction file.
        """

    def columns(self, masks: NamedMasks) -> Mapping[str, Column]:
        """Return one column with the score of each mask."""
        scores = [self.score(name, label, mask) for (name, label), mask in zip(masks.pairs, masks.masks, strict=True)]
        return {self.name: np.array(scores, dtype=float)}


def checked_columns(metric: Metric, masks: NamedMasks) -> dict[str, Column]:
    """Return the columns of a metric.

    Raises:
        OsmError: A column has no title, another length than the masks, or an infinite value.
    """
    found: dict[str, Column] = {}
    for key, column in metric.columns(masks).items():
        where = f"metric {metric.name!r}: column {key!r}"
        if key not in metric.titles():
            raise OsmError(f"{where} is not one of those that it has titles for: {', '.join(metric.titles())}")
        values = np.asarray(column, dtype=float)
        if values.shape not in ((), (len(masks.masks),)):
            raise OsmError(f"{where} has shape {values.shape}; expected one value, or {len(masks.masks)} for the masks")
        if np.isinf(values).any():
            raise OsmError(f"{where} has an infinite value; expected finite numbers, or nan for masks left out")
        found[key] = values if values.shape else float(values)
    return found
