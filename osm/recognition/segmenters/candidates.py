"""The segments of several merge trees as one list of candidates, from which clicks, boxes and `everything` choose.

Shapes: n is the number of superpixels, N is the number of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from osm.recognition.segmenters.tree import Tree


@dataclass(frozen=True)
class Candidates:
    """Segments that consist of superpixels. No two have the same superpixels.

    Attributes:
        members: bool (N, n), the superpixels of each candidate.
        areas: float (N,), in pixels.
        persistence: float (N,), the range of merge costs over which the candidate stays unmerged, divided by the
            largest range in its tree (0 to 1); the maximum over the trees that contain it.
        boxes: float (N, 4), the (left, top, right, bottom) of each candidate in pixels, with exclusive ends.
    """

    members: np.ndarray
    areas: np.ndarray
    persistence: np.ndarray
    boxes: np.ndarray

    def distinct(self, count: int, least_area: float, max_iou: float) -> list[int]:
        """Return the most persistent candidates that are not near-duplicates of more persistent ones.

        Args:
            count: the maximum number of candidates.
            least_area: smaller candidates are left out.
            max_iou: a candidate is dropped if its IoU with a kept one exceeds this.
        """
        sizes = self._superpixel_sizes()
        lasting = np.where(self.areas >= least_area, self.persistence, 0.0)
        kept: list[int] = []
        for k in np.argsort(-lasting, kind="stable"):
            if lasting[k] <= 0 or len(kept) == count:
                break
            if kept:
                common = self.members[kept] @ (self.members[k] * sizes)
                ious = common / (self.areas[kept] + self.areas[k] - common)
                if ious.max() > max_iou:
                    continue
            kept.append(int(k))
        return kept

    def with_superpixels(self, wanted: Sequence[int], unwanted: Sequence[int]) -> np.ndarray:
        """Return the candidates that have all wanted superpixels and none of the unwanted ones."""
        fits = self.members[:, list(wanted)].all(1) & ~self.members[:, list(unwanted)].any(1)
        return np.flatnonzero(fits)

    def box_ious(self, box: tuple[float, float, float, float]) -> np.ndarray:
        """Return the IoU (N,) of each candidate's box with a box (left, top, right, bottom)."""
        left, top, right, bottom = self.boxes.T
        width = np.minimum(right, box[2]) - np.maximum(left, box[0])
        height = np.minimum(bottom, box[3]) - np.maximum(top, box[1])
        common = np.clip(width, 0, None) * np.clip(height, 0, None)
        return common / ((right - left) * (bottom - top) + (box[2] - box[0]) * (box[3] - box[1]) - common)

    def _superpixel_sizes(self) -> np.ndarray:
        sizes = np.zeros(self.members.shape[1])
        alone = self.members.sum(1) == 1
        sizes[self.members[alone].argmax(1)] = self.areas[alone]
        return sizes


def gather_candidates(trees: Sequence[Tree], labels: np.ndarray) -> Candidates:
    """Return the nodes of several merge trees of the same superpixels, without duplicates.

    Args:
        trees: the merge trees.
        labels: the superpixels, an integer label map (H, W) with labels 0 to n - 1.
    """
    areas = np.bincount(labels.ravel()).astype(np.float64)
    rows, values = [], []
    for tree in trees:
        members = np.zeros((len(tree.members), len(areas)), bool)
        for k, superpixels in enumerate(tree.members):
            members[k, superpixels] = True
        rows.append(members)
        values.append(tree.persistence / max(tree.persistence.max(), 1e-12))
    members, persistence = np.concatenate(rows), np.concatenate(values)
    places: dict[bytes, int] = {}
    first = np.array([places.setdefault(row.tobytes(), k) for k, row in enumerate(np.packbits(members, 1))])
    best = np.zeros(len(members))
    np.maximum.at(best, first, persistence)
    kept = np.unique(first)
    members = members[kept]
    return Candidates(members, members @ areas, best[kept], _boxes(members, labels))


def _boxes(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the boxes (N, 4) of sets of superpixels."""
    height, width = labels.shape
    n = members.shape[1]
    ends = np.array([[width, height, 0, 0]]).repeat(n, 0).astype(np.float64)
    ys, xs = np.divmod(np.arange(labels.size), width)
    for side, positions in ((0, xs), (1, ys)):
        np.minimum.at(ends[:, side], labels.ravel(), positions)
        np.maximum.at(ends[:, side + 2], labels.ravel(), positions + 1)
    found = [np.concatenate([ends[row, :2].min(0), ends[row, 2:].max(0)]) for row in members]
    return np.stack(found)
