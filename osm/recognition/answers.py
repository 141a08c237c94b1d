"""The answers of the recognition engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alternative:
    """A candidate name for a region.

    Attributes:
        text: the name.
        prob: the probability of the whole name, including its end token. None for the method `mapped`.
        cosine: for the method `mapped`, the cosine similarity to the free name, -1 to 1.
        class_id: the id of the class in the vocabulary, if the vocabulary has ids.
    """

    text: str
    prob: float | None = None
    cosine: float | None = None
    class_id: int | None = None

    def as_record(self) -> dict[str, Any]:
        """Return the candidate as a JSON object: the name, and its probability or its cosine."""
        return {"name": self.text, **({"prob": self.prob} if self.cosine is None else {"cosine": self.cosine})}


@dataclass(frozen=True)
class Recognition:
    """The name of one region in one mode.

    Attributes:
        text: the name.
        prob: the probability as defined in the published code: the product over the name's tokens without the end
            token. With the method `scored`, the probabilities of all names of the vocabulary sum to 1. With the method
            `constrained`, `prob` is a lower bound of that probability; with a `Ranking`, it is the share among the
            names that were compared. In a model with known names, all of these are multiplied by the probability of
            the classifier.
        token_probs: the probabilities of the name's tokens and of the end token.
        top: with top_k > 1, the most likely names, starting with `text`. With the method `mapped`, the vocabulary
            names most similar to the free name, with their cosines.
        said: with the method `mapped`, the free name that was mapped to `text`.
        skipped: the reason why the region has no name; empty if the region has a name.
        calibrated_prob: the estimated probability that the name is correct. None if the model is not calibrated (see
            `osm.models.probability_calibration`), or if no name of the vocabulary fits. For a name from a vocabulary,
            the estimate is that of a free name with the same probability, before it is normalized over the vocabulary.
            With the method `mapped`, it is that of the free name.
        unsure: whether `calibrated_prob` is below the model's threshold.
        class_id: the id of the class in the vocabulary, if the vocabulary has ids. `text` is then the first spelling of
            the class.
    """

    mode: str
    text: str = ""
    prob: float = 0.0
    token_probs: tuple[float, ...] = ()
    top: tuple[Alternative, ...] = ()
    skipped: str = ""
    said: str = ""
    calibrated_prob: float | None = None
    unsure: bool = False
    class_id: int | None = None

    @property
    def likelihood(self) -> float:
        """The calibrated probability if there is one, else `prob`."""
        return self.prob if self.calibrated_prob is None else self.calibrated_prob
