"""What the converters write, the readers of the nine sets take: both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from source_sets import MAKERS

from osm.data.shards import RawSample, read_shard
from osm.datasets.table import DatasetTable
from osm.forms import read_sample
from osm.io.views import View

TABLE = DatasetTable()
FULL = View(24, 16, 0, 0, 24, 16, flip=False)


@pytest.mark.parametrize("layout", ["webdataset", "published"])
@pytest.mark.parametrize("name", MAKERS)
def test_converted_sets_are_read(name: str, layout: str, tmp_path: Path) -> None:
    made, row = MAKERS[name](tmp_path, 4), TABLE[name]
    assert made.convert(tmp_path / "out", "--format", layout) == 0
    scenes = []
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        for sample in read_shard(str(shard)):
            assert isinstance(sample, RawSample)
            scenes.append(read_sample(row.form, sample.members, row.label_set, row.rules))
    assert len(scenes) == 4
    for scene in scenes:
        assert (scene.width, scene.height) == (24, 16)
        assert scene.has_segments()
        for segment in scene.pick(FULL, 3, np.random.default_rng(0)):
            assert segment.label.target in row.label_set.vocabulary
