"""Name every segment of an image and merge the named segments to one label map, as in the published demo.

Shapes: H, W are the height and width of the image that the segmenter receives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from osm.io.resizing import fitted_size, nearest_rows
from osm.recognition.panoptic import MIN_FREE, MIN_PIXELS, MIN_PROB, Merged, merge
from osm.recognition.recognizer import Recognition, Recognizer
from osm.recognition.segmenters.base import Segment, Segmenter

ALTERNATIVES = 5  # default number of candidate names for a selected region


@dataclass(frozen=True)
class NamingRequest:
    """Options for naming masks; see `Recognizer.name`.

    Attributes:
        mode: mode in which the model answers.
        vocabulary: the allowed names; empty for free names.
        method: how the vocabulary is applied (`constrained`, `scored` or `mapped`).
        top_k: number of candidate names per mask.
    """

    mode: str = "any"
    vocabulary: tuple[str, ...] = ()
    method: str = "constrained"
    top_k: int = ALTERNATIVES

    def run(self, recognizer: Recognizer, masks: Sequence[Any]) -> list[Recognition]:
        """Name masks of the recognizer's current image. Return one answer per mask."""
        names = list(self.vocabulary) or None
        answers = recognizer.name(masks, modes=[self.mode], top_k=self.top_k, vocabulary=names, method=self.method)
        return [of_mode[0] for of_mode in answers]


@dataclass(frozen=True)
class MapRequest(NamingRequest):
    """Options for naming a whole image and merging its segments to a label map.

    All areas are in pixels of the image resized to the model's input size.

    Attributes:
        min_area: segments with a smaller area are not named.
        min_prob, min_free, min_pixels: thresholds of the merge; see `osm.recognition.panoptic`.
    """

    top_k: int = 1
    min_area: int = 100
    min_prob: float = MIN_PROB
    min_free: float = MIN_FREE
    min_pixels: int = MIN_PIXELS


@dataclass
class NamedImage:
    """The named segments of an image.

    Attributes:
        scene: the image resized to the model's input size, as passed to the segmenter.
        size: (width, height) of the original image.
        segments: the segments that were large enough to be named, the largest first.
        answers: the answer for each of these segments.
        small: number of segments that were too small to be named.
        merged: the label map and the numbers of the segments in it.
    """

    scene: Image.Image
    size: tuple[int, int]
    segments: list[Segment]
    answers: list[Recognition]
    small: int
    merged: Merged = field(repr=False)

    def rle(self, mask: np.ndarray) -> dict[str, Any]:
        """Resize a mask (H, W) to the size of the original image and encode it as a compressed COCO RLE."""
        return encode_rle(resize_mask(mask, self.size))


def name_image(image: Image.Image, recognizer: Recognizer, segmenter: Segmenter, request: MapRequest) -> NamedImage:
    """Find, name and merge the segments of an RGB image."""
    scene = image.resize(fitted_size(*image.size, recognizer.processor.input_size), Image.Resampling.BICUBIC)
    segmenter.set_image(scene)
    found = segmenter.everything()
    segments = [segment for segment in found if segment.area >= request.min_area]
    answers: list[Recognition] = []
    if segments:
        recognizer.set_image(image)
        # The masks have the size of the original image, as in the output file. They are encoded as RLEs because
        # hundreds of decoded masks would take too much memory.
        rles = [encode_rle(resize_mask(segment.mask, image.size)) for segment in segments]
        answers = request.run(recognizer, rles)
    merged = _merged(segments, answers, request, scene)
    return NamedImage(scene, image.size, segments, answers, len(found) - len(segments), merged)


def _merged(segments: list[Segment], answers: list[Recognition], request: MapRequest, scene: Image.Image) -> Merged:
    named = [k for k, answer in enumerate(answers) if not answer.skipped]
    if not named:
        return Merged(np.zeros(scene.size[::-1], np.int32), [], {})
    masks, probs = [segments[k].mask for k in named], [answers[k].prob for k in named]
    found = merge(masks, probs, request.min_prob, request.min_free, request.min_pixels)
    dropped = {named[k]: why for k, why in found.dropped.items()}
    return Merged(found.ids, [named[k] for k in found.segments], dropped)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask to (width, height) by nearest neighbor."""
    if mask.shape == size[::-1]:
        return mask
    rows, columns = nearest_rows(mask.shape[0], size[1]), nearest_rows(mask.shape[1], size[0])
    return mask[rows[:, None], columns[None]]


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a bool mask (H, W) as a compressed COCO RLE, whose counts are a string."""
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def rle_box(rle: dict[str, Any]) -> list[float]:
    """Return the bounding box [x, y, width, height] of an RLE in pixels."""
    from pycocotools import mask as coco_mask

    return [float(value) for value in coco_mask.toBbox(rle)]
