"""Decides which named objects are written, and what happens to objects that overlap."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from osm.io.segmentation import encode_rle
from osm.labeling.corrections import Corrections
from osm.labeling.formats.label_format import LabeledImage, LabelShape
from osm.recognition.panoptic import merge

UNSURE = ("keep", "drop", "review")
OVERLAPS = ("keep", "merge", "parts")
TOO_SMALL = "below min_area"
PART_SHARE = 0.9
"""An object is a part of a larger one if at least this share of its pixels is inside the larger one."""


@dataclass(frozen=True)
class KeepRules:
    """Which objects are named, and which of the named objects are written.

    Attributes:
        min_area: smaller masks, in pixels, are not named.
        min_prob: names with a lower probability are left out.
        unsure: what happens to names whose calibrated probability is below the model's threshold: `keep`, `drop`, or
            `review`, which writes them to `review.jsonl` instead.
        overlaps: `keep` writes all masks as they are. `merge` gives each pixel to the most probable object. `parts`
            writes which objects are parts of larger ones.
    """

    min_area: int = 1
    min_prob: float = 0.0
    unsure: str = "keep"
    overlaps: str = "keep"

    def measured(self, shape: LabelShape) -> LabelShape:
        """Return an object as it is, or without a name and with the reason if its mask is smaller than `min_area`."""
        small = shape.area < self.min_area
        return replace(shape, name="", prob=0.0, class_id=None, unsure=False, skipped=TOO_SMALL) if small else shape

    def left_out(self, shape: LabelShape) -> str:
        """Return why an object is not written, or an empty text if it is. Names from a person are always written."""
        if shape.skipped:
            return shape.skipped
        if shape.corrected:
            return ""
        if shape.prob < self.min_prob:
            return "below min_prob"
        return "unsure" if shape.unsure and self.unsure != "keep" else ""

    def kept(self, image: LabeledImage, corrections: Corrections) -> tuple[LabeledImage, Counter[str]]:
        """Return an image with the objects that are written, and the number of the others by reason."""
        shapes, lost = [], Counter[str]()
        for shape in corrections.applied(image):
            reason = self.left_out(shape)
            if reason:
                lost[reason] += 1
            else:
                shapes.append(shape)
        if self.overlaps == "merge":
            merged = merge_shapes(shapes)
            lost["covered by more probable masks"] += len(shapes) - len(merged)
            shapes = merged
        elif self.overlaps == "parts":
            shapes = with_parents(shapes)
        return replace(image, shapes=tuple(shapes)), +lost


def merge_shapes(shapes: list[LabelShape]) -> list[LabelShape]:
    """Give each pixel to the most probable object. Objects that are mostly covered by others are left out."""
    if len(shapes) < 2:
        return shapes
    masks, probs = [shape.mask for shape in shapes], [shape.prob for shape in shapes]
    found = merge(masks, probs, min_prob=0.0, min_pixels=1)
    numbers = {k: number for number, k in enumerate(found.segments, 1)}
    kept = []
    for k in sorted(numbers):
        mask = found.ids == numbers[k]
        whole = int(mask.sum()) == shapes[k].area
        kept.append(shapes[k] if whole else replace(shapes[k], rle=encode_rle(mask), box=None))
    return kept


def with_parents(shapes: list[LabelShape]) -> list[LabelShape]:
    """Set the `parent` of each object that is a part of a larger one, to the smallest larger one."""
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    if len(shapes) < 2:
        return shapes
    rles = [dict(shape.rle) for shape in shapes]
    # For "crowds", pycocotools divides the intersection by the area of the first mask.
    inside = np.asarray(coco_mask.iou(rles, rles, [1] * len(rles)))
    areas = np.array([shape.area for shape in shapes])
    found = []
    for k, shape in enumerate(shapes):
        wholes = np.flatnonzero((inside[k] >= PART_SHARE) & (areas > areas[k]))
        parent = int(wholes[np.argmin(areas[wholes])]) if len(wholes) else None
        found.append(replace(shape, parent=parent))
    return found
