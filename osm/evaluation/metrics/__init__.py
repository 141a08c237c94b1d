"""Metrics for predicted names, computed only from names, probabilities and mask areas.

No metric reads an image. Some metrics use a sentence encoder if one is installed. No other model is used.

To add a metric from another package, subclass `osm.evaluation.metrics.base.Metric` (or `MaskMetric`) and list the class
in the entry-point group `osm.metrics` (see examples/metric), or call `register_metric`. The flag `--metrics` also
accepts a metric class, given as `module:Class`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from osm.evaluation.metrics.published import (
    accepted_forms,
    head_is_correct,
    in_vocabulary,
    is_correct,
    majority_class,
    modifiers_are_correct,
    normalize,
    plural_forms,
    singular_forms,
)
from osm.evaluation.metrics.statistics import ratio, wilson_interval
from osm.registry import Registry

if TYPE_CHECKING:
    from osm.evaluation.metrics.base import Metric

__all__ = [
    "BUILTIN_METRICS",
    "METRICS",
    "accepted_forms",
    "head_is_correct",
    "in_vocabulary",
    "is_correct",
    "majority_class",
    "modifiers_are_correct",
    "normalize",
    "plural_forms",
    "ratio",
    "register_metric",
    "singular_forms",
    "wilson_interval",
]

BUILTIN_METRICS = {
    "acc": "osm.evaluation.metrics.scores:Accuracy",
    "niv": "osm.evaluation.metrics.scores:NotInVocabulary",
    "semantic_iou": "osm.evaluation.metrics.scores:SemanticIoU",
    "parts_of_names": "osm.evaluation.metrics.scores:PartsOfNames",
    "either_vocabulary": "osm.evaluation.metrics.scores:EitherVocabulary",
    "semantic_similarity": "osm.evaluation.metrics.scores:SemanticSimilarity",
    "wordnet": "osm.evaluation.metrics.scores:WordNetRelations",
    "wups": "osm.evaluation.metrics.scores:WuPalmerSimilarity",
    "acc_by_size": "osm.evaluation.metrics.scores:AccuracyBySize",
    "acc_by_frequency": "osm.evaluation.metrics.scores:AccuracyByFrequency",
}
"""The built-in metrics of `osm`, in the order of their columns in tables."""
METRICS: Registry[type[Metric]] = Registry(
    "metric", "osm.metrics", BUILTIN_METRICS, "osm.evaluation.metrics.base:Metric"
)
register_metric = METRICS.register
