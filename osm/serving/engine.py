"""The engine behind the interactive demos, which converts points, boxes and paintings to masks and names them.

All users of the demo share one model and one segmenter.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import OsmError
from osm.io.segmentation import encode_rle
from osm.labeling.naming import NamingRequest
from osm.recognition.answers import Recognition
from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters.base import Segmenter

MAX_SEGMENTS = 40  # maximum number of segments to name, because more names would not be readable on the image


@dataclass(frozen=True)
class NamedRegion:
    """A region of an image and its name.

    Attributes:
        selected_by: description of the user's selection, such as "point 80, 60".
        rle: the mask as a compressed COCO RLE, in which `counts` is a string.
        area: area of the mask in pixels.
        answer: the name and its probability.
    """

    selected_by: str
    rle: dict[str, Any]
    area: int
    answer: Recognition

    @property
    def mask(self) -> np.ndarray:
        """The mask, bool (H, W)."""
        from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

        return coco_mask.decode(self.rle).astype(bool)


@dataclass(eq=False)  # images are compared by identity
class DemoPicture:
    """An RGB image that a user selected in a demo, and the regions named in the image.

    `DemoPicture` objects are compared by identity, so two images with equal pixels are not equal.
    """

    image: Image.Image
    title: str = "picture"
    named: list[NamedRegion] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return a JSON object with the masks (as COCO RLEs), names and probabilities of all named regions."""
        regions = [
            {"chosen_by": one.selected_by, "segmentation": one.rle, "area": one.area, **answer_record(one.answer)}
            for one in self.named
        ]
        return {"image": self.title, "width": self.image.width, "height": self.image.height, "regions": regions}


class Engine:
    """Names regions of images. The engine is thread-safe.

    The recognizer and the segmenter each hold one image at a time. Each naming call locks the recognizer and the
    segmenter, and loads the call's image into them if they hold a different image.

    Args:
        recognizer: names the masks.
        segmenter: generates masks from points and boxes. None: only painted masks can be named.
    """

    def __init__(self, recognizer: Recognizer, segmenter: Segmenter | None = None) -> None:
        self.recognizer, self.segmenter = recognizer, segmenter
        self.modes: tuple[str, ...] = tuple(recognizer.modes)
        self._lock = threading.Lock()
        self._encoded: DemoPicture | None = None  # the image that is set in the recognizer
        self._segmented: DemoPicture | None = None  # the image that is set in the segmenter

    def point(self, picture: DemoPicture, x: float, y: float, request: NamingRequest) -> NamedRegion:
        """Name the object at (x, y) in pixels.

        Raises:
            OsmError: the point is outside the image, or the request is invalid.
        """
        self._check_inside(picture, x, y)
        with self._lock:
            mask = self._ready(picture).at_points([(x, y)]).mask
            return self._name(picture, [(f"point {x:g}, {y:g}", mask)], request)[0]

    def box(self, picture: DemoPicture, box: Sequence[float], request: NamingRequest) -> NamedRegion:
        """Name the object in a box, given as (x, y, width, height) in pixels.

        Raises:
            OsmError: the box has no area or starts outside the image, or the request is invalid.
        """
        x, y, width, height = box
        if not all(map(math.isfinite, box)):
            raise OsmError(
                f"box {x:g}, {y:g}, {width:g}, {height:g} contains NaN or infinite values; expected finite numbers"
            )
        if width <= 0 or height <= 0:
            raise OsmError(
                f"box {x:g}, {y:g}, {width:g}, {height:g} has no area: its width and height must be positive"
            )
        self._check_inside(picture, x, y)
        with self._lock:
            mask = self._ready(picture).in_box(box).mask
            return self._name(picture, [("box " + ", ".join(f"{side:g}" for side in box), mask)], request)[0]

    def painted(self, picture: DemoPicture, mask: np.ndarray, request: NamingRequest) -> NamedRegion:
        """Name the object under a painted mask, given as a bool array (H, W) of the same size as the image.

        Raises:
            OsmError: the mask is empty, the mask's size differs from the image's, or the request is invalid.
        """
        if not mask.any():
            raise OsmError("nothing is painted: paint over the object to name")
        with self._lock:
            return self._name(picture, [("painted", mask)], request)[0]

    def everything(
        self, picture: DemoPicture, request: NamingRequest, max_segments: int = MAX_SEGMENTS
    ) -> tuple[list[NamedRegion], int]:
        """Segment the image and name the largest segments.

        Args:
            max_segments: maximum number of segments to name.

        Returns:
            The named segments in descending order of area, and the number of smaller segments that were skipped.

        Raises:
            OsmError: the segmenter found nothing, or the request is invalid.
        """
        with self._lock:
            segments = self._ready(picture).everything()
            if not segments:
                raise OsmError("the segmenter found no objects in this picture: point at an object, or paint over it")
            chosen = [(f"segment {k}", segment.mask) for k, segment in enumerate(segments[:max_segments], 1)]
            return self._name(picture, chosen, request), len(segments) - len(chosen)

    # -- with the lock held --------------------------------------------------------------------------------------------

    def _ready(self, picture: DemoPicture) -> Segmenter:
        if self.segmenter is None:
            raise OsmError("no segmenter is loaded: paint a mask instead")
        if self._segmented is not picture:
            # `_segmented` is reset before `set_image` is called, because `set_image` may fail.
            # `_encoded` is reset too, because the segmenter may replace the image in the recognizer's tower.
            self._segmented = self._encoded = None
            self.segmenter.set_image(picture.image)
            self._segmented = picture
        return self.segmenter

    def _name(
        self, picture: DemoPicture, regions: list[tuple[str, np.ndarray]], request: NamingRequest
    ) -> list[NamedRegion]:
        if self._encoded is not picture:
            self._encoded = None
            self.recognizer.set_image(picture.image)
            self._encoded = picture
        answers = request.run(self.recognizer, [mask for _, mask in regions])
        return [
            NamedRegion(selected_by, encode_rle(mask), int(mask.sum()), answer)
            for (selected_by, mask), answer in zip(regions, answers, strict=True)
        ]

    @staticmethod
    def _check_inside(picture: DemoPicture, x: float, y: float) -> None:
        width, height = picture.image.size
        if not (0 <= x < width and 0 <= y < height):  # this also rejects NaN
            raise OsmError(f"point {x:g}, {y:g} is outside the picture, which has {width} x {height} pixels")


def load_engine(
    checkpoint: str,
    segmenter: str = "auto",
    sam_checkpoint: str | None = None,
    *,
    device: str = "auto",
    config: str | None = None,
    settings: Sequence[str] = (),
) -> Engine:
    """Load a trained model and a segmenter.

    Args:
        checkpoint: a folder, a hub id, a `.pt` file, or the name of a model that is included in the package.
        segmenter: name of the segmenter; see `osm.recognition.segmenters.load_segmenter`.
        sam_checkpoint: checkpoint of the segmenter; see `osm.recognition.segmenters.load_segmenter`.
        device: device of the model and the segmenter.
        config: the model config, for a checkpoint that does not contain one.
        settings: changes of single config values, as given to `--set`.
    """
    from osm.recognition.recognizer import load_recognizer
    from osm.recognition.segmenters import load_segmenter

    recognizer = load_recognizer(checkpoint, config=config, settings=settings, device=device)
    return Engine(recognizer, load_segmenter(segmenter, sam_checkpoint, recognizer=recognizer, device=device))


def answer_record(answer: Recognition) -> dict[str, Any]:
    """Convert the recognizer's result for one region to a JSON object."""
    if answer.skipped:
        return {"mode": answer.mode, "skipped": answer.skipped}
    found: dict[str, Any] = {"mode": answer.mode, "name": answer.text, "prob": answer.prob}
    if answer.class_id is not None:
        found["class_id"] = answer.class_id
    if answer.said:
        found["said"] = answer.said
    if answer.calibrated_prob is not None:
        found |= {"calibrated_prob": answer.calibrated_prob, "unsure": answer.unsure}
    found["top"] = [other.as_record() for other in answer.top]
    return found


def parse_names(text: str) -> tuple[str, ...]:
    """Parse a text with one name per line. Blank lines and duplicates are ignored."""
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
