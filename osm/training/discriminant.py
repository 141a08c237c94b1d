"""Linear discriminant analysis: a linear classifier that follows from the mean of each class and a shared covariance.

With few masks per name, it makes its errors on other masks than a classifier that was trained by gradient descent. A
classifier with the sum of their logits can therefore be more accurate than either of them.

Shapes: R masks, X inputs, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from osm.errors import OsmError

_AT_ONCE = 4096  # masks whose inputs are converted to float32 at a time
_LEAST = 1e-12  # replaces a count of 0 in divisions
_LEAST_SPREAD = 1e-9  # a smaller variance within the classes, relative to the squared means, is rounding
_LEAST_MASKS = 0.5  # added to the number of masks of each class, because log(0) is not finite


class WeightedInputs(NamedTuple):
    """The inputs of R masks of one dataset, in any floating-point dtype.

    Attributes:
        inputs_RX: what is classified.
        targets_R: the class of each mask.
        weight: the weight of the dataset.
    """

    inputs_RX: Tensor
    targets_R: Tensor
    weight: float

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield some inputs in float32 and their classes at a time."""
        for inputs_RX, targets_R in zip(self.inputs_RX.split(_AT_ONCE), self.targets_R.split(_AT_ONCE), strict=True):
            yield inputs_RX.float(), targets_R


class Discriminant(NamedTuple):
    """A linear classifier: the logits of inputs_RX are `inputs_RX @ weight_KX.T + bias_K`."""

    weight_KX: Tensor
    bias_K: Tensor


class _ClassSums(NamedTuple):
    """The number of a dataset's masks in each class, the sums of their inputs, and their scatter around the means."""

    count_K: Tensor
    sum_KX: Tensor
    scatter_XX: Tensor


def _class_sums(part: WeightedInputs, classes: int) -> _ClassSums:
    width = part.inputs_RX.shape[1]
    count_K = torch.bincount(part.targets_R, minlength=classes).float()
    sum_KX, scatter_XX = torch.zeros(classes, width), torch.zeros(width, width)
    for inputs_RX, targets_R in part.batches():
        sum_KX.index_add_(0, targets_R, inputs_RX)
    mean_KX = sum_KX / count_K.clamp(min=_LEAST)[:, None]
    for inputs_RX, targets_R in part.batches():
        centered_RX = inputs_RX - mean_KX[targets_R]
        scatter_XX += centered_RX.T @ centered_RX
    return _ClassSums(count_K, sum_KX, scatter_XX)


def linear_discriminant(
    parts: Sequence[WeightedInputs], classes: int, shrinkage: float, prior_masks: float
) -> Discriminant:
    """Return the linear discriminant of the masks of several datasets.

    The logit of a class with the mean m and n masks is m' S^-1 x - m' S^-1 m / 2 + log(n + 0.5), where S is the
    covariance within the classes of a dataset. Both m and S are shrunk, because most classes have few masks. Each
    dataset counts as much as if it had the mean number of masks, multiplied by its weight.

    Args:
        parts: the datasets, each with at least one mask.
        classes: K. A class can be without masks.
        shrinkage: the share of S, above 0 to 1, that is replaced by a multiple of the identity with the same trace.
        prior_masks: the mean of a class is computed as if the class had so many more masks. Their inputs are the mean
            inputs of the datasets that contain the class. For a class without masks, the datasets count equally.

    Raises:
        OsmError: no class has two different masks, so that there is no covariance within the classes.
    """
    width = parts[0].inputs_RX.shape[1]
    mean_masks = sum(len(part.targets_R) for part in parts) / len(parts)
    count_K, sum_KX, prior_KX = torch.zeros(classes), torch.zeros(classes, width), torch.zeros(classes, width)
    covariance_XX, overall_X = torch.zeros(width, width), torch.zeros(width)
    for part in parts:
        found, masks = _class_sums(part, classes), len(part.targets_R)
        weight = part.weight * mean_masks / masks
        mean_X = found.sum_KX.sum(0) / masks
        count_K += weight * found.count_K
        sum_KX += weight * found.sum_KX
        prior_KX += weight * found.count_K[:, None] * mean_X
        covariance_XX += weight * found.scatter_XX
        overall_X += mean_X / len(parts)
    prior_KX = torch.where(count_K[:, None] > 0, prior_KX / count_K.clamp(min=_LEAST)[:, None], overall_X)
    shrunk_KX = (sum_KX + prior_masks * prior_KX) / (count_K + prior_masks)[:, None]
    covariance_XX /= count_K.sum()
    spread = covariance_XX.diagonal().mean()
    mean_KX = sum_KX / count_K.clamp(min=_LEAST)[:, None]
    if not spread > _LEAST_SPREAD * mean_KX.square().mean():  # NaN as well
        raise OsmError("the linear discriminant needs a name with two different masks; --discriminant 0 leaves it out")
    covariance_XX = (1 - shrinkage) * covariance_XX + shrinkage * spread * torch.eye(width)
    weight_KX = torch.linalg.solve(covariance_XX, shrunk_KX.T).T
    return Discriminant(weight_KX, (count_K + _LEAST_MASKS).log() - (weight_KX * shrunk_KX).sum(1) / 2)
