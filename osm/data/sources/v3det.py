"""V3Det: boxes and nothing else."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from osm.data.sources.base import Item, Size, Warnings
from osm.data.sources.coco import check_box
from osm.data.sources.coco_json import Annotated, CocoJson, JsonSource, instance_annotations
from osm.errors import SampleError, shown


@dataclass(frozen=True)
class V3Det(JsonSource):
    """V3Det's json; its `file_name` begins with `images/`. Not all images of the release can still be had."""

    form: ClassVar[str] = "v3det"
    what: ClassVar[str] = "V3Det"
    table: ClassVar[str] = "v3det"
    fine: ClassVar[frozenset[str]] = frozenset({"image_missing"})
    published: ClassVar[tuple[str, ...]] = ("segments_info", "width", "height")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ann_dir", help="accepted, not used")
        super().add_arguments(parser)

    def annotated(self, source: CocoJson) -> Annotated:
        return instance_annotations(source, ("bbox", "category_id"))

    def key_of(self, image: dict[str, Any], path: Path) -> str:
        """The id: file names are unique within the folder of a class alone."""
        return f"{image['id']:08d}" if isinstance(image["id"], int) else re.sub(r"[^\w-]", "_", image["id"])

    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        kept = []
        for annotation in item.record["segments_info"]:
            where = f"image {item.image}, annotation {shown(annotation['id'])}"
            box = annotation.get("bbox")
            check_box(where, box)
            x, y, width, height = box
            if width <= 0 or height <= 0:
                warnings.append(("box_empty", f"{where}: bbox {box} has no area, left out", 1))
            elif x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
                at = f"the image of {size[0]} x {size[1]}"
                warnings.append(("box_outside", f"{where}: bbox {box} is outside of {at}, left out", 1))
            else:
                kept.append(annotation)
        if not kept:
            raise SampleError("no_boxes", f"image {item.image}: none of its boxes is in the image")
        return {}, {"segments_info": kept}
