"""Forms whose masks lie in a label map: the crop first, then one of the segments that count in it, uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from osm.data.datasets import Rules
from osm.data.images import read_ids, read_panoptic
from osm.data.labels import LabelSet
from osm.data.segments.scene import MIN_PIXELS, Scene, Segment, member
from osm.data.views import Cut, View
from osm.errors import SampleError


class PanopticScene(Scene):
    """COCO-panoptic form: a segment is an entry of the json, its id in the PNG."""

    def __init__(
        self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet, rules: Rules
    ) -> None:
        super().__init__(members, document, labels, rules)
        entries = self._check(document.get("segments_info"), ("id", "category_id"))
        self.entries = [entry for entry in entries if entry["category_id"] not in rules.ignored_ids]
        self._ids = self._map(read_panoptic(member(members, document, "pan_base64", ("png",))))

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        cut = view.cut(self._ids)
        areas = cut.areas()
        counting = [segment for segment in self.entries if areas.get(segment["id"], 0) > MIN_PIXELS]
        order = rng.permutation(len(counting))[:count]
        return [
            Segment(cut.enlarge(cut.labels == counting[i]["id"]), self.labels[counting[i]["category_id"]])
            for i in order
        ]

    def has_segments(self) -> bool:
        return bool(self.entries)


class SemanticScene(Scene):
    """A label map whose pixels are category ids; a segment is all that has one id."""

    def __init__(
        self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet, rules: Rules
    ) -> None:
        super().__init__(members, document, labels, rules)
        self._check_size(document)
        self._ids = self._map(read_ids(member(members, document, "seg_base64", ("tif", "png"))))

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        cut = view.cut(self._ids)
        areas = cut.areas()
        unknown = [i for i in areas if i not in self.rules.ignored_ids and i not in self.labels]
        if unknown:
            raise SampleError(
                "unknown_category",
                f"id {unknown[0]} of the label map is neither in the label set {self.labels.source} nor ignored",
            )
        return _draw(cut, _counting(areas, self.labels, self.rules), self.labels, count, rng)

    def has_segments(self) -> bool:
        return any(i in self.labels and i not in self.rules.ignored_ids for i in np.unique(self._ids).tolist())


class PartScene(Scene):
    """Parts of objects in one label map, and whole objects in another; what is not in the tables is ignored.

    Whether a part or a whole object is asked about is drawn anew with each view.
    """

    def __init__(
        self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet, rules: Rules
    ) -> None:
        super().__init__(members, document, labels, rules)
        self._check_size(document)
        read = read_panoptic if rules.id_coding == "rgb" else read_ids
        self._parts = self._map(read(member(members, document, "part_seg_base64", ("part.png",))))
        self._whole: np.ndarray | None = None
        if rules.whole_labels is not None:
            self._whole = self._map(read(member(members, document, "whole_seg_base64", ("whole.png",))))

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        if self._whole is None or whole_prob == 0:
            return self._pick_parts(view, count, rng)
        wanted = int(rng.binomial(count, whole_prob))  # so many of them are to be whole objects
        picked = self._pick_whole(view, wanted, rng) if wanted else []
        if picked or wanted < count:  # where there are fewer objects than that, parts fill up
            picked += self._pick_parts(view, count - len(picked), rng)
        if not picked and fixed_view:
            picked = self._pick_parts(view, count, rng) or self._pick_whole(view, count, rng)
        return picked

    def _pick_parts(self, view: View, count: int, rng: np.random.Generator) -> list[Segment]:
        if not count:
            return []
        cut = view.cut(self._parts)
        return _draw(cut, _counting(cut.areas(), self.labels, self.rules), self.labels, count, rng)

    def _pick_whole(self, view: View, count: int, rng: np.random.Generator) -> list[Segment]:
        labels = self.rules.whole_labels
        assert labels is not None and self._whole is not None
        cut = view.cut(self._whole)
        return _draw(cut, _counting(cut.areas(), labels, self.rules), labels, count, rng, whole=True)

    def has_segments(self) -> bool:
        parts = any(i in self.labels and i not in self.rules.ignored_ids for i in np.unique(self._parts).tolist())
        return parts or bool(self._objects)

    def target(self, segment: Segment, rng: np.random.Generator, prepend_prob: float = 0.0) -> str:
        """A part's name, at times with its object's class for the kind of object: "quadruped head" -> "impala head".

        Raises:
            SampleError: `not_one_object`, where the map of the whole image has no object class or several.
        """
        label, labels = segment.label, self.rules.whole_labels
        named_so = label.supercategory and label.target.startswith(label.supercategory)
        if labels is None or segment.whole or not named_so or rng.random() >= prepend_prob:
            return label.target
        if len(self._objects) != 1:
            raise SampleError("not_one_object", f"a part is to be named after its object: {len(self._objects)} of them")
        return labels[self._objects[0]].target + label.target.removeprefix(label.supercategory)

    @cached_property
    def _objects(self) -> list[int]:
        """The classes of whole objects in the image, in any view or none."""
        labels = self.rules.whole_labels
        if self._whole is None or labels is None:
            return []
        found = np.unique(self._whole).tolist()
        return [i for i in found if i in labels and i not in self.rules.ignored_ids]


def _counting(areas: Mapping[int, int], labels: LabelSet, rules: Rules) -> list[int]:
    return [i for i, area in areas.items() if area > MIN_PIXELS and i in labels and i not in rules.ignored_ids]


def _draw(
    cut: Cut, ids: list[int], labels: LabelSet, count: int, rng: np.random.Generator, whole: bool = False
) -> list[Segment]:
    """Up to `count` of these ids, each as a segment."""
    order = rng.permutation(len(ids))[:count]
    return [Segment(cut.enlarge(cut.labels == ids[i]), labels[ids[i]], whole=whole) for i in order]
