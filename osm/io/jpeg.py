"""How much work a JPEG is, from its markers alone: what a small file can make a decoder repeat, counted beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO

import numpy as np

# Of a whole file: metadata (at most 64 KiB each), tables and scans. Pillow copies all Exif data for each Exif segment.
MAX_SEGMENTS = 1000
_MAX_EXIF_SEGMENTS = 64
_READ_FIRST = 1 << 18  # bytes: hardly any header is longer
_MAX_JUNK = 1 << 16  # bytes between segments; Pillow goes over them one by one

_END, _SCAN = 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables and an extension
_ARITHMETIC = frozenset(range(0xC9, 0xD0))
_ARITHMETIC_COST = 8  # a decision for every coefficient takes no bits, but the time of several
_ALONE = frozenset((*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # markers that have no length


def check_header(stream: IO[bytes]) -> None:
    """Bounds what opening a JPEG costs, for Pillow reads its segments one by one up to the first scan.

    Anything else than a JPEG passes.

    Raises:
        ValueError: too many segments, or too much that is no segment.
    """
    data = stream.read(_READ_FIRST)
    if data.startswith(b"\xff\xd8") and not _header_ends(data):
        _header_ends(data + stream.read())


def _header_ends(data: bytes) -> bool:
    """Whether the first scan begins within the data. Raises ValueError as `check_header`."""
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
                f"over {MAX_SEGMENTS} segments, {_MAX_EXIF_SEGMENTS} of them Exif's, or {_MAX_JUNK} bytes of none"
            )
    return False


def repeated_samples(data: bytes, most: int) -> int:
    """How many samples a JPEG's scans go over beyond once each; counting ends where it is over `most`.

    What follows the end of the picture (a film, another picture) is not counted.

    Raises:
        ValueError: over MAX_SEGMENTS segments.
    """
    octets = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(octets[:-1] == 0xFF)
    after = octets[1:][places]
    places = places[(after >= 0xC0) & (after != 0xFF) & ((after < 0xD0) | (after > 0xD8))]  # no stuffing, no restarts
    frame: dict[int, int] = {}  # samples by component
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
    """The samples of each component of a frame, by its id, in whole blocks of 8 x 8."""
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
    """The samples that a scan goes over: those of the components that it names."""
    names = scan[1 : 1 + 2 * scan[0] : 2] if scan else b""
    return sum(frame.get(name, 0) for name in names)
