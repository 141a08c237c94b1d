"""Make training samples: a random view of an image, some of its masks, and a prompt and an answer for each mask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from osm.data.processor import Processor
from osm.data.sample_config import SampleConfig
from osm.errors import SampleError
from osm.forms import Form, Segment
from osm.io.resizing import fitted_size
from osm.io.views import View

MAX_TRIES = 500


@dataclass
class Sample:
    """One view of an image with K masks, each with a prompt and a target answer.

    Attributes:
        key: key of the sample in its shard.
        pixels: the view, uint8 (h, w, 3); None if the feature cache holds its tokens and the pixels are not needed.
        masks: bool (K, 1, S, S), padded like the image.
        targets: the K target answers. prompts: the K prompts.
        cached_view: number of the fixed view whose tower tokens are in the feature cache; None without a cache.
        cache_key: key under which the sample's tower tokens are stored in the feature cache.
    """

    key: str
    pixels: np.ndarray | None
    masks: Tensor
    targets: list[str]
    prompts: list[str]
    cached_view: int | None = None
    cache_key: str = ""


class SampleTransform:
    """Makes samples from decoded images. All random choices use the generator passed to each call.

    Args:
        views: with `views` > 0, each image is only used in this number of fixed views, whose tower tokens can be
            cached.
        seed: seed of the fixed views. A fixed view depends on this seed, its number and the key of the sample.
        keep_pixels: whether samples of fixed views have pixels as well. Models with zoom windows need them.
    """

    def __init__(
        self, config: SampleConfig, processor: Processor, views: int = 0, seed: int = 0, keep_pixels: bool = False
    ) -> None:
        self.config, self.processor, self.views, self.seed = config, processor, views, seed
        self.keep_pixels = keep_pixels

    def __call__(self, scene: Form, key: str, rng: np.random.Generator) -> Sample:
        """Make a training sample: a random view of the image with masks, prompts and answers.

        Raises:
            SampleError: `no_segment`, no view with an eligible segment was found in 500 tries.
        """
        count, whole_prob = self.config.masks_per_image, self.config.part_in_use_whole_prob
        if self.views:
            number = int(rng.integers(self.views))
            view = self.fixed_view(scene, key, number)
            segments = scene.pick(view, count, rng, fixed_view=True, whole_prob=whole_prob)
            sample = self._sample(scene, key, view, segments, rng, number)
            sample.pixels = scene.pixels(view) if self.keep_pixels else None
            return sample
        view, segments = self._draw_view_until(
            scene, key, rng, lambda view: scene.pick(view, count, rng, whole_prob=whole_prob)
        )
        sample = self._sample(scene, key, view, segments, rng, None)
        sample.pixels = scene.pixels(view)  # decode the image last, so that skipped samples are never decoded
        return sample

    def fixed_view(self, scene: Form, key: str, number: int) -> View:
        """Return one of an image's fixed views. A fixed view is the same in every epoch and on every rank."""
        digest = hashlib.sha256(f"{self.seed}:{key}:{number}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        segment_rng = np.random.default_rng(0)  # separate, so that picking a segment does not change later views
        return self._draw_view_until(scene, key, rng, lambda view: scene.pick(view, 1, segment_rng, fixed_view=True))[0]

    def _draw_view_until(
        self, scene: Form, key: str, rng: np.random.Generator, pick: Callable[[View], list[Segment]]
    ) -> tuple[View, list[Segment]]:
        """Draw random views of an image until `pick` finds segments in a view. Return this view and its segments."""
        for number in range(MAX_TRIES):
            view = self.draw_view(scene, rng)
            segments = pick(view)
            if segments:
                return view, segments
            if number == 0 and not scene.has_segments():  # fail early instead of after 500 crops
                raise SampleError("no_segment", f"sample {key} has no segment with a name to train on")
        raise SampleError(
            "no_segment", f"sample {key}: no segment larger than 100 pixels was found in {MAX_TRIES} random crops"
        )

    def draw_view(self, scene: Form, rng: np.random.Generator) -> View:
        """Draw a random scale, a random horizontal flip and a random crop of S x S pixels."""
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
            choices = self.processor.training_prompts(segment.boxed or to_box)
            prompts.append(choices[int(rng.integers(len(choices)))])
            target = scene.target(segment, rng, self.config.part_in_prepend_object_class_prob)
            targets.append(self._synonym(target, segment.label.names, rng))
        return Sample(key, None, torch.from_numpy(masks), targets, prompts, number)

    def _synonym(self, target: str, names: Sequence[str], rng: np.random.Generator) -> str:
        """Return a random synonym of the target with the probability `synonym_prob`, else the target."""
        if not self.config.synonym_prob or target != names[0] or len(names) == 1:
            return target  # without drawing a random number, so that the samples of other runs stay the same
        return str(rng.choice(names[1:])) if rng.random() < self.config.synonym_prob else target


def _filled_box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box
