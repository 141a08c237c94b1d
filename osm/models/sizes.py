"""How large a config's model is, told before anything of it is built: a few digits in a json must not take the memory.

Parameters are counted in closed form, from below: what is refused would be at least as large as the message says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osm.config import FlamingoConfig, ModelConfig, QFormerConfig
from osm.errors import OsmError, shown
from osm.models import checkpoint
from osm.models.bridges.variants import BRIDGES
from osm.models.lora import blank as blank_lora

_BYTES = 4  # of a parameter in float32
_MARGIN = 8
"""The weights may have so many times fewer values than are counted: windows of another size, grouped convolutions."""


class _LackingError(OsmError):
    """An entry is missing that decides a size."""


def blank_entries(config: ModelConfig, state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names and shapes (no values) of the entries of a config's model.

    The frozen parts are not needed: the widths they decide are taken from the state.

    Raises:
        OsmError: entries that decide them are missing, or no model has such sizes.
    """
    named = {str(key).replace("module.", ""): value for key, value in state.items()}

    def size(name: str, dimensions: int, axis: int) -> int:
        value = named.get(name)
        if not isinstance(value, Tensor) or value.ndim != dimensions:
            raise _LackingError(f"{where} has no entry {name} of {dimensions} dimensions: it is no OmniScient Model's")
        return value.shape[axis]

    size("window_pos_embed", 3, -1)
    sizes = config.qformer if config.variant == "maskqformer" else config.flamingo
    for what, count in ((f"{config.variant} layers", sizes.layers), ("modes", len(config.modes))):
        if count > len(named):
            raise OsmError(f"{where}: its config has {count} {what}, but there are {len(named)} entries")
    try:
        with torch.device("meta"):
            bridge = BRIDGES[config.variant].blank(config, size)
    except _LackingError:
        raise
    except (ArithmeticError, KeyError, RuntimeError, ValueError) as error:
        raise OsmError(f"{where}: no model can have its config's sizes and modes ({error})") from None
    entries = checkpoint.published_entries(named["window_pos_embed"].to("meta"), bridge)
    return entries | blank_lora(named, config.lora.rank, where)


def check_checkpoint(config: ModelConfig, state: Mapping[str, Tensor], where: str) -> None:
    """Compares a config's sizes with the entries of its checkpoint, before the model is built.

    Raises:
        OsmError: an entry is missing, unexpected or of another shape.
    """
    entries = blank_entries(config, state, where)
    positions, width = entries["window_pos_embed"].shape[-2:]
    tower, least = config.tower, (config.input_size // config.sliding_window_size) ** 2
    if tower.kind == "random":
        least = max(least, (config.input_size // tower.patch) ** 2)
        if tower.width != width:
            raise OsmError(f"{where}: its config has model.tower.width {tower.width}, but window_pos_embed has {width}")
    if least > positions:
        raise OsmError(
            f"{where}: its config has windows and patches that give {least} tokens or more, but window_pos_embed has "
            f"places for {positions}"
        )
    checkpoint.fitting(entries, state, where)


def bridge_parameters(config: QFormerConfig | FlamingoConfig) -> int:
    """How many parameters a bridge has at least: those that tower and LLM have no part in."""
    width = config.width
    if isinstance(config, QFormerConfig):
        crossed = -(-config.layers // config.cross_attention_frequency)
        queries = config.mask_queries + config.context_queries
        return width * (config.layers * 4 * (width + config.mlp_width) + crossed * 2 * width + queries)
    resampler = config.layers * width * (4 * width + 2 * config.mlp_width)
    return resampler + 2 * width * config.gated_width + config.queries * width


def check_room(config: ModelConfig) -> None:
    """Refuses a config whose trained parts, or random tower, do not fit this machine's memory.

    Raises:
        OsmError: they do not; the message says how much is needed.
    """
    section, sizes = ("qformer", config.qformer) if config.variant == "maskqformer" else ("flamingo", config.flamingo)
    found = {f"model.{section} (layers, width, mlp_width)": bridge_parameters(sizes)}
    if config.tower.kind == "random":
        tower = config.tower
        found["model.tower (patch, width)"] = 3 * tower.patch**2 * tower.width
        cells = (config.input_size // tower.patch) ** 2
        found["model.input_size and model.tower (patch, width)"] = cells * tower.width
    memory = machine_memory()
    for what, parameters in found.items():
        if parameters * _BYTES > memory:
            raise OsmError(
                f"{what}: such a model has at least {parameters / 1e9:.1f} billion parameters there, "
                f"{parameters * _BYTES / 1e9:.0f} GB in float32, and this machine has {memory / 1e9:.0f} GB; choose "
                "smaller sizes"
            )


def machine_memory() -> int:
    """The memory of this machine, or of the container, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory


def check_options(options: Mapping[str, Any], state: Mapping[str, Tensor] | None, name: str) -> None:
    """Compares the sizes that a tower's `options` ask for with the weights that are to fill it.

    Raises:
        OsmError: the weights are far fewer.
    """
    if state is None:  # a tower that keeps its random start
        return
    widths, depths = [0], [0]
    for option, value in options.items():
        numbers = [one for one in (value if isinstance(value, (list, tuple)) else [value]) if type(one) is int]
        if any(word in option for word in ("dim", "width", "channels", "features")):
            widths += numbers
        elif any(word in option for word in ("depth", "layers", "blocks")):
            depths.append(sum(numbers))
    least = max(1, max(depths)) * max(widths) ** 2
    there = sum(value.numel() for value in state.values())
    if max(depths) > len(state) or least > _MARGIN * there:
        raise OsmError(
            f"model.tower.options {shown(dict(options))}: a tower of such a size does not fit the weights of {name!r}, "
            f"which are {len(state)} entries of {there} values"
        )
