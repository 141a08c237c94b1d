"""The settings of `osm refit_names`, without PyTorch, so that its help is printed at once."""

from __future__ import annotations

from dataclasses import dataclass

from osm.errors import OsmError


@dataclass(frozen=True)
class RefitOptions:
    """Settings of the training of the classifier.

    Attributes:
        steps: the number of steps.
        masks: the number of masks of each dataset in a step.
        learning_rate: the learning rate of AdamW, which falls to 0 along a cosine after a tenth of the steps.
        weight_decay: the weight decay of AdamW.
        dropout: the dropout of the inputs and of the hidden layer.
        smoothing: the share of the target that is distributed evenly over all classes.
        discriminant: the weight of the logits of a linear discriminant that is added to the trained classifier.
        shrinkage: the share of the discriminant's covariance that is replaced by a multiple of the identity.
        prior_masks: the discriminant computes the mean of a name as if the name had so many more masks. Their inputs
            are the mean inputs of the datasets that contain the name.
        most: the largest number of masks of a dataset. Only the first ones are used.
        seed: the seed of all random values.
    """

    steps: int = 500
    masks: int = 48
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    dropout: float = 0.2
    smoothing: float = 0.1
    discriminant: float = 0.02
    shrinkage: float = 0.6
    prior_masks: float = 16.0
    most: int = 50_000
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("steps", "masks", "most"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise OsmError(f"--{name} {getattr(self, name)} must be 1 or more")
        if not 0 < self.learning_rate < 1e3:
            raise OsmError(f"--learning_rate {self.learning_rate} must be greater than 0 and less than 1000")
        if not 0 <= self.weight_decay < 1e3:
            raise OsmError(f"--weight_decay {self.weight_decay} must be at least 0 and less than 1000")
        for name in ("dropout", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise OsmError(f"--{name} {getattr(self, name)} must be at least 0 and less than 1")
        if not 1e-3 <= self.shrinkage <= 1:  # with less, rounding in float32 would decide
            raise OsmError(f"--shrinkage {self.shrinkage} must be at least 0.001 and at most 1")
        if not 0 <= self.discriminant < 1e3:
            raise OsmError(f"--discriminant {self.discriminant} must be at least 0 and less than 1000")
        if not 1e-3 <= self.prior_masks <= 1e6:
            raise OsmError(f"--prior_masks {self.prior_masks} must be at least 0.001 and at most 1000000")
