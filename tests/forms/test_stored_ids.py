"""Label maps of any depth hold the numbers that were written, whatever Pillow makes of them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import saved
from PIL import Image

from osm.errors import SampleError
from osm.forms.coco_panoptic import _as_rgb
from osm.io.any_mask import read_mask_file
from osm.io.images import as_ids, read_ids

IDS = np.zeros((6, 16), np.uint8)
IDS[1:3, 2:9] = 1
IDS[4:, 5:] = 3


def packed(ids: np.ndarray, bits: int) -> list[bytes]:
    """The rows of a picture of so many bits a pixel."""
    places = (ids[..., None] >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in places]


def grey_png(ids: np.ndarray, bits: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *ids.shape[::-1], bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed(ids, bits)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def grey_tiff(ids: np.ndarray, bits: int, white: int, orientation: int = 1) -> bytes:
    """Photometric `white`: 0 where 0 is white, 1 where it is black."""
    data = ids.astype("<u2").tobytes() if bits == 16 else b"".join(packed(ids, bits))
    values = {256: ids.shape[1], 257: ids.shape[0], 258: bits, 259: 1, 262: white, 273: 8, 274: orientation,
              277: 1, 278: ids.shape[0], 279: len(data)}  # fmt: skip
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    head = b"II" + struct.pack("<HI", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(values)) + tags + b"\0" * 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_ids_of_every_depth_are_those_that_were_written(bits: int, tmp_path: Path) -> None:
    ids = np.minimum(IDS, min(255, 2**bits - 1))
    maps = {"black.tif": grey_tiff(ids, bits, 1), "white.tif": grey_tiff(ids, bits, 0)}
    if bits < 16:
        maps["a.png"] = grey_png(ids, bits)
    for name, data in maps.items():
        np.testing.assert_array_equal(read_ids(data), ids, err_msg=name)
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(read_mask_file(tmp_path / name, ids.shape, "m", 1), ids == 1, err_msg=name)
        np.testing.assert_array_equal(as_ids(Image.open(tmp_path / name)), ids)
    if bits < 16:
        rgb = np.asarray(Image.open(io.BytesIO(_as_rgb(maps["a.png"], {1, 3}))))
        np.testing.assert_array_equal(rgb, np.dstack([ids, ids * 0, ids * 0]))


def test_a_map_is_read_as_it_is_stored() -> None:
    for orientation in range(1, 9):
        np.testing.assert_array_equal(read_ids(grey_tiff(IDS, 4, 1, orientation)), IDS)


def test_equal_channels_are_one() -> None:
    opaque = np.full_like(IDS, 255)
    for channels in ([IDS] * 3, [IDS] * 3 + [opaque], [IDS, opaque]):
        np.testing.assert_array_equal(read_ids(saved(Image.fromarray(np.dstack(channels)), "PNG")), IDS)
    for channels, told in (([IDS, IDS, opaque], "channels that differ"), ([IDS, IDS + 1], "transparent pixels")):
        with pytest.raises(SampleError, match=told) as caught:
            read_ids(saved(Image.fromarray(np.dstack(channels)), "PNG"))
        assert caught.value.reason == "mask_not_ids"


def test_ids_that_a_jpeg_changed_are_refused() -> None:
    for data in (saved(Image.fromarray(IDS), "JPEG"), saved(Image.fromarray(IDS), "TIFF", compression="jpeg")):
        with pytest.raises(SampleError, match="compressed as JPEG, which changes ids"):
            read_ids(data)
