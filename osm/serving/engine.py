"""A model and a segmenter that several people use in turn: a place in a picture becomes a mask, and gets a name."""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import OsmError
from osm.labeling.naming import NamingRequest
from osm.recognition.recognizer import Recognition, Recognizer
from osm.recognition.segmenters.base import Segmenter

MOST_SEGMENTS = 40  # of a picture that are named at once: more names cannot be read on it


@dataclass(frozen=True)
class Named:
    """A segment of a picture and its name.

    Attributes:
        how: what was pointed at, in words. rle: the mask, COCO's compressed RLE with text counts. area: in pixels.
    """

    how: str
    rle: dict[str, Any]
    area: int
    answer: Recognition

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)."""
        from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

        return coco_mask.decode(self.rle).astype(bool)


@dataclass(eq=False)  # a picture is itself alone, whatever it shows
class Picture:
    """An RGB picture and all that was named in it; one of the same pixels is another one."""

    image: Image.Image
    title: str = "picture"
    named: list[Named] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """What was named, for a JSON file: masks as COCO RLEs, names, probabilities."""
        regions = [
            {"chosen_by": one.how, "segmentation": one.rle, "area": one.area, **plain(one.answer)} for one in self.named
        ]
        return {"image": self.title, "width": self.image.width, "height": self.image.height, "regions": regions}


class Engine:
    """Names places of pictures; safe to use from several threads, whose pictures never mix.

    The model holds one picture at a time: a call takes the model for itself, and gives it its own picture if it has
    another one's.

    Args:
        segmenter: makes the masks; None where masks are brought (`painted`) alone.
    """

    def __init__(self, recognizer: Recognizer, segmenter: Segmenter | None = None) -> None:
        self.recognizer, self.segmenter = recognizer, segmenter
        self.modes: tuple[str, ...] = tuple(recognizer.modes)
        self._lock = threading.Lock()
        self._encoded: Picture | None = None  # the recognizer's picture
        self._segmented: Picture | None = None  # the segmenter's

    def point(self, picture: Picture, x: float, y: float, request: NamingRequest) -> Named:
        """Names what lies at (x, y), in pixels. Raises OsmError outside of the picture, or for a wrong request."""
        self._check_inside(picture, x, y)
        with self._lock:
            mask = self._ready(picture).at_points([(x, y)]).mask
            return self._name(picture, [(f"point {x:g}, {y:g}", mask)], request)[0]

    def box(self, picture: Picture, box: Sequence[float], request: NamingRequest) -> Named:
        """Names what a box (x, y, width, height) in pixels is around. Raises OsmError as `point`, or for no area."""
        x, y, width, height = box
        if not all(map(math.isfinite, box)):
            raise OsmError(f"box {x:g}, {y:g}, {width:g}, {height:g} is not made of finite numbers")
        if width <= 0 or height <= 0:
            raise OsmError(f"box {x:g}, {y:g}, {width:g}, {height:g} has no area: its corners must differ in x and y")
        self._check_inside(picture, x, y)
        with self._lock:
            mask = self._ready(picture).in_box(box).mask
            return self._name(picture, [("box " + ", ".join(f"{side:g}" for side in box), mask)], request)[0]

    def painted(self, picture: Picture, mask: np.ndarray, request: NamingRequest) -> Named:
        """Names a mask, bool (H, W) at the picture's size. Raises OsmError for an empty one or another size."""
        if not mask.any():
            raise OsmError("nothing is painted: paint over what is to be named")
        with self._lock:
            return self._name(picture, [("painted", mask)], request)[0]

    def everything(
        self, picture: Picture, request: NamingRequest, most: int = MOST_SEGMENTS
    ) -> tuple[list[Named], int]:
        """Names the largest segments that are found, and says how many smaller ones were left out."""
        with self._lock:
            segments = self._ready(picture).everything()
            if not segments:
                raise OsmError("the segmenter finds nothing in this picture: point at something, or paint it")
            chosen = [(f"segment {k}", segment.mask) for k, segment in enumerate(segments[:most], 1)]
            return self._name(picture, chosen, request), len(segments) - len(chosen)

    # -- with the lock held --------------------------------------------------------------------------------------------

    def _ready(self, picture: Picture) -> Segmenter:
        if self.segmenter is None:
            raise OsmError("there is no segmenter here: paint a mask instead")
        if self._segmented is not picture:
            # Not the one before, if this one fails; and a segmenter may look through the recognizer.
            self._segmented = self._encoded = None
            self.segmenter.set_image(picture.image)
            self._segmented = picture
        return self.segmenter

    def _name(self, picture: Picture, regions: list[tuple[str, np.ndarray]], request: NamingRequest) -> list[Named]:
        if self._encoded is not picture:
            self._encoded = None
            self.recognizer.set_image(picture.image)
            self._encoded = picture
        answers = request.run(self.recognizer, [mask for _, mask in regions])
        return [
            Named(how, rle_of(mask), int(mask.sum()), answer)
            for (how, mask), answer in zip(regions, answers, strict=True)
        ]

    @staticmethod
    def _check_inside(picture: Picture, x: float, y: float) -> None:
        width, height = picture.image.size
        if not (0 <= x < width and 0 <= y < height):  # false for nan, too
            raise OsmError(f"point {x:g}, {y:g} is outside of the picture, which is {width} x {height} pixels")


def load_engine(
    checkpoint: str,
    segmenter: str = "auto",
    sam_checkpoint: str | None = None,
    *,
    device: str = "auto",
    config: str | None = None,
) -> Engine:
    """A trained model (folder, hub id or `.pt`) with a segmenter; see `osm.recognition.segmenters.load_segmenter`."""
    from osm.recognition.recognizer import load_recognizer

    segmenters: Any = importlib.import_module("osm.recognition.segmenters")
    recognizer = load_recognizer(checkpoint, config=config, device=device)
    return Engine(
        recognizer, segmenters.load_segmenter(segmenter, sam_checkpoint, recognizer=recognizer, device=device)
    )


def rle_of(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask (H, W) as COCO's compressed RLE, its counts as text."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def plain(answer: Recognition) -> dict[str, Any]:
    """An answer for a JSON file."""
    if answer.skipped:
        return {"mode": answer.mode, "skipped": answer.skipped}
    found: dict[str, Any] = {"mode": answer.mode, "name": answer.text, "prob": answer.prob}
    if answer.said:
        found["said"] = answer.said
    found["top"] = [{"name": other.text, "prob": other.prob} for other in answer.top]
    return found


def names_of(text: str) -> tuple[str, ...]:
    """A name a line; empty lines are none."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
