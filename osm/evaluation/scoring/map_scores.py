"""Scores for segment maps, which have at most one segment per pixel: panoptic quality and mean IoU.

`Painter` converts overlapping masks to a segment map.

Shapes: H, W = height and width of an image; T, P = numbers of true and predicted segments; C = number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VOID = 0


@dataclass(frozen=True)
class PanopticSegment:
    """A segment of a segment map.

    In a segment map, pixels of segment k have the value k + 1, and void pixels have the value 0.

    Attributes:
        category_id: the class of the segment; None for a crowd segment whose class is not in the dataset, which no
            prediction can match.
        crowd: whether the segment is a crowd.
    """

    category_id: int | None
    crowd: bool = False


@dataclass
class ClassQuality:
    """Counts of true positives, false positives and false negatives of one class over all images added so far."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0  # sum over the true positives

    def figures(self) -> tuple[float, float, float] | None:
        """Return PQ, SQ and RQ (0 to 1), or None if the class has neither a true nor a predicted segment."""
        total = self.tp + (self.fp + self.fn) / 2
        if not total:
            return None
        return self.iou / total, self.iou / self.tp if self.tp else 0.0, self.tp / total

    def as_json(self) -> dict[str, Any]:
        figures = self.figures()
        return {"pq": figures and figures[0], "tp": self.tp, "fp": self.fp, "fn": self.fn}


@dataclass
class PanopticQuality:
    """Panoptic quality of each class (Kirillov et al., "Panoptic Segmentation", CVPR 2019), accumulated over images.

    A predicted segment and a true segment of the same class match if their IoU exceeds 0.5. For each class, SQ is the
    mean IoU of the matches over all images, RQ is TP / (TP + FP / 2 + FN / 2), and PQ is SQ * RQ. Void pixels and crowd
    segments are treated as in `panopticapi`, the authors' implementation of PQ. Void pixels are removed from a
    predicted segment before the IoU is computed. A crowd segment is neither a match nor a false negative. An unmatched
    predicted segment is not a false positive if more than half of its pixels are void or belong to crowd segments of
    the same class. Means over classes exclude classes that have neither a true nor a predicted segment.
    """

    classes: dict[int, ClassQuality] = field(default_factory=dict)

    def _of(self, category_id: int | None) -> ClassQuality:
        assert category_id is not None, "only a crowd has no class"
        return self.classes.setdefault(category_id, ClassQuality())

    def add(
        self,
        truth_HW: np.ndarray,
        true_segments: Sequence[PanopticSegment],
        predicted_HW: np.ndarray,
        predicted_categories: Sequence[int],
    ) -> None:
        """Count the matched and unmatched segments of one image.

        Args:
            truth_HW: integers; 0 is void, and k + 1 is segment k of `true_segments`. Every segment has a pixel.
            true_segments: the segments of the ground truth.
            predicted_HW: integers; 0 is no prediction, and k + 1 is predicted segment k. Every segment has a pixel.
            predicted_categories: category ids of the predicted segments.
        """
        count_T, count_P = len(true_segments), len(predicted_categories)
        pairs_HW = truth_HW.astype(np.int64) * (count_P + 1) + predicted_HW
        common_TP = np.bincount(pairs_HW.ravel(), minlength=(count_T + 1) * (count_P + 1))
        common_TP = common_TP.reshape(count_T + 1, count_P + 1)
        area_T, area_P = common_TP.sum(1), common_TP.sum(0)
        matched_T, matched_P = set(), set()
        for t, p in np.argwhere(common_TP[1:, 1:]) + 1:
            segment = true_segments[t - 1]
            if segment.crowd or segment.category_id != predicted_categories[p - 1]:
                continue
            common = int(common_TP[t, p])
            union = int(area_T[t] + area_P[p] - common_TP[VOID, p]) - common
            if 2 * common > union:  # t and p have at most one match each, because segments do not overlap
                matched_T.add(int(t))
                matched_P.add(int(p))
                counts = self._of(segment.category_id)
                counts.tp += 1
                counts.iou += common / union
        for t, segment in enumerate(true_segments, 1):
            if not segment.crowd and t not in matched_T:
                self._of(segment.category_id).fn += 1
        for p, category_id in enumerate(predicted_categories, 1):
            if p not in matched_P:
                crowds = [t for t, s in enumerate(true_segments, 1) if s.crowd and s.category_id == category_id]
                if 2 * int(common_TP[[VOID, *crowds], p].sum()) <= int(area_P[p]):
                    self._of(category_id).fp += 1

    def mean(self, among: Callable[[int], bool] = lambda category_id: True) -> dict[str, Any]:
        """Return PQ, SQ and RQ, averaged over the classes that have a true or predicted segment.

        Args:
            among: returns whether a category id is included in the average.

        Returns:
            `pq`, `sq` and `rq`, 0 to 1 (None if no class has a segment), and `classes`, the number of averaged classes.
        """
        found = [figures for i, c in self.classes.items() if among(i) and (figures := c.figures()) is not None]
        means = np.mean(found, axis=0).tolist() if found else [None] * 3
        return {**dict(zip(("pq", "sq", "rq"), means, strict=True)), "classes": len(found)}


class MeanOverlap:
    """Mean IoU of label maps. The IoU of each class is computed over the pooled pixels of all images.

    The IoU of a class is the number of pixels with this class in both the ground truth and the prediction, divided by
    the number of pixels with this class in at least one of the two. Void pixels are excluded. A pixel without a
    prediction counts as a false negative. As in Detectron2, the mean IoU includes only classes that occur in the ground
    truth.

    Args:
        categories: category ids. Class c in the maps has the id `categories[c]`.
    """

    def __init__(self, categories: Sequence[int]) -> None:
        self.categories = list(categories)
        self._both_C, self._true_C, self._predicted_C = (np.zeros(len(self.categories), np.int64) for _ in range(3))

    def add(self, truth_HW: np.ndarray, predicted_HW: np.ndarray) -> None:
        """Count the pixels of one image.

        The label maps contain class indices, or -1 for pixels that are void or have no prediction.
        """
        count = len(self.categories)
        seen = truth_HW >= 0
        true, predicted = truth_HW[seen], predicted_HW[seen]
        self._true_C += np.bincount(true, minlength=count)
        self._predicted_C += np.bincount(predicted[predicted >= 0], minlength=count)
        self._both_C += np.bincount(true[true == predicted], minlength=count)

    def by_class(self) -> dict[int, float]:
        """Return the IoU of each class that occurs in the ground truth, by category id."""
        union_C = self._true_C + self._predicted_C - self._both_C
        shown = np.flatnonzero(self._true_C).tolist()
        return {self.categories[c]: float(self._both_C[c] / union_C[c]) for c in shown}

    def mean(self) -> dict[str, Any]:
        """Return a dict with `miou`, the mean IoU, and `classes`, the number of averaged classes.

        The mean IoU ranges from 0 to 1, or is None if the ground truth contains no classes.
        """
        found = list(self.by_class().values())
        return {"miou": float(np.mean(found)) if found else None, "classes": len(found)}


class Painter:
    """Paints overlapping masks of one image into a map with at most one segment per pixel.

    `Painter` implements the heuristic of Kirillov et al. (2019, section 5). Masks are painted in descending order of
    score, each on the pixels that no earlier mask covers. A mask is skipped if earlier masks cover too
    many of its pixels. All masks of a stuff class are merged into one segment.

    Args:
        size: height and width of the image. merged: category ids of the stuff classes. All masks of a stuff class are
        merged into one segment. min_share: minimum share (0 to 1) of a mask's pixels that must be free, or already
        belong to the merged segment
            of its class, for the mask to be painted.

    Attributes:
        segments_HW: int32; 0 is no segment, and k + 1 is segment k.
        categories: category ids of the segments.
        hidden: number of masks that were skipped because they had too few free pixels.
    """

    def __init__(self, size: tuple[int, int], merged: Container[int], min_share: float) -> None:
        self.segments_HW = np.zeros(size, np.int32)
        self.categories: list[int] = []
        self.hidden = 0
        self._merged, self._min_share = merged, min_share
        self._of_class: dict[int, int] = {}

    def add(self, mask_HW: np.ndarray, category_id: int) -> None:
        """Paint a bool mask. Masks must be added in descending order of score."""
        value = self._of_class.get(category_id)
        area = int(mask_HW.sum())
        free_HW = mask_HW & (self.segments_HW == 0)
        free = int(free_HW.sum())
        own = 0 if value is None else int((self.segments_HW[mask_HW] == value).sum())
        if not free + own or free + own < self._min_share * area:
            self.hidden += 1
            return
        if value is None:
            self.categories.append(category_id)
            value = len(self.categories)
            if category_id in self._merged:
                self._of_class[category_id] = value
        self.segments_HW[free_HW] = value
