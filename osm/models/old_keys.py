"""The older layout of model configs, which checkpoints use and config files may still use.

In the older layout, the key `variant` is used instead of `bridge.kind`, and the bridge's settings are in the section
`qformer` or `flamingo`. The older layout has a single section for the settings of all kinds of towers. Checkpoints are
still written in the older layout, so that their format does not change and earlier versions of the code can read them.
The settings of towers and bridges that are not built into this package are stored unchanged.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from osm.config import from_dict
from osm.errors import OsmError, shown
from osm.models.bridges import BRIDGES
from osm.models.towers import TOWERS
from osm.terminal import message_logger

logger = message_logger(__name__)

BRIDGE_SECTIONS = {"maskqformer": "qformer", "flamingo": "flamingo"}
"""The name of the old config section for each kind of bridge."""
TOWER_KINDS = ("instructblip", "open_clip", "timm", "random")
TOWER_FIELDS: dict[str, Any] = {
    "kind": "instructblip",
    "name": "",
    "weights": "",
    "source": "",
    "options": {},
    "strides": (),
    "patch": 14,
    "width": 32,
    "class_token": True,
    "seed": 0,
}
"""The fields of the old tower section with their defaults, in the order in which checkpoints store the fields."""


def renamed(values: Any, where: str) -> tuple[Any, dict[str, str]]:
    """Rename the old keys in a model section, and also return the original key of each renamed field.

    Raises:
        OsmError: old and new keys are mixed, the variant is unknown, or there are settings for a different bridge than
            the selected bridge.
    """
    if not isinstance(values, Mapping):
        return values, {}
    sections = [name for name in BRIDGE_SECTIONS.values() if name in values]
    if not sections and "variant" not in values:
        return values, {}
    if "bridge" in values:
        old = "variant" if "variant" in values else sections[0]
        raise OsmError(f"{where}.{old} was replaced by {where}.bridge, but both are given; remove {where}.{old}")
    kind = values.get("variant", BRIDGES.default)
    if not isinstance(kind, str) or kind not in BRIDGE_SECTIONS:
        raise OsmError(
            f"{where}.variant {shown(kind)}: expected {' or '.join(BRIDGE_SECTIONS)}; to use another bridge, set "
            f"{where}.bridge.kind"
        )
    own = BRIDGE_SECTIONS[kind]
    for other, section in BRIDGE_SECTIONS.items():
        if section in values and section != own:
            config = BRIDGES.get(other).Config
            if from_dict(config, values[section], f"{where}.{section}") != config():
                raise OsmError(f"{where}.{section} has no effect with {where}.variant {kind!r}; remove one of the two")
    kept = {key: value for key, value in values.items() if key != "variant" and key not in BRIDGE_SECTIONS.values()}
    bridge = values.get(own, {})
    return {**kept, "bridge": {"kind": kind, **bridge} if isinstance(bridge, Mapping) else bridge}, {"bridge": own}


def report(section: Any, where: str) -> None:
    """Log once that a config file contains old keys, and which new key to use instead."""
    old = [key for key in ("variant", *BRIDGE_SECTIONS.values()) if isinstance(section, Mapping) and key in section]
    if old:
        _report_once(
            f"{where}: {', '.join(old)}: these older keys are still read; the new key is bridge: {{kind: ...}}"
        )


@functools.cache
def _report_once(line: str) -> None:
    logger.info(line)


def overlaid(section: Any, overrides: Mapping[str, Any], where: str) -> Any:
    """Override fields of a model section. Both `section` and `overrides` may contain old or new keys."""
    if not isinstance(section, Mapping):
        return section
    old = {"variant", *BRIDGE_SECTIONS.values()}
    if "bridge" in overrides:
        section = {key: value for key, value in section.items() if key not in old}
    elif old & overrides.keys() and isinstance(section.get("bridge"), Mapping):
        bridge = dict(section["bridge"])
        kind = bridge.pop("kind", BRIDGES.default)
        section = {key: value for key, value in section.items() if key != "bridge"} | {"variant": kind}
        if kind in BRIDGE_SECTIONS and overrides.get("variant", kind) == kind:
            section[BRIDGE_SECTIONS[kind]] = bridge
    return {**section, **overrides}


def tower_fields(config: type, values: Any, where: str) -> Any:
    """Drop the old fields in a tower section that do not apply to the selected kind of tower.

    Raises:
        OsmError: a field to be dropped does not have its default value, so it was meant to have an effect.
    """
    if not isinstance(values, Mapping) or values.get("kind") not in TOWER_KINDS:
        return values
    names = {each.name for each in dataclasses.fields(config)}
    kept = {}
    for key, value in values.items():
        if key in names or key not in TOWER_FIELDS:
            kept[key] = value
        elif (tuple(value) if isinstance(value, list) else value) != TOWER_FIELDS[key]:
            raise OsmError(f"{where}.{key} {shown(value)} has no effect with kind {values['kind']!r}; leave it out")
    return kept


def without_unused(section: Any) -> Any:
    """Drop the fields in a checkpoint's tower section that do not apply to the checkpoint's kind of tower."""
    tower = section.get("tower") if isinstance(section, Mapping) else None
    if not isinstance(tower, Mapping) or tower.get("kind") not in TOWER_KINDS:
        return section
    names = {each.name for each in dataclasses.fields(TOWERS.get(tower["kind"]).Config)}
    return {**section, "tower": {key: value for key, value in tower.items() if key in names or key not in TOWER_FIELDS}}


def stored_tower(values: dict[str, Any]) -> dict[str, Any]:
    """Return a tower's config values in the layout used in checkpoints."""
    if values["kind"] not in TOWER_KINDS:
        return values
    stored = {key: values.get(key, default) for key, default in TOWER_FIELDS.items()}
    if values.get("classes"):  # earlier versions do not know this key
        stored["classes"] = values["classes"]
    return stored


def _left_out(sizes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the bridge fields to omit from checkpoints.

    In earlier code versions, the bridges have no direct path, or a direct path without some of these settings.
    """
    left_out = ["kind"]
    if not sizes["direct_tokens"]:
        left_out += ["direct_tokens", "direct_width"]
    if not sizes["direct_zoom"]:
        left_out += ["direct_zoom", "direct_zoom_enlarge"]
    optional = ("direct_zoom_cutout", "direct_names", "direct_mode_names", "direct_classes", "direct_first")
    return (*left_out, *(name for name in optional if not sizes.get(name)))


def stored_model(values: dict[str, Any], tower: dict[str, Any]) -> dict[str, Any]:
    """Return a model's config values in the layout used in checkpoints.

    The argument `tower` is the tower section, which is already in the checkpoint layout.
    """
    values = {**values, "tower": tower}
    if not values["prompt"]:
        del values["prompt"]  # earlier versions do not know this key
    if not values["prompt_first"]:
        del values["prompt_first"]
    bridge = values["bridge"]
    if bridge["kind"] == "pooled":
        new = ("direct_zoom_cutout", "direct_mode_names")  # earlier versions do not know these keys
        return {**values, "bridge": {key: value for key, value in bridge.items() if value or key not in new}}
    if bridge["kind"] not in BRIDGE_SECTIONS:
        return values
    stored: dict[str, Any] = {"variant": bridge["kind"]}
    for key, value in values.items():
        if key != "bridge":
            stored[key] = value
            continue
        for kind, section in BRIDGE_SECTIONS.items():
            sizes = bridge if kind == bridge["kind"] else dataclasses.asdict(BRIDGES.get(kind).Config())
            stored[section] = {name: size for name, size in sizes.items() if name not in _left_out(sizes)}
    return stored
