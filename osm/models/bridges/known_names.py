"""Known names: a classifier in the direct path, whose most likely names the LLM reads as embeddings.

The classes are a list of names (`direct_names`) and the class *other* for everything else. Each name has D embeddings,
which start as those of its tokens, so that the LLM only has to repeat what it reads. If a model is trained on a few
photos without a classifier, it overfits more. If the tower was pretrained as a classifier, the probabilities of its own
classes are further evidence for the known names that these classes have (`direct_classes`). A mask's embeddings are a
weighted mean of those of all classes. The weights are sharpened probabilities: first that of *other* against all known
names together, then that of each known name among the known names. The class *other* has no embeddings of its own: it
stands for the output of the direct path, which can express any name.

Shapes: R rows (masks), K known names, A classes of the tower, X inputs, H hidden units, D direct embeddings, W width,
O = D * W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHARPNESS = 4.0
"""The exponent of the probabilities that weight the embeddings.

With an exponent of 1, the LLM would read a mean of many names where the classifier is unsure.
"""

_EVIDENCE, _LEAST_SHARE = 0.5, 0.03
"""The weight of the tower's classes, and the probability below which they hardly count (`KnownNames.class_evidence`).

With a larger weight, the tower's classes would outweigh what the classifier learns of frequent names.
"""

_EXCLUDED = -1e4
"""The logit of an excluded class. With -inf, `KnownNames.mixed` would return NaN if all known names are excluded."""


@dataclass(frozen=True)
class NamesLoss:
    """The loss of the classifier in one batch.

    Attributes:
        targets_R: the index of each row's name; K = any other name.
        weight: the weight of the cross entropy, relative to that of the LLM's tokens.
        smoothing: the share of the target that is distributed evenly over all classes.
    """

    targets_R: Tensor
    weight: float
    smoothing: float

    def add_to(self, losses_R: Tensor, counts_R: Tensor, logits_RK: Tensor) -> Tensor:
        """Return the rows' losses with those of the classifier.

        The losses of a group of rows are divided by its number of supervised tokens (`osm.models.losses`), so the loss
        of a row is multiplied by its number of supervised tokens.
        """
        own_R = F.cross_entropy(logits_RK.float(), self.targets_R, reduction="none", label_smoothing=self.smoothing)
        return losses_R + self.weight * counts_R * own_R


def restricted(logits_RK: Tensor, allowed: Tensor | None) -> Tensor:
    """Return the logits with a probability of 0 for every class that is not allowed.

    Args:
        allowed: bool (K + 1,) for all rows, or (R, K + 1). None allows all classes.
    """
    return logits_RK if allowed is None else logits_RK.masked_fill(~allowed, _EXCLUDED)


def allowed_share(logits_RK: Tensor, allowed: Tensor | None) -> Tensor:
    """Return the total probability (R,) of the allowed classes. The arguments are those of `restricted`."""
    if allowed is None:
        return torch.ones(len(logits_RK), device=logits_RK.device)
    return logits_RK.float().softmax(1).masked_fill(~allowed, 0).sum(1)


def certainties(logits_RK: Tensor) -> Tensor:
    """Return the probability (R,) of the class with the largest weight in each row's embeddings.

    The LLM reads sharpened embeddings. It therefore repeats a name with a high probability even where the classifier is
    unsure.
    """
    probs_RK = logits_RK.float().softmax(1)
    other_R = probs_RK[:, -1]
    return torch.where(other_R > 0.5, other_R, probs_RK[:, :-1].amax(1))


class KnownNames(nn.Module):
    """The classifier and the embeddings of the known names.

    Args:
        names: K, the number of known names.
        inputs: X, the width of the direct path's inputs.
        hidden: H, the width of its hidden layer.
        outputs: O, the width of its output.
        class_names: for each class of the tower, the index of its name, or K if it has none. Empty = the tower's
            classes are not used.
    """

    name_of_class_A: Tensor

    def __init__(self, names: int, inputs: int, hidden: int, outputs: int, class_names: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer("name_of_class_A", torch.tensor(class_names, dtype=torch.long), persistent=False)
        self.linear, self.mlp_out = nn.Linear(inputs, names + 1), nn.Linear(hidden, names + 1, bias=False)
        self.embeddings = nn.Parameter(torch.empty(names, outputs))

    def reset(self, spread: float) -> None:
        """Initialize the classifier, and the embeddings with standard deviation `spread`."""
        self.reset_classifier()
        nn.init.normal_(self.embeddings, std=spread)

    def reset_classifier(self) -> None:
        """Initialize the classifier alone. All classes start with nearly equal logits."""
        nn.init.normal_(self.linear.weight, std=0.1 * self.linear.in_features**-0.5)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.mlp_out.weight)

    @torch.no_grad()
    def start_from_tokens(self, tokens: Sequence[Tensor]) -> None:
        """Initialize the embeddings of each name from those of its tokens, a list of K tensors (T, W).

        The first embeddings are those of the first tokens. If a name has more than D tokens, its last embedding is the
        mean of the remaining tokens. If it has fewer, its last token is repeated.
        """
        for row_O, tokens_TW in zip(self.embeddings, tokens, strict=True):
            row_DW = row_O.view(-1, tokens_TW.shape[1])
            last = len(row_DW) - 1
            for place in range(last):
                row_DW[place] = tokens_TW[min(place, len(tokens_TW) - 1)]
            row_DW[last] = tokens_TW[min(last, len(tokens_TW) - 1) :].mean(0)

    def logits(self, inputs_RX: Tensor, hidden_RH: Tensor, class_logits_RA: Tensor | None = None) -> Tensor:
        """Return the logits (R, K + 1) of the known names and, at the end, of the class *other*.

        Args:
            class_logits_RA: the logits of the tower's classes, if their names are used.
        """
        logits_RK = self.linear(inputs_RX) + self.mlp_out(hidden_RH)
        if class_logits_RA is None or not len(self.name_of_class_A):
            return logits_RK
        return logits_RK + self.class_evidence(class_logits_RA).to(logits_RK.dtype)

    def class_evidence(self, class_logits_RA: Tensor) -> Tensor:
        """Return what the tower's classifier adds to each logit (R, K + 1).

        For a name, it is 0.5 log(1 + p / 0.03), where p is the total probability of the classes with this name. It is 0
        for names that no class has.
        """
        probs_RA = class_logits_RA.float().softmax(1)
        share_RK = probs_RA.new_zeros(len(probs_RA), len(self.embeddings) + 1)
        share_RK.index_add_(1, self.name_of_class_A, probs_RA)
        evidence_RK = _EVIDENCE * torch.log1p(share_RK / _LEAST_SHARE)
        evidence_RK[:, -1] = 0  # classes without a name are no evidence for *other*: most of them are never named
        return evidence_RK

    def mixed(self, logits_RK: Tensor, other_RO: Tensor) -> Tensor:
        """Return the embeddings (R, O), of which `other_RO` are those of the class *other*.

        No gradient reaches the classifier: only `NamesLoss` trains it. If the LLM's loss trained it as well, it would
        overfit as fast as the LLM does without it.
        """
        logits_RK = logits_RK.detach().float()
        known_RK, other_R1 = logits_RK[:, :-1], logits_RK[:, -1:]
        # Where the classifier is unsure, *other* may be likelier than each known name, but not than all together.
        weight_R1 = (SHARPNESS * (other_R1 - known_RK.logsumexp(1, keepdim=True))).sigmoid()
        weights_RK = (1 - weight_R1) * (SHARPNESS * known_RK).softmax(1)
        return (
            weights_RK.to(other_RO.dtype) @ self.embeddings.to(other_RO.dtype) + weight_R1.to(other_RO.dtype) * other_RO
        )
