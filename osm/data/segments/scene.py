"""What all forms of samples share: the image, the choice of segments, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from osm.data.datasets import Rules
from osm.data.images import open_image, read_rgb
from osm.data.labels import LabelClass, LabelSet
from osm.data.views import View
from osm.errors import SampleError, shown

MIN_PIXELS = 100  # a segment counts if it covers more than this in the crop
IMAGE_MEMBERS = ("jpg", "jpeg", "image.png")


@dataclass(frozen=True)
class Segment:
    """One mask in a view, bool (crop_height, crop_width), and its class.

    Attributes:
        boxed: the mask is a box that the data give, and is asked about as one.
        whole: the class is one of whole objects, in a set of parts.
    """

    mask: np.ndarray
    label: LabelClass
    boxed: bool = False
    whole: bool = False

    @property
    def category_id(self) -> int:
        return self.label.id


class Scene:
    """A sample of a shard. `pick` is where the forms differ.

    Args:
        members, document: the sample's members, and the parsed one that is json.
        labels, rules: the set's classes and ways.
    """

    def __init__(
        self, members: Mapping[str, bytes], document: Mapping[str, Any], labels: LabelSet, rules: Rules
    ) -> None:
        self.labels, self.rules = labels, rules
        self._bytes = member(members, document, "image_base64", IMAGE_MEMBERS)
        self.width, self.height = open_image(self._bytes).size

    def image(self) -> Image.Image:
        return read_rgb(self._bytes)

    def pixels(self, view: View) -> np.ndarray:
        """What a view shows of the image (crop_height, crop_width, 3); no more of it is decoded than is needed."""
        return view.image(np.array(read_rgb(self._bytes, view.enough)), (self.width, self.height))

    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        """Up to `count` different counting segments of a view; empty where the view (or the draw) has none.

        Where the view was fixed beforehand, the draw is not to blame, and every segment of it is tried.

        Args:
            whole_prob: in a set of parts with maps of whole objects, how often one of these is drawn instead.
        """
        raise NotImplementedError

    def has_segments(self) -> bool:
        """Whether anything in the sample may be named, whether or not enough of it is in a view."""
        raise NotImplementedError

    def target(self, segment: Segment, rng: np.random.Generator, prepend_prob: float = 0.0) -> str:
        """The name that is trained for a segment: the first one of its class.

        Args:
            prepend_prob: in a set of parts with maps of whole objects, how often a part is named after its object.
        """
        return segment.label.target

    def _check(self, entries: Any, fields: tuple[str, ...]) -> list[dict[str, Any]]:
        """The json's segments without crowds, checked."""
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and all(field in entry for field in fields) for entry in entries
        ):
            raise SampleError("bad_json", f"segments_info: every entry needs {', '.join(fields)}")
        for entry in entries:
            if entry.get("iscrowd", 0):
                continue
            # The types first: what is not hashable could not even be looked up.
            if any(type(entry[field]) is not int for field in ("id", "category_id") if field in fields):
                raise SampleError("bad_json", f"segments_info: id and category_id are integers, found {shown(entry)}")
            if entry["category_id"] not in self.labels:
                raise SampleError(
                    "unknown_category",
                    f"category_id {shown(entry['category_id'])} is not in the label set {self.labels.source}",
                )
        return [entry for entry in entries if not entry.get("iscrowd", 0)]

    def _check_size(self, document: Mapping[str, Any]) -> None:
        for side in ("width", "height"):
            if side in document and document[side] != getattr(self, side):
                raise SampleError(
                    "size_mismatch",
                    f"{side} {shown(document[side])} in the json, {getattr(self, side)} in the image",
                )

    def _map(self, ids: np.ndarray) -> np.ndarray:
        """A label map, checked to be of the image's size."""
        if ids.shape != (self.height, self.width):
            size = " x ".join(str(side) for side in ids.shape[1::-1])
            raise SampleError("size_mismatch", f"the mask is {size}, its image {self.width} x {self.height}")
        return ids


def member(members: Mapping[str, bytes], document: Mapping[str, Any], key: str, names: tuple[str, ...]) -> bytes:
    """A part of a sample: a member of the plain layout, or a base64 string of the published one.

    Raises:
        SampleError: it is in neither, or the string is not base64.
    """
    for name in names:
        if name in members:
            return members[name]
    import pybase64

    value = document.get(key)
    if not isinstance(value, str):
        raise SampleError("missing_member", f"the sample has neither a member .{names[0]} nor a json field {key!r}")
    try:
        return pybase64.b64decode(value, validate=True)  # 40 times as fast as Python's own
    except ValueError as error:
        raise SampleError("bad_json", f"{key} is not base64 ({error})") from None
