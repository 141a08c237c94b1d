"""What is measured of predictions: over strings and arrays alone, no file is read and no model is run here but the
sentence encoder and WordNet, where they are given."""

from __future__ import annotations

from osm.benchmark.metrics.published import (
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
from osm.benchmark.metrics.statistics import ratio, wilson_interval

__all__ = [
    "accepted_forms",
    "head_is_correct",
    "in_vocabulary",
    "is_correct",
    "majority_class",
    "modifiers_are_correct",
    "normalize",
    "plural_forms",
    "ratio",
    "singular_forms",
    "wilson_interval",
]
