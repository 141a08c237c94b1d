"""What a WebP or GIF claims in its first bytes: Pillow takes memory for it before anyone can ask for its size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

READ_FIRST = 1 << 20
"""Bytes in which a GIF's first picture must begin: Pillow joins its comments one by one, in quadratic time."""


def claimed_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """(width, height) of a WebP's or GIF's canvas; None for anything else.

    Raises:
        ValueError: a WebP or GIF in which no picture begins.
    """
    head = stream.read(16)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head + stream.read(16))
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _gif_size(head + stream.read(READ_FIRST))
    return None


def _webp_size(head: bytes) -> tuple[int, int]:
    """Of the first chunk, which libwebp demands to be one of these three; a frame must fit into a canvas (VP8X)."""
    kind, body = head[12:16], head[20:30]
    if kind == b"VP8X" and len(body) == 10:
        return 1 + _number(body[4:7]), 1 + _number(body[7:10])
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = _number(body[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        return _number(body[6:8]) & 0x3FFF, _number(body[8:10]) & 0x3FFF
    raise ValueError("no picture begins in this WebP")


def _gif_size(head: bytes) -> tuple[int, int]:
    """Of the screen, or of what the first picture makes of it where it reaches beyond."""
    place = 13 + _colors(head[10:11])
    while place < len(head):
        mark = head[place]
        place += 1
        if mark == 0x3B:
            break
        if mark == 0x21:  # an extension: a label, and blocks up to an empty one
            place += 1
            while place < len(head) and head[place]:
                place += 1 + head[place]
            place += 1
        elif mark == 0x2C and place + 9 <= len(head):
            left, top, width, height = _pairs(head[place : place + 8])
            screen = _pairs(head[6:10])
            return max(screen[0], left + width), max(screen[1], top + height)
    raise ValueError(f"no picture begins in the first {READ_FIRST} bytes of this GIF")


def _colors(flags: Iterable[int]) -> int:
    """Bytes of the table of colours that these flags announce."""
    return sum(3 << (flag & 7) + 1 for flag in flags if flag & 0x80)


def _pairs(data: bytes) -> list[int]:
    return [_number(data[k : k + 2]) for k in range(0, len(data), 2)]


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
