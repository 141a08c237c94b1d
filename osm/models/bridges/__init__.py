"""Trainable bridges between tower and LLM. `BRIDGES` finds them by the `kind` that a config names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from osm.registry import Registry

T = TypeVar("T", bound=type)
# The classes are `type[Bridge]`. Naming that type here would need an import of the module that imports this one.
BRIDGES: Registry[Any] = Registry(
    "bridge",
    group="osm.bridges",
    builtin={
        "maskqformer": "osm.models.bridges.maskqformer:MaskQFormerBridge",
        "flamingo": "osm.models.bridges.flamingo:FlamingoBridge",
    },
    interface="osm.models.bridges.bridge:Bridge",
    default="maskqformer",
)


def register_bridge(name: str) -> Callable[[T], T]:
    """Return a class decorator that makes a subclass of `Bridge` available as `bridge: {kind: <name>}`."""
    return BRIDGES.register(name)
