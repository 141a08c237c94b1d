"""A COCO json (COCO's own, or LVIS's, V3Det's, Cityscapes', one's own), and a plan from it."""

from __future__ import annotations

import argparse
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from osm.data.labels import LabelSet, load_labels
from osm.data.paths import safe_join
from osm.data.pool import say
from osm.data.sources.base import SEED, Items, Plan, Source, check_folder
from osm.errors import OsmError, shown
from osm.files import read_json

_TOLERATED = 0.05  # the share of names that may be spelt in another way
Segments = list[dict[str, Any]]
Annotated = dict[int | str, tuple[Mapping[str, Path], Segments]]  # by image id: its masks, its segments


class CocoJson:
    """A COCO json, read and checked as far as that goes without the images."""

    def __init__(self, json_file: str | Path) -> None:
        self.path = Path(json_file)
        self.document, self.sha256 = read_json(self.path, "--json_file", nesting=None)
        for name in ("images", "annotations", "categories"):
            if not isinstance(self.document, dict) or not isinstance(self.document.get(name), list):
                raise OsmError(f"--json_file {self.path}: has no list {name!r}")
        self.labels = LabelSet.from_categories(self.document["categories"], str(self.path))
        self.images: dict[int | str, dict[str, Any]] = {}
        for number, image in enumerate(self.document["images"]):
            if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
                raise OsmError(f"{self.path}: images[{number}] needs an 'id', a number or a string")
            if image["id"] in self.images:
                raise OsmError(f"{self.path}: images[{number}]: the id {image['id']!r} is given twice")
            self.images[image["id"]] = image

    def annotations(self) -> Iterator[tuple[str, int | str, dict[str, Any]]]:
        """(how to name it in a message, image id, annotation)."""
        for number, row in enumerate(self.document["annotations"]):
            where = f"{self.path}: annotations[{number}]"
            if not isinstance(row, dict) or not isinstance(row.get("image_id"), (int, str)):
                raise OsmError(f"{where} needs an 'image_id', a number or a string")
            if "id" in row:
                where += f" (id {shown(row['id'])})"
            if row["image_id"] not in self.images:
                raise OsmError(f"{where}: there is no image with the id {row['image_id']!r} in 'images'")
            yield where, row["image_id"], row

    def check_category(self, where: str, segment: dict[str, Any]) -> None:
        category = segment.get("category_id")
        if not isinstance(category, int) or category not in self.labels:
            known = f"the {len(self.labels.classes)} 'categories' of the file"
            raise OsmError(f"{where}: category_id {shown(category)} is not among {known}")


def locate(where: str, flag: str, folder: str | Path, name: Any) -> Path:
    """The path of a file that the json names, which must lie in the folder of `flag`."""
    try:
        return safe_join(Path(folder), name)
    except OsmError as error:
        raise OsmError(f"{where}, --{flag}: {error}") from None


@dataclass(frozen=True)
class JsonSource(Source):
    """A set whose samples are the images of a COCO json.

    Attributes:
        unannotated: the reason for which an image without annotations is left out.
        table: the project's table of the set's names; empty for a form that any set may have.
    """

    json_file: str | Path
    image_dir: str | Path

    unannotated: ClassVar[str] = "no_annotations"
    table: ClassVar[str] = ""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="folder of the images")
        parser.add_argument("--json_file", required=True, help="the json of the annotations")

    @abstractmethod
    def annotated(self, source: CocoJson) -> Annotated:
        """The masks' files and the segments of each image."""

    def name_of(self, where: str, image: dict[str, Any], masks: Mapping[str, Path]) -> Any:
        """The image's file, relative to `image_dir`."""
        return image.get("file_name", "")

    def key_of(self, image: dict[str, Any], path: Path) -> str:
        """The sample's key: the image's own name, or its id in the source."""
        return path.stem

    def unwanted(self, source: CocoJson) -> dict[int | str, str]:
        """Images to leave out, by id: the reason. (A file that merely has such an id is not meant.)"""
        return {}

    def more_arguments(self) -> dict[str, Any]:
        """What else decides the content of the shards."""
        return {}

    def plan(self) -> Plan:
        folders = {one.name: getattr(self, one.name) for one in fields(self) if one.name.endswith("_dir")}
        for flag, folder in folders.items():
            check_folder(flag, folder)
        source = CocoJson(self.json_file)
        if self.table:
            _compare(source, self.table)
        annotated, unwanted = self.annotated(source), self.unwanted(source)
        left_out: Counter[str] = Counter()
        items = Items()
        for number, (image_id, image) in enumerate(source.images.items()):
            where = f"{source.path}: images[{number}] (id {image_id!r})"
            masks, segments = annotated.get(image_id, ({}, []))
            name = self.name_of(where, image, masks)
            path = locate(where, "image_dir", self.image_dir, name)
            if image_id in unwanted and path.stem == f"{image_id:012d}":
                left_out[unwanted[image_id]] += 1
            elif not segments:
                left_out[self.unannotated] += 1
            else:
                size = {side: image[side] for side in ("width", "height") if image.get(side) is not None}
                record = {"file_name": name, **size, "image_id": image_id, "segments_info": segments}
                items.add(where, self.key_of(image, path), path, masks, record)
        arguments = {
            "form": self.form,
            "json_file": str(Path(self.json_file).resolve()),
            "json_sha256": source.sha256,
            **{flag: str(Path(folder).resolve()) for flag, folder in folders.items()},
            **self.more_arguments(),
            "seed": SEED,
        }
        return Plan(items.shuffled(), left_out, arguments, source.document["categories"])


def _compare(source: CocoJson, table: str) -> None:
    """Warns where the json's ids mean something else than those of the table (another release of the set)."""

    def plain(names: Iterable[str]) -> set[str]:
        return {re.sub(r"\(.*?\)|[\W_]", "", name.lower()) for name in names}

    known, own = load_labels(table).classes, source.labels.classes
    other = [n for n, one in own.items() if n not in known or not plain(one.names) & plain(known[n].names)]
    if len(other) > _TOLERATED * len(own):
        first = own[other[0]]
        there = repr(known[first.id].target) if first.id in known else "nothing"
        say(
            "warning",
            f"{source.path}: {len(other)} of {len(own)} category ids mean something else in the project's table "
            f"{table!r} (id {first.id}: {first.target!r}, there {there}): is this another release? To train on it, "
            "give the set a row whose labels are the categories.json written here",
        )


def panoptic_annotations(source: CocoJson, ann_dir: str | Path) -> Annotated:
    """The panoptic PNG and the segments of each image."""
    found: Annotated = {}
    for where, image_id, row in source.annotations():
        if image_id in found:
            raise OsmError(f"{where}: image {image_id!r} has a second row; a panoptic json has one an image")
        segments = row.get("segments_info")
        if not isinstance(segments, list):
            raise OsmError(f"{where}: has no list 'segments_info'; is this a panoptic json?")
        for segment in segments:
            at = segment.get("id") if isinstance(segment, dict) else None
            if not isinstance(at, int) or not 0 < at < 256**3:
                raise OsmError(
                    f"{where}, image {image_id!r}: a segment needs an id of 1 to 256^3 - 1, found {shown(at)}"
                )
            source.check_category(f"{where}, image {image_id!r}, segment {at}", segment)
        found[image_id] = {"png": locate(where, "ann_dir", ann_dir, row.get("file_name", ""))}, segments
    return found


def instance_annotations(source: CocoJson, kept_fields: tuple[str, ...]) -> Annotated:
    """The annotations of each image, with these of their fields, their id and `iscrowd`."""
    found: Annotated = {}
    for number, (where, image_id, row) in enumerate(source.annotations()):
        if "segments_info" in row:
            raise OsmError(f"{where}: has 'segments_info': this is a panoptic json, not an instances one")
        source.check_category(f"{where}, image {image_id!r}", row)
        kept: dict[str, Any] = {name: row[name] for name in kept_fields if name in row}
        kept |= {"id": row.get("id", number), "iscrowd": row.get("iscrowd", 0)}
        found.setdefault(image_id, ({}, []))[1].append(kept)
    return found
