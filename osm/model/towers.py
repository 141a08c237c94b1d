"""Frozen vision towers: anything that turns windows into patch tokens, and a class token where it has one.

Shapes: W windows of side w, p patch (stride), P = 1 or 0 class tokens, C width.

timm is imported where its models are built: an InstructBLIP needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osm.errors import OsmError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Tower(nn.Module):
    """Interface: `forward(windows (W, 3, w, w)) -> (class tokens (W, P, C), patches (W, (w/p)^2, C))`.

    Attributes:
        patch, width: p and C. class_tokens: P.
        mean, std: of the RGB input in 0..1, (x - mean) / std.
        window: the only window size the tower takes, or None for any multiple of p.
    """

    patch: int
    width: int
    class_tokens: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    window: int | None = None

    def check_window(self, window: int) -> None:
        """Raises OsmError where windows of this side do not fit the tower."""
        if self.window is not None and window != self.window:
            raise OsmError(f"--sliding_window_size {window}: this tower takes windows of {self.window} pixels")


class InstructBlipTower(Tower):
    """InstructBLIP's ViT at its native size, final layer norm included."""

    def __init__(self, vision_model: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model
        config = vision_model.config
        self.patch, self.width, self.class_tokens = config.patch_size, config.hidden_size, 1
        self.window = config.image_size

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vision_model(pixel_values=windows).last_hidden_state
        return tokens[:, :1], tokens[:, 1:]


class TimmVitTower(Tower):
    """A timm ViT: its class token (if it has one; registers are dropped) and its final, normed patch tokens."""

    def __init__(self, model: nn.Module, window: int) -> None:
        super().__init__()
        self.model = model
        self.patch, self.width = model.patch_embed.patch_size[0], model.num_features
        self.skip = model.num_prefix_tokens
        self.class_tokens = int(getattr(model, "cls_token", None) is not None)
        self.window = window
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        # Models that pool by averaging norm after the pooling, and leave forward_features' tokens as they are.
        self.norm_after = isinstance(model.norm, nn.Identity) and hasattr(model, "fc_norm")

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.forward_features(windows)
        if self.norm_after:
            tokens = self.model.fc_norm(tokens)
        return tokens[:, : self.class_tokens], tokens[:, self.skip :]


class TimmCnnTower(Tower):
    """A timm CNN's feature maps at some strides, the coarser ones upsampled onto the finest one's grid.

    Each map is normalised over its channels at every place, so that none outweighs the others; then they are
    concatenated, finest first.
    """

    def __init__(
        self, model: nn.Module, strides: Sequence[int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.strides = tuple(strides)
        self.patch, self.width = min(strides), sum(model.feature_info.channels())
        self.coarsest = max(strides)
        self.class_tokens = 0
        self.mean, self.std = mean, std

    def check_window(self, window: int) -> None:
        if window % self.coarsest:
            raise OsmError(f"--sliding_window_size {window} is not a multiple of the coarsest stride, {self.coarsest}")

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.model(windows.contiguous(memory_format=torch.channels_last))
        finest = maps[0].shape[-2:]
        tokens = []
        for features in maps:
            features = F.layer_norm(features.permute(0, 2, 3, 1), features.shape[1:2]).permute(0, 3, 1, 2)
            if features.shape[-2:] != finest:
                features = F.interpolate(features, size=finest, mode="bilinear", align_corners=False)
            tokens.append(features)
        patches = torch.cat(tokens, 1).flatten(2).transpose(1, 2)
        return patches[:, :0], patches


class RandomTower(Tower):
    """A tiny tower of random values, drawn from a seed: for tests, and for trying a data pipeline."""

    def __init__(self, patch: int, width: int, class_token: bool, seed: int) -> None:
        super().__init__()
        self.patch, self.width, self.class_tokens = patch, width, int(class_token)
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Conv2d(3, width, patch, patch)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (3 * patch * patch) ** -0.5)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.embedding(windows).flatten(2).transpose(1, 2)
        patches = F.layer_norm(patches, patches.shape[-1:])
        return patches.mean(1, keepdim=True)[:, : self.class_tokens], patches


def timm_hub_id(name: str) -> str:
    """The hub repository of a timm model's weights (it has the weights' tag in its name).

    Raises:
        OsmError: no such model.
    """
    import timm

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise OsmError(
            f"model.tower.name {name!r} is not a timm model; timm.list_models() lists them ({error})"
        ) from None
    return config.hf_hub_id or f"timm/{name}"


def timm_tower(
    name: str,
    strides: Sequence[int],
    window: int,
    state_dict: dict[str, Tensor] | None,
    options: Mapping[str, Any] | None = None,
) -> Tower:
    """Builds a timm tower and fills it with `state_dict` (timm's names; None keeps timm's random start).

    Args:
        options: further arguments of `timm.create_model`.

    Raises:
        OsmError: no such model, strides or options it does not have, or weights that do not fit it.
    """
    timm_hub_id(name)
    options = dict(options or {})
    try:
        if strides:
            tower = _cnn_tower(name, strides, state_dict, options)
        else:
            tower = _vit_tower(name, window, state_dict, options)
    except OsmError:
        raise
    except Exception as error:  # odd sizes raise what timm's and torch's sums with them happen to cause
        if not options and not isinstance(error, TypeError):
            raise
        raise OsmError(f"model.tower.options {options} do not suit {name} ({error})") from None
    tower.check_window(window)
    return tower


def _cnn_tower(
    name: str, strides: Sequence[int], state_dict: dict[str, Tensor] | None, options: dict[str, Any]
) -> Tower:
    import timm

    try:
        info = timm.create_model(name, features_only=True, **options).feature_info
    except (RuntimeError, AttributeError) as error:
        raise OsmError(f"model.tower.name {name!r} has no feature maps ({error}); leave tower.strides empty") from None
    reductions = info.reduction()
    if list(strides) != sorted(set(strides) & set(reductions)):
        raise OsmError(
            f"model.tower.strides {list(strides)}: expected ascending strides of {name}'s maps, {reductions}"
        )
    model = timm.create_model(name, features_only=True, out_indices=[reductions.index(s) for s in strides], **options)
    if state_dict is not None:
        # timm calls `stem.0` of the whole model `stem_0` here. What stands above the last map is of no use.
        names = {key.replace("_", "."): key for key in model.state_dict()}
        renamed = {names.get(key.replace("_", "."), key): value for key, value in state_dict.items()}
        try:
            check_complete(name, model.load_state_dict(renamed, strict=False).missing_keys)
        except RuntimeError as error:
            raise OsmError(f"weights for {name} do not fit it: {error}") from None
    config = timm.get_pretrained_cfg(name)
    return TimmCnnTower(model, strides, config.mean, config.std)


def _vit_tower(name: str, window: int, state_dict: dict[str, Tensor] | None, options: dict[str, Any]) -> Tower:
    import timm

    overlay: dict[str, Any] = (
        {} if state_dict is None else {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state_dict}}
    )
    try:
        model = timm.create_model(name, num_classes=0, img_size=window, **overlay, **options)
    except (TypeError, AssertionError, ValueError) as error:
        if any(name in str(error) for name in options):
            raise TypeError(error) from None
        raise OsmError(
            f"model.tower.name {name!r} takes no image size ({error}); give tower.strides for a CNN"
        ) from None
    except RuntimeError as error:
        raise OsmError(f"weights for {name} do not fit it: {error}") from None
    if not hasattr(model, "num_prefix_tokens"):
        raise OsmError(f"model.tower.name {name!r} is no plain ViT; give tower.strides to use its feature maps")
    if state_dict is not None:  # timm leaves what a file lacks at its random start, and says nothing
        check_complete(name, [key for key in model.state_dict() if key not in state_dict])
    return TimmVitTower(model, window)


def check_complete(name: str, lacking: Sequence[str]) -> None:
    """Raises OsmError where a file lacks entries of a tower."""
    if lacking:
        raise OsmError(f"weights for {name} lack {len(lacking)} entries, the first is {lacking[0]!r}")
