"""`linear_discriminant` against scikit-learn, and what weights and prior masks do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from osm.errors import OsmError
from osm.training.discriminant import WeightedInputs, linear_discriminant


def examples(counts: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (R, 6) around a random mean of each class, and their classes, in random order."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.normal(size=(len(counts), 6))
    inputs = means[targets] + rng.normal(size=(len(targets), 6)) * [1, 2, 0.5, 1, 1, 3]
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets)


def test_it_equals_scikit_learn_without_prior_masks() -> None:
    inputs, targets = examples((40, 5, 25))
    found = linear_discriminant([WeightedInputs(inputs, targets, 1.0)], 3, 0.3, 1e-6)
    wanted = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk(0.3))
    wanted.fit(inputs.numpy(), targets.numpy())
    counts = torch.tensor([40.0, 5, 25])  # scikit-learn's priors are the classes' shares, without the added half
    mine = inputs @ found.weight_KX.T + found.bias_K - (counts + 0.5).log() + counts.log()
    theirs = torch.tensor(wanted.decision_function(inputs.numpy()), dtype=torch.float32)
    torch.testing.assert_close(mine.log_softmax(1), theirs.log_softmax(1), atol=1e-3, rtol=1e-3)


class Shrunk:
    """A covariance that is shrunk as in this project. scikit-learn would standardize the inputs before it shrinks."""

    def __init__(self, shrinkage: float) -> None:
        self.shrinkage = shrinkage

    def fit(self, inputs: np.ndarray) -> Shrunk:
        plain = np.cov(inputs.T, bias=True)
        self.covariance_ = (1 - self.shrinkage) * plain + self.shrinkage * np.trace(plain) / len(plain) * np.eye(
            len(plain)
        )
        return self


def test_each_dataset_counts_as_much_as_its_weight() -> None:
    """A dataset with half of the masks counts as if each of its masks were there twice."""
    small, small_targets = examples((3, 3))
    large, large_targets = examples((4, 8), 1)
    plain = [WeightedInputs(small, small_targets, 1.0), WeightedInputs(large, large_targets, 1.0)]
    twice = [WeightedInputs(torch.cat([small, small]), torch.cat([small_targets, small_targets]), 1.0), plain[1]]
    halved = [twice[0], WeightedInputs(large, large_targets, 0.5)]
    found, equal, other = (
        linear_discriminant(parts, 3, 0.5, prior).weight_KX
        for parts, prior in ((plain, 3), (twice, 4), (halved, 4))  # the mean numbers of masks are 9, 12 and 12
    )
    torch.testing.assert_close(found, equal, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(equal, other, atol=1e-2)


def test_a_class_without_masks_is_possible_and_not_likely() -> None:
    inputs, targets = examples((30, 12))
    weight, bias = linear_discriminant([WeightedInputs(inputs.half(), targets, 1.0)], 3, 0.8, 16)
    logits = inputs @ weight.T + bias
    assert logits.isfinite().all() and not (logits.argmax(1) == 2).any()
    assert (logits.argmax(1) == targets).float().mean() > 0.7


def test_prior_masks_draw_the_means_of_rare_classes_to_the_mean_of_all_masks() -> None:
    inputs, targets = examples((200, 2))
    close = {}
    for masks in (1.0, 100.0):
        # With full shrinkage, the covariance is a multiple of the identity, and the weights are multiples of the means.
        means = linear_discriminant([WeightedInputs(inputs, targets, 1.0)], 2, 1.0, masks).weight_KX
        close[masks] = torch.cosine_similarity(means, inputs.mean(0, keepdim=True))
    assert close[100][1] > 0.99 > close[1][1] and close[1][0] > 0.99


def test_one_mask_per_name_gives_no_covariance() -> None:
    inputs, targets = examples((1, 1, 1))
    same = [WeightedInputs(torch.cat([inputs] * 3), torch.cat([targets] * 3), 1.0)]  # equal up to rounding
    unknown = [WeightedInputs(torch.full((6, inputs.shape[1]), torch.nan), targets.repeat(2), 1.0)]
    for parts in ([WeightedInputs(inputs, targets, 1.0)], same, unknown):
        with pytest.raises(OsmError, match="a name with two different masks; --discriminant 0 leaves it out"):
            linear_discriminant(parts, 3, 0.6, 16)
