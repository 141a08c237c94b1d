"""What the web server and the worker processes exchange: jobs, answers and failures.

This module does not import torch, so that the process of the web server stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from osm.datasets.labels import LabelClass
    from osm.recognition.answers import Recognition

MAX_SEGMENTS = 40
"""The default maximum number of segments to name. More names would not be readable on an image."""
ALPHA_KEY = "alpha:"
"""Prefix of the keys of images whose alpha channel is the mask. Their colors are not blended with a background."""
CACHE_BYTES = 512 << 20
"""The default size limit of an engine's cache of encoded images in bytes."""
INTERNAL = "internal"
"""The kind of a `JobFailure` that is a fault of the server, not of the request."""


@dataclass(frozen=True)
class NamingOptions:
    """Options for naming regions, which are passed to `Recognizer.name_encoded`.

    Attributes:
        modes: the modes in which each region is named.
        top_k: number of candidate names per region.
        vocabulary: the allowed names or classes; if empty, any name is allowed.
        method: how the vocabulary is applied (`constrained`, `scored` or `mapped`).
        length_power, prior_weight: how names are compared; see `osm.recognition.vocabulary.Ranking`.
        none_below: see `Recognizer.name`.
    """

    modes: tuple[str, ...] = ("any",)
    top_k: int = 1
    vocabulary: tuple[str | LabelClass, ...] = ()
    method: str = "constrained"
    length_power: float = 0.0
    prior_weight: float = 0.0
    none_below: float = 0.0


@dataclass(frozen=True)
class RegionPrompt:
    """A region as the client describes it.

    Attributes:
        kind: `rle` (a COCO RLE), `polygons` (lists [x, y, x, y, ...]), `png` (the bytes of a mask image), `alpha` (the
            mask is the alpha channel of the image itself), `mask` (a bool array (H, W), not sent between processes),
            `box` (x, y, width, height) or `points` (pairs (x, y)).
        value: the region in the form that `kind` names; None for `alpha`.
        inside: for each point, whether the region contains the point.
        segment: whether a segmenter makes the mask of a box or of points. If not, the box is named as a box, and a
            single point as a small disc.
    """

    kind: str
    value: Any = None
    inside: tuple[bool, ...] = ()
    segment: bool = False


@dataclass(frozen=True)
class JobImage:
    """The image of a job.

    Attributes:
        key: identifies the content of the image: images with equal keys are encoded once.
        source: the bytes of the image file, or a PIL image inside one process.
    """

    key: str
    source: bytes | Image.Image = field(repr=False)


@dataclass(frozen=True)
class NamingJob:
    """One request to a model.

    Attributes:
        image: the image.
        regions: the regions to name.
        everything: if not 0, up to this many segments of the whole image are named instead of `regions`.
        options: how regions are named. None: only their masks are returned.
        masks: whether the masks are part of the answer.
    """

    image: JobImage
    regions: tuple[RegionPrompt, ...] = ()
    everything: int = 0
    options: NamingOptions | None = NamingOptions()
    masks: bool = False

    @property
    def needs_pixels(self) -> bool:
        """Whether the pixels of the image are needed after it was encoded: for a segmenter, or for a mask in it."""
        return bool(self.everything) or any(one.segment or one.kind == "alpha" for one in self.regions)

    @property
    def count(self) -> int:
        """The largest number of regions that the job may name."""
        return self.everything or len(self.regions)


@dataclass(frozen=True)
class RegionAnswer:
    """The answer for one region.

    Attributes:
        names: one recognition per mode; empty if only masks were requested.
        rle: the mask as a compressed COCO RLE, in which `counts` is a string. None if masks were not requested.
        area: the area of the mask in pixels. None if masks were not requested.
        score: the segmenter's confidence; None if the mask does not come from the segmenter.
    """

    names: tuple[Recognition, ...] = ()
    rle: Mapping[str, Any] | None = None
    area: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class JobAnswer:
    """The answer of a job.

    Attributes:
        size: (width, height) of the image, upright.
        regions: one answer per region; with `everything`, in descending order of area.
        skipped_segments: with `everything`, the number of smaller segments that were left out.
    """

    size: tuple[int, int]
    regions: tuple[RegionAnswer, ...] = ()
    skipped_segments: int = 0


@dataclass(frozen=True)
class JobFailure:
    """Why a job has no answer. `kind` is `request` or `INTERNAL`."""

    message: str
    kind: str = "request"


JobResult = JobAnswer | JobFailure


@dataclass(frozen=True)
class EngineStats:
    """Counts of an engine since its start, and the memory of its cached images.

    Attributes:
        hits, misses: how often the image of a job was cached already, or had to be encoded.
        cached_images, cached_bytes: what the cache holds now.
    """

    hits: int = 0
    misses: int = 0
    cached_images: int = 0
    cached_bytes: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """What the web server needs to know about a loaded model.

    Attributes:
        checkpoint: the checkpoint as it was given.
        modes: the modes of the model.
        segmenter: the name of the segmenter, or an empty text if there is none.
        calibrated: whether the model has a calibrated probability and a threshold for `unsure`.
        max_new_tokens: the maximum number of tokens of a name.
        prompt_tokens: the number of positions that precede the name in the LLM.
    """

    checkpoint: str
    modes: tuple[str, ...]
    segmenter: str = ""
    calibrated: bool = False
    max_new_tokens: int = 0
    prompt_tokens: int = 0


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


def counted(jobs: Sequence[NamingJob]) -> int:
    """Return the largest number of regions that several jobs may name."""
    return sum(job.count for job in jobs)
