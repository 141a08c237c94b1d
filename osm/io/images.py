"""Read images in the supported formats. The image size and decoding cost are checked before any pixel is decoded.

No other module opens images. Prediction and naming use `read_rgb` to read image files as 8-bit RGB, and training uses
`read_pixels`, which returns the same pixels as an array. `as_rgb` also accepts arrays and PIL images. All of them use
`to_rgb` for the conversion.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from osm.errors import OsmError, SampleError
from osm.files import check_regular_file
from osm.io.fast_decoding import CHANNELS, jpeg_pixels, png_bytes
from osm.io.headers import check_header, claimed_size, has_few_scans, repeated_samples

MAX_PIXELS = 120_000_000  # An image of 10,000 x 10,000 pixels is allowed.
# The maximum side length in pixels, which is also the maximum side length of a JPEG.
# The side length is limited because the memory needed for resizing grows with the aspect ratio.
MAX_SIDE = 65_535
# The maximum number of repeated decodes in a JPEG: values decoded by all scans, minus the values in the image.
# A scan of only a few bytes can make the decoder process the whole image.
# The limit allows 20 scans of a color image with MAX_PIXELS pixels and adds at most 1 to 2 seconds of decoding time.
MAX_REPEATED_SAMPLES = 2_500_000_000
# The maximum number of pixels in a run-length-encoded BMP, which Pillow decodes in Python.
# Even if every pixel is a separate run, decoding MAX_RUN_PIXELS pixels takes only 1 to 2 seconds.
MAX_RUN_PIXELS = 2_000_000
# An AVIF may decode to more pixels than its header claims, up to libavif's limit of 268 million pixels.
_AVIF = "avif" in features.modules and bool(features.check("avif"))  # Some builds of Pillow do not support AVIF.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", *(["AVIF"] if _AVIF else []))
FORMATS = "JPEG, PNG, TIFF, WebP, BMP, GIF or AVIF" if _AVIF else "JPEG, PNG, TIFF, WebP, BMP or GIF"
"""The names of the readable image formats, for error messages."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", *([".avif"] if _AVIF else []))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # The bit depths that cameras and programs use.
_COMPRESSION, _TIFF_JPEG = 259, 7
_TIFF_JPEGS = (6, _TIFF_JPEG)  # TIFF's old-style and new-style JPEG compression.
_INVERTED = ("1;I", "1;IR", "L;2I", "L;2IR", "L;4I", "L;4IR", "L;I", "L;IR")  # raw modes of TIFFs in which 0 is white
_RAW_MODE, _TURN = "_osm_raw_mode", "_osm_turn"  # Attributes that this module adds to PIL images.
_ORIENTATION = 0x0112
_SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap width and height.
_NEEDED = "a PNG or TIFF of one channel of 1 to 16 bits, or with a palette, is needed"
_TILE_SIDES = (322, 323)
_PIECES = ((273, 279), (324, 325))  # TIFF tags for the offsets and lengths of strips and tiles.


def open_image(source: bytes | str | Path) -> Image.Image:
    """Open an image without decoding its pixels.

    The opened image has a size and a mode. Its pixels are decoded by `decode`.

    Raises:
        SampleError: the reason is `image_unreadable` (the file is missing, not a regular file, or not in one of the
            FORMATS) or `image_too_large`.
    """
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        try:
            check_regular_file(source, "image")
        except OsmError as error:
            raise SampleError("image_unreadable", str(error)) from None
    try:
        with warnings.catch_warnings():  # Pillow warns about sizes that we allow.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _stream(source) as stream:
                check_header(stream)
                stream.seek(0)
                claimed = claimed_size(stream)
            if claimed is not None:
                _check_size(claimed, name)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except SampleError:
        raise
    except Image.DecompressionBombError as error:
        raise SampleError("image_too_large", f"image {name}: {error}") from None
    except FileNotFoundError:
        raise SampleError("image_unreadable", f"image {name}: there is no such file") from None
    except UnidentifiedImageError:  # The error message contains a memory address.
        raise SampleError("image_unreadable", f"image {name}: not a readable {FORMATS}") from None
    except Exception as error:  # Corrupt data can make Pillow raise any exception.
        raise SampleError("image_unreadable", f"image {name}: not a readable {FORMATS} ({_told(error)})") from None
    _check_size(image.size, name)
    if image.format == "TIFF":
        _keep_as_stored(image)
    return image


def _keep_as_stored(image: Image.Image) -> None:
    """Stop Pillow from rotating an opened TIFF, so that size and pixels stay as stored, like in every other format.

    By default, Pillow rotates a TIFF according to its EXIF orientation when decoding it. The reported size is
    the rotated size even before decoding.
    """
    turn = _stated_turn(image)
    setattr(image, _TURN, turn)
    if turn != 1:
        opened: Any = image
        del image.getexif()[_ORIENTATION]  # Pillow parses EXIF only once and takes the rotation from this entry.
        if opened.tag_v2.pop(_ORIENTATION, 1) in _SWAPPED and hasattr(opened, "_tile_size"):
            opened._size = opened._tile_size


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS or max(size) > MAX_SIDE:
        message = f"image {name}: {size[0]} x {size[1]} is over {MAX_PIXELS} pixels, or a side is over {MAX_SIDE}"
        raise SampleError("image_too_large", message)


def _told(error: Exception) -> str:
    """Return an error's text without memory addresses, so that it is the same in every run."""
    return re.sub(r"<[^<>]* at 0x[0-9A-Fa-f]+>", "the file", str(error))


def decode(image: Image.Image, mode: str | None = None) -> Image.Image:
    """Decode an opened image and convert it to the PIL mode `mode`.

    Raises:
        SampleError: the reason is `image_truncated` if the data has any fault, or if decoding the data takes far more
            work than the size of the image suggests.
    """
    with _reporting_broken_data(image):
        if getattr(image, "tile", None):  # A decoded image has no tiles.
            _check_work(image)
        image.load()
        return image if mode in (None, image.mode) else image.convert(mode)


@contextmanager
def _reporting_broken_data(image: Image.Image) -> Iterator[None]:
    """Turn every exception into a SampleError with the reason `image_truncated`."""
    try:
        yield
    except SampleError:
        raise
    except Exception as error:  # Corrupt data can make Pillow raise any exception.
        raise SampleError("image_truncated", f"{_named(image)}broken data ({_told(error)})") from None


def _named(image: Image.Image) -> str:
    """Return the start of an error message about an image: its file name, or an empty string if it has none."""
    name = getattr(image, "filename", "")
    return f"image {name}: " if name else ""


def _stream(source: bytes | str | Path) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def _check_work(image: Image.Image) -> None:
    """Raise ValueError if decoding an opened image would take far longer than its size suggests."""
    if image.format in ("JPEG", "MPO"):
        data = _bytes_of(image)
        by = _reduction(image)
        if has_few_scans(data, (image.width * by, image.height * by), MAX_REPEATED_SAMPLES):
            return
        repeated = repeated_samples(data, MAX_REPEATED_SAMPLES)
    elif image.format == "TIFF":
        repeated = _check_tiff(image)
    elif image.format == "BMP":
        return _check_runs(image)
    else:
        return
    if repeated > MAX_REPEATED_SAMPLES:
        raise ValueError(
            f"the JPEG scans decode over {MAX_REPEATED_SAMPLES} samples more than once; is it a decompression bomb?"
        )


def _reduction(image: Image.Image) -> int:
    """Return the factor by which the sides of an opened JPEG are reduced during decoding."""
    opened: Any = image
    return int(opened.decoderconfig[0]) if opened.decoderconfig else 1


def _check_runs(image: Image.Image) -> None:
    """Raise ValueError for a run-length-encoded BMP that Pillow would take several seconds to decode."""
    tiles: Any = image.tile  # type: ignore[attr-defined]
    pixels = image.width * image.height
    if tiles and tiles[0][0] == "bmp_rle":
        if pixels > MAX_RUN_PIXELS:
            raise ValueError(
                f"the run-length-encoded BMP has {image.width} x {image.height} pixels; at most {MAX_RUN_PIXELS} "
                "pixels are allowed"
            )
        if len(_bytes_of(image)) > 4 * pixels + (1 << 16):
            raise ValueError("the run-length-encoded data of the BMP is far larger than its image")


def _bytes_of(image: Image.Image) -> bytes:
    stream: Any = image.fp  # type: ignore[attr-defined]
    before = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(before)
    return data


def _check_tiff(image: Image.Image) -> int:
    """Check a TIFF's strips and tiles, and return the number of repeated decodes in its embedded JPEG data.

    Raises:
        ValueError: the strips or tiles are too large or overlap.
    """
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    # A tile is always decoded in full, even if only a small part of it lies inside the image.
    tile = [int(tags.get(tag, 0)) for tag in _TILE_SIDES]
    if all(tile):
        padded = [-(-side // step) * step for side, step in zip(image.size, tile, strict=True)]
        if padded[0] * padded[1] > 2 * MAX_PIXELS:
            raise ValueError(f"tiles of {tile[0]} x {tile[1]} add up to over {2 * MAX_PIXELS} pixels")
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


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image (1 to 8). A missing or invalid orientation is returned as 1.

    Orientations 5 to 8 swap the width and height of the opened image. The result is always 1 for a TIFF that was not
    opened with `open_image`, because Pillow rotates it when decoding.
    """
    if image.format == "TIFF":
        return int(getattr(image, _TURN, 1))
    _raw_mode(image)  # Save the raw mode first, because getexif() may decode the pixels of a PNG.
    return _stated_turn(image)


def _stated_turn(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():  # Pillow warns about damaged EXIF.
            warnings.simplefilter("ignore")
            found = image.getexif().get(_ORIENTATION, 1)
        return int(found) if found in range(1, 9) else 1
    except Exception:  # Corrupt data can make Pillow raise any exception.
        return 1


def read_rgb(source: bytes | str | Path, *, upright: bool = False) -> Image.Image:
    """Read an image as 8-bit RGB. A truncated file raises an error instead of yielding a partly gray image.

    Args:
        source: the content of the file as bytes, or the path of the file.
        upright: whether the image is rotated by its EXIF orientation, as image viewers do. False keeps the stored
            pixels, to which the masks of most datasets refer.

    Raises:
        SampleError: the image cannot be opened, decoded or converted. See `open_image`, `decode` and `to_rgb` for the
            reasons.
    """
    image = open_image(source)
    return _decoded_rgb(image, orientation(image) if upright else 1)


def _decoded_rgb(image: Image.Image, turn: int) -> Image.Image:
    return _settled(turned(to_rgb(decode(image)), turn))


def read_pixels(
    source: bytes | str | Path | Image.Image, at_least: tuple[int, int] | None = None, upright: bool = False
) -> np.ndarray:
    """Read an image as an array uint8 (H, W, 3), with the pixels and errors of `read_rgb`.

    Most JPEGs and PNGs are decoded faster if the libraries of `osm.io.fast_decoding` are installed.

    Args:
        source: see `read_rgb`; or an image that `open_image` has opened, and which is not used afterwards.
        at_least: the smallest sufficient (width, height). A JPEG is then decoded at a half, a quarter or an eighth of
            its size if the result is large enough. Decoding at a reduced size is faster, and each pixel is the mean of
            a block.
        upright: see `read_rgb`. `at_least` refers to the rotated image.
    """
    image = source if isinstance(source, Image.Image) else open_image(source)
    turn = orientation(image) if upright else 1
    if at_least is not None:
        image.draft(None, at_least[::-1] if turn > 4 else at_least)
    found = _fast_pixels(image) if turn == 1 else None
    return np.array(_decoded_rgb(image, turn)) if found is None else found


def _fast_pixels(image: Image.Image) -> np.ndarray | None:
    """Return the pixels of an opened image, uint8 (H, W, 3), or None if only Pillow can decode it.

    Raises:
        SampleError: the reason is `image_truncated`; see `decode`.
    """
    if not getattr(image, "tile", None):  # Reading the EXIF data of a PNG decodes it.
        return None
    if image.format == "JPEG" and image.mode == "RGB":
        if _reduction(image) > 1:
            return None
        with _reporting_broken_data(image):
            _check_work(image)
        return jpeg_pixels(_bytes_of(image), image.size)
    found = _fast_png_bytes(image)
    return None if found is None else found[:-1].reshape(image.height, image.width, CHANNELS)


def _fast_png_bytes(image: Image.Image) -> np.ndarray | None:
    """Return the result of `png_bytes` for an opened image, or None if only Pillow can decode it."""
    # A PNG of 16 bits also has the mode RGB. A transparent color is not part of the mode.
    if image.format != "PNG" or image.mode != "RGB" or _raw_mode(image) != "RGB" or "transparency" in image.info:
        return None
    if getattr(image, "is_animated", False) or image.info.get("interlace"):
        return None
    return png_bytes(_bytes_of(image), image.size)


def as_rgb(image: Image.Image | np.ndarray | str | Path) -> Image.Image:
    """Return an image as 8-bit RGB, rotated according to its EXIF orientation.

    Args:
        image: a path, a PIL image, or a uint8 array of shape (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        OsmError: the argument is not an image, or the file cannot be read.
    """
    if isinstance(image, (str, Path)):
        return read_rgb(Path(image), upright=True)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise OsmError(
                f"image is an array of shape {image.shape} and dtype {image.dtype}; expected uint8 and shape (H, W), "
                "(H, W, 3) or (H, W, 4)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise OsmError(f"image is a {type(image).__name__}; expected a PIL image, an array or a path")
    turn = orientation(image)
    found = turned(to_rgb(image), turn)
    return _settled(found.copy() if found is image else found)  # The caller may modify its own image later.


def turned(image: Image.Image, turn: int) -> Image.Image:
    """Rotate a decoded image upright. `turn` is the EXIF orientation returned by `orientation`."""
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _settled(image: Image.Image) -> Image.Image:
    """Remove an image's EXIF orientation, so that no later code rotates the image without its masks."""
    if orientation(image) == 1:
        return image
    image = image.copy()  # Pillow also stores the parsed EXIF data outside `info`.
    image.info = {}
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image to 8-bit RGB, without applying its EXIF orientation.

    An RGB image without transparency is returned unchanged. A transparent image is composited onto white.

    Integers with more than 8 bits are reduced to their upper 8 bits. The bit depth is assumed to be the smallest of 8,
    10, 12, 14, 16, 24 and 32 that can represent the image's maximum value, because cameras store 12-bit values in
    16-bit files. A float image is multiplied by 255 if its maximum is at most 1, is kept if its maximum is from 2 to
    255, and is treated like an integer image if its maximum is greater than 255.

    Raises:
        SampleError: the reason is `image_values` if a value is negative, NaN or infinite, and `image_truncated` if the
            data is broken.
    """
    with _reporting_broken_data(image):
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            return _of_depth(image)
        if image.mode in ("La", "RGBa"):  # Pillow can convert La and RGBa only to LA and RGBA.
            image = image.convert(image.mode.upper())
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info or _has_alpha(image):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return image if image.mode == "RGB" else image.convert("RGB")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _of_depth(image: Image.Image) -> Image.Image:
    """Convert a single-channel image of integers or floats to RGB. See `to_rgb`."""
    values = np.asarray(image)
    low, high = values.min(), values.max()  # Both are NaN if a value is NaN.
    told = f"{_named(image)}values {low:g} to {high:g}"
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise SampleError("image_values", f"{told}: values must be finite and at least 0 (0 to 1, or 0 to 255)")
    if image.mode == "F":
        if 1 < high < 2:
            raise SampleError("image_values", f"{told}: expected values from 0 to 1, or from 0 to 255")
        if 1 < high <= 255:
            return image.convert("RGB")
    depth = next((bits for bits in _DEPTHS if high < 2**bits), None)
    if depth is None:
        raise SampleError("image_values", f"{told}: expected values of at most 32 bits")
    if image.mode != "F":
        grey = (values >> (depth - 8)).astype(np.uint8)
    elif high <= 1:
        grey = (values * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    else:
        grey = (values / np.float32(2 ** (depth - 8))).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB")


def read_ids(source: bytes | str | Path) -> np.ndarray:
    """Read a label map, in which each pixel is an id, into an array (H, W). See `as_ids`.

    Raises:
        SampleError: the label map cannot be opened or converted. See `open_image` and `as_ids` for the reasons.
    """
    return as_ids(open_image(source))


def as_ids(image: Image.Image) -> np.ndarray:
    """Return the ids stored in an opened label map, without rotating it.

    The label map has either one channel of 1 to 32 bits or a palette, whose indices are returned. A label map with
    several identical channels is accepted if no pixel is transparent. Pillow scales 2-bit and 4-bit values to 0..255,
    and inverts values of up to 8 bits if a TIFF declares that 0 is white. This function undoes Pillow's scaling and
    inversion, unless the image has already been decoded.

    Returns:
        uint8 or uint16 (H, W), or int32 (H, W) for 32 bits and signed 16 bits.

    Raises:
        SampleError: the reason is `mask_not_ids` if a pixel is not a single number, or if JPEG compression may have
            changed ids. If the image cannot be decoded, the reason is that of `decode`.
    """
    if image.format in ("JPEG", "MPO") or _holds_jpegs(image):
        raise SampleError("mask_not_ids", f"the label map is compressed as JPEG, which changes ids: {_NEEDED}")
    raw = _raw_mode(image)
    image = decode(image)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "LA", "RGB", "RGBA"):
        raise SampleError("mask_not_ids", f"label map has mode {image.mode}: {_NEEDED}")
    ids = np.asarray(image)
    if ids.ndim == 3:
        clear = image.mode.endswith("A") and bool((ids[..., -1] != 255).any())  # Transparent pixels have no id.
        ids = ids[..., :-1] if image.mode.endswith("A") else ids
        if clear or not (ids == ids[..., :1]).all():
            found = "transparent pixels" if clear else "channels that differ"
            raise SampleError("mask_not_ids", f"label map of mode {image.mode} has {found}: {_NEEDED}")
        return np.ascontiguousarray(ids[..., 0])
    if image.mode == "1":
        ids = ids.astype(np.uint8)
    if raw in _INVERTED:
        ids = (1 if image.mode == "1" else 255) - ids
    if raw.startswith(("L;2", "L;4")):
        ids = ids // (85 if raw.startswith("L;2") else 17)
    return ids if ids.dtype.kind == "u" else ids.astype(np.int32)


def _holds_jpegs(image: Image.Image) -> bool:
    tags: Any = getattr(image, "tag_v2", None)
    return image.format == "TIFF" and tags is not None and tags.get(_COMPRESSION) in _TIFF_JPEGS


def _raw_mode(image: Image.Image) -> str:
    """Return an image's raw mode in Pillow, such as `L;4`, or an empty string if it was already decoded."""
    tiles: Any = getattr(image, "tile", None)
    if tiles:
        args = tiles[0][3]
        raw = args[0] if isinstance(args, (tuple, list)) and args else args
        setattr(image, _RAW_MODE, raw if isinstance(raw, str) else "")
    return getattr(image, _RAW_MODE, "")


def read_mask(source: bytes | str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the mask of one object from a 1-bit or 8-bit image as a bool array (H, W). Nonzero pixels are inside.

    Args:
        source: the content of the file as bytes, or the path of the file.
        size: the (width, height) to which the mask is resized with nearest-neighbor sampling. None keeps the mask's own
            size.

    Raises:
        SampleError: the reason is `mask_not_ids` if the mask has several channels or more than 8 bits. If the image
            cannot be read, the reason is that of `open_image` or `decode`.
    """
    image = decode(open_image(source))
    if image.mode not in ("1", "L", "P"):
        raise SampleError("mask_not_ids", f"the mask has mode {image.mode}; expected a single channel of 1 or 8 bits")
    if size is not None and size != image.size:
        image = image.resize(size, Image.Resampling.NEAREST)
    return np.asarray(image) != 0


def read_panoptic(source: bytes | str | Path) -> np.ndarray:
    """Read a panoptic PNG as int32 ids (H, W), with id = R + 256 G + 65536 B.

    Raises:
        SampleError: the reason is `mask_not_rgb` if the PNG is not an 8-bit RGB image. If the PNG cannot be read, the
            reason is that of `open_image` or `decode`.
    """
    image = open_image(source)
    shape = image.height, image.width
    # Four bytes (red first) are read as a little-endian integer. The highest byte is not part of the id. With three
    # bytes per pixel, it is the first byte of the next pixel.
    found = _fast_png_bytes(image)
    if found is not None:
        return np.ndarray(shape, "<i4", found, strides=(CHANNELS * shape[1], CHANNELS)) & 0xFFFFFF
    image = decode(image)
    if image.mode not in ("RGB", "RGBA"):
        raise SampleError(
            "mask_not_rgb", f"panoptic PNG has mode {image.mode}; expected RGB (id = R + 256 G + 65536 B)"
        )
    rgbx = np.frombuffer(image.tobytes("raw", image.mode if image.mode == "RGBA" else "RGBX"), "<i4")
    return (rgbx & 0xFFFFFF).reshape(shape)


def panoptic_pixels(ids: np.ndarray) -> np.ndarray:
    """Encode integer ids (H, W) as panoptic PNG pixels, uint8 (H, W, 3). `read_panoptic` is the inverse."""
    ids = ids.astype(np.int64)  # 8-bit and 16-bit dtypes cannot represent the divisor 65536.
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
