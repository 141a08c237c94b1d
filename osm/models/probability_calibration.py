"""The calibration of a model's probabilities, which is stored with its weights.

The probability of a name is a product of token probabilities, which is usually too high. A calibration maps this
probability to the share of names with the same probability that are correct: `sigmoid(slope * logit(prob) +
intercept)` (Platt scaling; Guo et al., ICML 2017, section 4.1). The slope and the intercept are fitted to predictions
on images that the model was not trained on (`osm calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from osm.errors import OsmError, shown

UNSURE = 0.5
"""The default threshold. A name with a lower calibrated probability is more likely wrong than correct."""
_LEAST = 1e-6  # probabilities closer to 0 or 1 are rounded to this distance, because their logit is not finite
_LARGEST_LOGIT = 700.0  # exp overflows beyond


@dataclass(frozen=True)
class ProbabilityCalibration:
    """A calibration of the probabilities of free names.

    Attributes:
        slope: the slope of the map from logit to logit; greater than 0.
        intercept: the intercept of this map.
        unsure: names with a calibrated probability below this threshold are marked as unsure, 0 to 1.
        names: the number of predicted names that the calibration was fitted to.
    """

    slope: float
    intercept: float
    unsure: float = UNSURE
    names: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and self.slope > 0):
            raise OsmError(f"calibration: slope {shown(self.slope)} is not a number greater than 0")
        if not math.isfinite(self.intercept):
            raise OsmError(f"calibration: intercept {shown(self.intercept)} is not a finite number")
        if not 0 <= self.unsure <= 1:
            raise OsmError(f"calibration: unsure {shown(self.unsure)} is not between 0 and 1")

    def __call__(self, prob: float) -> float:
        """Return the calibrated probability (0 to 1) of a name with the probability `prob` (0 to 1)."""
        calibrated = self.slope * logit(prob) + self.intercept
        return 1 / (1 + math.exp(-min(max(calibrated, -_LARGEST_LOGIT), _LARGEST_LOGIT)))

    def as_document(self) -> dict[str, Any]:
        """Return the fields of the calibration as JSON-compatible values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Any, where: str) -> ProbabilityCalibration | None:
        """Return the calibration in a checkpoint's config document, or None if there is none.

        Raises:
            OsmError: the document's `calibration` is invalid.
        """
        found = document.get("calibration") if isinstance(document, Mapping) else None
        if found is None:
            return None
        fields = {"slope": float, "intercept": float, "unsure": float, "names": int}
        numbers = isinstance(found, Mapping) and set(found) <= set(fields) and {"slope", "intercept"} <= set(found)
        if not numbers or not all(type(value) in (int, float) for value in found.values()):
            raise OsmError(
                f"{where}: calibration {shown(found)}: expected the numbers slope and intercept, and optionally unsure "
                "and names"
            )
        try:
            return cls(**{name: fields[name](value) for name, value in found.items()})
        except (OsmError, ValueError, OverflowError) as error:
            reason = error if isinstance(error, OsmError) else f"calibration {shown(found)}: {error}"
            raise OsmError(f"{where}: {reason}") from None


def logit(prob: float) -> float:
    """Return the logit of a probability. Probabilities near 0 and 1 are limited, so that the logit is finite."""
    limited = min(max(prob, _LEAST), 1 - _LEAST)
    return math.log(limited / (1 - limited))
