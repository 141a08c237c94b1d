"""The COCO panoptic annotation format: a PNG of segment ids per image, and a JSON file with each segment's class."""

from __future__ import annotations

import argparse
import copy
import io
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from osm.datasets.labels import LabelSet
from osm.errors import OsmError, SampleError, shown
from osm.forms.base import (
    MIN_PIXELS,
    Entry,
    Form,
    Listing,
    Losses,
    Segment,
    SetFiles,
    Size,
    Target,
    check_marks,
    countable,
    is_crowd,
    member,
)
from osm.forms.coco_json import Annotation, CocoJson, ImageAnnotations
from osm.forms.set_files import check_mask_size, distinct_ids, naming_file, read_file
from osm.io.images import as_ids, decode, open_image, panoptic_pixels, read_panoptic
from osm.io.values import storable, whole

if TYPE_CHECKING:  # osm.io.views imports torch, which converters do not need
    from osm.io.views import View

_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 256**3


class Panoptic(Form):
    """An image with panoptic segments.

    Each segment is an entry in the JSON file, and its pixels in the PNG encode its id as R + 256 G + 65536 B.
    """

    name: ClassVar[str] = "coco_panoptic"
    what: ClassVar[str] = "a dataset in COCO panoptic format"
    masks: ClassVar[str] = "panoptic PNGs"
    needs: ClassVar[tuple[str, ...]] = ("image_dir", "mask_dir", "json_file")
    mask_members: ClassVar[Mapping[str, str]] = {"png": "pan_base64"}
    published: ClassVar[tuple[str, ...]] = ("segments_info",)
    unannotated: ClassVar[str] = "no_segments"
    prefix: ClassVar[str] = "["
    suffix: ClassVar[str] = "]"

    def _take(self, members: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        self.described: list[Annotation] = document.get("segments_info") or []  # with crowds
        self.segments = checked_segments(document.get("segments_info"), ("id", "category_id"), self.labels)
        self.entries = [entry for _, entry in self.segments if entry["category_id"] not in self.rules.ignored_ids]
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

    def targets(self) -> list[Target]:
        return [
            Target(place, entry["category_id"], partial(np.equal, self._ids, entry["id"]))
            for place, entry in self.segments
        ]

    @property
    def ids(self) -> np.ndarray:
        """The segment id of each pixel, as an int32 array (H, W)."""
        return self._ids

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ann_dir", required=True, help="folder of the panoptic PNGs")
        parser.add_argument("--image_dir", required=True, help="folder of the images")
        parser.add_argument("--json_file", required=True, help="the panoptic json")

    @classmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        source = CocoJson(files, labels)
        listed = 0

        def read_row(where: str, row: Annotation, collected: ImageAnnotations) -> None:
            nonlocal listed
            segments = row.get("segments_info")
            if not isinstance(segments, list) or not isinstance(row.get("file_name"), str):
                lacks = "list 'segments_info'" if not isinstance(segments, list) else "'file_name' of its PNG"
                raise SampleError("annotation_malformed", f"{where}: has no {lacks}")
            listed += 1
            if collected.panoptic_row is not None:
                if collected.panoptic_row == row:  # merged JSON files contain rows twice
                    return
                raise SampleError(
                    "image_annotated_twice", f"{where}: the image is annotated twice; this second annotation is skipped"
                )
            collected.panoptic_row, collected.raw, collected.masks = row, segments, {"png": row["file_name"]}
            segments[:] = [segment for segment in segments if _is_object(source, where, segment)]
            for place, segment in enumerate(segments):
                try:
                    collected.segments.append(_segment(source, where, segment))
                    collected.places.append(place)
                except SampleError as error:
                    source.losses.add(error.reason, str(error))

        found = source.by_image(read_row)
        if source.document["annotations"] and not listed:
            raise OsmError(
                f"{files.where('json_file')}: is this a panoptic json? The first error: {source.losses.first}"
            )
        if labels is None and files.row.exact_names:
            source.compare(files.row.labels)
        return source.listing(found)

    @classmethod
    def check(
        cls, files: SetFiles, entry: Entry, size: Size, losses: Losses
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None, tuple[int, ...]]:
        segments, mask = entry.record["segments_info"], entry.masks["png"]
        with naming_file(mask, "mask"):
            data = read_file(mask)
            if not data.startswith(_PNG):
                raise SampleError("mask_not_png", "is not a PNG file")
            check_mask_size(entry.image, open_image(data).size, size)
            data = _as_rgb(data, {segment["id"] for segment in segments})
            ids = read_panoptic(data)
        drawn = set(distinct_ids(ids)) - {0}
        counts = Counter(segment["id"] for segment in segments)
        twice = next((number for number, count in counts.items() if count > 1), None)
        if twice is not None:
            raise SampleError(
                "segment_id_twice", f"image {entry.image}: the JSON file lists the segment id {twice} more than once"
            )
        listed = set(counts)
        if listed and not listed & drawn:
            raise SampleError("no_id_in_png", _other_coding(mask, ids, listed, drawn))
        missing, strange = sorted(listed - drawn), sorted(drawn - listed)
        if missing:
            message = f"mask {mask}: segment ids {missing[:5]} in the json but not in the PNG"
            losses.add("id_not_in_png", message, len(missing))
        if strange:
            message = f"mask {mask}: segment ids {strange[:5]} in the PNG but not in the json"
            losses.add("id_not_in_json", message, len(strange))
        return {"png": data}, segments, tuple(range(len(segments)))

    # -- prediction files --------------------------------------------------------------------------------------------

    @classmethod
    def in_order(cls, entries: list[Entry]) -> list[Entry]:
        """Return the entries of all images listed in the JSON file's `annotations`, in the same order."""
        return sorted((entry for entry in entries if entry.masks), key=lambda entry: entry.order)

    @classmethod
    def words(cls, entry: Entry) -> tuple[Any, list[dict[str, Any]]]:
        row = copy.deepcopy(entry.raw)
        return row, row["segments_info"]

    @classmethod
    def key_of(cls, entry: Entry) -> Hashable:
        return countable(entry.raw["image_id"])

    @classmethod
    def outline(cls, entry: Entry) -> list[tuple[Hashable, Hashable]] | None:
        return [
            (countable(segment.get("id")), countable(segment.get("category_id")))
            for segment in entry.raw["segments_info"]
            if not is_crowd(segment)
        ]

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        if not isinstance(document, list):
            raise TypeError("expected a list of annotations")
        for row in document:
            yield row.get("image_id"), row["segments_info"]


def checked_segments(entries: Any, fields: tuple[str, ...], labels: LabelSet) -> list[tuple[int, dict[str, Any]]]:
    """Return (index, annotation) for each non-crowd annotation in a sample. Ids are converted to integers.

    Args:
        entries: the annotations.
        fields: the fields that every annotation needs.
        labels: the classes of the dataset.

    Raises:
        SampleError: `bad_json` if the annotations are malformed, `unknown_category` if a class is not in the labels.
    """
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and (is_crowd(entry) or all(name in entry for name in fields)) for entry in entries
    ):
        raise SampleError("bad_json", f"segments_info: every entry needs {', '.join(fields)}")
    found = []
    for place, entry in enumerate(entries):
        if is_crowd(entry):
            continue
        for name in ("id", "category_id"):
            if name not in fields or type(entry[name]) is int:
                continue
            number = whole(entry[name])
            if number is None:
                raise SampleError(
                    "bad_json", f"segments_info: id and category_id must be integers, found {shown(entry)}"
                )
            entry = {**entry, name: number}
        if "category_id" in fields and entry["category_id"] not in labels:
            raise SampleError(
                "unknown_category",
                f"category_id {shown(entry['category_id'])} is not in the label set {labels.source}",
            )
        found.append((place, entry))
    return found


def _is_object(source: CocoJson, where: str, segment: Any) -> bool:
    if not isinstance(segment, dict):
        source.losses.add("annotation_malformed", f"{where}: segment {shown(segment)} is not an object")
    return isinstance(segment, dict)


def _segment(source: CocoJson, where: str, segment: Annotation) -> Annotation:
    """Convert a segment's ids to integers and drop values that JSON cannot represent.

    Raises:
        SampleError: an id is invalid.
    """
    number = whole(segment.get("id"))
    if number is None or not 0 < number < _MOST:
        found = shown(segment.get("id"))
        raise SampleError("annotation_malformed", f"{where}: expected a segment id from 1 to 256^3 - 1, found {found}")
    check_marks(segment, f"{where}, segment {number}")
    crowd = is_crowd(segment)
    changes: Annotation = {"id": number}
    if not crowd or whole(segment.get("category_id")) is not None:
        changes["category_id"] = source.category_of(segment, f"{where}, segment {number}")
    if crowd or "iscrowd" in segment:
        changes["iscrowd"] = int(crowd)
    kept = {name: value for name, value in segment.items() if storable(value)}
    same = len(kept) == len(segment) and all(
        type(segment.get(name)) is int and segment[name] == value for name, value in changes.items()
    )
    return segment if same else {**kept, **changes}


def _as_rgb(data: bytes, listed: set[int]) -> bytes:
    """Convert a panoptic PNG to RGB, with ids encoded in red, green and blue. RGB and RGBA PNGs are left unchanged.

    In a palette PNG, the palette colors normally encode the ids. If no color matches an id in `listed` (the
    ids in the JSON file), but a palette index does, the indices are used as ids.
    """
    image = open_image(data)
    if image.mode in ("RGB", "RGBA"):
        return data
    if image.mode == "P":
        decode(image)
        indices, colours = np.asarray(image), image.convert("RGB")
        by_index = listed & set(distinct_ids(indices)) and not listed & set(distinct_ids(_ids_of(colours)))
        rgb = Image.fromarray(panoptic_pixels(indices)) if by_index else colours
    elif image.mode in ("1", "L", "I", "I;16", "I;16B"):  # the gray value is the id
        rgb = Image.fromarray(panoptic_pixels(as_ids(image)))
    else:
        return data  # `read_panoptic` raises the error
    written = io.BytesIO()
    rgb.save(written, "PNG")
    return written.getvalue()


def _ids_of(rgb: Image.Image) -> np.ndarray:
    pixels = np.asarray(rgb).astype(np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def _other_coding(mask: Path, ids: np.ndarray, listed: set[int], drawn: set[int]) -> str:
    """Return the error message for a PNG that contains none of the segment ids in the JSON file."""
    turned = {number // 65536 + number // 256 % 256 * 256 + number % 256 * 65536 for number in drawn}
    swapped = "red and blue swapped (BGR, as OpenCV writes)"
    hint = f"with {swapped} they match" if listed & turned else f"are {swapped}, or is the encoding different?"
    return (
        f"mask {mask}: none of the json's {len(listed)} segment ids (such as {min(listed)}) is in the PNG, which has "
        f"{len(drawn)} ids (such as {min(drawn, default=0)}) as R + 256 G + 65536 B; {hint}"
    )
