"""Frozen vision towers. `TOWERS` maps the `kind` in a config to a tower class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from osm.registry import Registry

T = TypeVar("T", bound=type)
# The classes are `type[Tower]`. Importing `Tower` for the type annotation would create an import cycle.
TOWERS: Registry[Any] = Registry(
    "tower",
    group="osm.towers",
    builtin={
        "instructblip": "osm.models.instructblip:InstructBlipTower",
        "open_clip": "osm.models.towers.open_clip_tower:OpenClipTower",
        "timm": "osm.models.towers.timm_tower:TimmTower",
        "random": "osm.models.towers.tower:RandomTower",
    },
    interface="osm.models.towers.tower:Tower",
    default="instructblip",
)


def register_tower(name: str) -> Callable[[T], T]:
    """Return a class decorator that registers a `Tower` subclass under the config value `tower: {kind: <name>}`."""
    return TOWERS.register(name)
