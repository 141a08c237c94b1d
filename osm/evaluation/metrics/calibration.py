"""Whether probabilities mean what they say: the reliability table and the expected calibration error.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bin of probabilities: (low, high], the first one with 0; means are None where it is empty."""

    low: float
    high: float
    masks: int
    prob: float | None
    acc: float | None


@dataclass(frozen=True)
class Calibration:
    """The table of one mode.

    Attributes:
        bins: equally wide, from 0 to 1.
        masks: how many have a probability.
        without_prob: how many have a prediction without one; they are left out.
    """

    bins: tuple[Bin, ...]
    masks: int
    without_prob: int

    @property
    def ece(self) -> float | None:
        """sum over bins of masks of the bin / masks * |acc - mean prob|, 0 to 1; None without any mask."""
        if not self.masks:
            return None
        gaps = [
            one.masks * abs(one.acc - one.prob) for one in self.bins if one.acc is not None and one.prob is not None
        ]
        return sum(gaps) / self.masks

    def as_json(self) -> dict[str, Any]:
        return {
            "ece": self.ece,
            "masks": self.masks,
            "without_prob": self.without_prob,
            "bins": [vars(one) for one in self.bins],
        }


def calibrate(probs: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Calibration:
    """The reliability table.

    Args:
        probs: float (masks,), 0 to 1, nan where there is none.
        correct: bool or 0/1 (masks,).
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
