"""Decode JPEGs and PNGs faster than Pillow, with libraries that are optional (`pip install '.[fast]'`).

`simplejpeg` decodes JPEGs with libjpeg-turbo, as Pillow does, but writes the pixels directly into an array.
`imagecodecs` decodes PNGs with libspng. Both return the same pixels as Pillow. They are used for training samples and
panoptic PNGs.

These functions return None if a library is not installed or refuses the data. Pillow then decodes the image or reports
the error, so neither the accepted images nor the error messages depend on the installed libraries. `osm.io.images`
opens the image first, and checks its size and the work of decoding it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

CHANNELS = 3
_MOST_CHUNKS = 1000  # of a PNG. Most files have fewer than 20.
_SIGNATURE = 8  # bytes before the first chunk of a PNG


@cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


@cache
def _imagecodecs() -> Any:
    try:
        import imagecodecs
    except ImportError:
        return None
    return imagecodecs if imagecodecs.SPNG.available else None


def jpeg_pixels(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """Return the pixels of an RGB JPEG, uint8 (H, W, 3), or None if Pillow has to decode it.

    Args:
        data: the content of the file.
        size: the (width, height) that Pillow found in it. A JPEG in which `simplejpeg` finds another size is refused.
    """
    library = _simplejpeg()
    if library is None:
        return None
    try:
        height, width = library.decode_jpeg_header(data)[:2]
        if (width, height) != size:
            return None
        found: np.ndarray = library.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except (ValueError, MemoryError):
        return None
    return found if found.shape == (height, width, CHANNELS) else None


def png_bytes(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """Return the pixels of an 8-bit RGB PNG, or None if Pillow has to decode it.

    Args:
        data: the content of the file.
        size: the (width, height) that Pillow found in it. A PNG with another size is refused.

    Returns:
        uint8 (3 H W + 1,): the bytes of the pixels, and a last byte of any value. With this byte, four bytes can be
        read from the place of every pixel.
    """
    library = _imagecodecs()
    if library is None or not _ends_after_pixels(data):
        return None
    width, height = size
    try:
        found = np.empty(CHANNELS * width * height + 1, np.uint8)
        library.spng_decode(data, out=found[:-1].reshape(height, width, CHANNELS))
    except (ValueError, RuntimeError, MemoryError):  # SpngError is a RuntimeError.
        return None
    return found


def _ends_after_pixels(data: bytes) -> bool:
    """Return whether nothing but the end follows the pixels of a PNG. Pillow also checks texts that follow them."""
    place, pixels = _SIGNATURE, False
    for _ in range(_MOST_CHUNKS):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if pixels and kind != b"IDAT":
            return kind == b"IEND"
        pixels = kind == b"IDAT"
        place += 12 + length  # a chunk begins with its length and kind, and ends with a checksum
    return False
