"""Regions: boxes or masks, each with phrases of its own instead of a category.

A sample's json has {file_name, image_id, width, height, segments_info: [{id, iscrowd, phrases, bbox or segmentation}]}.
The first phrase is what is trained; the others are right as well. Where a set has to have classes (evaluation), each
distinct list of phrases is one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from osm.datasets.labels import LabelClass, LabelSet
from osm.datasets.table import Dataset
from osm.errors import SampleError, shown
from osm.forms.base import Listing, Losses, Segment, SetFiles, Size, Target, is_crowd
from osm.forms.coco_json import Annotation, CocoJson, OfImage
from osm.forms.instances import Instances, box_in_view, corners, draw_box, usable_box
from osm.forms.region_sources import (
    MAX_PHRASE,
    PHRASE_FIELDS,
    phrase_lists,
    phrases_of,
    plain_phrases,
    read_regions,
)
from osm.forms.remote import localized
from osm.forms.split import set_files
from osm.storage.locations import public

if TYPE_CHECKING:  # it imports torch, which converters do without
    from osm.io.views import View

_SHAPES = ("segmentation", "bbox")


class Regions(Instances):
    """A region with a segmentation is a mask; one with a box alone is asked about as a box."""

    name: ClassVar[str] = "regions"
    phrased: ClassVar[bool] = True
    what: ClassVar[str] = "regions with phrases: Visual Genome's, RefCOCO's, or those of a COCO-like json"
    more_arguments: ClassVar[tuple[str, ...]] = ("refs_file", "split")

    def _read(self, entries: Any) -> list[tuple[int, Annotation]]:
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise SampleError("bad_json", "segments_info: expected a list of regions")
        found = []
        for place, entry in enumerate(entries):
            if is_crowd(entry):
                continue
            phrases = plain_phrases(entry.get("phrases"))
            if not phrases or not any(entry.get(shape) for shape in _SHAPES):
                message = f"segments_info: a region needs phrases and a segmentation or bbox, found {shown(entry)}"
                raise SampleError("bad_json", message)
            found.append((place, {**entry, "phrases": phrases}))
        return found

    def _segment(self, mask: np.ndarray, entry: Annotation) -> Segment:
        return Segment(mask, LabelClass(_category(entry), entry["phrases"]), _is_box(entry))

    def _mask(self, number: int, view: View) -> np.ndarray | None:
        entry = self.entries[number]
        if _is_box(entry):
            return box_in_view(self._corners(entry), view, (self.height, self.width))
        return super()._mask(number, view)

    def _corners(self, entry: Annotation) -> tuple[int, int, int, int]:
        return corners(entry["bbox"], (self.width, self.height), "segments_info")

    def _draw(self, entry: Annotation) -> np.ndarray:
        if _is_box(entry):
            return draw_box(self._corners(entry), (self.height, self.width))
        return super()._draw(entry)

    def targets(self) -> list[Target]:
        return [
            Target(place, _category(entry), partial(self._draw, entry), _is_box(entry))
            for place, entry in self.segments
        ]

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--image_dir", required=True, help="folder of the images; of Visual Genome, that of VG_100K"
        )
        parser.add_argument("--json_file", required=True, help="the json of the regions, which its shape is known by")
        parser.add_argument(
            "--refs_file", help="of RefCOCO: the json of its refs; json_file is then its instances.json"
        )
        parser.add_argument("--split", help="which refs: train, val, testA, ...")

    @classmethod
    def labels_of(cls, row: Dataset) -> LabelSet:
        """One class for each distinct list of phrases of its json; none where there is no json, as in training."""
        if row.json_file is None:
            return LabelSet("the phrases of the shards", {})
        lists = phrase_lists(read_regions(localized(set_files(row), cls))[0])
        return LabelSet(public(row.json_file), {i: LabelClass(i, phrases) for i, phrases in enumerate(lists, 1)})

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        source = CocoJson(files, LabelSet(str(files.json_file), {}), read_regions(files))
        ids = {} if labels is None else {one.names: i for i, one in labels.classes.items()}
        seen = 0

        def read_row(where: str, row: Annotation, of: OfImage) -> None:
            nonlocal seen
            own_id = row.get("id")
            own: Annotation = {"id": own_id if isinstance(own_id, (int, str)) else seen, "iscrowd": int(is_crowd(row))}
            phrases, shape = phrases_of(row), {name: row[name] for name in _SHAPES if row.get(name)}
            own |= {"phrases": list(phrases)} | ({"category_id": ids[phrases]} if phrases in ids else {})
            seen += 1
            # A converter does not look at them, and there are millions.
            of.raw.append(own if labels is None else {**own, "image_id": row.get("image_id"), **shape})
            if not phrases and not own["iscrowd"]:
                raise SampleError("phrase_missing", f"{where}: {_why_none(row)}")
            if "segmentation" in shape:
                shape.pop("bbox", None)
            of.segments.append(own | shape)
            of.places.append(len(of.raw) - 1)

        found = source.by_image(read_row)
        listing = source.listing(found)
        more = {name: value for name, value in files.more.items() if value is not None}
        if "refs_file" in more:
            more["refs_file"] = files.recorded("refs_file")
        listing.arguments.update(more)
        return listing

    @classmethod
    def wrong_class(cls, annotation: Mapping[str, Any], label: LabelClass) -> str:
        """The category id of a phrase depends on the json file: in another json the same id is another phrase."""
        if plain_phrases(annotation.get("phrases")) == label.names:
            return ""
        said = f"phrases {shown(annotation.get('phrases'))}, but category_id {label.id} is {shown(label.names)}"
        return f"{said}: the json_file is not the one that was predicted on"

    @classmethod
    def _usable(cls, annotation: Annotation, size: Size, where: str, losses: Losses) -> Annotation:
        if "segmentation" in annotation:
            return super()._usable(annotation, size, where, losses)
        if "bbox" not in annotation:
            raise SampleError("annotation_without_mask", f"{where}: has neither a segmentation nor a bbox")
        return {**annotation, "bbox": usable_box(annotation["bbox"], size, where)}


def _is_box(entry: Annotation) -> bool:
    return not entry.get("segmentation")


def _category(entry: Annotation) -> int:
    """0 in a shard, whose regions have no classes."""
    category = entry.get("category_id")
    return category if type(category) is int else 0


def _why_none(row: Annotation) -> str:
    given = {field: row[field] for field in PHRASE_FIELDS if field in row}
    return f"has no phrase of 1 to {MAX_PHRASE} characters ({shown(given) if given else 'nothing is said of it'})"


__all__ = ["Regions"]
