"""The sets that can be converted, by the name given to `osm prepare`: a new form of storage is a class and a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from osm.data.sources.base import Source
from osm.data.sources.coco import Cityscapes, CocoInstances, CocoPanoptic, Lvis
from osm.data.sources.partimagenet import PartImageNet
from osm.data.sources.pascal_part import PascalPart
from osm.data.sources.semantic import Semantic
from osm.data.sources.v3det import V3Det


@dataclass(frozen=True)
class Convertible:
    """A row: how the set is stored, and what its arguments are unless they are given."""

    source: type[Source]
    what: str
    defaults: Mapping[str, Any] = field(default_factory=dict)


SETS = {
    "coco": Convertible(CocoPanoptic, "COCO panoptic"),
    "ade20k": Convertible(CocoPanoptic, "ADE20K panoptic"),
    "cityscapes": Convertible(Cityscapes, Cityscapes.what),
    "lvis": Convertible(Lvis, Lvis.what),
    "v3det": Convertible(V3Det, V3Det.what),
    "a847": Convertible(Semantic, "A-847 (ADE20K full)", {"labels": "a847"}),
    "pc459": Convertible(Semantic, "PC-459 (Pascal Context full)", {"labels": "pc459"}),
    "partimagenet": Convertible(PartImageNet, PartImageNet.what),
    "pascal_part": Convertible(PascalPart, PascalPart.what),
    "coco_panoptic": Convertible(CocoPanoptic, CocoPanoptic.what),
    "coco_instances": Convertible(CocoInstances, CocoInstances.what),
    "semantic": Convertible(Semantic, Semantic.what),
}
