"""The reduction of per-row losses to the scalar that is minimised.

`osm.models.llm.token_losses` computes the cross entropy of each row. Every scalar loss of the package, in training and
in `OmniScientModel.forward`, is `reduce_losses` of such rows.

Shapes: R rows, G groups of rows.
"""

from __future__ import annotations

from torch import Tensor


def group_weights(index_R: Tensor, counts_G: Tensor, scale_G: Tensor) -> Tensor:
    """Return the weight (R,) of each row, with which `reduce_losses` gives a sum of mean losses over groups.

    The loss of a group is its summed cross entropy, divided by its number of supervised tokens, times its scale.

    Args:
        index_R: the group of each row.
        counts_G: supervised tokens of each group. They may include rows of other ranks. Groups without tokens have
            the weight 0.
        scale_G: the factor of each group's mean.
    """
    present_G = (counts_G > 0).to(scale_G)
    return (scale_G * present_G / counts_G.clamp(min=1))[index_R]


def reduce_losses(losses_R: Tensor, weights_R: Tensor) -> Tensor:
    """Return the weighted sum of the rows' losses, a scalar."""
    return (losses_R * weights_R).sum()
