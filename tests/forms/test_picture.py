"""The image of a sample: its pixels can be read several times, and no file stays open."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osm.forms.picture import Picture

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).resize((160, 120))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("as_file", [False, True])
def test_pixels_are_those_of_the_image_however_often_they_are_read(kind: str, as_file: bool, tmp_path: Path) -> None:
    stream = io.BytesIO()
    PICTURE.save(stream, kind)
    source: bytes | Path = stream.getvalue()
    if as_file:
        source = tmp_path / "picture"
        source.write_bytes(stream.getvalue())
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    picture = Picture(source)
    assert picture.size == (160, 120)
    small = picture.pixels((40, 30))
    assert small.shape == ((30, 40, 3) if kind == "JPEG" else (120, 160, 3))
    for _ in range(2):
        np.testing.assert_array_equal(picture.pixels(picture.size), np.asarray(picture.rgb()))
    assert files is None or len(os.listdir("/proc/self/fd")) == files
