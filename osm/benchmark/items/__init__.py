"""The val splits: which masks of which image are to be named, and what the prediction file says about that image.

One class a form of annotation (`SPLITS`); generation and evaluation know nothing else about a set. A new form is one
more class, and a name in `osm.data.datasets.FORMS`. `Proposals` are masks of a set's images from a file instead.
"""

from __future__ import annotations

from osm.benchmark.items.base import FIELD, ImageFile, Item, Split
from osm.benchmark.items.coco import CocoInstances, CocoPanoptic
from osm.benchmark.items.semantic import Semantic
from osm.data.datasets import Dataset

__all__ = ["FIELD", "SPLITS", "ImageFile", "Item", "Split", "no_split"]

SPLITS: dict[str, type[Split]] = {
    "coco_panoptic": CocoPanoptic,
    "coco_instances": CocoInstances,
    "semantic": Semantic,
}


def no_split(row: Dataset) -> str:
    """What is said of a set that can be trained on, but not predicted on."""
    return f"sets of form {row.form} cannot be predicted on yet (only {', '.join(SPLITS)})"
