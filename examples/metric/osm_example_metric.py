"""Two metrics for `osm report` and `osm evaluate --metrics all`.

`EditSimilarity` scores each mask, and `DistinctNames` gives one figure for all masks together.
"""

from difflib import SequenceMatcher

from osm.evaluation.metrics import normalize
from osm.evaluation.metrics.base import MaskMetric, Metric


class EditSimilarity(MaskMetric):
    """The similarity of predicted name and class name as strings, the best over the class's names."""

    name, title = "edit_similarity", "Edit similarity"

    def score(self, prediction, label, mask):
        return max(SequenceMatcher(None, normalize(prediction), name).ratio() for name in label.names)


class DistinctNames(Metric):
    """The number of different predicted names per mask: 1 if all masks have different names."""

    name, title = "distinct_names", "Different names per mask"

    def columns(self, masks):
        names = {normalize(name) for name in masks.predictions}
        return {self.name: len(names) / len(masks.masks)} if masks.masks else {}
