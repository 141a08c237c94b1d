"""The variants' bridges, by name."""

from __future__ import annotations

from osm.models.bridges.bridge import Bridge
from osm.models.bridges.flamingo import FlamingoBridge
from osm.models.bridges.maskqformer import MaskQFormerBridge

BRIDGES: dict[str, type[Bridge]] = {"maskqformer": MaskQFormerBridge, "flamingo": FlamingoBridge}
