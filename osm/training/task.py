"""The training task: the loss of each row (one mask and its name) in a batch, and the row's weight in the step's loss.

To add a loss term, compute it in `TrainTask.forward` (DDP and FSDP wrap this module) and add it to each row's loss.
`MixLoss` weights an added loss term in the same way as the cross entropy. Settings for a loss term belong in
`TrainConfig`. A loss term that needs the LLM's logits must be computed in `osm.models.llm.token_losses` instead,
because the model does not return logits.

Shapes: N images, L image tokens, C tower width, R rows, G groups of rows (two groups for each training dataset).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from osm.data.batch import Batch
from osm.data.processor import Processor
from osm.datasets.table import ANY_MODE
from osm.models.bridges.bridge import Instruction
from osm.models.bridges.known_names import NamesLoss
from osm.models.losses import group_weights
from osm.models.masks import context_mask
from osm.models.osm import OmniScientModel


class TrainTask(nn.Module):
    """Computes the cross entropy of each name in a batch, without weighting the datasets (see `MixLoss`).

    Args:
        model: the model, whose bridge is trained.
        processor: the model's processor.
        label_smoothing: the share of each target that is distributed evenly over all tokens, except in evaluations.
        names_loss: the weight of the loss of the known names, which is not used in evaluations.
        names_smoothing: the share of the target that is distributed evenly over all known names.
    """

    def __init__(
        self,
        model: OmniScientModel,
        processor: Processor,
        label_smoothing: float = 0.0,
        names_loss: float = 1.0,
        names_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.processor, self.label_smoothing = model, processor, label_smoothing
        self.names_loss, self.names_smoothing = names_loss, names_smoothing
        known = getattr(model.bridge.config, "direct_names", ())
        self.name_index = {name: index for index, name in enumerate(known)}
        self.centroid_fallbacks = 0

    def forward(self, batch: Batch, scored: bool = False) -> tuple[Tensor, ...]:
        """Return the loss of each row (one mask and its name) in a batch.

        Args:
            scored: also return whether the model predicts the name of each row exactly.

        Returns:
            (R,) the cross entropy summed over the supervised tokens of each row, float32; (R,) the number of supervised
            tokens of each row; and if `scored`, (R,) whether each of the row's supervised tokens was the most likely
            token.
        """
        model = self.model
        pixels_N3SS = None if batch.canvas is None else self.processor.pixel_values(batch.canvas)
        tokens_NLC = batch.tokens
        if tokens_NLC is None:
            assert pixels_N3SS is not None
            tokens_NLC = model.tower_tokens(pixels_N3SS)
        context_R1SS = context_mask(batch.masks, model.config.context_enlarge_ratio)
        features = model.mask_features(batch.masks, context_R1SS, pixels_N3SS, batch.image_index)
        del pixels_N3SS  # not kept until the backward pass
        self.centroid_fallbacks += features.fallbacks
        text = batch.text
        return model.row_losses(
            model.add_positions(tokens_NLC),
            batch.image_index,
            features,
            Instruction(text.qformer_ids, text.qformer_mask),
            batch.modes,
            text.input_ids,
            text.attention_mask,
            text.labels,
            scored,
            self.processor.prompt_tokens,
            self.label_smoothing if self.training else 0.0,
            self._names(batch) if self.training and self.name_index else None,
        )

    def _names(self, batch: Batch) -> NamesLoss:
        other = len(self.name_index)
        targets_R = torch.tensor([self.name_index.get(name, other) for name in batch.targets])
        return NamesLoss(targets_R.to(batch.masks.device), self.names_loss, self.names_smoothing)


class MixLoss:
    """Computes the loss weights of the rows (named masks) in a step. The rows are sampled from several datasets.

    Each dataset has two groups of rows: those in the dataset's own mode, and those in the open-vocabulary mode `any`.
    The loss of a group is its total cross entropy divided by its number of supervised tokens, both summed over all
    ranks. The loss of a dataset is the mean loss of its two groups, multiplied by the dataset's `loss_multiplier`. A
    group without supervised tokens is excluded from its dataset's mean loss. The loss of a step is the sum of the
    dataset losses.

    Args:
        multipliers: dataset name -> `loss_multiplier` from the training config, for each dataset that is used.

    Attributes:
        groups: (dataset name, "own" | "any") for each group. The two groups of a dataset are adjacent.
    """

    def __init__(self, multipliers: Mapping[str, float]) -> None:
        self.groups = [(name, half) for name in multipliers for half in ("own", ANY_MODE)]
        self.multipliers = [multipliers[name] for name, _ in self.groups]

    def group_index(self, batch: Batch) -> Tensor:
        """Return each row's (dataset, mode) group as an index into `groups`, with shape (R,)."""
        rows = zip(batch.datasets, batch.modes, strict=True)
        keys = [(name, ANY_MODE if mode == ANY_MODE else "own") for name, mode in rows]
        return torch.tensor([self.groups.index(key) for key in keys])

    def supervised_tokens(self, batch: Batch) -> Tensor:
        """Return the number of supervised tokens in each (dataset, mode) group of a batch, as a float32 tensor (G,).

        The token counts match those returned by `TrainTask.forward`. The first token of a text is never counted,
        because no earlier token can predict it and the processor therefore never supervises it.
        """
        counts_R = (batch.text.labels != -100).sum(1).float()
        return torch.zeros(len(self.groups)).index_add_(0, self.group_index(batch), counts_R)

    def row_weights(self, index_R: Tensor, counts_G: Tensor) -> Tensor:
        """Return each row's weight in a step's loss for `reduce_losses`, with shape (R,).

        Args:
            index_R: the index of each row's group; see `group_index`.
            counts_G: number of supervised tokens of each group over all ranks.
        """
        multiplier_G = torch.tensor(self.multipliers, device=counts_G.device)
        present_G = (counts_G > 0).to(counts_G)
        groups_of_set_G = present_G.view(-1, 2).sum(1).repeat_interleave(2).clamp(min=1)
        return group_weights(index_R, counts_G, multiplier_G / groups_of_set_G)
