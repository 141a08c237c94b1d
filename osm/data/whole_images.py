"""Reads whole images with all of their masks from shards, without the random crops of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from osm.data.shards import read_shard
from osm.datasets.table import Dataset
from osm.errors import SampleError
from osm.forms import read_sample
from osm.forms.base import Segment
from osm.io.views import View

_ALL = 10**6


class WholeImage(NamedTuple):
    """An RGB image, and its segments (at least one)."""

    image: Image.Image
    segments: list[Segment]


def whole_images(row: Dataset, shards: Sequence[str]) -> Iterator[WholeImage | SampleError]:
    """Yield every image of a dataset's shards with all segments that training would use.

    For a sample that cannot be read or that has no usable segment, the error is yielded instead.
    """
    for shard in shards:
        for raw in read_shard(shard):
            if isinstance(raw, SampleError):
                yield raw
                continue
            try:
                scene = read_sample(row.form, raw.members, row.label_set, row.rules)
                whole = View(scene.width, scene.height, 0, 0, scene.width, scene.height, False)
                segments = scene.pick(whole, _ALL, np.random.default_rng(0), fixed_view=True)
                if not segments:
                    raise SampleError(scene.nothing_usable, "no annotation is usable")
                found = WholeImage(scene.image(), segments)
            except SampleError as error:
                yield error
            else:
                yield found
