"""What a shard's sample shows: its image, and the segments that may be asked about, in any view of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from osm.data.images import open_image, read_panoptic, read_rgb
from osm.data.labels import LabelSet
from osm.data.processor import nearest_rows
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.errors import OsmError, SampleError

MIN_PIXELS = 100  # a segment counts if it covers more than this in the crop


@dataclass(frozen=True)
class View:
    """A crop of the resized, possibly flipped image. All in pixels of the resized image."""

    width: int
    height: int
    left: int
    top: int
    crop_width: int
    crop_height: int
    flip: bool

    def image(self, image: Image.Image) -> np.ndarray:
        """The crop (crop_height, crop_width, 3); only what is in it is resampled."""
        sx, sy = image.width / self.width, image.height / self.height
        box = (
            self.left * sx,
            self.top * sy,
            min((self.left + self.crop_width) * sx, image.width),
            min((self.top + self.crop_height) * sy, image.height),
        )
        if (self.width, self.height) == image.size:
            crop = image.crop((self.left, self.top, self.left + self.crop_width, self.top + self.crop_height))
        else:
            crop = image.resize((self.crop_width, self.crop_height), Image.Resampling.BICUBIC, box=box)
        pixels = np.asarray(crop)
        return pixels[:, ::-1] if self.flip else pixels

    def labels(self, array: np.ndarray) -> np.ndarray:
        """A label map or mask (H, W) at the image's own size -> its crop, nearest."""
        rows = nearest_rows(array.shape[0], self.height, self.top, self.crop_height)
        columns = nearest_rows(array.shape[1], self.width, self.left, self.crop_width)
        crop = array[rows[:, None], columns[None]]
        return crop[:, ::-1] if self.flip else crop


@dataclass(frozen=True)
class Segment:
    """One mask in a view, bool (crop_height, crop_width), and its class."""

    mask: np.ndarray
    category_id: int


class Scene:
    """A sample of a shard. `pick` is where the forms differ.

    Attributes:
        entries: the json's segments that may be named (no crowd), whether or not enough of one is in a view.
    """

    entries: list[dict[str, Any]]

    def __init__(self, image: bytes, labels: LabelSet) -> None:
        self._bytes, self._labels = image, labels
        self.width, self.height = open_image(image).size

    def image(self) -> Image.Image:
        return read_rgb(self._bytes)

    def pick(self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False) -> list[Segment]:
        """Up to `count` different counting segments of a view; empty where the view (or the draw) has none.

        Where the view was fixed beforehand, the draw is not to blame, and every segment of it is tried.
        """
        raise NotImplementedError

    def is_thing(self, category_id: int) -> bool:
        return self._labels[category_id].isthing

    def target(self, category_id: int) -> str:
        """The name that is trained for a class: its first one."""
        return self._labels[category_id].target

    def _check(self, entries: Any, fields: tuple[str, ...]) -> list[dict[str, Any]]:
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and all(field in entry for field in fields) for entry in entries
        ):
            raise SampleError("bad_json", f"segments_info: every entry needs {', '.join(fields)}")
        for entry in entries:
            if entry.get("iscrowd", 0):
                continue
            # The types first: what is not hashable could not even be looked up.
            if any(not isinstance(entry[field], int) for field in ("id", "category_id") if field in fields):
                raise SampleError(
                    "bad_json", f"segments_info: id and category_id are integers, found {str(entry)[:80]}"
                )
            if entry["category_id"] not in self._labels:
                raise SampleError(
                    "unknown_category",
                    f"category_id {entry['category_id']!r} is not in the label set {self._labels.source}",
                )
        return [entry for entry in entries if not entry.get("iscrowd", 0)]


class PanopticScene(Scene):
    """COCO-panoptic form: crop first, then one of the segments that count in it, uniformly."""

    def __init__(self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet) -> None:
        super().__init__(_member(members, document, "image_base64", ("jpg", "jpeg", "image.png")), labels)
        self.entries = self._check(document.get("segments_info"), ("id", "category_id"))
        self._ids = read_panoptic(_member(members, document, "pan_base64", ("png",)))
        if self._ids.shape != (self.height, self.width):
            size = f"{self._ids.shape[1]} x {self._ids.shape[0]}"
            raise SampleError("size_mismatch", f"the mask is {size}, its image {self.width} x {self.height}")

    def pick(self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False) -> list[Segment]:
        crop = view.labels(self._ids)
        ids, pixels = np.unique(crop, return_counts=True)
        area = dict(zip(ids.tolist(), pixels.tolist(), strict=True))
        counting = [segment for segment in self.entries if area.get(segment["id"], 0) > MIN_PIXELS]
        order = rng.permutation(len(counting))[:count]
        return [Segment(crop == counting[i]["id"], counting[i]["category_id"]) for i in order]


class InstanceScene(Scene):
    """COCO-instances form: one annotation first, uniformly, then the crop; drawn again if too little of it remains."""

    def __init__(self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet) -> None:
        super().__init__(_member(members, document, "image_base64", ("jpg", "jpeg", "image.png")), labels)
        for side in ("width", "height"):
            if side in document and document[side] != getattr(self, side):
                raise SampleError(
                    "size_mismatch", f"{side} {document[side]!r} in the json, {getattr(self, side)} in the image"
                )
        self.entries = self._check(document.get("segments_info"), ("category_id", "segmentation"))

    def pick(self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False) -> list[Segment]:
        picked: list[Segment] = []
        for i in rng.permutation(len(self.entries)):
            mask = view.labels(self._mask(self.entries[i]["segmentation"]))
            if mask.sum() > MIN_PIXELS:
                picked.append(Segment(mask, self.entries[i]["category_id"]))
            elif not picked and not fixed_view:
                return []
            if len(picked) == count:
                break
        return picked

    def _mask(self, segmentation: Any) -> np.ndarray:
        try:
            check_segmentation(segmentation, "segments_info")
            return decode_segmentation(segmentation, (self.height, self.width), "segments_info")
        except OsmError as error:
            raise SampleError("bad_segmentation", str(error)) from None


def _member(members: Mapping[str, bytes], document: Mapping[str, Any], key: str, names: tuple[str, ...]) -> bytes:
    """A part of a sample: a member of the plain layout, or a base64 string of the published one."""
    for name in names:
        if name in members:
            return members[name]
    value = document.get(key)
    if not isinstance(value, str):
        raise SampleError("missing_member", f"the sample has neither a member .{names[0]} nor a json field {key!r}")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise SampleError("bad_json", f"{key} is not base64 ({error})") from None


FORM_READERS: dict[str, Callable[[Mapping[str, bytes], Mapping[str, Any], LabelSet], Scene]] = {
    "coco_panoptic": PanopticScene,
    "coco_instances": InstanceScene,
}


def read_scene(form: str, members: Mapping[str, bytes], labels: LabelSet) -> Scene:
    """Reads a sample's members, of either layout, in one of the forms of the dataset table.

    Raises:
        SampleError: what is wrong with it.
    """
    try:
        document = json.loads(members["json"])
    except KeyError:
        raise SampleError("missing_member", "the sample has no .json member") from None
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", f"the .json member: {error}") from None
    if not isinstance(document, dict):
        raise SampleError("bad_json", "the .json member is no object")
    return FORM_READERS[form](members, document, labels)
