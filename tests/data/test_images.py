"""Decoding: ids are read as they are written, and cut or odd files are refused with their reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from osm.data.images import read_panoptic, read_rgb
from osm.errors import SampleError

NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
SMOOTH = Image.fromarray(NOISE).resize((301, 203), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_cut_jpeg_is_refused_wherever_it_is_cut() -> None:
    for options in ({}, {"progressive": True}):
        data = saved(SMOOTH, "JPEG", **options)
        for length in range(len(data) // 10, len(data) - 2, 97):
            with pytest.raises(SampleError) as caught:
                read_rgb(data[:length])
            assert caught.value.reason in ("image_truncated", "image_unreadable")


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_panoptic_pngs_are_ids(mode: str, options: dict[str, object]) -> None:
    rgb = NOISE.astype(np.int32)
    data = saved(Image.fromarray(NOISE).convert(mode), "PNG", **options)
    ids = read_panoptic(data)
    np.testing.assert_array_equal(ids, rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2])
    assert ids.dtype == np.int32
    for length in range(60, len(data) - 20, max(1, len(data) // 40)):
        with pytest.raises(SampleError) as caught:
            read_panoptic(data[:length])
        assert caught.value.reason in ("image_truncated", "image_unreadable")


def test_what_holds_no_ids_is_refused() -> None:
    grey = saved(Image.fromarray(NOISE[..., 0]), "PNG")
    with pytest.raises(SampleError, match="mode L, RGB"):
        read_panoptic(grey)
