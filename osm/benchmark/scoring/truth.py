"""What a set's images really show, as scoring wants it: one class a form of annotation (`TRUTHS`).

Classes that the set's row ignores (`ignored_ids`) are void. Counted, and said: segments that a json has and its PNG
lacks (they cannot be found, and are left out), and those of a PNG that its json lacks (void).

Shapes: H, W = the image's sides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.benchmark.items.base import Split
from osm.benchmark.items.coco import CocoInstances, CocoPanoptic
from osm.benchmark.items.semantic import Semantic
from osm.benchmark.scoring.precision import Federated
from osm.benchmark.scoring.quality import VOID, Segment
from osm.data.datasets import Dataset
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.errors import OsmError, shown

PQ, AP, MIOU = "PQ", "mask AP", "mIoU"


@dataclass(frozen=True)
class Instance:
    """A mask (H, W) of a class, made when it is called for."""

    category_id: int
    crowd: bool
    mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Truth:
    """One image.

    Attributes:
        size: height and width.
        segments_HW, segments: the map of segments, and what they are (see `quality`); None where segments may overlap.
        instances: the masks of things.
        federated: what LVIS knows of an image.
        counts: what was left out.
    """

    size: tuple[int, int]
    segments_HW: np.ndarray | None = None
    segments: tuple[Segment, ...] = ()
    instances: tuple[Instance, ...] = ()
    federated: Federated | None = None
    counts: Counter[str] = field(default_factory=Counter)


class TruthSplit(Split):
    """The images of a set, with what they show.

    Attributes:
        scores: which of PQ, mask AP and mIoU are defined.
        why_not: why the others are not.
        things: the ids of the classes whose masks are instances; the masks of the others are merged.
        federated: whether LVIS's protocol applies to AP.
    """

    scores: ClassVar[tuple[str, ...]]
    why_not: ClassVar[str] = ""
    things: frozenset[int]
    federated: bool = False

    @abstractmethod
    def path(self, index: int) -> Path:
        """The image."""

    @abstractmethod
    def truth(self, index: int) -> Truth:
        """What it shows."""


class PanopticTruth(CocoPanoptic, TruthSplit):
    """COCO-panoptic form: everything is defined; the instances are the segments of things."""

    scores = (PQ, AP, MIOU)

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        told = {i: label.isthing for i, label in row.label_set.classes.items()}
        stated = self._json.document.get("categories")
        for category in stated if isinstance(stated, list) else ():
            about = category if isinstance(category, dict) else {}
            if type(about.get("id")) is int and about["id"] in told and about.get("isthing") in (0, 1):
                told[about["id"]] = bool(about["isthing"])
        self.things = frozenset(i for i, isthing in told.items() if isthing and i not in row.rules.ignored_ids)

    def path(self, index: int) -> Path:
        return self.image_path(index)

    def truth(self, index: int) -> Truth:
        ids_HW = self.read_ids(index)
        drawn, places_HW = np.unique(ids_HW, return_inverse=True)
        value_of = np.full(len(drawn), VOID, np.int32)
        place = {int(i): k for k, i in enumerate(drawn)}
        segments: list[Segment] = []
        counts: Counter[str] = Counter()
        for described in self._entries[index]["segments_info"]:
            crowd, category_id = bool(described.get("iscrowd")), described.get("category_id")
            known = type(category_id) is int and category_id in self.row.label_set
            if described["id"] not in place or described["id"] == VOID:
                counts["missing_in_mask"] += 1
                continue
            if known and category_id in self.row.rules.ignored_ids:
                counts["ignored"] += 1
            else:
                segments.append(Segment(category_id if known else None, crowd))
                value_of[place[described["id"]]] = len(segments)
            del place[described["id"]]
        counts["unknown_in_mask"] = len(place.keys() - {VOID})
        segments_HW = value_of[places_HW].reshape(ids_HW.shape)
        instances = tuple(self._instances(segments_HW, segments))
        size = (ids_HW.shape[0], ids_HW.shape[1])
        return Truth(size, segments_HW, tuple(segments), instances, counts=counts)

    def _instances(self, segments_HW: np.ndarray, segments: list[Segment]) -> Iterator[Instance]:
        for value, segment in enumerate(segments, 1):
            if segment.category_id is not None and segment.category_id in self.things:
                yield Instance(segment.category_id, segment.crowd, partial(np.equal, segments_HW, value))


class InstancesTruth(CocoInstances, TruthSplit):
    """COCO- and LVIS-instances form: masks may overlap, and most of an image has none."""

    scores = (AP,)
    why_not = "annotations of instances may overlap and leave most pixels without any"

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        self.things = frozenset(row.label_set.classes) - row.rules.ignored_ids
        self.federated = any("neg_category_ids" in image for image in self._images)

    def path(self, index: int) -> Path:
        return self._json.image_path(self._images[index])

    def truth(self, index: int) -> Truth:
        item = self.load(index)  # checks that the sizes agree
        image, annotations = item.entry
        instances = []
        counts: Counter[str] = Counter()
        for annotation in annotations:
            crowd, category_id = bool(annotation.get("iscrowd")), annotation.get("category_id")
            if type(category_id) is not int or category_id not in self.row.label_set:
                counts["crowd_without_class"] += 1  # the others are checked
            elif category_id in self.row.rules.ignored_ids:
                counts["ignored"] += 1
            else:
                instances.append(self._instance(annotation, category_id, crowd, item.size))
        return Truth(item.size, instances=tuple(instances), federated=self._about(image), counts=counts)

    def _instance(self, annotation: dict[str, Any], category_id: int, crowd: bool, size: tuple[int, int]) -> Instance:
        where = f"{self._json.path}: annotation {shown(annotation.get('id'))} of image {annotation['image_id']}"
        segmentation = annotation.get("segmentation")
        if crowd:
            check_segmentation(segmentation, where)
        return Instance(category_id, crowd, lambda: decode_segmentation(segmentation, size, where))

    def _about(self, image: dict[str, Any]) -> Federated:
        lists = []
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key, [])
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise OsmError(f"{self._json.path}: image {image['id']}: {key} {shown(ids)} is not a list of ids")
            lists.append(tuple(ids))
        return Federated(*lists)


class SemanticTruth(Semantic, TruthSplit):
    """Label maps: a class is one segment, whatever number of things it is."""

    scores = (MIOU,)
    why_not = "label maps do not tell one thing from another"
    things: frozenset[int] = frozenset()

    def path(self, index: int) -> Path:
        return self._pairs[index][0]

    def truth(self, index: int) -> Truth:
        item = self.load(index)
        segments_HW = np.full(item.size, VOID, np.int32)
        for k in range(len(item.annotations)):
            segments_HW[item.mask(k)] = k + 1
        segments = tuple(Segment(annotation[self.id_key]) for annotation in item.annotations)
        return Truth(item.size, segments_HW, segments)


TRUTHS: dict[str, Callable[[Dataset], TruthSplit]] = {
    "coco_panoptic": PanopticTruth,
    "coco_instances": InstancesTruth,
    "semantic": SemanticTruth,
}


def class_map(segments_HW: np.ndarray, categories: Collection[int | None], place: dict[int, int]) -> np.ndarray:
    """A map of segments as one of classes: integers (H, W), the class's `place`, -1 where there is none."""
    places = [-1 if i is None else place.get(i, -1) for i in categories]
    return np.array([-1, *places], np.int64)[segments_HW]
