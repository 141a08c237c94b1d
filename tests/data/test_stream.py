"""The training stream: what decides it, how samples become batches, and the feature cache."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stream_sets import SIZE, bands, dataset, panoptic, processor, shards, write_shard
from tiny import tiny_model_yaml

from osm.data.batch import Batch, merge
from osm.data.processor import Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.data.shards import RawSample, read_shard
from osm.data.stream import EpochLoader, SampleStream, StreamConfig, batches_per_epoch
from osm.errors import OsmError
from osm.forms import read_sample
from osm.models.factory import build, load_model_config
from osm.training import fill_feature_cache as feature_cache
from osm.training.distributed import World

BASE = StreamConfig((), batch_size=2, samples_per_epoch=8, seed=5, resampled=True, shuffle_buffer=4)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def paths(folder: Path) -> tuple[str, ...]:
    return shards(folder, (4, 3, 5))


def merged(epoch: Iterator[list[Batch]]) -> Iterator[Batch]:
    return (merge(parts) for parts in epoch)


def loader(
    prepared: Processor,
    folder: Path,
    paths: tuple[str, ...],
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    emulate: int = 0,
    sample: SampleConfig | None = None,
    name: str = "blocks",
    **changes: Any,
) -> EpochLoader:
    config = replace(BASE, shards=paths, **changes)
    transform = SampleTransform(sample or SampleConfig(), prepared)
    return EpochLoader(dataset(folder, name), config, transform, rank, world, workers, None, emulate)


def content(batches: list[Batch]) -> list[Any]:
    """All that the model is fed with, in a form that can be compared."""
    return [
        (batch.keys, batch.modes, batch.canvas.numpy().tobytes(), batch.masks.numpy().tobytes(), *texts(batch))
        for batch in batches
        if batch.canvas is not None
    ]


def texts(batch: Batch) -> list[Any]:
    return [tensor.tolist() for tensor in vars(batch.text).values()]


# What decides the stream.


@pytest.mark.parametrize("resampled", [True, False])
def test_seed_epoch_rank_and_worker_decide_the_batches(
    prepared: Processor, folder: Path, paths: tuple[str, ...], resampled: bool
) -> None:
    def run(epoch: int = 0, **changes: Any) -> list[Any]:
        made = loader(prepared, folder, paths, **{"world": 2, "resampled": resampled, **changes})
        return content(list(merged(made.epoch(epoch))))

    first = run()
    assert len(first) == 2 and run() == first
    for other in (run(epoch=1), run(rank=1), run(seed=6)):
        assert other != first
    if resampled:  # sets that share their shards do not walk in step
        assert run(name="others") != first


def test_workers_draw_streams_of_their_own_in_a_fixed_order(
    prepared: Processor, folder: Path, paths: tuple[str, ...]
) -> None:
    made = loader(prepared, folder, paths, workers=2, samples_per_epoch=7)
    first, again = content(list(merged(made.epoch(0)))), content(list(merged(made.epoch(0))))
    assert first == again and len(first) == made.batches == 4
    assert first[0::2] != first[1::2]
    assert content(list(merged(made.epoch(1)))) != first


def test_every_sample_is_dealt_once_a_pass(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    seen: Counter[str] = Counter()
    # 12 samples on 2 ranks x 2 workers: 3 each a pass.
    for rank in range(2):
        made = loader(
            prepared,
            folder,
            paths,
            rank,
            2,
            2,
            batch_size=1,
            samples_per_epoch=12,
            resampled=False,
            shuffle_buffer=1,
        )
        batches = list(merged(made.epoch(0)))
        assert len(batches) == 6
        seen.update(key for batch in batches for key in batch.keys)
    assert seen == Counter(f"s{number:03d}" for number in range(12))


def test_a_pass_on_several_lanes_is_each_sample_once(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    orders = []
    for epoch in range(2):
        dealt: list[list[str]] = []
        for rank in range(2):
            config = replace(BASE, shards=paths, resampled=False, shuffle_buffer=1)
            stream = SampleStream(dataset(folder), config, SampleTransform(SampleConfig(), prepared), rank, 2)
            stream.epoch = epoch
            for worker in range(2):
                samples = stream.samples(worker, 2, Counter())
                dealt.append([next(samples)[0].key for _ in range(6)])  # two passes
        for one_pass in (0, 3):
            keys = [key for lane in dealt for key in lane[one_pass : one_pass + 3]]
            assert sorted(keys) == [f"s{number:03d}" for number in range(12)]
        orders.append(dealt)
    assert orders[0] != orders[1]


def test_the_shuffle_buffer_mixes_and_loses_nothing(prepared: Processor, folder: Path) -> None:
    paths = shards(folder / "long", (40,))
    config = replace(BASE, shards=paths, resampled=False, shuffle_buffer=10)
    stream = SampleStream(dataset(folder), config, SampleTransform(SampleConfig(), prepared), 0, 1)
    samples = stream.samples(0, 1, Counter())
    order = [next(samples)[0].key for _ in range(40)]
    assert order != sorted(order)
    # At any time at most the buffer's ten are behind.
    seen = Counter(order)
    assert all(count <= 2 for count in seen.values()) and len(seen) >= 30


def test_emulated_ranks_are_the_real_ones(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    sample = SampleConfig(masks_per_image=2)
    ranks = [list(merged(loader(prepared, folder, paths, rank, 2, sample=sample).epoch(3))) for rank in range(2)]
    emulated = list(merged(loader(prepared, folder, paths, emulate=2, sample=sample).epoch(3)))
    assert content(emulated) == content([merge(parts) for parts in zip(*ranks, strict=True)])
    with pytest.raises(OsmError, match="--emulate_world_size 3 is not a multiple of the number of processes, 2"):
        loader(prepared, folder, paths, 0, 2, emulate=3)


# Counts and halves.


def test_the_published_command_has_1564_batches_for_every_set() -> None:
    published = {"coco": (100_000, 8), "lvis": (200_000, 16), "a847": (50_000, 4), "pc459": (25_000, 2)}
    assert {batches_per_epoch(samples, batch, 8, 4) for samples, batch in published.values()} == {1564}
    assert batches_per_epoch(100_000, 8, 8, 0) == batches_per_epoch(100_000, 8, 8, 1) == 1563
    assert batches_per_epoch(1, 8, 8, 4) == 4


def test_the_first_half_answers_in_its_own_mode(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    def modes(**changes: Any) -> list[list[str]]:
        return [batch.modes for batch in merged(loader(prepared, folder, paths, **changes).epoch(0))]

    assert modes(batch_size=4) == [["blocks"] * 2 + ["any"] * 2] * 2
    assert modes(batch_size=5) == [["blocks"] * 2 + ["any"] * 3] * 2
    assert modes(batch_size=1, samples_per_epoch=5) == [["blocks"], ["any"], ["blocks"], ["any"], ["blocks"]]
    # The numbers of the steps, not of the worker's own batches, decide.
    assert modes(batch_size=1, samples_per_epoch=4, workers=2) == [["blocks"], ["any"]] * 2


def test_a_batch_fits_together(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    for batch in merged(loader(prepared, folder, paths, batch_size=3, sample=SampleConfig(masks_per_image=2)).epoch(0)):
        rows = len(batch)
        assert len(batch.keys) == 3 and batch.datasets == ["blocks"] * rows
        assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
        assert set(batch.image_index.tolist()) == {0, 1, 2}
        assert batch.canvas is not None and batch.canvas.shape == (3, 3, SIZE, SIZE)
        assert batch.masks.shape == (rows, 1, SIZE, SIZE) and batch.masks.flatten(1).any(1).all()
        assert all(len(tensor) == rows for tensor in vars(batch.text).values())


def test_merging_pads_texts_and_shifts_images(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    made = loader(prepared, folder, paths, samples_per_epoch=40)
    by_length = {batch.text.input_ids.shape[1]: batch for batch in merged(made.epoch(0))}
    short, long = by_length[min(by_length)], by_length[max(by_length)]
    assert min(by_length) < max(by_length)
    short.skipped, long.skipped = Counter(a=1), Counter(a=2, b=1)
    both = merge([short, long])
    assert both.keys == short.keys + long.keys and both.modes == short.modes + long.modes
    assert both.image_index.tolist() == [0, 1, 2, 3] and both.skipped == Counter(a=3, b=1)
    assert both.canvas is not None and len(both.canvas) == len(both.masks) == 4
    width = short.text.input_ids.shape[1]
    assert both.text.input_ids.shape[1] == max(by_length)
    for name, fill in (("labels", -100), ("attention_mask", 0), ("qformer_mask", 0)):
        joined, first, second = (getattr(part.text, name) for part in (both, short, long))
        for rows, part in ((joined[:2], first), (joined[2:], second)):
            assert torch.equal(rows[:, : part.shape[1]], part) and (rows[:, part.shape[1] :] == fill).all()
    assert torch.equal(both.text.input_ids[:2, :width], short.text.input_ids)
    assert merge([short]) is short


# What is left out.


def test_skipped_samples_are_counted_and_delivered(prepared: Processor, folder: Path) -> None:
    good, labelled = panoptic(bands(64, 48)), '{"segments_info": [{"id": 1000, "category_id": 9}]}'
    samples = {
        "good": good,
        "unknown": {**good, "json": labelled.encode()},
        "lacking": {"json": good["json"]},
        "empty": panoptic(np.zeros((48, 64), int), []),
    }
    path = write_shard(folder / "faulty" / "0.tar", samples)
    whole = path.read_bytes()
    (folder / "faulty" / "1.tar").write_bytes(whole[: len(whole) // 2])
    paths = (str(path), str(folder / "faulty" / "1.tar"))
    made = loader(prepared, folder, paths, batch_size=1, resampled=False, shuffle_buffer=1, samples_per_epoch=12)
    batches = list(merged(made.epoch(0)))
    assert all(batch.keys == ["good"] for batch in batches) and len(batches) == 12
    total = sum((batch.skipped for batch in batches), Counter())
    assert set(total) == {"unknown_category", "missing_member", "no_segment", "broken_tar"}
    assert all(3 <= count <= 12 for count in total.values())


def test_an_answer_that_does_not_fit_is_left_out(prepared: Processor, folder: Path, paths: tuple[str, ...]) -> None:
    row, labels = dataset(folder / "long name", "long"), folder / "long name" / "categories.json"
    document = json.loads(labels.read_text())
    document["categories"][1]["name"] = "zq7" * 40
    labels.write_text(json.dumps(document))
    transform = SampleTransform(SampleConfig(), prepared)
    batches = list(
        merged(EpochLoader(row, replace(BASE, shards=paths, samples_per_epoch=40), transform, 0, 1, 0).epoch(0))
    )
    assert sum(batch.skipped["answer_too_long"] for batch in batches) > 5
    assert len(batches) == 20 and all(len(batch.keys) == 2 for batch in batches)


@pytest.mark.parametrize("resampled", [True, False])
@pytest.mark.parametrize("kind", ["bad", "broken", "none"])
def test_a_stream_with_nothing_usable_ends(prepared: Processor, folder: Path, kind: str, resampled: bool) -> None:
    path = folder / f"{kind}.tar"
    write_shard(path, {f"k{number}": {"json": b"{"} for number in range(20)} if kind == "bad" else {})
    if kind == "broken":
        path.write_bytes(b"no tar")
    with pytest.raises(OsmError, match="--blocks_shards: ") as caught:
        list(merged(loader(prepared, folder, (str(path),), resampled=resampled).epoch(0)))
    assert {"bad": "1000 samples in a row", "broken": "broken_tar", "none": "no sample"}[kind] in str(caught.value)


# Feature cache.


class Cached:
    """A tiny model, a cache for it, and how often its tower ran."""

    def __init__(self, root: Path, folder: Path, paths: tuple[str, ...]) -> None:
        self.root, self.set, self.paths = root, dataset(folder), paths
        self.model, self.processor = build(load_model_config(str(tiny_model_yaml(root))))
        self.transform = SampleTransform(SampleConfig(resize="always"), self.processor, views=2, seed=3)
        self.cache = feature_cache.open_cache(str(root / "cache"), self.model, self.transform)
        self.runs = 0
        self.model.tower.register_forward_hook(lambda *_: setattr(self, "runs", self.runs + 1))

    def fill(self, rank: int = 0, size: int = 1) -> Counter[str]:
        world = World(rank, size, torch.device("cpu"))
        return feature_cache.fill(self.cache, self.model, self.set, list(self.paths), self.transform, world)

    def files(self) -> list[Path]:
        return sorted((self.root / "cache").rglob("*.npy"))


@pytest.fixture
def cached(tmp_path: Path, folder: Path, paths: tuple[str, ...]) -> Cached:
    return Cached(tmp_path, folder, paths)


def test_cached_tokens_are_the_towers(cached: Cached) -> None:
    assert not cached.fill()
    assert cached.runs == len(cached.files()) == 24
    for raw in read_shard(cached.paths[0]):
        assert isinstance(raw, RawSample)
        scene = read_sample("coco_panoptic", raw.members, cached.set.label_set)
        for number in range(2):
            pixels = cached.transform.fixed_view(scene, raw.key, number).image(np.array(scene.image()))
            canvas = cached.processor.padded(pixels)[None]
            expected = cached.model.tower_tokens(cached.processor.pixel_values(canvas))[0]
            found = cached.cache.load("blocks", raw.cache_key, number)
            assert found.dtype == torch.float16
            torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=1e-3)
    stream = replace(BASE, shards=cached.paths)
    made = EpochLoader(cached.set, stream, cached.transform, 0, 1, 0, cached.cache)
    for batch in merged(made.epoch(0)):
        assert batch.canvas is None and batch.tokens is not None and len(batch.tokens) == 2
        assert batch.tokens.shape[1:] == cached.model.window_pos_embed.shape[1:]
    cached.transform.keep_pixels = True  # as for a model with zoom windows
    for batch in merged(EpochLoader(cached.set, stream, cached.transform, 0, 1, 0, cached.cache).epoch(0)):
        assert batch.canvas is not None and batch.tokens is not None
        tokens = cached.model.tower_tokens(cached.processor.pixel_values(batch.canvas))
        torch.testing.assert_close(batch.tokens.float(), tokens, atol=2e-3, rtol=1e-3)


def test_a_restart_computes_only_what_is_missing(cached: Cached) -> None:
    cached.fill(0, 2)  # the first of two processes
    assert cached.runs == 12
    cached.fill()
    assert cached.runs == 24
    cached.files()[5].unlink()
    cached.fill()
    cached.fill()
    assert cached.runs == 25 and len(cached.files()) == 24
    assert not list(cached.root.rglob("*.tmp"))


def test_a_broken_cache_file_is_named(cached: Cached) -> None:
    cached.fill()
    first = next(iter(read_shard(cached.paths[0])))
    assert isinstance(first, RawSample)
    path = cached.cache.path("blocks", first.cache_key, 1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OsmError, match=f"--feature_cache: .*{first.key}.* cannot be read .* delete the file"):
        cached.cache.load("blocks", first.cache_key, 1)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)  # a pickle is not opened
    with pytest.raises(OsmError, match="cannot be read"):
        cached.cache.load("blocks", first.cache_key, 1)


def test_other_ignored_ids_have_a_cache_of_their_own(cached: Cached) -> None:
    other = replace(cached.set, ignored_ids=(2,))
    assert other.cache_name not in (cached.set.cache_name, replace(cached.set, ignored_ids=(2, 3)).cache_name)
    assert cached.set.cache_name == cached.set.name


def test_other_views_or_sizes_have_a_cache_of_their_own(cached: Cached) -> None:
    def place(config: SampleConfig, seed: int) -> Path:
        transform = SampleTransform(config, cached.processor, views=2, seed=seed)
        return feature_cache.open_cache(str(cached.root / "cache"), cached.model, transform).folder

    same = SampleConfig(resize="always", mask2box_prob=0.5, masks_per_image=4)
    assert place(same, 3) == cached.cache.folder
    folders = {
        place(same, 4),
        place(replace(same, resize="published"), 3),
        place(replace(same, random_scale_min=0.6), 3),
    }
    assert len(folders) == 3 and cached.cache.folder not in folders


def test_keys_stay_inside_the_cache(cached: Cached) -> None:
    root = cached.cache.folder.resolve()
    found = {cached.cache.path("blocks", key, 0).resolve() for key in ("../../x", "/etc/x", "a/b", "a_b", "a" * 300)}
    assert len(found) == 5 and all(root in path.parents and len(path.name) < 200 for path in found)


def test_a_changed_sample_is_not_taken_for_the_cached_one(cached: Cached) -> None:
    first = next(iter(read_shard(cached.paths[0])))
    assert isinstance(first, RawSample)
    changed = replace(first, members={**first.members, "json": first.members["json"] + b" "})
    assert changed.key == first.key and changed.cache_key != first.cache_key
    assert replace(first).cache_key == first.cache_key
