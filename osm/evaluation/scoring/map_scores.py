"""Panoptic quality of whole images (Kirillov et al., "Panoptic Segmentation", CVPR 2019).

A predicted and a true segment of one class match where their IoU is over 0.5. Of a class, over all images,
SQ = mean IoU of the matches, RQ = TP / (TP + FP / 2 + FN / 2), PQ = SQ * RQ. Void and crowd as in the authors' code
(panopticapi): void pixels are taken out of a predicted segment before the IoU; a crowd segment is neither matched nor
missed; an unmatched predicted segment is no false positive where more than half of it lies on void or on crowd of its
class. A mean over classes leaves out those that have neither a true nor a predicted segment.

Shapes: H, W = an image's sides; T, P = its true and predicted segments.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VOID = 0


@dataclass(frozen=True)
class PanopticSegment:
    """The k-th of an image's segments; its pixels have the value k + 1 in the image's map, void ones 0.

    `category_id`: None of a crowd of no class of the set; it is met by no prediction.
    """

    category_id: int | None
    crowd: bool = False


@dataclass
class ClassQuality:
    """One class, over all images so far."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0  # of the tp, added up

    def figures(self) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ, 0 to 1; None where there was nothing to count."""
        total = self.tp + (self.fp + self.fn) / 2
        if not total:
            return None
        return self.iou / total, self.iou / self.tp if self.tp else 0.0, self.tp / total

    def as_json(self) -> dict[str, Any]:
        figures = self.figures()
        return {"pq": figures and figures[0], "tp": self.tp, "fp": self.fp, "fn": self.fn}


@dataclass
class PanopticQuality:
    """Counts by category id, added up image by image."""

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
        """Counts one image.

        Args:
            truth_HW: integers; 0 = void, k + 1 = the k-th of `true_segments`. Each of them has a pixel.
            predicted_HW: integers; 0 = nothing predicted, k + 1 = a segment of the k-th of `predicted_categories`.
                Each of them has a pixel.
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
            if 2 * common > union:  # at most one for each t and p: segments do not overlap
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
        """`pq`, `sq` and `rq`, 0 to 1, averaged over those of the classes that have a segment; `classes`: how many.

        They are None where no class has one.
        """
        found = [figures for i, c in self.classes.items() if among(i) and (figures := c.figures()) is not None]
        means = np.mean(found, axis=0).tolist() if found else [None] * 3
        return {**dict(zip(("pq", "sq", "rq"), means, strict=True)), "classes": len(found)}


class MeanOverlap:
    """Pixel counts by class, added up image by image. Classes are counted from 0, in the order of `categories`."""

    def __init__(self, categories: Sequence[int]) -> None:
        self.categories = list(categories)
        self._both_C, self._true_C, self._predicted_C = (np.zeros(len(self.categories), np.int64) for _ in range(3))

    def add(self, truth_HW: np.ndarray, predicted_HW: np.ndarray) -> None:
        """Counts one image. Both maps: integers, -1 = void, or nothing predicted."""
        count = len(self.categories)
        seen = truth_HW >= 0
        true, predicted = truth_HW[seen], predicted_HW[seen]
        self._true_C += np.bincount(true, minlength=count)
        self._predicted_C += np.bincount(predicted[predicted >= 0], minlength=count)
        self._both_C += np.bincount(true[true == predicted], minlength=count)

    def by_class(self) -> dict[int, float]:
        """IoU by category id, of the classes that the ground truth shows."""
        union_C = self._true_C + self._predicted_C - self._both_C
        shown = np.flatnonzero(self._true_C).tolist()
        return {self.categories[c]: float(self._both_C[c] / union_C[c]) for c in shown}

    def mean(self) -> dict[str, Any]:
        """`miou`, 0 to 1 (None where the ground truth shows nothing); `classes`: of how many."""
        found = list(self.by_class().values())
        return {"miou": float(np.mean(found)) if found else None, "classes": len(found)}


class Painter:
    """One image's map.

    Args:
        size: its height and width.
        merged: the category ids whose masks become one segment (stuff).
        min_share: what a mask has to have left of its pixels, 0 to 1, so as not to be left out. Those that its own
            merged segment has already count as left.

    Attributes:
        segments_HW: int32; 0 = nothing, k + 1 = the segment of the k-th of `categories`.
        categories: their category ids.
        hidden: how many masks were left out.
    """

    def __init__(self, size: tuple[int, int], merged: Container[int], min_share: float) -> None:
        self.segments_HW = np.zeros(size, np.int32)
        self.categories: list[int] = []
        self.hidden = 0
        self._merged, self._min_share = merged, min_share
        self._of_class: dict[int, int] = {}

    def add(self, mask_HW: np.ndarray, category_id: int) -> None:
        """Paints a mask (bool); masks come in the order of their scores, the highest first."""
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
