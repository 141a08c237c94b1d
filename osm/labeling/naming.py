"""Names every segment of an image and merges the named segments into one label map, as in the published demo.

Shapes: H and W are the height and width of the resized image that the segmenter receives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from osm.datasets.labels import LabelClass
from osm.io.resizing import fitted_size, nearest_rows, taken
from osm.io.segmentation import encode_rle
from osm.recognition.answers import Recognition
from osm.recognition.panoptic import MIN_FREE, MIN_PIXELS, MIN_PROB, Merged, merge
from osm.recognition.recognizer import Recognizer
from osm.recognition.segmenters.base import ScoredMask, Segmenter
from osm.recognition.vocabulary import Ranking

ALTERNATIVES = 5  # default number of candidate names for a selected region


@dataclass(frozen=True)
class NamingRequest:
    """Options for naming masks, which are passed to `Recognizer.name`.

    Attributes:
        mode: mode in which the model answers.
        vocabulary: the allowed names or classes; if empty, any name is allowed.
        method: how the vocabulary is applied (`constrained`, `scored` or `mapped`).
        top_k: number of candidate names per mask.
        ranking, none_below: how the names of the vocabulary are compared; see `Recognizer.name`.
    """

    mode: str = "any"
    vocabulary: tuple[str | LabelClass, ...] = ()
    method: str = "constrained"
    top_k: int = ALTERNATIVES
    ranking: Ranking = field(default_factory=Ranking)
    none_below: float = 0.0

    def run(self, recognizer: Recognizer, masks: Sequence[Any], boxes: Sequence[Any] = ()) -> list[Recognition]:
        """Predict names for masks and boxes of the recognizer's current image, and return one answer for each."""
        names = list(self.vocabulary) or None
        answers = recognizer.name(
            masks,
            boxes=list(boxes) or None,
            modes=[self.mode],
            top_k=self.top_k,
            vocabulary=names,
            method=self.method,
            ranking=self.ranking,
            none_below=self.none_below,
        )
        return [of_mode[0] for of_mode in answers]


@dataclass(frozen=True)
class MapRequest(NamingRequest):
    """Options for naming all segments of an image and merging them into a label map.

    All areas are measured in pixels after the image is resized to the model's input size.

    Attributes:
        min_area: segments with a smaller area are not named.
        min_prob: minimum probability of a segment's name; see `osm.recognition.panoptic.merge`.
        min_free: minimum uncovered share of a segment; see `osm.recognition.panoptic.merge`.
        min_pixels: minimum number of uncovered pixels of a segment; see `osm.recognition.panoptic.merge`.
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
        segments: the segments that were large enough to be named, in descending order of area.
        answers: for each element of `segments`, the recognizer's answer.
        small: number of segments that were too small to be named.
        merged: the label map, and the indices of the segments in the map.
    """

    scene: Image.Image
    size: tuple[int, int]
    segments: list[ScoredMask]
    answers: list[Recognition]
    small: int
    merged: Merged = field(repr=False)

    def rle(self, mask: np.ndarray) -> dict[str, Any]:
        """Resize a mask (H, W) to the size of the original image and encode it as a compressed COCO RLE."""
        return encode_rle(resize_mask(mask, self.size))


def name_image(image: Image.Image, recognizer: Recognizer, segmenter: Segmenter, request: MapRequest) -> NamedImage:
    """Find and name the segments of an RGB image, and merge the named segments into a label map."""
    scene = image.resize(fitted_size(*image.size, recognizer.processor.input_size), Image.Resampling.BICUBIC)
    segmenter.set_image(scene)
    found = segmenter.everything()
    segments = [segment for segment in found if segment.area >= request.min_area]
    answers: list[Recognition] = []
    if segments:
        recognizer.set_image(image)
        # Masks are resized to the size of the original image, like the masks in the output file.
        # Masks are encoded as RLEs, because hundreds of decoded masks would take too much memory.
        rles = [encode_rle(resize_mask(segment.mask, image.size)) for segment in segments]
        answers = request.run(recognizer, rles)
    merged = _merged(segments, answers, request, scene)
    return NamedImage(scene, image.size, segments, answers, len(found) - len(segments), merged)


def _merged(segments: list[ScoredMask], answers: list[Recognition], request: MapRequest, scene: Image.Image) -> Merged:
    named = [k for k, answer in enumerate(answers) if not answer.skipped]
    if not named:
        return Merged(np.zeros(scene.size[::-1], np.int32), [], {})
    masks, probs = [segments[k].mask for k in named], [answers[k].prob for k in named]
    found = merge(masks, probs, request.min_prob, request.min_free, request.min_pixels)
    dropped = {named[k]: why for k, why in found.dropped.items()}
    return Merged(found.ids, [named[k] for k in found.segments], dropped)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask to (width, height) with nearest-neighbor sampling."""
    if mask.shape == size[::-1]:
        return mask
    rows, columns = nearest_rows(mask.shape[0], size[1]), nearest_rows(mask.shape[1], size[0])
    return taken(mask, rows, columns)
