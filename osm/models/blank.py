"""Builds a model without weights on the meta device, to learn its sizes and costs before anything is downloaded.

A tower or an LLM that a library defines (timm, open_clip, transformers) is built from its architecture alone. The
architecture of an LLM or an InstructBLIP is read from the `config.json` next to its weights, if they are on this
machine, or else from `known_models.json`, which holds the configs of common models.
"""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from osm.errors import OsmError, did_you_mean, shown
from osm.files import read_json
from osm.models.bridges import BRIDGES
from osm.models.bridges.bridge import Bridge
from osm.models.model_config import LlmConfig, ModelConfig
from osm.models.osm import OmniScientModel
from osm.models.random_values import WithoutRandomValues
from osm.models.towers import TOWERS
from osm.models.towers.tower import Tower
from osm.models.weights import Found, candidates, conversion_folder

_KNOWN = "known_models.json"


def blank_model(config: ModelConfig) -> OmniScientModel:
    """Build a model whose parameters are on the meta device, in float32, and in eval mode.

    A quantized LLM is built without quantization, because the packages that quantize need weights.

    Raises:
        OsmError: the architecture of a part is not known, or the sizes do not fit together.
    """
    with torch.device("meta"), WithoutRandomValues():
        if config.base_model_name:
            from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

            sections = architecture(config.base_model_name, "model.base_model_name")
            base: Any = InstructBlipForConditionalGeneration(InstructBlipConfig(**sections))
            sizes = (config.input_size, config.sliding_window_size, config.sliding_window_stride)
            return OmniScientModel.from_instructblip(base, *sizes, config=config)
        tower_class: type[Tower] = TOWERS.get(config.tower.kind)
        tower = tower_class.blank(config.tower, config.sliding_window_size)
        llm: Any = blank_llm(config.llm)
        bridge_class: type[Bridge] = BRIDGES.get(config.bridge.kind)
        bridge = bridge_class.of(config, tower, llm, llm.get_input_embeddings().num_embeddings)
        return OmniScientModel(tower, bridge, llm, config).eval()


def blank_llm(config: LlmConfig) -> nn.Module:
    """Build a causal LM from its architecture, on torch's default device.

    Raises:
        OsmError: the architecture is not known, or this version of transformers does not have it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    found = dict(architecture(config.name, "model.llm.name"))
    kind = found.pop("model_type", None)
    try:
        settings: Any = AutoConfig.for_model(str(kind), **found)
        return AutoModelForCausalLM.from_config(settings)
    except (ValueError, TypeError) as error:
        raise OsmError(
            f"model.llm.name {config.name!r}: transformers cannot build a causal LM of model_type {shown(kind)} "
            f"({error})"
        ) from None


def architecture(name: str, field: str) -> dict[str, Any]:
    """Return the Hugging Face config of a model: of a local folder, or of a common model on the hub.

    Args:
        name: a folder or a hub id.
        field: the field of the model config that names the model, for error messages.

    Raises:
        OsmError: neither a `config.json` nor an entry in `known_models.json` has the architecture.
    """
    known = known_models()
    if not name:
        raise OsmError(f"{field} is empty: expected a folder, a hub id or a .gguf file")
    file = next((path for path in map(_config_file, candidates(name)) if path is not None), None)
    if file is None and name in known:
        return known[name]
    if file is None:
        raise OsmError(
            f"{field} {name!r}: the architecture of this model is not known without its weights. Put its config.json "
            f"into a folder and give that folder, or use one of {', '.join(known)}{did_you_mean(name, known)}"
        )
    document = read_json(file, field)[0]
    if not isinstance(document, dict):
        raise OsmError(f"{field}: expected {file} to contain a model config (a JSON object), found {shown(document)}")
    return document


def _config_file(found: Found) -> Path | None:
    """Return the `config.json` of a model on this machine. The config of a GGUF file is in its conversion's folder."""
    place = Path(found.location)
    folder = conversion_folder(place) if place.suffix == ".gguf" else place
    return folder / "config.json" if found.source != "hub" and (folder / "config.json").is_file() else None


@functools.cache
def known_models() -> dict[str, dict[str, Any]]:
    """Return the configs of common models on the hub, by hub id."""
    place = resources.files("osm.models") / _KNOWN
    with resources.as_file(place) as path:
        document: dict[str, dict[str, Any]] = read_json(path, _KNOWN)[0]
    return document
