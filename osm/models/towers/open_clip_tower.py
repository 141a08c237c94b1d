"""Vision towers from open_clip: the library's own ViTs, and the timm ViTs that it includes (EVA, SigLIP).

Shape letters have the same meaning as in `osm.models.towers.tower`.

Models and weights are specified by open_clip's names and tags. The open_clip package is imported only when a tower is
built (`pip install open_clip_torch`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from torch import Tensor

from osm.errors import OsmError, shown
from osm.files import read_json
from osm.models.towers.timm_tower import class_tokens_of, patch_of
from osm.models.towers.tower import (
    CLIP_MEAN,
    CLIP_STD,
    PretrainedTowerConfig,
    Tower,
    check_complete,
    check_options,
    check_tokens,
    one_line,
)
from osm.models.weights import Found, check_finite, files_of, hub_options, load_first, state_dict_in
from osm.quiet import quiet_libraries

# The names of weight files in an open_clip hub repository; the first file that exists is used.
_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CONFIG = "open_clip_config.json"
_OPTIONS = frozenset(["layers", "width", "head_width", "mlp_ratio", "patch_size"])


@dataclass(frozen=True)
class OpenClipTowerConfig(PretrainedTowerConfig):
    """Settings for a ViT from open_clip.

    Attributes:
        weights: the name under which the weights are searched, or one of open_clip's tags. Empty = `name`.
        options: additional arguments of open_clip's vision config, for a model with sizes that differ from open_clip's.
    """

    kind: str = field(default="open_clip", kw_only=True)


@dataclass(frozen=True)
class Clip:
    """The weights of a CLIP model, and the settings that they were trained with.

    Attributes:
        state: the weights of the whole model.
        quick_gelu: whether the activation is QuickGELU instead of GELU.
        mean: the mean that normalizes the RGB input in 0..1.
        std: the standard deviation that normalizes the RGB input in 0..1.
    """

    state: dict[str, Tensor]
    quick_gelu: bool
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


class OpenClipTower(Tower):
    """A ViT from open_clip that returns the class token (if any) and the patch tokens, both after the final norm."""

    Config = OpenClipTowerConfig

    def __init__(self, visual: Any, window: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual, self.window, self.mean, self.std = visual, window, mean, std
        trunk = getattr(visual, "trunk", None)
        if trunk is None:
            self.patch, self.width, self.class_tokens = int(visual.patch_size[0]), visual.conv1.out_channels, 1
        else:
            patch = patch_of(trunk)
            if patch is None or not hasattr(trunk, "num_prefix_tokens"):
                raise ValueError(
                    f"{type(trunk).__name__} is not a plain ViT; set model.tower.kind to timm to use this model"
                )
            self.patch, self.width, self.class_tokens = patch, trunk.num_features, class_tokens_of(trunk)
        self.check_window(window)

    @classmethod
    def of(cls, config: OpenClipTowerConfig, window: int) -> OpenClipTower:
        name = config.weights or config.name
        found, clip = load_first(name, config.source, partial(load_clip, config), open_clip_hub_id(config))
        check_finite(clip.state.items(), f"weights of {name!r} ({found.location})")
        check_options(config.options, clip.state, name)
        tower = open_clip_tower(config, window, clip)
        tower.source, tower.weight_files = found.source, files_of(found)
        return tower

    @classmethod
    def blank(cls, config: OpenClipTowerConfig, window: int) -> OpenClipTower:
        return open_clip_tower(config, window, None)

    def check_window(self, window: int) -> None:
        super().check_window(window)
        if window % self.patch:
            raise OsmError(
                f"--sliding_window_size {window} is not a multiple of this tower's patch size ({self.patch})"
            )

    def forward(self, windows_W3ww: Tensor) -> tuple[Tensor, Tensor]:
        found = self.visual.forward_intermediates(
            windows_W3ww,
            indices=1,  # the last block only
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patches_WGC = found["image_intermediates"][-1]
        prefix = found.get("image_intermediates_prefix")
        # The prefix tokens are the class token (if the ViT has one), followed by register tokens.
        return (patches_WGC[:, :0] if prefix is None else prefix[-1][:, : self.class_tokens]), patches_WGC


def open_clip_tower(config: OpenClipTowerConfig, window: int, clip: Clip | None) -> OpenClipTower:
    """Build a tower and load its weights, if they are given.

    Args:
        config: `name` is an open_clip model name (`ViT-L-14`, `EVA02-L-14`, ...), and `options` override the sizes of
            the model's vision config.
        window: w, the side of the windows in pixels.
        clip: the weights of the whole model, or None. The weights of the text tower are ignored.

    Raises:
        OsmError: the model is unknown, is not a plain ViT or does not support such windows, or the weights do not fit.
    """
    for name, value in config.options.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in _OPTIONS or not number or value <= 0:
            known = ", ".join(sorted(_OPTIONS))
            raise OsmError(
                f"model.tower.options: {name} is {shown(value)}, but open_clip towers only support the options "
                f"{known}, and each value must be a number greater than 0"
            )
    sizes = _model_config(config.name)
    if config.options and "timm_model_name" in sizes["vision_cfg"]:
        raise OsmError(
            f"model.tower.options {shown(config.options)}: {config.name} wraps timm's "
            f"{sizes['vision_cfg']['timm_model_name']}, whose sizes open_clip cannot change; leave the options empty, "
            "or load the timm model with model.tower.kind timm"
        )
    vision = {**sizes["vision_cfg"], **config.options, "image_size": window}
    about = f"model.tower {config.name!r} with windows of {window} pixels"
    if vision.get("attentional_pool") or not isinstance(vision.get("layers", 12), int):
        raise OsmError(f"{about}: this model is not a plain ViT (with one grid of tokens and no attention pooling)")
    no_text = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8}
    library = _library()
    quick_gelu, mean, std = (clip.quick_gelu, clip.mean, clip.std) if clip else (False, CLIP_MEAN, CLIP_STD)
    try:
        model = library.CLIP(sizes["embed_dim"], vision, no_text, quick_gelu=quick_gelu)
        visual = model.visual
        if clip is not None:
            state = {key: value for key, value in clip.state.items() if key.startswith("visual.")}
            library.model.resize_pos_embed(state, model)
            own = {key.removeprefix("visual."): value for key, value in state.items()}
            check_complete(config.name, visual.load_state_dict(own, strict=False).missing_keys)
        _resize(visual, window)
        tower = OpenClipTower(visual, window, mean, std)
    except OsmError:
        raise
    except Exception as error:  # unusual sizes, or models that are not ViTs, may raise any exception
        raise OsmError(f"{about} and options {shown(config.options)}: {one_line(error)}") from None
    check_tokens(tower, window, about)
    return tower


def _resize(visual: Any, window: int) -> None:
    """Resize a timm model to a different window size, because open_clip resizes only its own ViTs."""
    trunk: Any = getattr(visual, "trunk", None)
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if size is not None and tuple(size) != (window, window) and hasattr(trunk, "set_input_size"):
        with quiet_libraries():
            trunk.set_input_size(img_size=(window, window))


def open_clip_hub_id(config: OpenClipTowerConfig) -> str:
    """Return the hub repository of a tower's weights. If the weights are a tag, open_clip looks up the repository.

    Raises:
        OsmError: open_clip is not installed, or does not have the model.
    """
    return _repository(_tags(config.name).get(config.weights, {}))[0] or config.weights or config.name


def load_clip(config: OpenClipTowerConfig, found: Found) -> Clip:
    """Load the weights of a CLIP model from one location.

    Raises:
        OsmError: the input normalization or the activation for which the weights were trained is not known.
    """
    tags = _tags(config.name)
    known = tags.get(config.weights) or next(
        (one for one in tags.values() if _repository(one)[0] == found.location and found.source == "hub"), None
    )
    if found.source == "hub":
        named = _repository(known or {})[1]
        state = state_dict_in(_download(found.location, *([named] if named else _FILES)))
    else:
        state = state_dict_in(Path(found.location), _FILES)
    quick_gelu = bool(_model_config(config.name).get("quick_gelu", False))
    if known is None:
        known = _own_config(found)
    if known is None:
        different = {(bool(t.get("quick_gelu")), t.get("mean"), t.get("std")) for t in tags.values()}
        if len(different) > 1:
            raise OsmError(
                f"model.tower.weights {config.weights!r}: {found.location} has no {_CONFIG}. This file is needed "
                f"because {config.name}'s published checkpoints do not all use the same normalization and activation. "
                f"Add the file, or set model.tower.weights to one of open_clip's tags: {', '.join(tags)}"
            )
        known = next(iter(tags.values()), {})
    mean, std = (tuple(known.get(key) or usual) for key, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    return Clip(state, bool(known.get("quick_gelu") or quick_gelu), mean, std)


def _own_config(found: Found) -> dict[str, Any] | None:
    """Read the normalization and activation from the config file next to the weights. Return None if it is missing."""
    place = Path(found.location)
    try:
        if found.source == "hub":
            path = _download(found.location, _CONFIG)
        else:
            path = (place if place.is_dir() else place.parent) / _CONFIG
            if not path.is_file():
                return None
    except OSError:
        return None
    document = read_json(path, "open_clip's config")[0]
    try:
        given = document["preprocess_cfg"]
        mean, std = (tuple(float(value) for value in given[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError("mean and std must each have three values, and the values of std must be greater than 0")
        return {"mean": mean, "std": std, "quick_gelu": bool(document["model_cfg"].get("quick_gelu", False))}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise OsmError(f"{path}: not a valid open_clip config ({type(error).__name__}: {error})") from None


def _download(repository: str, *names: str) -> Path:
    """Try several file names in order, and download the first file that the hub repository contains."""
    for name in names[:-1]:
        try:
            return Path(hf_hub_download(repository, name, **hub_options()))
        except OSError:
            continue
    return Path(hf_hub_download(repository, names[-1], **hub_options()))


def _repository(pretrained: dict[str, Any]) -> tuple[str, str]:
    """Split a tag's location, `owner/name/` or `owner/name/file`, into a hub id and a file name (empty if missing)."""
    owner, _, rest = str(pretrained.get("hf_hub") or "").partition("/")
    name, _, file = rest.partition("/")
    return (f"{owner}/{name}", file) if name else ("", "")


def _library() -> Any:
    try:
        import open_clip
    except ImportError:
        raise OsmError(
            "model.tower.kind open_clip needs the open_clip_torch package: pip install open_clip_torch"
        ) from None
    return open_clip


def _model_config(name: str) -> dict[str, Any]:
    found = _library().get_model_config(name)
    if found is None:
        raise OsmError(f"model.tower.name {name!r} is not an open_clip model; open_clip.list_models() lists all models")
    return found


def _tags(name: str) -> dict[str, dict[str, Any]]:
    """Return the settings of all published weights of an open_clip model, keyed by tag."""
    library = _library()
    _model_config(name)
    return {tag: library.get_pretrained_cfg(name, tag) or {} for tag in library.list_pretrained_tags_by_model(name)}
