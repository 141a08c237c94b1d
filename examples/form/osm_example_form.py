"""A form of annotation: a COCO-like json whose annotations have a `circle` [x, y, radius] in pixels.

A row of a dataset YAML has `form: circles`, and `osm prepare circles` converts such a set.
"""

from functools import partial

import numpy as np

from osm.errors import SampleError
from osm.forms.base import MIN_PIXELS, Target
from osm.forms.instances import Annotated


class Circles(Annotated):
    """Circles [x, y, radius] and classes in a COCO-like json."""

    name = "circles"
    what = "circles and classes in a COCO-like json"
    shape_field = "circle"
    kept = ("circle", "category_id")

    def _disc(self, entry):
        x, y, radius = entry["circle"]
        rows, columns = np.ogrid[: self.height, : self.width]
        return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2

    def _mask(self, number, view):
        cut = view.cut(self._disc(self.entries[number]).astype(np.int32))
        return cut.enlarge(cut.labels == 1) if cut.areas().get(1, 0) > MIN_PIXELS else None

    def targets(self):
        return [Target(place, entry["category_id"], partial(self._disc, entry)) for place, entry in self.segments]

    @classmethod
    def _usable(cls, annotation, size, where, losses):
        circle = annotation.get("circle")
        if not isinstance(circle, list) or len(circle) != 3 or not all(type(v) in (int, float) for v in circle):
            raise SampleError("annotation_malformed", f"{where}: circle {circle!r} is not [x, y, radius]")
        return annotation
