"""The one decoder of pictures: jpg, png and tif alone, with size and work bounded before any pixel is decoded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from osm.data.jpeg import check_header, repeated_samples
from osm.errors import OsmError, SampleError
from osm.files import check_regular_file

MAX_PIXELS = 120_000_000  # a 10,000 x 10,000 picture passes
# The longest side that a JPEG can have. Resizing takes memory in proportion to the ratio of the sides, too.
MAX_SIDE = 65_535
# A scan of a JPEG goes over the whole picture, but may be only a few bytes. This bounds the samples that are gone over
# after each was read once: 1 to 2 seconds, and 20 scans of a colour picture of MAX_PIXELS pass.
MAX_REPEATED_SAMPLES = 2_500_000_000
_FORMATS = ("JPEG", "PNG", "TIFF")
_COMPRESSION, _TIFF_JPEG = 259, 7
_TILE_SIDES = (322, 323)
_PIECES = ((273, 279), (324, 325))  # offsets and lengths: of strips, or of tiles


def open_image(source: bytes | str | Path) -> Image.Image:
    """Opens an image without decoding it, so that its size and mode are known. `decode` gives its pixels.

    Raises:
        SampleError: `image_unreadable` (missing, not a regular file, not jpg/png/tif) or `image_too_large`.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        try:
            check_regular_file(source, "image")
        except OsmError as error:
            raise SampleError("image_unreadable", str(error)) from None
    try:
        with warnings.catch_warnings():  # Pillow warns of sizes that are well within our own bound
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _stream(source) as stream:
                check_header(stream)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise SampleError("image_too_large", f"image {name}: {error}") from None
    except Exception as error:  # Pillow raises what the broken byte happens to cause
        raise SampleError("image_unreadable", f"image {name}: not a readable JPEG, PNG or TIFF ({error})") from None
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise SampleError(
            "image_too_large",
            f"image {name}: {image.width} x {image.height} is over {MAX_PIXELS} pixels, or longer than {MAX_SIDE}",
        )
    return image


def decode(image: Image.Image, mode: str | None = None) -> Image.Image:
    """Decodes an opened image, and converts it to a mode.

    Raises:
        SampleError: `image_truncated`, for any fault in its data, and for data that take far more work than the
            picture's size.
    """
    try:
        _check_work(image)
        image.load()
        return image if mode in (None, image.mode) else image.convert(mode)
    except Exception as error:  # as above
        name = getattr(image, "filename", "")
        raise SampleError("image_truncated", f"{f'image {name}: ' if name else ''}broken data ({error})") from None


def _stream(source: bytes | str | Path) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _check_work(image: Image.Image) -> None:
    """Raises ValueError for an opened image whose decoding would take far longer than its size says."""
    if image.format in ("JPEG", "MPO"):
        repeated = repeated_samples(_bytes_of(image), MAX_REPEATED_SAMPLES)
    elif image.format == "TIFF":
        repeated = _check_tiff(image)
    else:
        return
    if repeated > MAX_REPEATED_SAMPLES:
        raise ValueError(f"its scans go over more than {MAX_REPEATED_SAMPLES} samples again")


def _bytes_of(image: Image.Image) -> bytes:
    stream: Any = image.fp  # type: ignore[attr-defined]
    before = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(before)
    return data


def _check_tiff(image: Image.Image) -> int:
    """The samples that scans go over again, where the TIFF is made of JPEGs; raises ValueError for oversized tiles."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    # A tile is decoded whole, however little of it is in the picture.
    tile = [int(tags.get(tag, 0)) for tag in _TILE_SIDES]
    if all(tile):
        padded = [-(-side // step) * step for side, step in zip(image.size, tile, strict=True)]
        if padded[0] * padded[1] > 2 * MAX_PIXELS:
            raise ValueError(f"tiles of {tile[0]} x {tile[1]}, of which a picture of {2 * MAX_PIXELS} pixels is made")
    if tags.get(_COMPRESSION) != _TIFF_JPEG:
        return 0
    data = _bytes_of(image)
    repeated = walked = 0
    counted: dict[tuple[int, int], int] = {}
    for offsets, lengths in _PIECES:
        for piece in zip(_numbers(tags.get(offsets)), _numbers(tags.get(lengths)), strict=False):
            if piece not in counted:
                walked += min(piece[1], len(data))
                if walked > 2 * len(data):
                    raise ValueError("its strips or tiles overlap")
                counted[piece] = repeated_samples(data[piece[0] : piece[0] + piece[1]], MAX_REPEATED_SAMPLES)
            repeated += counted[piece]
            if repeated > MAX_REPEATED_SAMPLES:
                return repeated
    return repeated


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else () if value is None else (int(value),)


def read_rgb(source: bytes | str | Path, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decodes an image to 8-bit RGB; a truncated file is an error, never a half-grey picture.

    Args:
        at_least: (width, height) that are enough. A JPEG is then decoded at a half, a quarter or an eighth of its size
            where that leaves as much: the means of blocks of pixels, for a fraction of the work.
    """
    image = open_image(source)
    if at_least is not None:
        image.draft(None, at_least)
    return decode(image, "RGB")


def read_ids(source: bytes | str | Path) -> np.ndarray:
    """Decodes a label map whose pixels are ids: a TIFF or PNG of 8 or 16 bits, grey or with a palette. (H, W).

    Raises:
        SampleError: `mask_not_ids` where a pixel is no single number, or what `open_image` raises.
    """
    image = decode(open_image(source))
    if image.mode not in ("L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise SampleError("mask_not_ids", f"label map has mode {image.mode}, one channel of 8 or 16 bits needed")
    ids = np.asarray(image)
    return ids if ids.dtype.kind == "u" else ids.astype(np.int32)


def read_panoptic(source: bytes | str | Path) -> np.ndarray:
    """Decodes a panoptic PNG to int32 ids (H, W), id = R + 256 G + 65536 B.

    Raises:
        SampleError: `mask_not_rgb` where the PNG is no 8-bit RGB picture, or what `open_image` raises.
    """
    image = decode(open_image(source))
    if image.mode not in ("RGB", "RGBA"):
        raise SampleError("mask_not_rgb", f"panoptic PNG has mode {image.mode}, RGB (id = R + 256 G + 65536 B) needed")
    # Four bytes a pixel, red first: a little-endian integer with something in its highest byte.
    rgbx = np.frombuffer(image.tobytes("raw", image.mode if image.mode == "RGBA" else "RGBX"), "<i4")
    return (rgbx & 0xFFFFFF).reshape(image.height, image.width)
