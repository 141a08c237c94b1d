"""Calibration of predicted probabilities: the reliability table and the expected calibration error.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bin of the reliability table.

    Attributes:
        low: the exclusive lower bound, except that the first bin includes 0.
        high: the inclusive upper bound.
        masks: the number of masks in the bin.
        prob: the mean probability; None if the bin is empty.
        acc: the accuracy; None if the bin is empty.
    """

    low: float
    high: float
    masks: int
    prob: float | None
    acc: float | None


@dataclass(frozen=True)
class Calibration:
    """The reliability table of the predictions in one vocabulary mode.

    Attributes:
        bins: bins of equal width from 0 to 1.
        masks: the number of masks with a probability.
        without_prob: the number of predictions without a probability. The table does not include them.
    """

    bins: tuple[Bin, ...]
    masks: int
    without_prob: int

    @property
    def ece(self) -> float | None:
        """Return the expected calibration error (0 to 1), or None if no mask has a probability.

        The expected calibration error is the mean over bins of |accuracy - mean probability|, weighted by the number of
        masks in each bin.
        """
        if not self.masks:
            return None
        gaps = [
            one.masks * abs(one.acc - one.prob) for one in self.bins if one.acc is not None and one.prob is not None
        ]
        return sum(gaps) / self.masks

    def as_json(self) -> dict[str, Any]:
        """Return the expected calibration error, the mask counts and the bins as JSON-compatible values."""
        return {
            "ece": self.ece,
            "masks": self.masks,
            "without_prob": self.without_prob,
            "bins": [vars(one) for one in self.bins],
        }


def calibrate(probs: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Calibration:
    """Compute the reliability table of predicted probabilities.

    Args:
        probs: float (masks,), the probabilities, 0 to 1; nan for predictions without a probability.
        correct: bool or 0/1 (masks,), whether the predicted name is correct.
        bins: the number of bins.
    """
    there = ~np.isnan(probs)
    probs, right = probs[there], correct[there].astype(float)
    edges = np.arange(bins + 1) / bins
    places = np.clip(np.searchsorted(edges, probs, side="left") - 1, 0, bins - 1)
    rows = []
    for place in range(bins):
        inside = places == place
        count = int(inside.sum())
        means = (float(probs[inside].mean()), float(right[inside].mean())) if count else (None, None)
        rows.append(Bin(float(edges[place]), float(edges[place + 1]), count, *means))
    return Calibration(tuple(rows), len(probs), int((~there).sum()))
