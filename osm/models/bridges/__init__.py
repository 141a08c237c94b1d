"""Trainable bridges between the vision tower and the LLM.

`BRIDGES` maps the `kind` in a config to a bridge class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from osm.registry import Registry

T = TypeVar("T", bound=type)
# The classes are `type[Bridge]`. Importing `Bridge` for the type annotation would create an import cycle.
BRIDGES: Registry[Any] = Registry(
    "bridge",
    group="osm.bridges",
    builtin={
        "maskqformer": "osm.models.bridges.maskqformer:MaskQFormerBridge",
        "flamingo": "osm.models.bridges.flamingo:FlamingoBridge",
        "pooled": "osm.models.bridges.pooled:PooledBridge",
    },
    interface="osm.models.bridges.bridge:Bridge",
    default="maskqformer",
)


def register_bridge(name: str) -> Callable[[T], T]:
    """Return a class decorator that registers a `Bridge` subclass under the config value `bridge: {kind: <name>}`."""
    return BRIDGES.register(name)
