"""What is measured of predictions, from names, probabilities and areas alone: no image, no model but (where it is
installed) a sentence encoder."""

from __future__ import annotations

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
