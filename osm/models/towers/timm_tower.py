"""Vision towers from timm: plain ViTs with one grid of tokens, and any model from which timm can extract feature maps.

Shape letters have the same meaning as in `osm.models.towers.tower`. In addition, T is the number of tokens in a window,
including register tokens, D is the number of channels of a feature map, and h is its side length. The timm package is
imported only when a model is built.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from osm.config import FieldError
from osm.errors import OsmError, shown
from osm.files import read_json
from osm.models.model_config import LARGEST
from osm.models.random_values import weights_follow
from osm.models.towers.tower import (
    PretrainedTowerConfig,
    Tower,
    check_classes,
    check_complete,
    check_options,
    check_tokens,
    one_line,
)
from osm.models.weights import Found, files_of, hub_options, load_first, timm_state_dict
from osm.quiet import quiet_libraries
from osm.startup import without_unused

_CONFIG = "config.json"
# Arguments of timm.create_model that a config cannot set, because they name files or are set by the tower.
_REFUSED = (
    "model_name pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir scriptable exportable "
    "no_jit features_only out_indices num_classes img_size"
)


@dataclass(frozen=True)
class TimmTowerConfig(PretrainedTowerConfig):
    """Settings for a tower from timm.

    Attributes:
        options: additional arguments of `timm.create_model`, for a model with sizes that differ from timm's.
        strides: the strides of the feature maps of a CNN, finest first. Coarser maps are upsampled onto the grid of the
            finest map. Empty = a ViT, whose patch tokens are used.
        classes: the number of classes of the model's own classifier, for `model.bridge.direct_classes`; 0 leaves the
            classifier out. Needs `strides`.
    """

    kind: str = field(default="timm", kw_only=True)
    strides: tuple[int, ...] = ()
    classes: int = 0

    refused = frozenset(_REFUSED.split())

    def __post_init__(self) -> None:
        super().__post_init__()
        for place, stride in enumerate(self.strides):
            if not 1 <= stride <= LARGEST:
                raise FieldError(f"strides.{place} {shown(stride)} is not 1 to {LARGEST}")
        check_classes(self.classes)
        if self.classes and not self.strides:
            raise FieldError(f"classes {self.classes} needs strides; the classifier of a ViT is not used")


class TimmTower(Tower):
    """A timm tower, which returns a ViT's patch tokens or a model's feature maps."""

    Config = TimmTowerConfig

    @classmethod
    def of(cls, config: TimmTowerConfig, window: int) -> Tower:
        weights = config.weights or config.name
        hub_id = config.weights or timm_hub_id(config.name)
        found, state = load_first(
            weights, config.source, lambda place: timm_state_dict(config.name, place), hub_id=hub_id
        )
        check_options(config.options, state, weights)
        shape = (config.name, config.strides, window)
        tower = timm_tower(*shape, state, config.options, files_of(found), config.classes)
        tower.mean, tower.std = timm_normalisation(config.name, config.weights, found) or (tower.mean, tower.std)
        tower.source, tower.weight_files = found.source, files_of(found)
        return tower

    @classmethod
    def blank(cls, config: TimmTowerConfig, window: int) -> Tower:
        return timm_tower(config.name, config.strides, window, None, config.options, classes=config.classes)


class TimmVitTower(TimmTower):
    """A timm ViT that returns the class token (if any) and the normalized patch tokens, but no register tokens."""

    def __init__(self, model: Any, patch: int, window: int) -> None:
        super().__init__()
        self.model = model
        self.patch, self.width = patch, model.num_features
        self.skip = model.num_prefix_tokens
        self.class_tokens = class_tokens_of(model)
        self.window = window
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        # Models with average pooling apply their norm after the pooling, so forward_features does not apply the norm.
        self.norm_after = isinstance(getattr(model, "norm", None), nn.Identity) and hasattr(model, "fc_norm")

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        tokens_WTC = self.model.forward_features(windows_W3ww)
        if isinstance(tokens_WTC, Mapping):  # NaFlexViT returns its tokens with a padding mask
            tokens_WTC = tokens_WTC["patches"]
        if self.norm_after:
            tokens_WTC = self.model.fc_norm(tokens_WTC)
        return tokens_WTC[:, : self.class_tokens], tokens_WTC[:, self.skip :]


class TimmMapsTower(TimmTower):
    """A timm model's feature maps at several strides. Coarser maps are upsampled onto the grid of the finest map.

    Each map is normalized over its channels at every position, so that all maps have the same scale. Finally, the maps
    are concatenated along the channel dimension, finest first.
    """

    def __init__(
        self,
        model: Any,
        strides: Sequence[int],
        channels: Sequence[int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.strides, self.channels = tuple(strides), tuple(channels)
        self.patch, self.width = min(strides), sum(self.channels)
        self.coarsest = max(strides)
        self.class_tokens = 0
        self.mean, self.std = mean, std
        layout = getattr(model, "output_fmt", "")
        self.channels_last_maps = str(getattr(layout, "value", layout)) == "NHWC"  # swin, sequencer, ...

    def check_window(self, window: int) -> None:
        super().check_window(window)
        if window % self.coarsest:
            raise OsmError(f"--sliding_window_size {window} is not a multiple of the coarsest stride ({self.coarsest})")

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        patches_WGC = self._joined(self._maps(windows_W3ww), windows_W3ww.shape[-1])
        return patches_WGC[:, :0], patches_WGC

    def _joined(self, maps_WDhh: Sequence[Tensor], side: int) -> Tensor:
        """Return the patch tokens (W, G, C) for the feature maps of windows with the given side."""
        maps = []
        for map_WDhh, stride, channels in zip(maps_WDhh, self.strides, self.channels, strict=True):
            expected = (channels, side // stride, side // stride)
            if tuple(map_WDhh.shape[1:]) != expected:
                raise OsmError(
                    f"the feature map at stride {stride} has the shape (channels, height, width) = "
                    f"{tuple(map_WDhh.shape[1:])}; expected {expected}, so that the position of each cell is known. "
                    "Choose different strides or a different window size"
                )
            map_WDhh = F.layer_norm(map_WDhh.permute(0, 2, 3, 1), map_WDhh.shape[1:2]).permute(0, 3, 1, 2)
            if stride != self.patch:
                finest = (side // self.patch, side // self.patch)
                map_WDhh = F.interpolate(map_WDhh, size=finest, mode="bilinear", align_corners=False)
            maps.append(map_WDhh)
        return torch.cat(maps, 1).flatten(2).transpose(1, 2)

    def _maps(self, windows_W3ww: Tensor) -> list[Tensor]:
        """Return the model's feature maps (W, D, h, h), finest first."""
        maps = self.model(windows_W3ww.contiguous(memory_format=torch.channels_last))
        return [map_WDhh.permute(0, 3, 1, 2) for map_WDhh in maps] if self.channels_last_maps else maps


class TimmClassifyingTower(TimmMapsTower):
    """Returns a timm model's feature maps, and the logits of the classifier that the model was trained with.

    The classifier must read the mean of the last feature map, as in most CNNs.

    Args:
        indices: timm's index of each stride's feature map.
        model, strides, channels, mean, std: see `TimmMapsTower`.
    """

    def __init__(self, model: Any, indices: Sequence[int], *others: Any) -> None:
        super().__init__(model, *others)
        self.indices, self.classes = list(indices), model.num_classes

    def _maps(self, windows_W3ww: Tensor) -> list[Tensor]:
        windows_W3ww = windows_W3ww.contiguous(memory_format=torch.channels_last)
        return self.model.forward_intermediates(windows_W3ww, indices=self.indices, intermediates_only=True)

    def tokens_and_classes(self, windows_W3ww: Tensor, weights_WG: Tensor) -> tuple[Tensor, Tensor | None]:
        windows_W3ww = windows_W3ww.contiguous(memory_format=torch.channels_last)
        last_WDhh, maps = self.model.forward_intermediates(windows_W3ww, indices=self.indices)
        grid = windows_W3ww.shape[-1] // self.patch
        cover_W1hh = F.adaptive_avg_pool2d(weights_WG.unflatten(1, (1, grid, grid)), last_WDhh.shape[-2:])
        # With weights whose mean is 1, the model's own mean over the map is the weighted mean.
        weighted_WDhh = last_WDhh * (cover_W1hh / cover_W1hh.mean((2, 3), keepdim=True)).to(last_WDhh.dtype)
        return self._joined(maps, windows_W3ww.shape[-1]), self.model.forward_head(weighted_WDhh)


def import_timm() -> Any:
    """Import timm without wandb, which timm would import for its training scripts (half a second)."""
    with without_unused("timm", ["wandb"]):
        return importlib.import_module("timm")


def timm_hub_id(name: str) -> str:
    """Return the hub repository of a timm model's weights. The repository's name contains the tag of the weights.

    Raises:
        OsmError: timm does not have the model.
    """
    timm = import_timm()
    try:
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise OsmError(
            f"model.tower.name {name!r} is not a timm model; timm.list_models() lists all models ({error})"
        ) from None
    return config.hf_hub_id or f"timm/{name}"


def timm_normalisation(name: str, weights: str, found: Found) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std of the RGB input (0..1) that a timm model's weights were trained with.

    Mean and std are read from the first available source: the pip package, the `config.json` next to the weights, or
    the tag in the name of the weights (`timm/vit_base_patch16_224.dino`).

    Args:
        name: the name of the model, from the config of the tower.
        weights: the name of the weights, from the config of the tower.
        found: where the weights were found.

    Returns:
        (mean, std), or None if the default of the model applies.

    Raises:
        OsmError: a `config.json` has an invalid mean or std.
    """
    timm = import_timm()
    if found.pip is not None and found.pip.mean is not None and found.pip.std is not None:
        return found.pip.mean, found.pip.std
    given = _config_beside(name, found)
    if given is not None:
        return given
    tagged = weights.rpartition("/")[2] if found.source == "hub" else ""
    if tagged.partition(".")[0] == name.partition(".")[0] and "." in tagged:
        config = timm.get_pretrained_cfg(tagged)
        return (tuple(config.mean), tuple(config.std)) if config is not None else None
    return None


def _config_beside(name: str, found: Found) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and std from timm's `config.json`, or None if it is missing or belongs to a different model."""
    place = Path(found.location)
    if found.source == "hub":
        try:
            path = Path(hf_hub_download(found.location, _CONFIG, **hub_options()))
        except (OSError, ValueError):
            return None
    else:
        path = (place if place.is_dir() else place.parent) / _CONFIG
        if not path.is_file():
            return None
    document = read_json(path, "timm's config")[0]
    if not isinstance(document, dict):
        raise OsmError(f"{path}: expected a timm config (a mapping), found {shown(document)}")
    # If the weights are a single file, the config.json in the same folder may belong to a different model.
    if not place.is_dir() and found.source != "hub" and document.get("architecture") != name.partition(".")[0]:
        return None
    config = document.get("pretrained_cfg", document)  # old files have all keys at the top level
    if not isinstance(config, dict) or config.get("mean") is None or config.get("std") is None:
        return None
    values = []
    for key in ("mean", "std"):
        value = config[key]
        numbers = isinstance(value, list) and all(type(v) in (int, float) and abs(v) < 1e6 for v in value)
        if not numbers or len(value) != 3 or (key == "std" and min(value) <= 0):
            over = " greater than 0" if key == "std" else ""
            raise OsmError(f"{path}: pretrained_cfg.{key} is {shown(value)}; expected three numbers{over}")
        values.append(tuple(map(float, value)))
    return values[0], values[1]


def timm_tower(
    name: str,
    strides: Sequence[int],
    window: int,
    state_dict: dict[str, Tensor] | None,
    options: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    classes: int = 0,
) -> Tower:
    """Build a timm tower, load its weights, and test it on one window.

    Args:
        name: the name of the model in timm.
        strides: the strides of the feature maps; empty for a ViT with one grid of tokens.
        window: w, the side of the windows in pixels.
        state_dict: weights with timm's names; None keeps timm's random initial values.
        options: additional arguments of `timm.create_model`.
        files: the files of the weights. Towers of unchanged files are not tested again.
        classes: the number of classes of the model's own classifier; 0 leaves the classifier out.

    Raises:
        OsmError: the model is unknown; the model does not support the strides, options or windows; or the weights do
            not fit.
    """
    timm_hub_id(name)
    options = dict(options or {})
    if state_dict is not None and not state_dict:  # if `state_dict` were empty, timm would download weights
        raise OsmError(f"weights for {name} contain no tensors")
    try:
        if strides:
            return _maps_tower(name, strides, window, state_dict, options, files, classes)
        return _vit_tower(name, strides, window, state_dict, options, files)
    except OsmError:
        raise
    except Exception as error:  # with unusual sizes, timm or torch may raise any exception
        if not options:
            raise OsmError(f"{_about(name, strides, window)}: it cannot be built ({one_line(error)})") from None
        raise OsmError(f"model.tower.options {options} are not valid for {name} ({error})") from None


def _about(name: str, strides: Sequence[int], window: int) -> str:
    taken = f" and model.tower.strides {list(strides)}" if strides else ""
    return f"model.tower.name {name!r} with --sliding_window_size {window}{taken}"


def _create(name: str, state_dict: dict[str, Tensor] | None, **arguments: Any) -> Any:
    """Build a timm model with the given weights, which timm resamples if they are for a different window size."""
    timm = import_timm()
    if state_dict is not None:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": _Weights(state_dict)}}
    follow = weights_follow() if state_dict is not None else contextlib.nullcontext()
    with quiet_libraries(), follow:  # timm would log the entries of a weight file that the tower does not use
        model: Any = timm.create_model(name, **arguments)
    for config in (model.pretrained_cfg, getattr(getattr(model, "model", None), "pretrained_cfg", {})):
        config.pop("state_dict", None)  # otherwise the weights would be in memory twice
    return model


class _Weights(dict[str, Tensor]):
    """A state dict that is not copied with the config that contains it, as timm would do for every model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Weights:
        return self


def _maps_tower(
    name: str,
    strides: Sequence[int],
    window: int,
    state_dict: dict[str, Tensor] | None,
    options: dict[str, Any],
    files: Sequence[Path],
    classes: int,
) -> Tower:
    timm = import_timm()
    try:
        with weights_follow():  # only the strides of this model are used
            model: Any = timm.create_model(name, features_only=True, **options)
        info = model.feature_info
    except TypeError:
        raise
    except Exception as error:  # models without feature maps raise different exceptions
        if options and not isinstance(error, (RuntimeError, AttributeError)):
            raise
        raise OsmError(f"model.tower.name {name!r} has no feature maps ({error}); leave tower.strides empty") from None
    # If several feature maps have the same stride, as in a ViT, the last map with that stride is used.
    places = dict(zip(info.reduction(), info.out_indices, strict=True))
    if list(strides) != sorted(set(strides) & set(places)):
        raise OsmError(
            f"model.tower.strides {list(strides)}: expected ascending strides; the feature maps of {name} have the "
            f"strides {info.reduction()}"
        )
    indices = [places[stride] for stride in strides]
    about = _about(name, strides, window)
    tower: Tower
    try:
        if classes:
            tower = _filled_classifying(name, strides, indices, state_dict, options, classes)
        else:
            tower = _filled_maps(name, strides, indices, state_dict, options)
        tower.check_window(window)
        check_tokens(tower, window, about, files, repr((name, list(strides), options, classes)))
    except OsmError as error:
        if classes or window % max(strides):
            raise
        tower = _resized_maps(name, strides, window, indices, state_dict, options, error)
    return tower


def _resized_maps(
    name: str,
    strides: Sequence[int],
    window: int,
    indices: Sequence[int],
    state_dict: dict[str, Tensor] | None,
    options: dict[str, Any],
    error: OsmError,
) -> Tower:
    """Build a tower that supports only the given window size, for models with a fixed input size (swin, coatnet, ...).

    Raises:
        OsmError: the model cannot be built for this window size either. The message is the message of `error`, followed
            by the model's default window size.
    """
    timm = import_timm()
    with torch.random.fork_rng(devices=[]):
        try:
            tower = _filled_maps(name, strides, indices, state_dict, {**options, "img_size": window})
            check_tokens(tower, window, _about(name, strides, window))
        except Exception:  # the model has no argument img_size, or timm cannot resample its position embeddings
            config: Any = timm.get_pretrained_cfg(name)
            own = config.input_size[-1]
            hint = "" if own == window else f"; the model's own window size is {own} pixels"
            raise OsmError(f"{error}{hint}") from None
    tower.window = window
    return tower


def _filled_maps(
    name: str,
    strides: Sequence[int],
    indices: Sequence[int],
    state_dict: dict[str, Tensor] | None,
    arguments: dict[str, Any],
) -> TimmMapsTower:
    model = _filled(name, state_dict, features_only=True, out_indices=list(indices), **arguments)
    config: Any = import_timm().get_pretrained_cfg(name)
    return TimmMapsTower(model, strides, model.feature_info.channels(), config.mean, config.std)


def _filled_classifying(
    name: str,
    strides: Sequence[int],
    indices: Sequence[int],
    state_dict: dict[str, Tensor] | None,
    options: dict[str, Any],
    classes: int,
) -> TimmMapsTower:
    """Build a tower with the model's own classifier.

    Raises:
        OsmError: the model has another number of classes, or its classifier does not read the mean of the last map.
    """
    model = _filled(name, state_dict, **options)
    if model.num_classes != classes:
        raise OsmError(
            f"model.tower.classes is {classes}, but the classifier of {name} has {model.num_classes} classes; the list "
            "of --known_classes needs one entry for each"
        )
    if not _averages_last_map(model):
        raise OsmError(
            f"model.tower.classes {classes}: the classifier of {name} does not read the mean of its last feature map; "
            "set model.tower.classes to 0"
        )
    channels = [model.feature_info[index]["num_chs"] for index in indices]
    config: Any = import_timm().get_pretrained_cfg(name)
    return TimmClassifyingTower(model, indices, strides, channels, config.mean, config.std)


def _averages_last_map(model: Any) -> bool:
    """Return whether a model's classifier reads only the mean of its last feature map, whose shape is (W, D, h, h)."""
    layout = getattr(model, "output_fmt", "")
    if str(getattr(layout, "value", layout)) == "NHWC" or not hasattr(model, "forward_intermediates"):
        return False
    training, device = model.training, next(model.parameters()).device
    if device.type == "meta":  # nothing can be compared; a model with weights is checked when it is built
        return True
    generator = torch.Generator().manual_seed(0)
    map_1D44 = torch.randn(1, model.num_features, 4, 4, generator=generator).to(device)
    try:
        with torch.no_grad():
            model.eval()
            found_1A, of_mean_1A = (
                model.forward_head(x) for x in (map_1D44, map_1D44.mean((2, 3), True).expand(1, -1, 4, 4))
            )
    except Exception:  # a ViT's head reads tokens, and other heads may expect other shapes
        return False
    finally:
        model.train(training)
    return torch.allclose(found_1A, of_mean_1A, atol=1e-3, rtol=1e-3)


def _filled(name: str, state_dict: dict[str, Tensor] | None, **arguments: Any) -> Any:
    """Build a timm model for feature maps with the given weights.

    Raises:
        OsmError: the weights do not match the model.
    """
    try:
        model = _create(name, state_dict, **arguments)
    except (RuntimeError, KeyError) as error:
        if state_dict is None:
            raise
        raise OsmError(f"weights for {name} do not match the model: {error}") from None
    if state_dict is not None:  # timm silently keeps random values for entries that the file lacks
        given = {_plain(key) for key in state_dict}
        lacking = [key for key in model.state_dict() if _plain(_whole(model, key)) not in given]
        check_complete(name, [_whole(model, key) for key in lacking])
    return model


def _whole(model: nn.Module, key: str) -> str:
    """Return the name of an entry without the prefix that timm's wrappers add (`model.`, `body.`)."""
    children = [child for child, _ in model.named_children()]
    return key.partition(".")[2] if children in (["model"], ["body"]) else key


def _plain(key: str) -> str:
    """Normalize a state-dict key, because timm's feature extraction renames modules (`stem.0` becomes `stem_0`)."""
    return key.replace("_", ".")


def _vit_tower(
    name: str,
    strides: Sequence[int],
    window: int,
    state_dict: dict[str, Tensor] | None,
    options: dict[str, Any],
    files: Sequence[Path],
) -> Tower:
    try:
        model = _create(name, state_dict, num_classes=0, img_size=window, **options)
    except (TypeError, AssertionError, ValueError) as error:
        if any(name in str(error) for name in options):
            raise TypeError(error) from None
        raise OsmError(
            f"model.tower.name {name!r} does not accept an image size ({error}); for a CNN, set model.tower.strides"
        ) from None
    except RuntimeError as error:
        raise OsmError(f"weights for {name} do not match the model: {error}") from None
    patch = patch_of(model)
    if patch is None or not hasattr(model, "num_prefix_tokens"):
        raise OsmError(f"model.tower.name {name!r} is not a plain ViT; set model.tower.strides to use its feature maps")
    if state_dict is not None:  # timm silently keeps random values for entries that the file lacks
        check_complete(name, [key for key in model.state_dict() if key not in state_dict])
    tower = TimmVitTower(model, patch, window)
    check_tokens(tower, window, _about(name, strides, window), files, repr((name, options)))
    return tower


def patch_of(model: Any) -> int | None:
    """Return the stride of a model's tokens in pixels, including any convolutional stem, or None if it is unknown."""
    embed: Any
    for embed in (getattr(model, "patch_embed", None), getattr(model, "embeds", None)):
        if hasattr(embed, "feat_ratio"):
            return int(embed.feat_ratio(as_scalar=True))
        if hasattr(embed, "patch_size"):
            return int(embed.patch_size[0])
    info = getattr(model, "feature_info", None)
    return int(info[-1]["reduction"]) if info else None


def class_tokens_of(model: Any) -> int:
    """Return 1 if a timm model's tokens begin with a class token, else 0. Register tokens are not class tokens."""
    token = getattr(model, "cls_token", None)
    if token is None:
        token = getattr(getattr(model, "embeds", None), "cls_token", None)
    return int(token is not None and getattr(model, "num_prefix_tokens", 0) > 0)
