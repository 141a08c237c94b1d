"""Forms whose masks are annotations of the json: one of them first, uniformly, then the crop; drawn again if too little
of it remains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from osm.data.datasets import Rules
from osm.data.labels import LabelSet
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.data.segments.scene import MIN_PIXELS, Scene, Segment
from osm.data.views import View
from osm.errors import OsmError, SampleError, shown

_KEPT_PIXELS = 1 << 28  # of masks, a byte each: all of them, but for many large ones of a huge image


class _AnnotatedScene(Scene):
    fields: tuple[str, ...]
    boxed = False

    def __init__(
        self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet, rules: Rules
    ) -> None:
        super().__init__(members, document, labels, rules)
        self._check_size(document)
        entries = self._check(document.get("segments_info"), self.fields)
        self.entries = [entry for entry in entries if entry["category_id"] not in rules.ignored_ids]

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        picked: list[Segment] = []
        for i in rng.permutation(len(self.entries)).tolist():
            mask = self._mask(i, view)
            if mask is not None:
                picked.append(Segment(mask, self.labels[self.entries[i]["category_id"]], self.boxed))
            elif not picked and not fixed_view:
                return []
            if len(picked) == count:
                break
        return picked

    def has_segments(self) -> bool:
        return bool(self.entries)

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        """An annotation's mask in a view; None where it has too few pixels there."""
        raise NotImplementedError


class InstanceScene(_AnnotatedScene):
    """COCO- and LVIS-instances form: polygons or RLE, each rasterised once, and cropped before it is resized."""

    fields = ("category_id", "segmentation")

    def __init__(
        self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet, rules: Rules
    ) -> None:
        super().__init__(members, document, labels, rules)
        self._patches: dict[int, tuple[np.ndarray, int, int]] = {}

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        if number not in self._patches:
            if sum(patch[0].size for patch in self._patches.values()) > _KEPT_PIXELS:
                self._patches.clear()
            self._patches[number] = _patch(self._decode(self.entries[number]["segmentation"]))
        mask = view.patch(*self._patches[number], (self.height, self.width))
        return mask if np.count_nonzero(mask) > MIN_PIXELS else None

    def _decode(self, segmentation: Any) -> np.ndarray:
        try:
            check_segmentation(segmentation, "segments_info")
            return decode_segmentation(segmentation, (self.height, self.width), "segments_info")
        except OsmError as error:
            raise SampleError("bad_segmentation", str(error)) from None


class BoxScene(_AnnotatedScene):
    """Boxes (x, y, width, height) alone: rounded outwards to pixels and cut at the image's border."""

    fields = ("category_id", "bbox")
    boxed = True

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        where = view.box(self._box(self.entries[number]["bbox"]), (self.height, self.width))
        if math.prod(max(part.stop - part.start, 0) for part in where) <= MIN_PIXELS:
            return None
        mask = np.zeros((view.crop_height, view.crop_width), bool)
        mask[where] = True
        return mask

    def _box(self, bbox: Any) -> tuple[int, int, int, int]:
        """Left, top, right, bottom; right and bottom excluded."""
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
            raise SampleError("bad_box", f"segments_info: bbox {shown(bbox)} is not [x, y, width, height]")
        try:
            x, y, width, height = (float(value) for value in bbox)
            corners = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
        except (OverflowError, ValueError):  # infinite, or no number
            raise SampleError("bad_box", f"segments_info: bbox {shown(bbox)} is not finite") from None
        limits = (self.width, self.height, self.width, self.height)
        left, top, right, bottom = (min(max(value, 0), limit) for value, limit in zip(corners, limits, strict=True))
        return left, top, right, bottom


def _patch(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A mask's bounding box, and where its left upper corner is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((0, 0), bool), 0, 0
    top, left = int(rows[0]), int(columns[0])
    return np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1]), left, top
