"""Calibration of predicted probabilities: reliability tables, the expected calibration error, and fitting.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Bins of equal mass: Nguyen and O'Connor,
Posterior calibration and exploratory analysis for natural language processing models, EMNLP 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osm.errors import OsmError
from osm.models.probability_calibration import UNSURE, ProbabilityCalibration, logit

BINS = 15
MASS_BINS = 10
MIN_NAMES = 100
"""The smallest number of names to which a calibration is fitted."""
_RIDGE = 1e-3  # keeps the fit finite if all names above some probability are correct


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
        bins: bins of equal width from 0 to 1, or bins with equal numbers of masks.
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


def calibrate_by_mass(probs: np.ndarray, correct: np.ndarray, bins: int = MASS_BINS) -> Calibration:
    """Compute a reliability table whose bins contain equal numbers of masks, up to one.

    Args:
        probs: float (masks,), the probabilities, 0 to 1.
        correct: bool or 0/1 (masks,), whether the predicted name is correct.
        bins: the number of bins.
    """
    order = np.argsort(probs, kind="stable")
    rows, low = [], 0.0
    for part in np.array_split(order, bins):
        if len(part):
            high = float(probs[part[-1]])
            rows.append(Bin(low, high, len(part), float(probs[part].mean()), float(correct[part].mean())))
            low = high
    return Calibration(tuple(rows), len(probs), 0)


def fit_calibration(probs: np.ndarray, correct: np.ndarray, unsure: float = UNSURE) -> ProbabilityCalibration:
    """Fit a calibration by logistic regression of correctness on the logit of the probability (Newton's method).

    Args:
        probs: float (names,), the probabilities of predicted names, 0 to 1.
        correct: bool or 0/1 (names,), whether the names are correct.
        unsure: the threshold that the calibration stores.

    Raises:
        OsmError: there are too few names, all or none of them are correct, or less probable names are not less often
            correct.
    """
    right = correct.astype(float)
    if len(probs) < MIN_NAMES or not 0 < right.mean() < 1:
        raise OsmError(
            f"a calibration needs at least {MIN_NAMES} names, some correct and some wrong; there are {len(probs)} "
            f"names, of which {int(right.sum())} are correct"
        )
    inputs = np.stack([np.array([logit(float(prob)) for prob in probs]), np.ones(len(probs))], 1)
    weights = np.zeros(2)
    for _ in range(100):
        share = 1 / (1 + np.exp(-np.clip(inputs @ weights, -700, 700)))
        gradient = inputs.T @ (share - right) + _RIDGE * weights
        hessian = (inputs * (share * (1 - share))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    if weights[0] <= 0:
        raise OsmError("the less probable names are not less often correct, so the probabilities cannot be calibrated")
    return ProbabilityCalibration(float(weights[0]), float(weights[1]), unsure, len(probs))


def cross_fitted(probs: np.ndarray, correct: np.ndarray, images: np.ndarray, folds: int = 5) -> np.ndarray:
    """Return calibrated probabilities (names,). Each is from a calibration that was fitted to other images.

    Args:
        probs, correct: see `fit_calibration`.
        images: int (names,), the image of each name. All names of an image are in the same fold.
        folds: the number of folds.
    """
    shuffled = np.random.default_rng(0).permutation(int(images.max()) + 1)
    fold_of = shuffled[images] % folds
    found = np.zeros(len(probs))
    for fold in range(folds):
        inside = fold_of == fold
        calibration = fit_calibration(probs[~inside], correct[~inside])
        found[inside] = [calibration(float(prob)) for prob in probs[inside]]
    return found


def ece_if_calibrated(probs: np.ndarray, bins: int = MASS_BINS, samples: int = 1000) -> tuple[float, float]:
    """Return the mean and the 97.5th percentile of the ECE that perfectly calibrated probabilities would have.

    The ECE of a finite sample is above 0 by chance. For each sample, the correctness of every name is drawn with its
    probability.
    """
    random = np.random.default_rng(0)
    errors = [calibrate_by_mass(probs, random.random(len(probs)) < probs, bins).ece or 0.0 for _ in range(samples)]
    return float(np.mean(errors)), float(np.quantile(errors, 0.975))
