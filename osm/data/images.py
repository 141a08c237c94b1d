"""Decoding of untrusted image bytes: size bounded before any pixel is allocated, jpg / png / tif alone."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import SampleError

MAX_PIXELS = 120_000_000  # a 10,000 x 10,000 picture passes
# The longest side that a JPEG can have. Resizing takes memory in proportion to the ratio of the sides, too.
MAX_SIDE = 65_535
# Progressive JPEGs have about ten scans. Each goes over the whole picture, but may be only eleven bytes.
MAX_SCANS = 1000
_SCAN = b"\xff\xda"
_FORMATS = ("JPEG", "PNG", "TIFF")


def open_image(source: bytes | str | Path) -> Image.Image:
    """Opens an image without decoding it, so that its size and mode are known.

    Raises:
        SampleError: `image_unreadable` (missing, not jpg/png/tif) or `image_too_large`.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():  # Pillow warns of sizes that are well within our own bound
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
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
        SampleError: `image_truncated`, for any fault in its data.
    """
    try:
        if image.format in ("JPEG", "MPO") and _scans(image) > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        image.load()
        return image if mode in (None, image.mode) else image.convert(mode)
    except Exception as error:  # as above
        name = getattr(image, "filename", "")
        raise SampleError("image_truncated", f"{f'image {name}: ' if name else ''}broken data ({error})") from None


def _scans(image: Image.Image) -> int:
    """The scans that an opened JPEG begins, or a few more: coded data never have the mark in them, but metadata may."""
    stream: Any = image.fp  # type: ignore[attr-defined]
    before = stream.tell()
    stream.seek(0)
    data = np.frombuffer(stream.read(), np.uint8)
    stream.seek(before)
    # bytes.count would take eight times as long.
    return int(np.count_nonzero((data[:-1] == _SCAN[0]) & (data[1:] == _SCAN[1])))


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
