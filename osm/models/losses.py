"""Reduces per-row losses to the scalar loss that is minimized.

`osm.models.llm.token_losses` computes the cross entropy of each row. `reduce_losses` computes the scalar
loss from per-row losses, both in training and in `OmniScientModel.forward`.

Shapes: R rows, G groups of rows.
"""

from __future__ import annotations

from torch import Tensor


def group_weights(index_R: Tensor, counts_G: Tensor, scale_G: Tensor) -> Tensor:
    """Return each row's weight (R,). With these weights, `reduce_losses` returns the sum of the groups' losses.

    A group's loss is the group's scale times its summed cross entropy, divided by its number of supervised tokens.

    Args:
        index_R: the group of each row.
        counts_G: the number of supervised tokens in each group, which may include rows on other ranks. A group without
            supervised tokens has the weight 0.
        scale_G: the factor of each group's mean loss.
    """
    present_G = (counts_G > 0).to(scale_G)
    return (scale_G * present_G / counts_G.clamp(min=1))[index_R]


def reduce_losses(losses_R: Tensor, weights_R: Tensor) -> Tensor:
    """Return the weighted sum of the per-row losses as a scalar."""
    return (losses_R * weights_R).sum()
