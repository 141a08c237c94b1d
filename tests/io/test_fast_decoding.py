"""The fast decoders return the pixels and ids that Pillow returns, and whatever they refuse is left to Pillow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hostile import png_chunk, saved
from loader import pillow_alone
from PIL import Image

from osm.errors import SampleError
from osm.io import fast_decoding, images
from osm.io.images import open_image, read_panoptic, read_pixels, read_rgb

pytest.importorskip("simplejpeg")
pytest.importorskip("imagecodecs")
NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
PICTURE = Image.fromarray(NOISE).resize((301, 203), Image.Resampling.BICUBIC)


def turned_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(PICTURE, "JPEG", exif=exif)


END = png_chunk(b"IEND", b"")
FAST = {
    "jpeg": saved(PICTURE, "JPEG"),
    "jpeg, no subsampling": saved(PICTURE, "JPEG", subsampling=0, quality=95),
    "jpeg, 4:2:2": saved(PICTURE, "JPEG", subsampling=1),
    "jpeg, coarse": saved(PICTURE, "JPEG", quality=5),
    "jpeg, progressive": saved(PICTURE, "JPEG", progressive=True),
    "jpeg, restart markers": saved(PICTURE, "JPEG", restart_marker_rows=1),
    "jpeg, stored as RGB": saved(PICTURE, "JPEG", keep_rgb=True),
    "jpeg, EXIF": turned_by_exif(),
    "png": saved(PICTURE, "PNG"),
    "png, not compressed": saved(PICTURE, "PNG", compress_level=0),
    "png, one pixel": saved(PICTURE.crop((0, 0, 1, 1)), "PNG"),
}
SLOW = {
    "jpeg, gray": saved(PICTURE.convert("L"), "JPEG"),
    "jpeg, CMYK": saved(PICTURE.convert("CMYK"), "JPEG"),
    "png, gray": saved(PICTURE.convert("L"), "PNG"),
    "png, palette": saved(PICTURE.convert("P"), "PNG"),
    "png, RGBA": saved(PICTURE.convert("RGBA"), "PNG"),
    "png, transparent color": saved(PICTURE, "PNG", transparency=tuple(NOISE[0, 0].tolist())),
    "png, animated": saved(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
    "png, 16 bits": saved(Image.fromarray(np.asarray(PICTURE)[..., 0].astype(np.uint16) * 200), "PNG"),
    "png, text after the pixels": saved(PICTURE, "PNG")[:-12] + png_chunk(b"tEXt", b"Comment\0hello") + END,
    "webp": saved(PICTURE, "WEBP", lossless=True),
}
READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "read_pixels": read_pixels,
    "reduced": lambda data: read_pixels(data, (100, 60)),
    "upright": lambda data: read_pixels(data, upright=True),
    "read_panoptic": read_panoptic,
}


def result(read: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray | tuple[str, str]:
    try:
        return read(data)
    except SampleError as error:
        return error.reason, str(error)


def assert_as_by_pillow(data: bytes) -> None:
    for name, read in READERS.items():
        found = result(read, data)
        with pillow_alone():
            expected = result(read, data)
        if isinstance(found, tuple) or isinstance(expected, tuple):
            assert found == expected, name
        else:
            assert found.dtype == expected.dtype and found.flags.writeable == expected.flags.writeable
            np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_pixels_and_ids_are_those_of_pillow(name: str) -> None:
    data = (FAST | SLOW)[name]
    assert (images._fast_pixels(open_image(data)) is not None) == (name in FAST)
    np.testing.assert_array_equal(read_pixels(data), np.asarray(read_rgb(data)))
    assert_as_by_pillow(data)


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_damaged_data_is_read_or_refused_as_by_pillow(name: str) -> None:
    data, rng = (FAST | SLOW)[name], np.random.default_rng(0)
    for length in rng.integers(0, len(data), 10):
        assert_as_by_pillow(data[:length])
    for _ in range(20):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        assert_as_by_pillow(bytes(damaged))


def test_without_memory_pillow_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def decode_jpeg_header(self, data: bytes) -> tuple[int, int]:
            return PICTURE.height, PICTURE.width

        def decode_jpeg(self, data: bytes, *_: object, **__: object) -> np.ndarray:
            raise MemoryError

        def spng_decode(self, data: bytes, out: np.ndarray) -> None:
            raise MemoryError

    expected = np.asarray(PICTURE)
    monkeypatch.setattr(fast_decoding, "_simplejpeg", Exhausted)
    monkeypatch.setattr(fast_decoding, "_imagecodecs", Exhausted)
    np.testing.assert_array_equal(read_pixels(FAST["png"]), expected)
    np.testing.assert_array_equal(read_pixels(FAST["jpeg"]), np.asarray(read_rgb(FAST["jpeg"])))
