"""The variants' bridges, by name."""

from __future__ import annotations

from osm.model.bridge import Bridge
from osm.model.flamingo import FlamingoBridge
from osm.model.maskqformer import MaskQFormerBridge

BRIDGES: dict[str, type[Bridge]] = {"maskqformer": MaskQFormerBridge, "flamingo": FlamingoBridge}
