"""The training task: model, loss, and what it needs from a batch. The loop learns no dataset's name from it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from osm.data.batch import Batch
from osm.data.processor import Processor
from osm.datasets.table import ANY_MODE
from osm.models.bridges.bridge import Instruction
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel


class TrainTask(nn.Module):
    """Turns a batch into the cross entropy of each row."""

    def __init__(self, model: OmniScientModel, processor: Processor) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.centroid_fallbacks = 0

    def forward(self, batch: Batch, scored: bool = False) -> tuple[Tensor, ...]:
        """Returns (R,) summed cross entropy and (R,) supervised tokens.

        Args:
            scored: in the third place, (R,) whether each of these tokens was the likeliest one.
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


def supervised_tokens(batch: Batch) -> Tensor:
    """(R,): what `forward` will return of them; the processor leaves out what no token stands before."""
    return (batch.text.labels != -100).sum(1)


def group_names(sets: list[str]) -> list[tuple[str, str]]:
    """The groups whose losses are averaged: each set's own-mode half and its `any` half."""
    return [(name, half) for name in sets for half in ("own", ANY_MODE)]


def group_index(batch: Batch, groups: list[tuple[str, str]]) -> Tensor:
    """(R,) index into `groups`."""
    halves = [
        (name, ANY_MODE if mode == ANY_MODE else "own") for name, mode in zip(batch.datasets, batch.modes, strict=True)
    ]
    return torch.tensor([groups.index(half) for half in halves])


def row_weights(
    index_R: Tensor, counts_G: Tensor, groups: list[tuple[str, str]], multipliers: Mapping[str, float]
) -> Tensor:
    """What each row's summed cross entropy is multiplied with, so that the sum over all rows is the step's loss.

    Each half's loss is its summed cross entropy over its supervised tokens of all ranks (`counts_G`); a set's loss is
    the mean of its halves (of the one there is, for a batch of 1), times the set's multiplier.
    """
    multiplier_G = torch.tensor([multipliers[name] for name, _ in groups], device=counts_G.device)
    present_G = (counts_G > 0).to(counts_G)
    halves_G = present_G.view(-1, 2).sum(1).repeat_interleave(2)  # `group_names` puts a set's halves side by side
    return (multiplier_G * present_G / (halves_G * counts_G).clamp(min=1))[index_R]
