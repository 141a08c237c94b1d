"""The direct path: a small network that maps the pooled tokens of a mask to embeddings, without attention.

The bridges `maskqformer` and `flamingo` can use the direct path in addition to their queries, and `pooled` consists of
it. The tower's tokens are pooled by area over the mask, over its context box and over the whole image. With zoom
windows, a fourth token is pooled over the mask in a window of its own, and a fifth token over its cut-out
(`osm.models.zoom`). The pooled tokens pass through a linear layer and, in parallel, an MLP with one hidden layer. The
two outputs are added and split into embeddings. With a list of names, a classifier chooses among them
(`osm.models.bridges.known_names`). The published model has no direct path.

Shapes: R rows (masks), T = 3 to 5 pooled tokens, C tower width, X = T * C, H hidden units, D direct embeddings, W width
of the embeddings, O = D * W, K known names, M modes with known names of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.config import FieldError
from osm.errors import OsmError, did_you_mean, shown
from osm.models.bridges.known_names import KnownNames, restricted
from osm.models.bridges.pooling import SINGLES, RegionFeatures, pool_regions
from osm.models.masks import VisibleKeys
from osm.models.model_config import LARGEST, BridgeConfig, ModelConfig

MOST_TOKENS = 256
LARGEST_ZOOM = 2048
LARGEST_ENLARGE = 100
MOST_NAMES = 20_000
_LONGEST_NAME = 100  # in characters


@dataclass(frozen=True)
class DirectPathConfig(BridgeConfig):
    """Settings of the direct path, which all built-in bridges have.

    Attributes:
        direct_tokens: the number of embeddings that the direct path adds for each mask. 0 disables the direct path.
        direct_width: the width of the hidden layer.
        direct_zoom: the side of the zoom windows in pixels, which the tower has to support. 0 disables zoom windows.
        direct_zoom_enlarge: by which share of its side a zoom window is larger than the bounding box of its mask.
        direct_zoom_cutout: whether the tower also runs on a cut-out of each mask: its zoom window, with the mean color
            outside the mask.
        direct_names: the known names. Empty = no classifier. `--known_names` of train.py sets them to the class names
            of the datasets.
        direct_mode_names: mode -> the known names among which the classifier chooses when it names masks in this mode.
            In a mode that is not listed, it chooses among all known names and *other*. `--known_names` of train.py sets
            them to the class names of each dataset.
        direct_classes: the known name of each class of the tower's own classifier, or an empty string. Empty = that
            classifier is not used. `--known_classes` of train.py sets them.
    """

    direct_tokens: int = field(default=0, kw_only=True)
    direct_width: int = field(default=512, kw_only=True)
    direct_zoom: int = field(default=0, kw_only=True)
    direct_zoom_enlarge: float = field(default=0.5, kw_only=True)
    direct_zoom_cutout: bool = field(default=False, kw_only=True)
    direct_names: tuple[str, ...] = field(default=(), kw_only=True)
    direct_mode_names: dict[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    direct_classes: tuple[str, ...] = field(default=(), kw_only=True)

    def least_parameters(self) -> int:
        return (self.direct_width + len(self.direct_names)) * self.direct_tokens

    @property
    def windows_per_mask(self) -> int:
        """The number of zoom windows of each mask."""
        return (1 + self.direct_zoom_cutout) if self.direct_zoom else 0

    def check_direct(self) -> None:
        """Raise FieldError if a setting of the direct path is out of range."""
        if not 0 <= self.direct_tokens <= MOST_TOKENS:
            raise FieldError(f"direct_tokens {shown(self.direct_tokens)} is not 0 to {MOST_TOKENS}")
        if not 1 <= self.direct_width <= LARGEST:
            raise FieldError(f"direct_width {shown(self.direct_width)} is not 1 to {LARGEST}")
        if not 0 <= self.direct_zoom <= LARGEST_ZOOM:
            raise FieldError(f"direct_zoom {shown(self.direct_zoom)} is not 0 to {LARGEST_ZOOM}")
        if self.direct_zoom and not self.direct_tokens:
            raise FieldError(f"direct_zoom {shown(self.direct_zoom)} needs direct_tokens of 1 or more")
        if not 0 <= self.direct_zoom_enlarge <= LARGEST_ENLARGE:
            raise FieldError(f"direct_zoom_enlarge {shown(self.direct_zoom_enlarge)} is not 0 to {LARGEST_ENLARGE}")
        if self.direct_zoom_cutout and not self.direct_zoom:
            raise FieldError("direct_zoom_cutout needs direct_zoom, because a cut-out is a zoom window")
        self._check_names()
        if len(self.direct_classes) > MOST_NAMES:
            raise FieldError(f"direct_classes: {len(self.direct_classes)} names are more than {MOST_NAMES}")
        if self.direct_classes and not self.direct_zoom:
            raise FieldError("direct_classes needs direct_zoom, because the tower classifies zoom windows")
        known = {"", *self.direct_names}
        for name in self.direct_classes:
            if name not in known:
                raise FieldError(f"direct_classes: {shown(name)} is not one of direct_names")

    def check_model(self, model: ModelConfig) -> None:
        """Raise OsmError if `direct_mode_names` contains unknown modes or names."""
        known = set(self.direct_names)
        for mode, names in self.direct_mode_names.items():
            where = "model.bridge.direct_mode_names"
            if mode not in model.modes:
                meant = did_you_mean(str(mode), model.modes)
                raise OsmError(f"{where}: {shown(mode)} is not one of the modes {', '.join(model.modes)}{meant}")
            if not names:
                raise OsmError(f"{where}.{mode} is empty; remove it")
            if len(set(names)) < len(names):
                raise OsmError(f"{where}.{mode} contains a name twice")
            for name in names:
                if name not in known:
                    raise OsmError(f"{where}.{mode}: {shown(name)} is not one of direct_names")

    def _check_names(self) -> None:
        names = self.direct_names
        if len(names) > MOST_NAMES:
            raise FieldError(f"direct_names: {len(names)} names are more than {MOST_NAMES}")
        if names and not self.direct_tokens:
            raise FieldError("direct_names needs direct_tokens of 1 or more")
        for name in names:
            if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
                raise FieldError(f"direct_names: {shown(name)} is not a line of 1 to {_LONGEST_NAME} characters")
        [(most_common, times)] = Counter(names).most_common(1) or [("", 0)]
        if times > 1:
            raise FieldError(f"direct_names: {shown(most_common)} is given twice")


@dataclass
class DirectKeys(VisibleKeys, RegionFeatures):
    """The features of R masks: the visible keys, and what the direct path needs.

    The direct path needs the coverage and boxes for pooling and, with zoom windows, their tokens and the logits of the
    tower's classes.
    """


class DirectOutput(NamedTuple):
    """The output of the direct path.

    Attributes:
        embeddings_RDW: the embeddings of each mask.
        name_logits_RK: the logits (R, K + 1) of the known names and of any other name; None without known names. They
            do not depend on which names are allowed.
    """

    embeddings_RDW: Tensor
    name_logits_RK: Tensor | None = None


class DirectPath(nn.Module):
    """Maps the pooled tokens of each mask to D embeddings.

    Args:
        config: the number of embeddings and the width of the hidden layer.
        token_width: C, the width of the tower's tokens.
        width: W, the width of the embeddings.
        dropout: the dropout of the pooled tokens and of the hidden layer.
    """

    allowed_MK: Tensor  # (M + 1, K + 1), of which the last row is for modes without names of their own

    def __init__(self, config: DirectPathConfig, token_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.tokens = config.direct_tokens
        inputs, outputs = (SINGLES + config.windows_per_mask) * token_width, config.direct_tokens * width
        self.norm, self.linear = nn.LayerNorm(token_width), nn.Linear(inputs, outputs)
        self.mlp_in, self.mlp_out = nn.Linear(inputs, config.direct_width), nn.Linear(config.direct_width, outputs)
        names = len(config.direct_names)
        rows = {name: row for row, name in enumerate(config.direct_names)}
        classes = [rows.get(name, names) for name in config.direct_classes]
        self.known = KnownNames(names, inputs, config.direct_width, outputs, classes) if names else None
        of_modes = map(frozenset, config.direct_mode_names.values())
        allowed = [[name in own for name in config.direct_names] + [False] for own in of_modes]
        self.mode_rows = {mode: row for row, mode in enumerate(config.direct_mode_names)}
        self.register_buffer("allowed_MK", torch.tensor([*allowed, [True] * (names + 1)]), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def reset(self, spread: float) -> None:
        """Initialize the weights so that the outputs have standard deviation `spread`. The MLP first outputs zeros."""
        nn.init.normal_(self.linear.weight, std=spread * self.linear.in_features**-0.5)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.mlp_out.weight)
        nn.init.zeros_(self.mlp_out.bias)
        if self.known is not None:
            self.known.reset(spread)

    @torch.no_grad()
    def match(self, mean_W: Tensor, spread: float) -> None:
        """Initialize the outputs with the mean and standard deviation of the LLM's embeddings."""
        self.reset(spread)
        self.linear.bias.copy_(mean_W.repeat(self.tokens))

    @torch.no_grad()
    def match_names(self, embeddings: nn.Embedding, ids: Sequence[Sequence[int]]) -> None:
        """Initialize the embeddings of each known name from those of its tokens, whose ids are given."""
        if self.known is None or embeddings.weight.is_meta:
            return
        device = embeddings.weight.device
        self.known.start_from_tokens([embeddings(torch.tensor(list(each), device=device)) for each in ids])

    def forward(
        self,
        tokens_NLC: Tensor,
        mean_NC: Tensor,
        image_index_R: Tensor,
        features: RegionFeatures,
        allowed: Tensor | None = None,
    ) -> DirectOutput:
        """Return the embeddings (R, D, W) and, with known names, their logits.

        Args:
            tokens_NLC: the images' tokens. Class tokens come before the grid tokens.
            mean_NC: the mean of each image's tokens.
            image_index_R: the index of each row's image.
            features: the coverage and the boxes of the masks, and with zoom windows, their tokens.
            allowed: the result of the method `allowed`.
        """
        found_RO, logits_RK = self._read(tokens_NLC, mean_NC, image_index_R, features)
        return self._output(found_RO, logits_RK, allowed)

    def once_per_mask(
        self,
        tokens_NLC: Tensor,
        mean_NC: Tensor,
        image_index_R: Tensor,
        features: RegionFeatures,
        allowed: Tensor | None = None,
    ) -> DirectOutput:
        """Return what `forward` returns, up to rounding.

        At inference on a CPU, the network runs once for adjacent rows of the same mask. If all rows may choose among
        the same names, the embeddings of a mask are then bitwise equal, so that the LLM can share them. In training,
        each row has its own dropout.
        """
        shared = features.device.type == "cpu" and not (self.training or torch.is_grad_enabled())
        if not shared or len(features) < 2:
            return self(tokens_NLC, mean_NC, image_index_R, features, allowed)
        new_R = features.changes() | F.pad(image_index_R.diff() != 0, (1, 0))
        first_K, row_R = new_R.nonzero().flatten(), new_R.cumsum(0) - 1
        found_RO, logits_RK = self._read(tokens_NLC, mean_NC, image_index_R[first_K], features.select(first_K))
        logits_of_rows_RK = None if logits_RK is None else logits_RK[row_R]
        if allowed is not None and allowed.ndim > 1:  # the rows of a mask can differ
            return self._output(found_RO[row_R], logits_of_rows_RK, allowed)
        return DirectOutput(self._output(found_RO, logits_RK, allowed).embeddings_RDW[row_R], logits_of_rows_RK)

    def classifier_inputs(
        self, tokens_NLC: Tensor, mean_NC: Tensor, image_index_R: Tensor, features: RegionFeatures
    ) -> tuple[Tensor, Tensor]:
        """Return the normalized pooled tokens (R, X) of each mask, and the hidden layer (R, H), both with dropout.

        The arguments are those of `forward`.
        """
        pooled_RTC = pool_regions(tokens_NLC, mean_NC, image_index_R, features).to(self.norm.weight.dtype)
        if features.zoom_RUC is not None:
            pooled_RTC = torch.cat([pooled_RTC, features.zoom_RUC.to(pooled_RTC.dtype)], 1)
        inputs_RX = self.dropout(self.norm(pooled_RTC).flatten(1))
        return inputs_RX, self.dropout(F.gelu(self.mlp_in(inputs_RX)))

    def _read(
        self, tokens_NLC: Tensor, mean_NC: Tensor, image_index_R: Tensor, features: RegionFeatures
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs (R, O) without known names, and the logits (R, K + 1) of the known names, if any."""
        inputs_RX, hidden_RH = self.classifier_inputs(tokens_NLC, mean_NC, image_index_R, features)
        found_RO = self.linear(inputs_RX) + self.mlp_out(hidden_RH)
        if self.known is None:
            return found_RO, None
        return found_RO, self.known.logits(inputs_RX, hidden_RH, features.class_logits_RA)

    def allowed(self, modes: Sequence[str], allowed_K: Tensor | None) -> Tensor | None:
        """Return which known names may be chosen, bool (K + 1,) for all rows or (R, K + 1); None = all of them.

        In training, the names of the modes have no effect, so that *other* is trained in every mode.

        Args:
            modes: the mode of each row, which may have known names of its own.
            allowed_K: see `Instruction`. It takes precedence over the modes.
        """
        if self.training or allowed_K is not None or not any(mode in self.mode_rows for mode in modes):
            return allowed_K
        rows = torch.tensor([self.mode_rows.get(mode, -1) for mode in modes], device=self.allowed_MK.device)
        return self.allowed_MK[rows]

    def _output(self, found_RO: Tensor, logits_RK: Tensor | None, allowed: Tensor | None) -> DirectOutput:
        if self.known is not None and logits_RK is not None:
            found_RO = self.known.mixed(restricted(logits_RK, allowed), found_RO)
        return DirectOutput(found_RO.unflatten(1, (self.tokens, -1)), logits_RK)
