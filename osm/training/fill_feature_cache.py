"""Fills the feature cache before training, so that the frozen tower runs only once per view (crop) of an image."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import torch

from osm.config import as_dict
from osm.data.feature_cache import FeatureCache
from osm.data.sample import SampleTransform
from osm.data.shards import read_shard
from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError
from osm.forms import read_sample
from osm.models.checkpoint import frozen_hashes
from osm.models.osm import OmniScientModel
from osm.storage.cache import FileCache
from osm.terminal import ProgressBar, message_logger
from osm.training.distributed import World

logger = message_logger(__name__)


def open_cache(folder: str, model: OmniScientModel, transform: SampleTransform) -> FeatureCache:
    """Open the feature cache, which stores the output tokens of the model's frozen tower.

    The cache folder is named after a hash of everything that the tower's tokens depend on: the tower's weights and
    config, the input sizes, the image normalization and the view (crop) settings. If the tower, the image preprocessing
    or the view settings change, a different cache folder is used.
    """
    config, sample = model.config, transform.config
    depends_on = {
        "tower": frozen_hashes(model)["tower"],
        "sizes": [config.input_size, config.sliding_window_size, config.sliding_window_stride],
        "tower_config": as_dict(config.tower),
        "input": [transform.processor.mean, transform.processor.std],
        "views": [transform.seed, sample.random_scale_min, sample.random_scale_max, sample.resize],
    }
    text = json.dumps(depends_on, sort_keys=True)
    return FeatureCache(folder, hashlib.sha256(text.encode()).hexdigest()[:16])


@torch.no_grad()
def fill(
    cache: FeatureCache,
    model: OmniScientModel,
    dataset: Dataset,
    shards: list[str],
    transform: SampleTransform,
    world: World,
    shard_cache: FileCache | None = None,
) -> Counter[str]:
    """Compute and cache the tower tokens for this rank's share of a dataset's image views, skipping cached views.

    If this function is interrupted, calling it again computes only the tokens that are missing from the cache.

    Returns:
        the number of skipped samples by reason. The sample stream skips the same samples.

    Raises:
        OsmError: the disk does not have enough free space.
    """
    skipped: Counter[str] = Counter()
    # Every rank lists all image views in the same order and processes its share of the list.
    # Cached views are skipped only after the list is split, because other ranks may already be writing to the cache.
    # The list is shuffled, so that the remaining work of an interrupted run is balanced across the ranks.
    every_view = [
        (shard, raw.cache_key, view)
        for shard in shards
        for raw in read_shard(shard, shard_cache)
        if not isinstance(raw, SampleError)
        for view in range(transform.views)
    ]
    random.Random(0).shuffle(every_view)
    mine = {
        (shard, key, view)
        for shard, key, view in every_view[world.rank :: world.size]
        if not cache.has(dataset.cache_name, key, view)
    }
    if world.is_main:
        cache.remove_abandoned(dataset.cache_name)
    _check_room(cache, model, len(mine) * world.size)
    with ProgressBar(f"feature cache {dataset.name}", len(mine), "views", enabled=world.is_main) as progress:
        for shard in sorted({shard for shard, _, _ in mine}):
            for raw in read_shard(shard, shard_cache):
                if isinstance(raw, SampleError):
                    skipped[raw.reason] += 1
                    continue
                cache_key = raw.cache_key
                for view in range(transform.views):
                    if (shard, cache_key, view) not in mine:
                        continue
                    try:
                        scene = read_sample(dataset.form, raw.members, dataset.label_set, dataset.rules)
                        pixels = scene.pixels(transform.fixed_view(scene, raw.key, view))
                    except SampleError as error:
                        skipped[error.reason] += 1
                    else:
                        canvas = transform.processor.padded(pixels)[None].to(world.device)
                        tokens = model.tower_tokens(transform.processor.pixel_values(canvas))[0]
                        cache.save(dataset.cache_name, cache_key, view, tokens)
                    progress.step()
    return skipped


def _check_room(cache: FeatureCache, model: OmniScientModel, views: int) -> None:
    """Raise OsmError if the tokens do not fit on the disk. Log the size of the cache if the size exceeds 1 GB."""
    need = views * model.window_pos_embed.numel() * 2
    cache.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(Path(cache.folder)).free
    if need > free:
        raise OsmError(
            f"--feature_cache {cache.folder.parent}: {views} image views need {need / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB of disk space is free; use fewer --views, or a different folder"
        )
    if need > 1e9:
        logger.info(f"feature cache: {views} views, {need / 1e9:.1f} GB in {cache.folder}")
