"""The training task: the loss of each row of a batch, and the weights with which the rows are summed.

A further loss term is computed in `TrainTask.forward` and added to the loss of each row, so that it is part of the
module that DDP and FSDP wrap. `MixLoss` then weights it like the cross entropy. Its settings belong in `TrainConfig`.

Shapes: R rows, G groups (two for each set of the mix).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from osm.data.batch import Batch
from osm.data.processor import Processor
from osm.datasets.table import ANY_MODE
from osm.models.bridges.bridge import Instruction
from osm.models.losses import group_weights
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel


class TrainTask(nn.Module):
    """Computes the cross entropy of each row of a batch. It does not depend on the names of the datasets."""

    def __init__(self, model: OmniScientModel, processor: Processor) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.centroid_fallbacks = 0

    def forward(self, batch: Batch, scored: bool = False) -> tuple[Tensor, ...]:
        """Return the losses of a batch.

        Args:
            scored: also return whether the model names each row exactly.

        Returns:
            (R,) the cross entropy summed over the supervised tokens of each row, float32; (R,) the number of supervised
            tokens; and if `scored`, (R,) whether every supervised token was the most likely one.
        """
        model = self.model
        tokens = batch.tokens
        if tokens is None:
            assert batch.canvas is not None
            tokens = model.tower_tokens(self.processor.pixel_values(batch.canvas))
        features = model.mask_features(batch.masks, context_mask(batch.masks, model.config.context_enlarge_ratio))
        self.centroid_fallbacks += features.fallbacks
        text = batch.text
        return model.row_losses(
            model.add_positions(tokens),
            batch.image_index,
            features,
            Instruction(text.qformer_ids, text.qformer_mask),
            batch.modes,
            text.input_ids,
            text.attention_mask,
            text.labels,
            scored,
        )


class MixLoss:
    """Weights the rows of a step, which come from a mix of sets.

    Each set has two groups of rows: those that answer in the set's own mode, and those that answer in the mode `any`.
    The loss of a group is its summed cross entropy divided by its supervised tokens, both over all ranks. The loss of a
    set is the mean of its two groups (or the only group that has tokens), times the set's multiplier. The loss of
    the step is the sum over the sets.

    Args:
        multipliers: the `loss_multiplier` of each set that is used, from the training config.

    Attributes:
        groups: (set, "own" | "any") for each group. The two groups of a set are adjacent.
    """

    def __init__(self, multipliers: Mapping[str, float]) -> None:
        self.groups = [(name, half) for name in multipliers for half in ("own", ANY_MODE)]
        self.multipliers = [multipliers[name] for name, _ in self.groups]

    def group_index(self, batch: Batch) -> Tensor:
        """Return the index into `groups` of each row, (R,)."""
        rows = zip(batch.datasets, batch.modes, strict=True)
        keys = [(name, ANY_MODE if mode == ANY_MODE else "own") for name, mode in rows]
        return torch.tensor([self.groups.index(key) for key in keys])

    def supervised_tokens(self, batch: Batch) -> Tensor:
        """Return the number of supervised tokens of each group in a batch, float32 (G,).

        They are the tokens that `TrainTask.forward` counts, because the processor supervises no token that has no
        token before it.
        """
        counts = (batch.text.labels != -100).sum(1).float()
        return torch.zeros(len(self.groups)).index_add_(0, self.group_index(batch), counts)

    def row_weights(self, index_R: Tensor, counts_G: Tensor) -> Tensor:
        """Return the weight of each row (R,), with which `reduce_losses` gives the row's share of the step's loss.

        Args:
            index_R: see `group_index`.
            counts_G: supervised tokens of each group over all ranks.
        """
        multiplier_G = torch.tensor(self.multipliers, device=counts_G.device)
        present_G = (counts_G > 0).to(counts_G)
        groups_of_set_G = present_G.view(-1, 2).sum(1).repeat_interleave(2).clamp(min=1)
        return group_weights(index_R, counts_G, multiplier_G / groups_of_set_G)
