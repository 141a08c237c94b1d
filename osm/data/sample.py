"""One training sample: a view of an image, some of its masks, and for each a question and its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from osm.data.processor import BOX_PROMPTS, MASK_PROMPTS, Processor
from osm.errors import OsmError, SampleError
from osm.forms import Form, Segment
from osm.io.resizing import fitted_size
from osm.io.views import View

MAX_TRIES = 500


@dataclass(frozen=True)
class SampleConfig:
    """How samples are made.

    Attributes:
        random_scale_min, random_scale_max: the longest side goes to u * S, u uniform between them.
        resize: `published` (only images whose short side is under S) or `always`.
        mask2box_prob: how often a thing's mask becomes its filled box, with a box prompt.
        part_in_use_whole_prob: in sets of parts with maps of whole objects, how often an object instead of a part.
        part_in_prepend_object_class_prob: there, how often a part is named after its object ("impala head").
        masks_per_image: masks of one view that are named.
        supervise: `all` (prompt and answer) or `answer`.
    """

    random_scale_min: float = 0.5
    random_scale_max: float = 1.5
    resize: str = "published"
    mask2box_prob: float = 0.0
    part_in_use_whole_prob: float = 0.2
    part_in_prepend_object_class_prob: float = 0.8
    masks_per_image: int = 1
    supervise: str = "all"

    def __post_init__(self) -> None:
        if not 0 < self.random_scale_min <= self.random_scale_max:
            raise OsmError(
                f"--random_scale_min {self.random_scale_min} and --random_scale_max {self.random_scale_max}: "
                "0 < min <= max needed"
            )
        if self.resize not in ("published", "always"):
            raise OsmError(f"--resize {self.resize!r} is not published or always")
        for flag in ("mask2box_prob", "part_in_use_whole_prob", "part_in_prepend_object_class_prob"):
            if not 0 <= getattr(self, flag) <= 1:
                raise OsmError(f"--{flag} {getattr(self, flag)} is not between 0 and 1")
        if self.masks_per_image < 1:
            raise OsmError(f"--masks_per_image {self.masks_per_image} must be 1 or more")
        if self.supervise not in ("all", "answer"):
            raise OsmError(f"--supervise {self.supervise!r} is not all or answer")


@dataclass
class Sample:
    """A view and what is asked about it; `pixels` is None where a cache has the tokens of view `cached_view`."""

    key: str
    pixels: np.ndarray | None
    masks: Tensor  # bool (K, 1, S, S)
    targets: list[str]
    prompts: list[str]
    cached_view: int | None = None
    cache_key: str = ""


class SampleTransform:
    """Makes samples of scenes; every draw comes from the generator that is handed in.

    Args:
        views, seed: with `views` > 0 each image is seen in that many fixed views, drawn from the seed and its key.
    """

    def __init__(self, config: SampleConfig, processor: Processor, views: int = 0, seed: int = 0) -> None:
        self.config, self.processor, self.views, self.seed = config, processor, views, seed

    def __call__(self, scene: Form, key: str, rng: np.random.Generator) -> Sample:
        """Raises SampleError `no_segment` where no counting segment is found in 500 tries."""
        count, whole_prob = self.config.masks_per_image, self.config.part_in_use_whole_prob
        if self.views:
            number = int(rng.integers(self.views))
            view = self.fixed_view(scene, key, number)
            segments = scene.pick(view, count, rng, fixed_view=True, whole_prob=whole_prob)
            return self._sample(scene, key, view, segments, rng, number)
        view, segments = self._draw_view_until(
            scene, key, rng, lambda view: scene.pick(view, count, rng, whole_prob=whole_prob)
        )
        sample = self._sample(scene, key, view, segments, rng, None)
        sample.pixels = scene.pixels(view)  # last: what is left out above need not be decoded
        return sample

    def fixed_view(self, scene: Form, key: str, number: int) -> View:
        """View `number` of an image: the same in every epoch, on every rank."""
        digest = hashlib.sha256(f"{self.seed}:{key}:{number}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        aside = np.random.default_rng(0)  # which segment is found there does not decide about the view
        return self._draw_view_until(scene, key, rng, lambda view: scene.pick(view, 1, aside, fixed_view=True))[0]

    def _draw_view_until(
        self, scene: Form, key: str, rng: np.random.Generator, pick: Callable[[View], list[Segment]]
    ) -> tuple[View, list[Segment]]:
        """The first drawn view in which `pick` finds something, and what it finds."""
        for number in range(MAX_TRIES):
            view = self.draw_view(scene, rng)
            segments = pick(view)
            if segments:
                return view, segments
            if number == 0 and not scene.has_segments():  # said at once, not after 500 crops
                raise SampleError("no_segment", f"sample {key}: nothing in it may be named")
        raise SampleError("no_segment", f"sample {key}: no segment over 100 pixels in {MAX_TRIES} crops")

    def draw_view(self, scene: Form, rng: np.random.Generator) -> View:
        """Random scale, flip and S x S crop."""
        size, config = self.processor.input_size, self.config
        width, height = scene.width, scene.height
        if config.resize == "always" or min(width, height) < size:
            scale = rng.uniform(config.random_scale_min, config.random_scale_max)
            width, height = fitted_size(width, height, max(1, int(scale * size)))
        flip = bool(rng.random() < 0.5)
        left = int(rng.integers(max(width - size, 0) + 1))
        top = int(rng.integers(max(height - size, 0) + 1))
        return View(width, height, left, top, min(width, size), min(height, size), flip)

    def _sample(
        self,
        scene: Form,
        key: str,
        view: View,
        segments: list[Segment],
        rng: np.random.Generator,
        number: int | None,
    ) -> Sample:
        size = self.processor.input_size
        masks = np.zeros((len(segments), 1, size, size), bool)
        prompts, targets = [], []
        for mask, segment in zip(masks, segments, strict=True):
            to_box = not segment.boxed and segment.label.isthing and rng.random() < self.config.mask2box_prob
            mask[0, : view.crop_height, : view.crop_width] = _filled_box(segment.mask) if to_box else segment.mask
            choices = BOX_PROMPTS if segment.boxed or to_box else MASK_PROMPTS
            prompts.append(choices[int(rng.integers(len(choices)))])
            targets.append(scene.target(segment, rng, self.config.part_in_prepend_object_class_prob))
        return Sample(key, None, torch.from_numpy(masks), targets, prompts, number)


def _filled_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box
