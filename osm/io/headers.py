"""Estimate how much memory and time it takes to decode a WebP, GIF or JPEG, from its bytes alone.

The estimate is made before Pillow opens the file. Pillow allocates memory for a WebP or GIF before the image size can
be checked, and a small JPEG can make a decoder process the whole image many times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO

import numpy as np

READ_FIRST = 1 << 20
"""The first image of a GIF must begin within this number of bytes, because Pillow needs quadratic time to join the
comments before the first image."""
# The maximum number of marker segments in a JPEG: metadata (at most 64 KiB each), tables and scans.
# At most _MAX_EXIF_SEGMENTS may be Exif segments, because each one makes Pillow copy all earlier Exif data again.
MAX_SEGMENTS = 1000
_MAX_EXIF_SEGMENTS = 64
_READ_FIRST = 1 << 18  # The size in bytes of the first read. Few headers are longer.
_MAX_JUNK = 1 << 16  # The maximum number of bytes between marker segments. Pillow skips these bytes one by one.

_END, _SCAN = 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # Three of the markers 0xC0 to 0xCF do not start frames.
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_ARITHMETIC_COST = 8  # Arithmetic coding can store a coefficient in 0 bits, but decoding it is slow.
_MAX_SCANNED = 4  # The maximum number of components in a scan. Decoders refuse a scan with more.
_FEW_SCANS = 50  # Each scan takes some time, even if its image is tiny. Progressive JPEGs have about 10.
_BLOCK = 8  # The values of a component are padded to whole blocks of 8 x 8.
_ALONE = frozenset((*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # Markers that no length follows.


def claimed_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return the canvas size (width, height) of a WebP or GIF, or None for any other format.

    Raises:
        ValueError: the WebP or GIF contains no image.
    """
    head = stream.read(16)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head + stream.read(16))
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _gif_size(head + stream.read(READ_FIRST))
    return None


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return the image size stored in the first chunk of a WebP.

    The chunk type must be one of libwebp's three image chunk types.

    A VP8X chunk contains the size of the canvas, which must be large enough for every frame.
    """
    kind, body = head[12:16], head[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return 1 + _number(body[4:7]), 1 + _number(body[7:10])
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = _number(body[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        return _number(body[6:8]) & 0x3FFF, _number(body[8:10]) & 0x3FFF
    raise ValueError("no image begins in this WebP")


def _gif_size(head: bytes) -> tuple[int, int]:
    """Return the size of a GIF's logical screen, enlarged if the first image extends beyond it."""
    place = 13 + _colors(head[10:11])
    while place < len(head):
        mark = head[place]
        place += 1
        if mark == 0x3B:
            break
        if mark == 0x21:  # A GIF extension consists of a label and data blocks. The last block is empty.
            place += 1
            while place < len(head) and head[place]:
                place += 1 + head[place]
            place += 1
        elif mark == 0x2C and place + 9 <= len(head):
            left, top, width, height = _pairs(head[place : place + 8])
            screen = _pairs(head[6:10])
            return max(screen[0], left + width), max(screen[1], top + height)
    raise ValueError(f"no image starts within the first {READ_FIRST} bytes of this GIF")


def _colors(flags: Iterable[int]) -> int:
    """Return the size in bytes of the color table declared by a GIF's flags."""
    return sum(3 << (flag & 7) + 1 for flag in flags if flag & 0x80)


def _pairs(data: bytes) -> list[int]:
    return [_number(data[k : k + 2]) for k in range(0, len(data), 2)]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def check_header(stream: IO[bytes]) -> None:
    """Reject a JPEG that is slow to open. Pillow reads a JPEG's marker segments one at a time until the first scan.

    Other formats are not checked.

    Raises:
        ValueError: the JPEG has too many segments, or too many bytes outside of segments.
    """
    data = stream.read(_READ_FIRST)
    if data.startswith(b"\xff\xd8") and not _header_ends(data):
        _header_ends(data + stream.read())


def _header_ends(data: bytes) -> bool:
    """Return whether the first scan of a JPEG starts within `data`.

    Raises ValueError for the same reasons as `check_header`.
    """
    segments = exif = junk = 0
    place, end = 2, len(data) - 3
    while place < end:
        if data[place] != 0xFF or data[place + 1] in (0, 0xFF):
            place += 1
            junk += 1
        elif (marker := data[place + 1]) == _SCAN:
            return True
        elif marker in _ALONE:
            place += 2
            junk += 2
        else:
            length = max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
            segments += 1
            exif += marker == 0xE1 and data[place + 4 : place + 8] == b"Exif"
            place += 2 + length
        if segments > MAX_SEGMENTS or exif > _MAX_EXIF_SEGMENTS or junk > _MAX_JUNK:
            raise ValueError(
                f"the JPEG has over {MAX_SEGMENTS} marker segments, over {_MAX_EXIF_SEGMENTS} Exif segments, or over "
                f"{_MAX_JUNK} bytes outside its segments"
            )
    return False


def has_few_scans(data: bytes, size: tuple[int, int], most: int) -> bool:
    """Return whether a JPEG has so few scans that `repeated_samples` is at most `most`. This is much faster to compute.

    Args:
        data: the content of the file.
        size: the (width, height) of its frame.
        most: the largest allowed number.
    """
    scans = data.count(b"\xff\xda")
    width, height = (side + _BLOCK for side in size)
    return scans <= _FEW_SCANS and scans * _ARITHMETIC_COST * _MAX_SCANNED * width * height <= most


def repeated_samples(data: bytes, most: int) -> int:
    """Return how many component values a JPEG's scans decode, minus the number of values in the image.

    Counting stops as soon as the count exceeds `most`. Data after the end of the image (a video or a second image) is
    not counted.

    Raises:
        ValueError: the JPEG has more than MAX_SEGMENTS segments.
    """
    octets = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(octets[:-1] == 0xFF)
    after = octets[1:][places]
    places = places[(after >= 0xC0) & (after != 0xFF) & ((after < 0xD0) | (after > 0xD8))]  # no stuffing, no restarts
    frame: dict[int, int] = {}  # component -> samples
    cost, total, work, segments, at = 1, 0, 0, 0, 0
    while at < len(places):
        place = int(places[at])
        marker = data[place + 1]
        if marker == _END:
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise ValueError(f"over {MAX_SEGMENTS} segments and scans")
        if marker in _ALONE:
            at += 1
            continue
        length = max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
        body = data[place + 4 : place + 2 + length]
        if marker in _FRAMES and not frame:
            frame = _samples(body)
            total = sum(frame.values())
            cost = _ARITHMETIC_COST if marker in _ARITHMETIC else 1
        elif marker == _SCAN:
            work += cost * _scanned(body, frame)
            if work - total > most:
                break
        at = max(at + 1, int(np.searchsorted(places, place + 2 + length)))
    return max(0, work - total)


def _samples(frame: bytes) -> dict[int, int]:
    """Map each component id of a JPEG frame to the component's number of values, padded to whole 8 x 8 blocks."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    components = [frame[k : k + 3] for k in range(6, len(frame) - 2, 3)]
    factors = {one[0]: (one[1] >> 4 or 1, one[1] & 15 or 1) for one in components}
    if not factors:
        return {}
    widest, highest = (max(factor[side] for factor in factors.values()) for side in (0, 1))
    return {
        name: 64 * -(-width * across // (8 * widest)) * -(-height * down // (8 * highest))
        for name, (across, down) in factors.items()
    }


def _scanned(scan: bytes, frame: Mapping[int, int]) -> int:
    """Return the total number of values in all components of a JPEG scan."""
    names = scan[1 : 1 + 2 * scan[0] : 2] if scan else b""
    return sum(frame.get(name, 0) for name in names)
