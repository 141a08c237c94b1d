"""Computes a model's size from its config before the model is built, so that a wrong size cannot exhaust memory.

Parameter counts are closed-form lower bounds, so a rejected model is at least as large as the error message says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.bridges import BRIDGES
from osm.models.bridges.bridge import Bridge
from osm.models.lora import blank as blank_lora
from osm.models.model_config import ModelConfig
from osm.models.random_values import WithoutRandomValues

_BYTES = 4  # the size of a float32 parameter


class _LackingError(OsmError):
    """Raised if a checkpoint lacks an entry that determines one of the model's sizes."""


def blank_entries(config: ModelConfig, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the checkpoint entries that a model with a given config has, as meta tensors (shapes without values).

    Widths that depend on the tower or the LLM are taken from `state`, so neither the tower nor the LLM is loaded.

    Raises:
        OsmError: an entry that determines a width is missing, or no model can have the sizes in the config.
    """
    named = {str(key).replace("module.", ""): value for key, value in state.items()}

    def size(name: str, dimensions: int, axis: int) -> int:
        value = named.get(name)
        if not isinstance(value, Tensor) or value.ndim != dimensions:
            raise _LackingError(
                f"{where} has no entry {name} with {dimensions} dimensions, so it is not an OmniScientModel checkpoint"
            )
        return value.shape[axis]

    size("window_pos_embed", 3, -1)
    kind: type[Bridge] = BRIDGES.get(config.bridge.kind)
    for what, count in ((f"{config.bridge.kind} layers", config.bridge.layer_count()), ("modes", len(config.modes))):
        if count > len(named):
            raise OsmError(
                f"{where}: the number of {what} in its config is {count}, but the checkpoint contains only "
                f"{len(named)} tensors"
            )
    try:
        with torch.device("meta"), WithoutRandomValues():
            bridge = kind.blank(config, size)
    except _LackingError:
        raise
    except (ArithmeticError, KeyError, RuntimeError, ValueError) as error:
        raise OsmError(f"{where}: the sizes or modes in its config are invalid ({error})") from None
    entries = checkpoint.published_entries(named["window_pos_embed"].to("meta"), bridge)
    return entries | blank_lora(named, config.lora.rank, where)


def check_checkpoint(config: ModelConfig, state: Mapping[str, Tensor], where: str) -> None:
    """Check that a checkpoint's tensors have the sizes given in the checkpoint's config, before the model is built.

    Raises:
        OsmError: an entry is missing, unexpected or has a different shape.
    """
    entries = blank_entries(config, state, where)
    positions, width = entries["window_pos_embed"].shape[-2:]
    tower, least = config.tower, (config.input_size // config.sliding_window_size) ** 2
    shape = tower.token_shape(config.input_size)
    if shape is not None:
        least = max(least, shape[0])
        if shape[1] != width:
            raise OsmError(
                f"{where}: its config has model.tower.width {shape[1]}, but the width of window_pos_embed is {width}"
            )
    if least > positions:
        raise OsmError(
            f"{where}: the windows and patches in its config result in at least {least} tokens, but window_pos_embed "
            f"has positions for only {positions}"
        )
    checkpoint.fitting(entries, state, where)


def check_room(config: ModelConfig) -> None:
    """Reject a config whose bridge or randomly initialized tower would not fit into this machine's memory.

    Raises:
        OsmError: a part does not fit; the message says how much memory the part needs.
    """
    found = {
        f"model.bridge ({config.bridge.kind})": config.bridge.least_parameters(),
        f"model.tower ({config.tower.kind})": config.tower.least_parameters(),
    }
    if shape := config.tower.token_shape(config.input_size):
        found["model.input_size and model.tower"] = shape[0] * shape[1]
    memory = machine_memory()
    for what, parameters in found.items():
        if parameters * _BYTES > memory:
            raise OsmError(
                f"{what}: this part of the model has at least {parameters / 1e9:.1f} billion parameters "
                f"({parameters * _BYTES / 1e9:.0f} GB in float32), but this machine has only {memory / 1e9:.0f} GB "
                "of memory; choose smaller sizes"
            )


def machine_memory() -> int:
    """Return this machine's memory in bytes, or its container's memory limit if that is smaller."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory
