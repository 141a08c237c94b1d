#!/usr/bin/env python3
"""Measures how many training samples per second one core loads at input size 1120, compared with the published way.

There are three annotation formats (COCO panoptic, LVIS, semantic maps) in both layouts. Without `--shards`, the images
are synthetic scenes of the given sizes. The loop that imitates the published loader is written anew here. It decodes
the whole image with Pillow, resizes the whole image and a mask of every segment, and keeps the crop of one segment.
Neither normalizes pixels, because that is done on the model's device, and neither has worker processes. This project's
loader is also measured with Pillow alone, without the decoders of `osm.io.fast_decoding`. The loops take turns, and the
results are medians of five rounds. All times are CPU times of this process, so that other programs on the machine
matter less. `ms` is per sample. The last line of the output is a JSON document.

    python3 benchmarks/loader.py [--sizes 640x480,1280x960] [--samples 64] [--shards coco=DIR/{000..003}.tar]
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from loader_shards import SETS, make_shards  # noqa: E402
from meter import Meter  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402
from small_tokenizer import small_tokenizer  # noqa: E402

from osm.data import processor as processor_module  # noqa: E402
from osm.data import sample as sample_module  # noqa: E402
from osm.data import stages
from osm.data.processor import (  # noqa: E402
    MASK_PROMPTS,  # noqa: E402
    Processor,
    fitted_size,
)
from osm.data.sample import SampleTransform  # noqa: E402
from osm.data.sample_config import SampleConfig  # noqa: E402
from osm.data.shard_index import ShardReader  # noqa: E402
from osm.data.shard_lists import existing_shards  # noqa: E402
from osm.data.shards import RawSample, read_shard  # noqa: E402
from osm.data.stream import SampleStream, StreamConfig  # noqa: E402
from osm.datasets.labels import load_labels  # noqa: E402
from osm.datasets.table import Dataset, DatasetTable  # noqa: E402
from osm.errors import OsmError  # noqa: E402
from osm.forms import base, picture  # noqa: E402
from osm.forms.coco_panoptic import Panoptic  # noqa: E402
from osm.forms.instances import Instances  # noqa: E402
from osm.forms.maps import Semantic  # noqa: E402
from osm.io import fast_decoding, views

ROUNDS = 5
STAGES = ("read", "decode", "resize", "mask", "text", "other")


def stage_clock() -> Meter:
    """Return a meter of the CPU seconds of the stages."""
    return Meter(time.process_time, STAGES)


def milliseconds(clock: Meter, samples: int) -> dict[str, float]:
    """Return the CPU time of each stage in ms per sample."""
    return {name: round(1000 * seconds / samples, 2) for name, seconds in clock.take().items()}


# -- this project's loader ---------------------------------------------------------------------------------------------


def ours(row: Dataset, shards: list[str], processor: Processor, samples: int, clock: Meter | None) -> float:
    """Return the CPU seconds for a number of samples, in batches of 8."""
    batches = samples // 8
    transform = SampleTransform(SampleConfig(), processor)
    config = StreamConfig(tuple(shards), 8, 8 * (batches + 1), resampled=True, shuffle_buffer=1)
    with ExitStack() as patched:
        if clock is not None:
            for owner, attribute, stage in WATCHED:
                patched.enter_context(patch.object(owner, attribute, clock.measured(stage, getattr(owner, attribute))))
        stream = iter(SampleStream(row, config, transform, 0, 1))
        next(stream)  # the first batch fills caches
        if clock is not None:
            clock.take()
        begun = time.process_time()
        for _ in range(batches):
            processor._rows.clear()  # The few texts of a small shard would stay in the cache; a real dataset has many.
            next(stream)
        return time.process_time() - begun


@contextmanager
def pillow_alone() -> Iterator[None]:
    """Let Pillow decode all images inside the context, as if the faster decoders were not installed."""
    with ExitStack() as patched:
        for library in ("_simplejpeg", "_imagecodecs"):
            patched.enter_context(patch.object(fast_decoding, library, lambda: None))
        yield


# The functions that belong to each stage. All other time is `other` (collating a batch, drawing views).
WATCHED: list[tuple[Any, str, str]] = [
    (ShardReader, "read", "read"),
    (stages, "read_sample", "decode"),
    (picture, "read_pixels", "decode"),
    (views.View, "image", "resize"),
    (sample_module.SampleTransform, "_sample", "mask"),
    *((form, "pick", "mask") for form in (Panoptic, Semantic, Instances)),
    (processor_module.Processor, "training_row", "text"),
    (processor_module.Processor, "training_text", "text"),
]


def reading(clock: Meter) -> Callable[[str], Iterator[Any]]:
    def read(path: str) -> Iterator[Any]:
        shard = read_shard(path)
        while True:
            with clock.part("read"):
                raw = next(shard, None)
            if raw is None:
                return
            yield raw

    return read


# -- a loop that imitates the published loader ---------------------------------------------------------------------


def published(
    row: Dataset, shards: list[str], processor: Processor, samples: int, clock: Meter, one_mask: bool = False
) -> float:
    """Return the CPU seconds for a number of samples.

    With `one_mask`, the annotation is chosen first, and only its mask is created.
    """
    rng = np.random.default_rng(0)
    begun, batch = time.process_time(), []
    raws = endless(shards, clock)
    for _ in range(samples):
        batch.append(published_sample(row, next(raws), processor, rng, clock, one_mask))
        if len(batch) == 8:
            torch.stack([canvas for canvas, _ in batch]), torch.stack([mask for _, mask in batch])
            batch = []
    return time.process_time() - begun


def endless(shards: list[str], clock: Meter) -> Iterator[RawSample]:
    while True:
        for shard in shards:
            for raw in reading(clock)(shard):
                if isinstance(raw, RawSample):
                    yield raw


def published_sample(
    row: Dataset, raw: RawSample, processor: Processor, rng: np.random.Generator, clock: Meter, one_mask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    size = processor.input_size
    with clock.part("decode"):
        document = json.loads(raw.members["json"])
        data = [
            next((raw.members[name] for name in names if name in raw.members), None) or base64.b64decode(document[key])
            for key, names in (("image_base64", base.IMAGE_MEMBERS), *LABEL_MAPS[row.form])
        ]
        image = Image.open(io.BytesIO(data[0])).convert("RGB")
        ids = np.asarray(Image.open(io.BytesIO(data[1]))) if data[1:] else None
        if ids is not None and ids.ndim == 3:
            ids = ids.astype(np.int32)
            ids = ids[..., 0] + 256 * ids[..., 1] + 65536 * ids[..., 2]
    while True:
        with clock.part("mask"):
            masks, names = ALL_MASKS[row.form](row, document, ids, rng if one_mask else None)
        width, height = image.size
        if min(width, height) < size:
            width, height = fitted_size(width, height, int(rng.uniform(0.5, 1.5) * size))
        with clock.part("resize"):
            resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        flip, left, top = rng.random() < 0.5, *(int(rng.integers(max(side - size, 0) + 1)) for side in (width, height))
        canvas = np.zeros((size, size, 3), np.uint8)
        crop = (resized[:, ::-1] if flip else resized)[top : top + size, left : left + size]
        canvas[: crop.shape[0], : crop.shape[1]] = crop
        with clock.part("mask"):
            kept = []
            for mask, name in zip(masks, names, strict=True):
                whole = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
                part = (whole[:, ::-1] if flip else whole)[top : top + size, left : left + size]
                padded = np.zeros((size, size), bool)
                padded[: part.shape[0], : part.shape[1]] = part
                if padded.sum() > 100:
                    kept.append((padded, name))
        if kept:
            break
    mask, name = kept[int(rng.integers(len(kept)))]
    with clock.part("text"):
        processor.training_text([MASK_PROMPTS[int(rng.integers(len(MASK_PROMPTS)))]], [name])
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)[None]


def panoptic_masks(row: Dataset, document: Any, ids: Any, _: Any) -> tuple[list[np.ndarray], list[str]]:
    found = document["segments_info"]
    return [ids == s["id"] for s in found], [row.label_set[s["category_id"]].target for s in found]


def semantic_masks(row: Dataset, document: Any, ids: Any, _: Any) -> tuple[list[np.ndarray], list[str]]:
    found = [i for i in np.unique(ids).tolist() if i not in row.ignored_ids]
    return [ids == i for i in found], [row.label_set[i].target for i in found]


def polygon_masks(row: Dataset, document: Any, _: Any, rng: Any) -> tuple[list[np.ndarray], list[str]]:
    found, size = document["segments_info"], (document["height"], document["width"])
    if rng is not None:
        found = [found[int(rng.integers(len(found)))]]
    rles = [coco_mask.merge(coco_mask.frPyObjects(s["segmentation"], *size)) for s in found]
    masks = [coco_mask.decode(rle).astype(bool) for rle in rles]
    return masks, [row.label_set[s["category_id"]].target for s in found]


LABEL_MAPS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "coco_panoptic": [("pan_base64", ("png",))],
    "coco_instances": [],
    "semantic": [("seg_base64", ("tif",))],
}
ALL_MASKS: dict[str, Callable[..., tuple[list[np.ndarray], list[str]]]] = {
    "coco_panoptic": panoptic_masks,
    "coco_instances": polygon_masks,
    "semantic": semantic_masks,
}


# -- the run -----------------------------------------------------------------------------------------------------------


def make_processor(input_size: int) -> Processor:
    """Return a processor with a tokenizer of its own, which needs no weights."""
    names = [name for table in SETS for name in sorted(load_labels(table).vocabulary)]
    fast = small_tokenizer(names, vocabulary=4000)
    return Processor(fast, fast, input_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def measure(row: Dataset, shards: list[str], processor: Processor, samples: int) -> dict[str, Any]:
    count, less = samples // 8 * 8, max(8, samples // 4)

    def ours_with_pillow() -> float:
        with pillow_alone():
            return ours(row, shards, processor, samples, None)

    loops: dict[str, Callable[[], float]] = {
        "ours": lambda: count / ours(row, shards, processor, samples, None),
        "ours_with_pillow": lambda: count / ours_with_pillow(),
        "published": lambda: less / published(row, shards, processor, less, stage_clock()),
    }
    if row.form == "coco_instances":
        loops["published_with_one_mask"] = lambda: (
            less / published(row, shards, processor, less, stage_clock(), one_mask=True)
        )
    # They take turns, because other programs slow all of them at times.
    rounds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, loop in loops.items():
            rounds[name].append(loop())
    rates = {name: statistics.median(found) for name, found in rounds.items()}
    ratios = {
        name: statistics.median(one / other for one, other in zip(rounds["ours"], found, strict=True))
        for name, found in rounds.items()
        if name != "ours"
    }
    clock = stage_clock()
    ours(row, shards, processor, samples, clock)
    stages = {"ours": milliseconds(clock, count)}
    clock = stage_clock()
    published(row, shards, processor, less, clock)
    stages["published"] = milliseconds(clock, less)
    return {
        "samples_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_faster": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "ms": stages,
    }


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--input_size", type=int, default=1120, help="S [1120]")
    out.add_argument("--sizes", default="640x480,1280x960", help="of the drawn pictures [%(default)s]")
    out.add_argument("--images", type=int, default=16, help="drawn pictures of each size [16]")
    out.add_argument("--samples", type=int, default=64, help="of each case [64]; a quarter of it by the other loop")
    out.add_argument("--shards", action="append", metavar="SET=PATTERN", help="shards of yours instead, of any layout")
    out.add_argument("--datasets", help="a YAML with the rows of sets of your own")
    return out


def main() -> int:
    args = parser().parse_args()
    torch.set_num_threads(1)
    cases = []
    try:
        if args.samples < 8 or args.images < 1:
            raise OsmError(f"--samples {args.samples} must be 8 or more, --images {args.images} 1 or more")
        table = DatasetTable().with_yaml(args.datasets) if args.datasets else DatasetTable()
        processor = make_processor(args.input_size)
        with tempfile.TemporaryDirectory() as folder:
            todo: list[tuple[dict[str, str], Dataset, list[str]]] = []
            for given in args.shards or ():
                name, _, pattern = given.partition("=")
                if name not in table or table[name].form not in ALL_MASKS:
                    raise OsmError(f"--shards {given}: {name!r} is no set of form {', '.join(ALL_MASKS)}")
                todo.append(({"shards": pattern}, table[name], existing_shards(pattern, "--shards")))
            for size in [] if args.shards else args.sizes.split(","):
                width, height = (int(side) for side in size.split("x"))
                print(f"drawing {args.images} pictures of {size}", file=sys.stderr)
                for (name, layout), path in make_shards(Path(folder), width, height, args.images).items():
                    todo.append(({"layout": layout, "size": size}, table[name], [path]))
            for what, row, shards in todo:
                cases.append(
                    {"set": row.name, "form": row.form, **what, **measure(row, shards, processor, args.samples)}
                )
                print(json.dumps(cases[-1]), file=sys.stderr)
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    document = {
        "input_size": args.input_size,
        "samples": args.samples,
        "python": platform.python_version(),
        "pillow": Image.__version__,
        "fast_decoders": None not in (fast_decoding._simplejpeg(), fast_decoding._imagecodecs()),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "cases": cases,
    }
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
