"""Annotation formats for COCO instances (polygons or RLE, as in COCO and LVIS) and boxes (detection datasets)."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osm.datasets.labels import LabelSet
from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError, shown
from osm.forms.base import (
    ANNOTATION,
    MIN_PIXELS,
    Entry,
    Form,
    Listing,
    Losses,
    Segment,
    SetFiles,
    Size,
    Target,
    is_crowd,
)
from osm.forms.coco_json import Annotation, CocoJson, ImageAnnotations, kept_fields, size_key
from osm.forms.coco_panoptic import checked_segments
from osm.forms.mask_files import MaskTable, is_mask_table, with_mask_of_file
from osm.io.segmentation import draw_segmentation, read_segmentation
from osm.io.values import finite, storable, whole
from osm.storage.locations import is_remote

if TYPE_CHECKING:  # osm.io.views imports torch, which converters do not need
    from osm.io.views import View

_XYWH = 1  # detectron2's `bbox_mode` for boxes of x, y, width, height
_KEPT_PIXELS = 1 << 28  # limit on cached mask pixels per image, one byte each; only huge images exceed the limit


class Annotated(Form):
    """Base class for annotation formats that store each mask or box as its own entry in the JSON `annotations` list.

    For training, annotations of an image are picked uniformly at random. If a view (a random crop of the image)
    contains too few pixels of the picked annotation, another view is chosen.

    Attributes:
        shape_field: the field that holds an annotation's mask or box.
        kept: the fields of an annotation that are stored in samples.
    """

    published: ClassVar[tuple[str, ...]] = ("segments_info", "width", "height")
    shape_field: ClassVar[str]
    kept: ClassVar[tuple[str, ...]]

    def _take(self, members: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        self._check_size(document)
        self.segments = self._read(document.get("segments_info"))
        self.entries = [entry for _, entry in self.segments if entry.get("category_id") not in self.rules.ignored_ids]
        self.unusable: dict[int, SampleError] = {}  # errors raised when masks are drawn, by index in `entries`

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        picked: list[Segment] = []
        for i in rng.permutation(len(self.entries)).tolist():
            try:
                mask = self._mask(i, view)
            except SampleError as error:  # only this annotation is skipped
                self.unusable[i] = error
                if len(self.unusable) == len(self.entries):
                    raise
                continue
            if mask is not None:
                picked.append(self._segment(mask, self.entries[i]))
            elif not picked and not fixed_view:
                return []
            if len(picked) == count:
                break
        return picked

    def faults(self) -> Counter[str]:
        return Counter(ANNOTATION + error.reason for error in self.unusable.values())

    def has_segments(self) -> bool:
        return bool(self.entries)

    def _read(self, entries: Any) -> list[tuple[int, Annotation]]:
        """Return (index, annotation) for each non-crowd annotation in a sample's JSON member.

        Raises:
            SampleError: `bad_json` or `unknown_category`.
        """
        return checked_segments(entries, ("category_id", self.shape_field), self.labels)

    def _segment(self, mask: np.ndarray, entry: Annotation) -> Segment:
        return Segment(mask, self.labels[entry["category_id"]], self.boxed)

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        """Return an annotation's mask within the crop `view`, or None if the crop contains too few pixels of the mask.

        Raises:
            SampleError: the annotation has no valid mask.
        """
        raise NotImplementedError

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ann_dir", help="accepted, but not used")
        parser.add_argument("--image_dir", required=True, help="folder of the images")
        parser.add_argument("--json_file", required=True, help="json of the annotations")

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        source = cls._source(files, labels)
        seen = 0

        def read_row(where: str, row: Annotation, collected: ImageAnnotations) -> None:
            nonlocal seen
            if "segments_info" in row:
                raise OsmError(
                    f"{where}: has 'segments_info', so this is a panoptic JSON file, not an instance JSON file"
                )
            collected.raw.append(row)
            crowd = is_crowd(row) and whole(row.get("category_id")) not in source.labels
            category = None if crowd else cls._category(source, row, where)
            segment = kept_fields(row, cls.kept, seen, category)
            source.add_mask(where, row, segment, collected)
            collected.segments.append(segment)
            collected.places.append(len(collected.raw) - 1)
            seen += 1

        found = source.by_image(read_row)
        cls._check_shapes(files, source)
        if labels is None and files.row.exact_names:
            source.compare(files.row.labels)
        return source.listing(found)

    @classmethod
    def _source(cls, files: SetFiles, labels: LabelSet | None) -> CocoJson:
        return CocoJson(files, labels)

    @classmethod
    def _category(cls, source: CocoJson, row: Annotation, where: str) -> int:
        return source.category_of(row, where)

    @classmethod
    def _check_shapes(cls, files: SetFiles, source: CocoJson) -> None:
        """Raise OsmError if the JSON file is in a different annotation format or its coordinates are not in pixels."""
        _check_pixels(files, source, cls.shape_field)

    @classmethod
    def check(
        cls, files: SetFiles, entry: Entry, size: Size, losses: Losses
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None, tuple[int, ...]]:
        kept, places = [], []
        for place, annotation in enumerate(entry.record["segments_info"]):
            where = f"image {entry.image}, annotation {shown(annotation['id'])}"
            if annotation["iscrowd"]:
                kept.append(annotation)
                places.append(place)
                continue
            try:
                kept.append(cls._usable(cls._with_mask(entry, annotation, size), size, where, losses))
                places.append(place)
            except SampleError as error:
                losses.add(error.reason, f"{error}, left out")
        return {}, kept, tuple(places)

    @classmethod
    def _with_mask(cls, entry: Entry, annotation: Annotation, size: Size) -> Annotation:
        """Return an annotation, with the mask added if the mask is stored in a separate file.

        Raises SampleError for empty masks.
        """
        return annotation

    @classmethod
    def _usable(cls, annotation: Annotation, size: Size, where: str, losses: Losses) -> Annotation:
        """Convert an annotation to the form stored in samples. Raises SampleError if the mask or box is unusable."""
        raise NotImplementedError

    @classmethod
    def in_order(cls, entries: list[Entry]) -> list[Entry]:
        """Return the entries of all images, with or without annotations, sorted by image id."""
        return sorted(entries, key=lambda entry: size_key(entry.raw[0]["id"]))


class Instances(Annotated):
    """An image with instance masks. Each mask is rasterized only once, and cropped before it is resized."""

    name: ClassVar[str] = "coco_instances"
    what: ClassVar[str] = "a dataset in COCO instance format"
    shape_field: ClassVar[str] = "segmentation"
    kept: ClassVar[tuple[str, ...]] = ("bbox", "category_id", "segmentation", "area")

    def _take(self, members: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        super()._take(members, document)
        self._patches: dict[int, tuple[np.ndarray, int, int]] = {}

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        if number not in self._patches:
            if sum(patch[0].size for patch in self._patches.values()) > _KEPT_PIXELS:
                self._patches.clear()
            self._patches[number] = _patch(self._draw(self.entries[number]))
        mask = view.patch(*self._patches[number], (self.height, self.width))
        return mask if np.count_nonzero(mask) > MIN_PIXELS else None

    def _draw(self, entry: Annotation) -> np.ndarray:
        size = (self.height, self.width)
        read = read_segmentation(entry["segmentation"], size, f"segments_info: annotation {shown(entry.get('id'))}")
        return draw_segmentation(read.value, size)

    def targets(self) -> list[Target]:
        return [Target(place, entry["category_id"], partial(self._draw, entry)) for place, entry in self.segments]

    @classmethod
    def labels_of(cls, row: Dataset) -> LabelSet:
        if is_mask_table(row.json_file):
            raise OsmError(
                f"dataset {row.name!r}: {row.json_file} contains no class names; set `labels` to its class CSV file "
                "(class-descriptions-boxable.csv) or to the categories.json written by `osm prepare`"
            )
        return super().labels_of(row)

    @classmethod
    def whole_folders(cls, files: SetFiles) -> list[str]:
        masks = files.ann_dir if is_mask_table(files.json_file) else None
        return [str(masks)] if masks and is_remote(masks) else []

    @classmethod
    def _source(cls, files: SetFiles, labels: LabelSet | None) -> CocoJson:
        return MaskTable(files, labels) if is_mask_table(files.json_file) else super()._source(files, labels)

    @classmethod
    def _with_mask(cls, entry: Entry, annotation: Annotation, size: Size) -> Annotation:
        return with_mask_of_file(entry, annotation, size) if entry.masks else annotation

    @classmethod
    def _check_shapes(cls, files: SetFiles, source: CocoJson) -> None:
        if isinstance(source, MaskTable):
            return
        super()._check_shapes(files, source)
        rows = [row for row in source.document["annotations"] if isinstance(row, dict)]
        if not any(row.get("segmentation") for row in rows) and any(row.get("bbox") for row in rows):
            raise OsmError(
                f"{files.where('json_file')}: contains boxes but no masks: none of the {len(rows)} annotations "
                "has a segmentation; use the annotation format `boxes` (`osm prepare boxes`)"
            )

    @classmethod
    def _usable(cls, annotation: Annotation, size: Size, where: str, losses: Losses) -> Annotation:
        read = read_segmentation(annotation.get("segmentation"), (size[1], size[0]), where)
        for _, message in read.unusable:
            losses.add("polygon_unusable", f"{message}, left out")
        kept = {**annotation, "segmentation": read.value}
        if "bbox" in kept and read_box(kept["bbox"]) is None:  # neither training nor evaluation needs the box
            del kept["bbox"]
        if "area" in kept and not (storable(kept["area"]) and kept["area"] is not None):
            del kept["area"]
        return kept


class OpenImages(Instances):
    """An image from Open Images, whose masks are PNG files listed in a CSV file (see `osm.forms.mask_files`)."""

    what: ClassVar[str] = "Open Images"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--image_dir", required=True, help="folder of the images <ImageID>.jpg, directly or in subfolders"
        )
        parser.add_argument("--ann_dir", required=True, help="folder of the mask PNGs, directly or in subfolders")
        parser.add_argument("--json_file", required=True, help="the csv <split>-annotations-object-segmentation.csv")
        parser.add_argument("--labels", required=True, help="class names: class-descriptions-boxable.csv")


class Boxes(Annotated):
    """An image with boxes (x, y, width, height) instead of masks.

    Boxes are rounded outward to whole pixels and clipped to the image.
    """

    name: ClassVar[str] = "boxes"
    what: ClassVar[str] = "boxes and classes in a COCO json"
    boxed: ClassVar[bool] = True
    shape_field: ClassVar[str] = "bbox"
    kept: ClassVar[tuple[str, ...]] = ("bbox", "category_id")
    nothing_usable: ClassVar[str] = "no_boxes"

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        return box_in_view(self._corners(self.entries[number]), view, (self.height, self.width))

    def _corners(self, entry: Annotation) -> tuple[int, int, int, int]:
        return corners(entry["bbox"], (self.width, self.height), "segments_info")

    def targets(self) -> list[Target]:
        return [
            Target(
                place, entry["category_id"], partial(draw_box, self._corners(entry), (self.height, self.width)), True
            )
            for place, entry in self.segments
        ]

    @classmethod
    def _category(cls, source: CocoJson, row: Annotation, where: str) -> int:
        if row.get("bbox_mode") not in (None, _XYWH):
            mode = shown(row["bbox_mode"])
            raise SampleError(
                "box_malformed", f"{where}: bbox_mode {mode} is not supported; use [x, y, width, height] (mode {_XYWH})"
            )
        return super()._category(source, row, where)

    @classmethod
    def _usable(cls, annotation: Annotation, size: Size, where: str, losses: Losses) -> Annotation:
        return {**annotation, "bbox": usable_box(annotation.get("bbox"), size, where)}


def _check_pixels(files: SetFiles, source: CocoJson, field: str) -> None:
    """Raise OsmError if all coordinates are between 0 and 1, because normalized coordinates would give empty masks."""
    seen = 0
    for row in source.document["annotations"]:
        shape = row.get(field) if isinstance(row, dict) else None
        if isinstance(shape, dict):
            return
        for number in _numbers_in(shape):
            if not 0 <= number <= 1:
                return
            seen += 0 < number < 1
    if seen:
        raise OsmError(
            f"{files.where('json_file')}: every {field} value is between 0 and 1, so the coordinates seem to be "
            "normalized; expected pixel coordinates (multiply x by the width and y by the height)"
        )


def _numbers_in(shape: Any) -> Iterator[int | float]:
    """Yield the coordinates of polygons or of a box."""
    if isinstance(shape, list):
        for part in shape:
            if isinstance(part, list):
                yield from (number for number in map(finite, part) if number is not None)
            elif (number := finite(part)) is not None:
                yield number


def read_box(value: Any) -> list[int | float] | None:
    """Return a box [x, y, width, height] of finite numbers, or None if the value is not a box.

    If no conversion is needed, the list itself is returned.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    numbers = [finite(number) for number in value]
    if None in numbers:
        return None
    same = type(value) is list and all(one is other for one, other in zip(numbers, value, strict=True))
    return value if same else numbers  # type: ignore[return-value]


def usable_box(value: Any, size: Size, where: str) -> list[int | float]:
    """Check that a box [x, y, width, height] overlaps the image, and return it.

    Args:
        value: the box from the file.
        size: (width, height) of the image.
        where: the location of the box, for error messages.

    Raises:
        SampleError: `box_malformed`, `box_empty` or `box_outside`.
    """
    box = read_box(value)
    if box is None:
        raise SampleError("box_malformed", f"{where}: bbox {shown(value)} is not [x, y, width, height]")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise SampleError("box_empty", f"{where}: bbox {shown(box)} has no area")
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        raise SampleError(
            "box_outside",
            f"{where}: bbox {shown(box)} is outside the image, which is {size[0]} x {size[1]} pixels",
        )
    return box


def corners(value: Any, size: Size, where: str) -> tuple[int, int, int, int]:
    """Return the edges of a box (left, top, right, bottom) in pixels, clipped to the image.

    The right and bottom edges are exclusive.

    Raises:
        SampleError: `bad_box`.
    """
    box = read_box(value)
    if box is None:
        raise SampleError("bad_box", f"{where}: bbox {shown(value)} is not [x, y, width, height]")
    x, y, width, height = (float(number) for number in box)
    try:
        found = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
    except OverflowError:
        raise SampleError("bad_box", f"{where}: bbox {shown(value)} is not finite") from None
    limits = (*size, *size)
    left, top, right, bottom = (min(max(number, 0), limit) for number, limit in zip(found, limits, strict=True))
    return left, top, right, bottom


def box_in_view(box: tuple[int, int, int, int], view: View, shape: tuple[int, int]) -> np.ndarray | None:
    """Draw a box as a bool mask of the crop `view`, or return None if the crop contains too few pixels of the box."""
    where = view.box(box, shape)
    if math.prod(max(part.stop - part.start, 0) for part in where) <= MIN_PIXELS:
        return None
    mask = np.zeros((view.crop_height, view.crop_width), bool)
    mask[where] = True
    return mask


def draw_box(box: tuple[int, int, int, int], shape: tuple[int, int]) -> np.ndarray:
    """Draw a box (left, top, right, bottom) as a bool mask (H, W)."""
    mask = np.zeros(shape, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def _patch(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Crop a mask to its bounding box and return the crop and the left and top coordinates of the box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((0, 0), bool), 0, 0
    top, left = int(rows[0]), int(columns[0])
    return np.ascontiguousarray(mask[top : rows[-1] + 1, left : columns[-1] + 1]), left, top
