"""Vision towers of open_clip: its own ViTs and timm's within it (EVA, SigLIP), by open_clip's names and tags.

open_clip (`pip install 'osm-recognition[open_clip]'`) is imported where a tower is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from osm.config import TowerConfig
from osm.errors import OsmError, shown
from osm.model.towers import CLIP_MEAN, CLIP_STD, Tower, check_complete
from osm.model.weights import Found, hub_options, state_dict_in

_HUB_FILE = "open_clip_model.safetensors"


class OpenClipTower(Tower):
    """A ViT of open_clip: its class token (if it has one), and its patch tokens after the final norm."""

    def __init__(self, visual: Any, window: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual, self.window, self.mean, self.std = visual, window, mean, std
        with torch.no_grad():
            prefix, patches = self.eval()(torch.zeros(1, 3, window, window))
        self.class_tokens, self.width = min(prefix.shape[1], 1), patches.shape[2]
        cells = round(patches.shape[1] ** 0.5)
        if cells**2 != patches.shape[1] or window % cells:
            raise OsmError(f"--sliding_window_size {window}: this tower has {patches.shape[1]} patches, no square grid")
        self.patch = window // cells

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        found = self.visual.forward_intermediates(
            windows,
            indices=1,  # the last
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patches = found["image_intermediates"][-1]
        prefix = found.get("image_intermediates_prefix")
        return (patches[:, :0] if prefix is None else prefix[-1][:, :1]), patches  # registers come after the class


def open_clip_hub_id(config: TowerConfig) -> str:
    """The hub repository of a tower's weights: that of the tag, where `weights` is one of open_clip's.

    Raises:
        OsmError: open_clip is not installed, or has no such model.
    """
    return str(_pretrained(config).get("hf_hub", "")).rstrip("/") or config.weights or config.name


def open_clip_tower(config: TowerConfig, window: int, state_dict: Mapping[str, Tensor]) -> OpenClipTower:
    """Builds a tower and fills it.

    Args:
        config: `name` is open_clip's (`ViT-L-14`, `EVA02-L-14`, ...); `options` override its vision sizes.
        state_dict: of a whole CLIP model; what is not the vision tower's is left out.

    Raises:
        OsmError: no such model, a window that it does not take, or weights that do not fit.
    """
    library, sizes = _library(), _model_config(config.name)
    vision = {**sizes["vision_cfg"], **config.options, "image_size": window}
    no_text = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8}
    try:
        model = library.CLIP(sizes["embed_dim"], vision, no_text, quick_gelu=sizes.get("quick_gelu", False))
        visual = model.visual
        state = {key: value for key, value in state_dict.items() if key.startswith("visual.")}
        library.model.resize_pos_embed(state, model)
        # The projection into the space shared with text is of no use here, but belongs to the file.
        own = {key.removeprefix("visual."): value for key, value in state.items()}
        check_complete(config.name, visual.load_state_dict(own, strict=False).missing_keys)
    except OsmError:
        raise
    except (TypeError, AssertionError, ValueError, RuntimeError, KeyError) as error:
        raise OsmError(
            f"model.tower {config.name!r} with windows of {window} pixels and options {shown(config.options)}: {error}"
        ) from None
    if not hasattr(visual, "forward_intermediates") or vision.get("layers") and not isinstance(vision["layers"], int):
        raise OsmError(f"model.tower.name {config.name!r} is no ViT of open_clip")
    found = _pretrained(config)
    mean, std = (tuple(found.get(key) or usual) for key, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    return OpenClipTower(visual, window, mean, std)


def open_clip_state_dict(found: Found) -> dict[str, Tensor]:
    """A CLIP model's weights from one place."""
    if found.source == "hub":
        return state_dict_in(Path(hf_hub_download(found.location, _HUB_FILE, **hub_options())))
    return state_dict_in(Path(found.location))


def _library() -> Any:
    try:
        import open_clip
    except ImportError:
        raise OsmError(
            "model.tower.kind open_clip needs the package open_clip_torch: pip install 'osm-recognition[open_clip]'"
        ) from None
    return open_clip


def _model_config(name: str) -> dict[str, Any]:
    found = _library().get_model_config(name)
    if found is None:
        raise OsmError(f"model.tower.name {name!r} is not a model of open_clip; open_clip.list_models() lists them")
    return found


def _pretrained(config: TowerConfig) -> dict[str, Any]:
    """What open_clip knows of a tag; of a model's first tag where `weights` is none: they share mean and std."""
    library = _library()
    _model_config(config.name)
    tags = library.list_pretrained_tags_by_model(config.name)
    if config.weights in tags:
        return library.get_pretrained_cfg(config.name, config.weights) or {}
    known = library.get_pretrained_cfg(config.name, tags[0]) if tags else {}
    return {key: value for key, value in (known or {}).items() if key in ("mean", "std")}
