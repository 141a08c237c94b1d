"""A whole picture named: its segments, a name of each, and the map of those that stay (the published demo's way).

Shapes: H, W of the picture as the segmenter sees it.
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

ALTERNATIVES = 5  # names that are shown of what was pointed at


@dataclass(frozen=True)
class NamingRequest:
    """How something is to be named; see `Recognizer.name`. An empty vocabulary is none."""

    mode: str = "any"
    vocabulary: tuple[str, ...] = ()
    method: str = "constrained"
    top_k: int = ALTERNATIVES

    def run(self, recognizer: Recognizer, masks: Sequence[Any]) -> list[Recognition]:
        """Names masks of the image that is set."""
        names = list(self.vocabulary) or None
        answers = recognizer.name(masks, modes=[self.mode], top_k=self.top_k, vocabulary=names, method=self.method)
        return [of_mode[0] for of_mode in answers]


@dataclass(frozen=True)
class MapRequest(NamingRequest):
    """How a whole picture is to be named, and what of it stays in the map.

    Attributes:
        min_area: smaller segments are not named. min_prob, min_free, min_pixels: see `osm.recognition.panoptic`. All in
            pixels of the picture resized to the model's input size.
    """

    top_k: int = 1
    min_area: int = 100
    min_prob: float = MIN_PROB
    min_free: float = MIN_FREE
    min_pixels: int = MIN_PIXELS


@dataclass
class NamedPicture:
    """What became of a picture.

    Attributes:
        scene: the picture as the segmenter saw it. size: (width, height) of the picture itself.
        segments, answers: what was named, and how; the largest first.
        merged: the map, and which of the segments are in it. small: segments that were too small to be named.
    """

    scene: Image.Image
    size: tuple[int, int]
    segments: list[Segment]
    answers: list[Recognition]
    small: int
    merged: Merged = field(repr=False)

    def rle(self, mask: np.ndarray) -> dict[str, Any]:
        """A mask (H, W) at the picture's own size, as COCO's compressed RLE."""
        return encoded(full_size(mask, self.size))


def name_picture(image: Image.Image, recognizer: Recognizer, segmenter: Segmenter, request: MapRequest) -> NamedPicture:
    """Finds, names and merges the segments of an RGB image."""
    scene = image.resize(fitted_size(*image.size, recognizer.processor.input_size), Image.Resampling.BICUBIC)
    segmenter.set_image(scene)
    found = segmenter.everything()
    segments = [segment for segment in found if segment.area >= request.min_area]
    answers: list[Recognition] = []
    if segments:
        recognizer.set_image(image)
        # At the picture's own size, as the file has them; RLEs, as hundreds of masks would fill the memory.
        rles = [encoded(full_size(segment.mask, image.size)) for segment in segments]
        answers = request.run(recognizer, rles)
    merged = _merged(segments, answers, request, scene)
    return NamedPicture(scene, image.size, segments, answers, len(found) - len(segments), merged)


def _merged(segments: list[Segment], answers: list[Recognition], request: MapRequest, scene: Image.Image) -> Merged:
    named = [k for k, answer in enumerate(answers) if not answer.skipped]
    if not named:
        return Merged(np.zeros(scene.size[::-1], np.int32), [], {})
    masks, probs = [segments[k].mask for k in named], [answers[k].prob for k in named]
    found = merge(masks, probs, request.min_prob, request.min_free, request.min_pixels)
    dropped = {named[k]: why for k, why in found.dropped.items()}
    return Merged(found.ids, [named[k] for k in found.segments], dropped)


def full_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another (width, height), by nearest neighbours."""
    if mask.shape == size[::-1]:
        return mask
    rows, columns = nearest_rows(mask.shape[0], size[1]), nearest_rows(mask.shape[1], size[0])
    return mask[rows[:, None], columns[None]]


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's compressed RLE, its counts a string."""
    from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def box_of(rle: dict[str, Any]) -> list[float]:
    """[x, y, width, height] of an RLE."""
    from pycocotools import mask as coco_mask

    return [float(value) for value in coco_mask.toBbox(rle)]
