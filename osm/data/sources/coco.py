"""Sets in COCO-panoptic form (COCO, ADE20K, one's own; Cityscapes but for its names) and COCO-instances form (LVIS)."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from osm.data.image_names import name_by_frame, name_by_url
from osm.data.images import open_image, read_panoptic
from osm.data.labels import load_labels
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.data.sources.base import Item, Size, Warnings, about, check_size, distinct, read
from osm.data.sources.coco_json import Annotated, CocoJson, JsonSource, instance_annotations, panoptic_annotations
from osm.errors import OsmError, SampleError, shown

_PNG = b"\x89PNG\r\n\x1a\n"


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


@dataclass(frozen=True)
class _Filtered(JsonSource):
    """A set that may be COCO's.

    Attributes:
        filter_lvis_val: leave out the COCO train images that are in LVIS val; other sets are not touched.
    """

    filter_lvis_val: bool = True

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--filter_lvis_val",
            type=_true_or_false,
            default=True,
            metavar="True|False",
            help="leave out the COCO train images that are in LVIS val; other sets are not touched (default True)",
        )

    def more_arguments(self) -> dict[str, Any]:
        return {"filter_lvis_val": self.filter_lvis_val}

    def unwanted(self, source: CocoJson) -> dict[int | str, str]:
        if not self.filter_lvis_val or not _of_coco(source):
            return {}
        table = resources.files("osm.data") / "labels" / "coco_train2017_in_lvis_val.txt"
        return {int(line): "in_lvis_val" for line in table.read_text(encoding="utf-8").split()}


def _of_coco(source: CocoJson) -> bool:
    """Whether the categories are COCO's, or some of them, by id; the things by name too (stuff has several)."""
    coco = load_labels("coco").classes
    return all(
        own.id in coco and (not coco[own.id].isthing or own.target in coco[own.id].names)
        for own in source.labels.classes.values()
    )


@dataclass(frozen=True)
class _Panoptic(JsonSource):
    """A panoptic json, and a PNG an image."""

    ann_dir: str | Path = ""

    unannotated: ClassVar[str] = "no_segments"
    published: ClassVar[tuple[str, ...]] = ("segments_info",)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ann_dir", required=True, help="folder of the panoptic PNGs")
        super().add_arguments(parser)

    def annotated(self, source: CocoJson) -> Annotated:
        return panoptic_annotations(source, self.ann_dir)

    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        mask = item.masks["png"]
        with about(mask, "mask"):
            data = read(mask)
            if not data.startswith(_PNG):
                raise SampleError("mask_not_png", "is not a PNG file")
            check_size(item, open_image(data).size, size)
            drawn = set(distinct(read_panoptic(data))) - {0}
        ids = [segment["id"] for segment in item.record["segments_info"]]
        listed = set(ids)
        if len(ids) != len(listed):
            twice = next(number for number, count in Counter(ids).items() if count > 1)
            raise SampleError("segment_id_twice", f"image {item.image}: the json has segment id {twice} twice")
        for reason, missing, place in (
            ("id_not_in_png", sorted(listed - drawn), "in the json but not in the PNG"),
            ("id_not_in_json", sorted(drawn - listed), "in the PNG but not in the json"),
        ):
            if missing:
                warnings.append((reason, f"mask {mask}: segment ids {missing[:5]} {place}", len(missing)))
        return {"png": data}, {}


@dataclass(frozen=True)
class CocoPanoptic(_Panoptic, _Filtered):
    """COCO, ADE20K, and one's own sets."""

    form: ClassVar[str] = "coco_panoptic"
    what: ClassVar[str] = "a set in COCO-panoptic form"


@dataclass(frozen=True)
class Cityscapes(_Panoptic):
    """Cityscapes' panoptic json, whose `file_name` is not what the image is called."""

    form: ClassVar[str] = "cityscapes"
    what: ClassVar[str] = "Cityscapes panoptic"
    table: ClassVar[str] = "cityscapes"

    def name_of(self, where: str, image: dict[str, Any], masks: Mapping[str, Path]) -> Any:
        if not masks:
            return super().name_of(where, image, masks)
        return name_by_frame(masks["png"].name, where)

    def key_of(self, image: dict[str, Any], path: Path) -> str:
        return path.stem.removesuffix("_leftImg8bit")


@dataclass(frozen=True)
class _Instances(JsonSource):
    """Polygons or RLE."""

    published: ClassVar[tuple[str, ...]] = ("segments_info", "width", "height")

    def annotated(self, source: CocoJson) -> Annotated:
        return instance_annotations(source, ("bbox", "category_id", "segmentation", "area"))

    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        return {}, {"segments_info": with_masks(item, size, warnings)}


@dataclass(frozen=True)
class CocoInstances(_Instances, _Filtered):
    """One's own sets, and COCO's instances."""

    form: ClassVar[str] = "coco_instances"
    what: ClassVar[str] = "a set in COCO-instances form"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ann_dir", help="accepted, not used")
        super().add_arguments(parser)


@dataclass(frozen=True)
class Lvis(_Instances):
    """LVIS: its images are named by `coco_url` (its `file_name`, if any, is not what they are called)."""

    form: ClassVar[str] = "lvis"
    what: ClassVar[str] = "LVIS v1"
    table: ClassVar[str] = "lvis"

    def name_of(self, where: str, image: dict[str, Any], masks: Mapping[str, Path]) -> Any:
        return name_by_url(image, where)


def finite(numbers: Sequence[Any]) -> bool:
    """Whether all are numbers that a float can hold: an integer may be larger than that."""
    return all(isinstance(number, (int, float)) and abs(number) <= sys.float_info.max for number in numbers)


def check_box(where: str, box: Any) -> None:
    if not isinstance(box, list) or len(box) != 4 or not finite(box):
        raise SampleError("annotation_malformed", f"{where}: bbox {shown(box)} is not [x, y, width, height]")


def _polygons(polygons: list[Any]) -> list[Any]:
    """Those with three points or more. (pycocotools takes one of two points for a box.)"""
    return [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and finite(p)]


def with_masks(item: Item, size: Size, warnings: Warnings) -> list[dict[str, Any]]:
    """The annotations that have a mask, once they are known to fit the image."""
    kept = []
    for annotation in item.record["segments_info"]:
        where = f"image {item.image}, annotation {shown(annotation['id'])}"
        check_box(where, annotation.get("bbox"))
        segmentation = annotation.get("segmentation", [])
        if isinstance(segmentation, dict):
            if segmentation.get("size") != [size[1], size[0]]:
                found = shown(segmentation.get("size"))
                raise SampleError("size_mismatch", f"{where}: RLE of size {found}, the image's is {[size[1], size[0]]}")
            try:
                check_segmentation(segmentation, where)
                decode_segmentation(segmentation, (size[1], size[0]), where)
            except OsmError as error:
                raise SampleError("annotation_malformed", str(error)) from None
        elif isinstance(segmentation, list):
            usable = _polygons(segmentation)
            if len(usable) < len(segmentation):
                unusable = len(segmentation) - len(usable)
                warnings.append(("polygon_unusable", f"{where}: under three points, left out", unusable))
            segmentation = usable
        else:
            raise SampleError("annotation_malformed", f"{where}: segmentation is neither polygons nor RLE")
        if segmentation:
            kept.append({**annotation, "segmentation": segmentation})
        else:
            warnings.append(("annotation_without_mask", f"{where}: has no mask, left out", 1))
    if not kept:
        raise SampleError("no_masks", f"image {item.image}: none of its annotations has a mask")
    return kept
