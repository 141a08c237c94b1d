"""The loader does no work whose result is thrown away, and what it does instead comes to the same."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import nine_sets
import numpy as np
import pytest
from nine_sets import semantic
from PIL import Image
from stream_sets import SIZE, processor

from osm.data.processor import Processor
from osm.data.sample import SampleTransform
from osm.data.sample_config import SampleConfig
from osm.datasets.table import Dataset, DatasetTable
from osm.forms import Form, read_sample
from osm.forms.instances import Instances
from osm.io.images import read_pixels, read_rgb
from osm.io.views import Cut, View

TABLE = DatasetTable()
FULL = View(SIZE, SIZE, 0, 0, SIZE, SIZE, flip=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return processor(tmp_path_factory.mktemp("tokenizer"))


def read(row: Dataset, members: dict[str, bytes]) -> Form:
    return read_sample(row.form, members, row.label_set, row.rules)


def test_a_polygon_is_rasterised_once(monkeypatch: pytest.MonkeyPatch, prepared: Processor) -> None:
    made: Counter[int] = Counter()
    drawn = Instances._draw

    def counted(self: Instances, entry: dict[str, Any]) -> np.ndarray:
        made[int(entry["segmentation"][0][0])] += 1
        return drawn(self, entry)

    monkeypatch.setattr(Instances, "_draw", counted)
    row = TABLE["lvis"]
    entries = [
        {"bbox": [0, 0, 1, 1], "category_id": 3, "segmentation": [[x, 0, x + 11, 0, x + 11, 11, x, 11]]}
        for x in (0, 16, 32, 48)
    ]
    members = nine_sets.record({"jpg": nine_sets.jpg(60, 60)}, 60, 60, segments_info=entries)
    transform = SampleTransform(SampleConfig(), prepared)
    for seed in range(20):
        transform(read(row, members), "key", np.random.default_rng(seed))
    assert max(made.values()) <= 20 and sum(made.values()) < 20 * 4  # at most once a sample, and not all of them


def test_large_jpegs_are_decoded_at_reduced_scale() -> None:
    """Only where twice the wanted size is left; then the picture is the same within the resampling's tolerance."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(pixels).resize((1203, 803), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    assert read_rgb(data).size == (1203, 803)
    for side, reduced in (
        (700, (1203, 803)),
        (301, (1203, 803)),
        (300, (602, 402)),
        (150, (301, 201)),
        (40, (151, 101)),
    ):
        view = View(side, side * 2 // 3, side // 4, 7, side // 2, side // 4, flip=False)
        pixels = read_pixels(data, view.enough)
        assert pixels.shape == (reduced[1], reduced[0], 3)
        exact = view.image(np.array(read_rgb(data))).astype(int)
        found = view.image(pixels, (1203, 803)).astype(int)
        assert found.shape == exact.shape
        assert np.abs(found - exact).mean() < 1 and np.abs(found - exact).max() <= 8


def test_masks_are_made_for_the_chosen_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    enlarged: list[int] = []
    enlarge = Cut.enlarge
    monkeypatch.setattr(Cut, "enlarge", lambda self, where=None: enlarged.append(1) or enlarge(self, where))
    ids = np.kron(np.arange(16).reshape(4, 4), np.ones((14, 14), int))
    read(TABLE["a847"], semantic(ids)).pick(FULL, 1, np.random.default_rng(0))
    assert len(enlarged) == 1


def test_areas_are_counted_as_in_the_enlarged_crop(prepared: Processor) -> None:
    rng = np.random.default_rng(1)
    for shape in ((30, 40), (97, 130), (200, 60)):
        ids = np.kron(rng.integers(0, 9, (shape[0] // 5, shape[1] // 5)), np.ones((5, 5), int)) * 70000
        target = read(TABLE["a847"], semantic(np.full((SIZE, SIZE), 1)))
        target.height, target.width = ids.shape
        for _ in range(20):
            view = SampleTransform(SampleConfig(resize="always"), prepared).draw_view(target, rng)
            values, counts = np.unique(view.labels(ids), return_counts=True)
            assert view.cut(ids).areas() == dict(zip(values.tolist(), counts.tolist(), strict=True))
            mask = ids == 70000
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            found = view.patch(part, int(columns[0]), int(rows[0]), ids.shape)
            np.testing.assert_array_equal(found, view.labels(mask))
