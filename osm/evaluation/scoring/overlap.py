"""Mean IoU of label maps: each class over the pixels of all images together.

IoU = pixels that are of the class and predicted so / pixels that are either. Void pixels count for nothing; a pixel
without a prediction is missed. The mean is over the classes that the ground truth shows, as Detectron2's is.

Shapes: H, W = an image's sides; C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


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
