"""Ground truth for scoring the proposals of a dataset, with one Python class per annotation type.

Pixels of the dataset's ignored classes (`ignored_ids`) are void. Three kinds of faults are counted and reported:
segments found only in the JSON, segments found only in the PNG, and invalid annotations. Segments found only in the
JSON are skipped, because they have no pixels. Segments found only in the PNG are treated as void.

Shapes: H, W = height and width of an image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError, shown
from osm.evaluation.scoring.map_scores import VOID, PanopticSegment
from osm.evaluation.scoring.mask_precision import Federated
from osm.forms import Form, Split
from osm.forms.base import is_crowd
from osm.forms.coco_panoptic import Panoptic
from osm.forms.instances import Boxes, corners, draw_box
from osm.forms.maps import LabelMaps
from osm.io.segmentation import decode_segmentation
from osm.io.values import truth as flag
from osm.io.values import whole

PQ, AP, BOX_AP, MIOU = "PQ", "mask AP", "box AP", "mIoU"


@dataclass(frozen=True)
class Instance:
    """A ground-truth mask and its class. Calling `mask` returns a bool array (H, W)."""

    category_id: int
    crowd: bool
    mask: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Truth:
    """The ground truth of one image.

    Attributes:
        size: height and width of the image.
        segments_HW: the map of segments (see `PanopticSegment`); None if segments may overlap.
        segments: the segments of the map.
        instances: the masks of thing classes.
        federated: the classes that LVIS declares absent or not exhaustively annotated in the image.
        counts: numbers of skipped annotations, by reason.
    """

    size: tuple[int, int]
    segments_HW: np.ndarray | None = None
    segments: tuple[PanopticSegment, ...] = ()
    instances: tuple[Instance, ...] = ()
    federated: Federated | None = None
    counts: Counter[str] = field(default_factory=Counter)


class TruthSplit(Split):
    """The images of a dataset with their ground truth.

    Attributes:
        scores: the names of the scores (PQ, mask AP, box AP, mIoU) that are defined for the dataset.
        why_not: the reason why the other scores are not defined.
        things: ids of the classes whose masks are instances. For every other class, its masks are merged.
        federated: whether AP uses the LVIS protocol.
    """

    scores: ClassVar[tuple[str, ...]]
    why_not: ClassVar[str] = ""
    things: frozenset[int]
    federated: bool = False

    @property
    def precision(self) -> str:
        """The kind of AP defined for the dataset ("mask AP" or "box AP"), or "" if no AP is defined."""
        return next((score for score in self.scores if score in (AP, BOX_AP)), "")

    @abstractmethod
    def truth(self, index: int) -> Truth:
        """Return the ground truth of the image at the given index."""


class PanopticTruth(TruthSplit):
    """Ground truth in COCO panoptic format, for which all scores are defined. AP uses the segments of thing classes."""

    scores = (PQ, AP, MIOU)

    def __init__(self, row: Dataset, form: type[Form]) -> None:
        super().__init__(row, form)
        told = {i: label.isthing for i, label in row.label_set.classes.items()}
        for category in self.listing.stated_categories:
            number, isthing = whole(category.get("id")), flag(category.get("isthing"))
            if number in told and "isthing" in category and isthing is not None:
                told[number] = isthing
        self.things = frozenset(i for i, isthing in told.items() if isthing and i not in row.rules.ignored_ids)

    def truth(self, index: int) -> Truth:
        sample, picture, losses, _ = self.read(index)
        counts = Counter(
            missing_in_mask=losses.counts["id_not_in_png"], unknown_in_mask=losses.counts["id_not_in_json"]
        )
        entry = self.entries[index]
        counts["unusable"] = len(entry.raw["segments_info"]) - len(entry.places)
        size = (picture.size[1], picture.size[0])
        if sample is None:
            return Truth(size, np.full(size, VOID, np.int32), counts=counts)
        assert isinstance(sample, Panoptic)
        drawn, places_HW = np.unique(sample.ids, return_inverse=True)
        value_of = np.full(len(drawn), VOID, np.int32)
        place = {int(i): k for k, i in enumerate(drawn)}
        segments: list[PanopticSegment] = []
        for described in sample.described:
            category_id = whole(described.get("category_id"))
            known = category_id is not None and category_id in self.row.label_set
            if described["id"] not in place:
                continue
            if known and category_id in self.row.rules.ignored_ids:
                counts["ignored"] += 1
            else:
                segments.append(PanopticSegment(category_id if known else None, is_crowd(described)))
                value_of[place[described["id"]]] = len(segments)
        segments_HW = value_of[places_HW].reshape(sample.ids.shape)
        instances = tuple(self._instances(segments_HW, segments))
        return Truth(size, segments_HW, tuple(segments), instances, counts=counts)

    def _instances(self, segments_HW: np.ndarray, segments: list[PanopticSegment]) -> Iterator[Instance]:
        for value, segment in enumerate(segments, 1):
            if segment.category_id is not None and segment.category_id in self.things:
                yield Instance(segment.category_id, segment.crowd, partial(np.equal, segments_HW, value))


class InstancesTruth(TruthSplit):
    """Ground truth in COCO or LVIS instance format, in which masks may overlap and most pixels have no mask."""

    scores = (AP,)
    why_not = "annotations of instances may overlap, and most pixels have no annotation"

    def __init__(self, row: Dataset, form: type[Form]) -> None:
        super().__init__(row, form)
        self.things = frozenset(row.label_set.classes) - row.rules.ignored_ids
        self.federated = any("neg_category_ids" in entry.raw[0] for entry in self.entries)

    def truth(self, index: int) -> Truth:
        sample, picture, _, _ = self.read(index)
        assert sample is not None
        size = (picture.size[1], picture.size[0])
        image, raw = self.entries[index].raw
        targets, instances = sample.targets(), []
        counts = Counter(unusable=sum(not is_crowd(annotation) for annotation in raw) - len(targets))
        for target in targets:
            if target.category_id in self.row.rules.ignored_ids:
                counts["ignored"] += 1
            else:
                instances.append(Instance(target.category_id, False, target.draw))
        for annotation in (annotation for annotation in raw if is_crowd(annotation)):
            category_id = whole(annotation.get("category_id"))
            if category_id is None or category_id not in self.row.label_set:
                counts["crowd_without_class"] += 1  # all other annotations have a valid class
            elif category_id in self.row.rules.ignored_ids:
                counts["ignored"] += 1
            else:
                instances.append(Instance(category_id, True, partial(self._crowd, annotation, size)))
        return Truth(size, instances=tuple(instances), federated=self._about(image), counts=counts)

    def _crowd(self, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        """Return the mask (H, W) of a crowd annotation, or an all-False mask if the annotation has no valid mask."""
        where = f"{self.source}: annotation {shown(annotation.get('id'))} of image {shown(annotation['image_id'])}"
        try:
            return self._shape(annotation, size, where)
        except SampleError:
            return np.zeros(size, bool)

    def _shape(self, annotation: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
        """Return the mask (H, W) of an annotation. Raise SampleError if the annotation has no valid mask."""
        return decode_segmentation(annotation.get("segmentation"), size, where)

    def _about(self, image: dict[str, Any]) -> Federated:
        lists = []
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(key, [])
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise OsmError(f"{self.source}: image {image['id']}: {key} {shown(ids)} is not a list of ids")
            lists.append(tuple(ids))
        return Federated(*lists)


class BoxesTruth(InstancesTruth):
    """Ground truth of boxes. Box AP is computed on filled boxes, whose edges are rounded outward to whole pixels."""

    scores = (BOX_AP,)
    why_not = "boxes overlap, and contain pixels of other objects"

    def _shape(self, annotation: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
        return draw_box(corners(annotation.get("bbox"), (size[1], size[0]), where), size)


class MapsTruth(TruthSplit):
    """Ground truth of label maps. All pixels of a class form one segment, regardless of the number of objects.

    Pixels without a class are void. In a dataset of object parts, all pixels outside the parts are void, and proposals
    are not scored on void pixels.
    """

    scores = (MIOU,)
    why_not = "label maps do not distinguish objects of one class"
    things: frozenset[int] = frozenset()

    def truth(self, index: int) -> Truth:
        sample, picture, losses, _ = self.read(index)
        size = (picture.size[1], picture.size[0])
        segments_HW = np.full(size, VOID, np.int32)
        targets = [] if sample is None else sample.targets()
        for k, target in enumerate(targets):
            segments_HW[target.draw()] = k + 1
        segments = tuple(PanopticSegment(target.category_id) for target in targets)
        return Truth(
            size,
            segments_HW,
            segments,
            counts=Counter(unknown_ids=losses.counts["id_not_in_labels"] + losses.counts["name_not_in_table"]),
        )


_TRUTHS: tuple[tuple[type[Form], type[TruthSplit]], ...] = (
    (Panoptic, PanopticTruth),
    (LabelMaps, MapsTruth),
    (Boxes, BoxesTruth),
    (Form, InstancesTruth),
)


def truth_split(row: Dataset, form: type[Form]) -> TruthSplit:
    """Return the ground truth of a dataset.

    The Python class of the returned object is taken from the first entry of `_TRUTHS` whose annotation format is a
    base class of `form`.
    """
    return next(truths for base, truths in _TRUTHS if issubclass(form, base))(row, form)


def class_map(segments_HW: np.ndarray, categories: Collection[int | None], place: dict[int, int]) -> np.ndarray:
    """Convert a segment map to a map of class indices.

    Args:
        segments_HW: integers; 0 is no segment, and k + 1 is segment k.
        categories: category ids of the segments; None for a segment without a class.
        place: category id -> class index in the returned map.

    Returns:
        Integers (H, W); -1 for pixels without a class.
    """
    places = [-1 if i is None else place.get(i, -1) for i in categories]
    return np.array([-1, *places], np.int64)[segments_HW]
