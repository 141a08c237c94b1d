"""Decoding: ids are read as they are written, and cut or odd files are refused with their reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import saved
from PIL import Image

from osm.errors import SampleError
from osm.forms.picture import Picture
from osm.io.images import FORMATS, as_rgb, open_image, orientation, read_panoptic, read_pixels, read_rgb

NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
SMOOTH = Image.fromarray(NOISE).resize((301, 203), Image.Resampling.BICUBIC)


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
    with pytest.raises(SampleError, match="mode L; expected RGB"):
        read_panoptic(grey)


# One way to RGB.


def pixels_of(data: bytes, **options: Any) -> np.ndarray:
    return np.asarray(read_rgb(data, **options))


def test_what_a_photo_holds_is_what_pillow_decodes() -> None:
    for image, kind in ((SMOOTH, "JPEG"), (SMOOTH.convert("L"), "JPEG"), (SMOOTH.convert("CMYK"), "JPEG"),
                        (SMOOTH, "PNG"), (SMOOTH.convert("L"), "PNG"), (SMOOTH.quantize(16), "PNG"), (SMOOTH, "TIFF"),
                        (SMOOTH.convert("1"), "PNG"), (SMOOTH, "WEBP"), (SMOOTH, "BMP"), (SMOOTH, "GIF")):  # fmt: skip
        data = saved(image, kind)
        np.testing.assert_array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        np.testing.assert_array_equal(pixels_of(data, upright=True), pixels_of(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_upright_is_what_a_viewer_shows(kind: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    for turn in range(1, 9):
        exif[0x0112] = turn
        data = saved(SMOOTH, kind, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(pixels_of(data, upright=True), np.asarray(upright))
        np.testing.assert_array_equal(np.asarray(as_rgb(Image.open(io.BytesIO(data)))), np.asarray(upright))
        assert orientation(read_rgb(data)) == orientation(read_rgb(data, upright=True)) == 1  # nobody turns them again
        for once in (read_rgb(data), read_rgb(data, upright=True), as_rgb(upright)):
            np.testing.assert_array_equal(np.asarray(as_rgb(once)), np.asarray(once))
        stored = np.asarray(Image.open(io.BytesIO(data)))
        if kind == "TIFF":  # Pillow turns those whenever it decodes them
            stored = np.asarray(SMOOTH)
        np.testing.assert_array_equal(pixels_of(data), stored)
        opened = open_image(data)
        assert orientation(opened) == turn and opened.size == SMOOTH.size


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg", "tiff_adobe_deflate"])
def test_a_tiff_is_raw_or_upright_as_a_jpeg_is(compression: str) -> None:
    for turn in range(1, 9):
        data = saved(SMOOTH, "TIFF", compression=compression, tiffinfo={0x0112: turn})
        plain = pixels_of(saved(SMOOTH, "TIFF", compression=compression))
        np.testing.assert_array_equal(pixels_of(data), plain)
        upright = pixels_of(data, upright=True)
        np.testing.assert_array_equal(upright, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        size = (upright.shape[1], upright.shape[0])
        for exif, stated, wanted in (("raw", size, SMOOTH.size), ("upright", SMOOTH.size, size),
                                     ("auto", SMOOTH.size, SMOOTH.size), ("auto", size, size)):  # fmt: skip
            picture = Picture.by_rule(data, exif, lambda stated=stated: stated, lambda: None)  # type: ignore[misc]
            assert picture.size == picture.rgb().size == wanted


def test_a_turned_jpeg_is_decoded_small() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(SMOOTH.resize((800, 200)), "JPEG", exif=exif)
    assert read_pixels(data, (90, 380), upright=True).shape == (400, 100, 3)
    assert read_pixels(data, (380, 90)).shape == (100, 400, 3)
    assert read_pixels(data, (90, 380)).shape == (200, 800, 3)  # half of it as it is stored is too low


def test_broken_exif_turns_nothing() -> None:
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\0", b"Exif\0\0nothing at all", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        data = saved(SMOOTH, "JPEG", exif=exif)
        assert orientation(open_image(data)) == 1
        assert read_rgb(data, upright=True).size == SMOOTH.size
    strange = Image.Exif()
    for value in (0, 9, 60_000):
        strange[0x0112] = value
        assert orientation(open_image(saved(SMOOTH, "JPEG", exif=strange))) == 1


def test_transparency_lies_on_white() -> None:
    alpha = np.zeros((37, 53), np.uint8)
    alpha[:, 20:] = 255
    rgba = Image.fromarray(np.dstack([NOISE, alpha]))
    grey = Image.merge("LA", (Image.fromarray(NOISE[..., 0]), Image.fromarray(alpha)))
    palette = Image.fromarray(np.where(alpha, 1, 0).astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 40, 50, 60])
    for data in (saved(rgba, "PNG"), saved(rgba, "TIFF"), saved(rgba, "WEBP", lossless=True), saved(grey, "PNG"),
                 saved(palette, "PNG", transparency=0), saved(palette, "GIF", transparency=0),
                 saved(palette.convert("RGB"), "PNG", transparency=(9, 9, 9)),
                 saved(palette.convert("L"), "PNG", transparency=9)):  # fmt: skip
        found = pixels_of(data)
        assert (found[:, :20] == 255).all() and (found[:, 20:] < 255).any(-1).mean() > 0.9
    np.testing.assert_array_equal(pixels_of(saved(rgba, "PNG"))[:, 20:], NOISE[:, 20:])


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16, 24])
def test_deep_pictures_are_as_bright_as_their_depth_says(depth: int) -> None:
    grey = NOISE[..., 0].astype(np.int32) << (depth - 8)
    grey[0, 0] = 255 << (depth - 8)
    deep = [Image.fromarray(grey.astype(np.int32))]
    deep += [Image.fromarray(grey.astype(np.uint16))] if depth <= 16 else []
    for image in deep:
        found = pixels_of(saved(image, "TIFF"))
        np.testing.assert_array_equal(found, np.repeat((grey >> (depth - 8)).astype(np.uint8)[..., None], 3, -1))
    if depth <= 16:
        np.testing.assert_array_equal(pixels_of(saved(deep[1], "PNG")), found)
        big = saved(deep[1], "PNG")
        np.testing.assert_array_equal(np.asarray(as_rgb(Image.open(io.BytesIO(big)))), found)


def test_floats_are_read_by_their_range() -> None:
    grey = NOISE[..., 0].astype(np.float32)
    grey[0, :2] = 0, 255
    expected = np.repeat(NOISE[..., :1], 3, -1)
    expected[0, :2] = [[0] * 3, [255] * 3]
    for values in (grey, grey / 255, grey * 257):
        np.testing.assert_array_equal(pixels_of(saved(Image.fromarray(values.astype(np.float32)), "TIFF")), expected)
    for wrong, told in (
        (np.nan, "nan.*finite"),
        (np.inf, "inf.*finite"),
        (-1, "-1 to.*at least 0"),
        (1e30, "expected.*32 bits"),
    ):
        spoilt = grey.copy()
        spoilt[3, 3] = wrong
        with pytest.raises(SampleError, match=told) as caught:
            read_rgb(saved(Image.fromarray(spoilt), "TIFF"))
        assert caught.value.reason == "image_values"
    with pytest.raises(SampleError, match="0 to 1.5: expected values from 0 to 1, or from 0 to 255"):
        read_rgb(saved(Image.fromarray(grey / 170), "TIFF"))


def test_films_are_their_first_picture() -> None:
    others = [Image.new("RGB", SMOOTH.size, "red")] * 2
    for kind, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("MPO", {}), ("GIF", {})):
        data = saved(SMOOTH, kind, save_all=True, append_images=others, **options)
        assert np.abs(pixels_of(data).astype(int) - np.asarray(SMOOTH)).mean() < 20


def test_what_cannot_be_read_is_told_alike_in_every_run(tmp_path: Path) -> None:
    for data in (b"no picture", b"", b"GIF89a", b"RIFF0000WEBPVP8 ", saved(SMOOTH, "PPM"), saved(SMOOTH, "PNG")[:900]):
        with pytest.raises(SampleError) as caught:
            read_rgb(data)
        assert " at 0x" not in str(caught.value)
    with pytest.raises(SampleError, match=f"^image 10 bytes: not a readable {FORMATS}$"):
        read_rgb(b"no picture")
    with pytest.raises(SampleError, match=r"image .*none.jpg: there is no such file$"):
        read_rgb(tmp_path / "none.jpg")
