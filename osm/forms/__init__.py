"""The annotation formats. Each format is a class, and a dataset's row in the dataset table says which one to use.

To add an annotation format, a package subclasses `Form` and either lists the subclass in the entry-point group
`osm.forms` (see examples/form) or calls `register_form`. A dataset YAML file can also specify the class of an
annotation format as `module:Class`.
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
    """Return the class of the annotation format `name`. The result is cached because every sample needs it.

    Raises:
        OsmError: The form does not exist, cannot be imported, or is not a subclass of `Form`.
    """
    found: type[Form] = FORMS.get(name)
    return found


def read_sample(form: str, members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Form:
    """Parse a shard's sample in the annotation format `form`; see `sample_of`."""
    return sample_of(form_class(form), members, labels, rules)


def split_of(row: Dataset, max_bad_annotations: float = MAX_BAD_ANNOTATIONS) -> Split:
    """Return the val split of the dataset described by `row`.

    Raises:
        OsmError: A file is missing, or its content is not in the row's annotation format.
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
