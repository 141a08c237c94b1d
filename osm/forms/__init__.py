"""The forms of annotation: one class each, by the name that a row of the dataset table has for it.

A new form is a class here (see `osm.forms.base`) and its name in `osm.datasets.table.FORMS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from osm.datasets.labels import LabelSet
from osm.datasets.table import Dataset, Rules
from osm.forms.base import MIN_PIXELS, Form, Segment, Target, sample_of
from osm.forms.coco_panoptic import Panoptic
from osm.forms.instances import Boxes, Instances
from osm.forms.maps import Parts, Semantic
from osm.forms.region_phrases import Regions
from osm.forms.split import MAX_BAD_ANNOTATIONS, Split

FORM_CLASSES: dict[str, type[Form]] = {
    form.name: form for form in (Panoptic, Instances, Boxes, Semantic, Parts, Regions)
}


def read_sample(form: str, members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Form:
    """Reads a shard's sample in one of the forms of the dataset table; see `sample_of`."""
    return sample_of(FORM_CLASSES[form], members, labels, rules)


def split_of(row: Dataset, max_bad_annotations: float = MAX_BAD_ANNOTATIONS) -> Split:
    """The val split of a row.

    Raises:
        OsmError: a file is missing, or does not hold what the row's form has.
    """
    return Split(row, FORM_CLASSES[row.form], max_bad_annotations)


def labels_of(row: Dataset) -> LabelSet:
    """The classes of a row without `labels`. Raises OsmError where nothing tells which they are."""
    return FORM_CLASSES[row.form].labels_of(row)


__all__ = [
    "FORM_CLASSES",
    "MAX_BAD_ANNOTATIONS",
    "MIN_PIXELS",
    "Form",
    "Segment",
    "Split",
    "Target",
    "labels_of",
    "read_sample",
    "split_of",
]
