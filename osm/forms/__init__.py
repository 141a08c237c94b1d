"""The forms of annotation: one class each, by the name that a row of the dataset table has for it.

A package adds a form by deriving from `Form` and naming its class in the entry-point group `osm.forms` (see
examples/form), or by `register_form`. A row of a dataset YAML can also name a class as `module:Class`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from osm.datasets.form_registry import FORMS, register_form
from osm.datasets.labels import LabelSet
from osm.datasets.table import Dataset, Rules
from osm.forms.base import MIN_PIXELS, Form, Segment, Target, sample_of
from osm.forms.split import MAX_BAD_ANNOTATIONS, Split


@cache
def form_class(name: str) -> type[Form]:
    """Return the form called `name`, which `FORMS` looks up once (it is called for every sample).

    Raises:
        OsmError: There is no such form, it cannot be imported, or it is not derived from `Form`.
    """
    found: type[Form] = FORMS.get(name)
    return found


def read_sample(form: str, members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Form:
    """Read a sample of a shard whose annotations have the given form; see `sample_of`."""
    return sample_of(form_class(form), members, labels, rules)


def split_of(row: Dataset, max_bad_annotations: float = MAX_BAD_ANNOTATIONS) -> Split:
    """Return the val split of a row.

    Raises:
        OsmError: A file is missing, or its content is not in the row's form.
    """
    return Split(row, form_class(row.form), max_bad_annotations)


__all__ = [
    "FORMS",
    "MAX_BAD_ANNOTATIONS",
    "MIN_PIXELS",
    "Form",
    "Segment",
    "Split",
    "Target",
    "form_class",
    "read_sample",
    "register_form",
    "split_of",
]
