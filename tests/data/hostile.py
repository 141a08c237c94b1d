"""Files that claim what they do not hold: tar headers, pictures, and a limit on the time that reading them may take."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, features
from processes import PATIENCE_S

END = tarfile.NUL * 1024
HUGE = (2**63 - 1, 300 << 30)  # what no memory holds, and what a lazy system may seem to give


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Raises TimeoutError where the block goes on for longer: a hang is a failure, not a wait."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"over {limit} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which may die of it; it imports what this one does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)


# Tar.


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a right checksum, whatever its size says."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))[:512]
    block[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def tar_member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + data + tarfile.NUL * (-len(data) % 512)


def pax(*records: tuple[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header with these records."""
    data = b""
    for name, value in records:
        body = f" {name}={value}\n".encode()
        length = len(body) + len(str(len(body) + 3))
        data += str(length).encode() + body
    return tar_member("extended", data, kind)


# Pictures.


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, before: bytes = b"", after: bytes = b"", pixels: bytes | None = None) -> bytes:
    """A PNG that claims that size; its pixels are ten zeros unless given."""
    data = zlib.compress(bytes(10)) if pixels is None else pixels
    chunks = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + before
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IDAT", data) + after + png_chunk(b"IEND", b"")


def jpeg_file(width: int, height: int, scans: int = 0) -> bytes:
    """A small JPEG that claims that size; `scans` repeats the last scan of a progressive one so often."""
    data = saved(Image.new("L", (16, 16)), "JPEG", progressive=bool(scans))
    at = data.find(b"\xff\xc2" if scans else b"\xff\xc0") + 5
    data = data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9" if scans else data


def jpeg_segment(marker: int, body: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    """A JPEG with more segments before its first table."""
    return jpeg[:2] + segments + jpeg[2:]


def tiff_file(width: int, height: int, **changes: tuple[int, int, int] | None) -> bytes:
    """A grey TIFF of one strip; `changes` (`tag273=(type, count, value)`) replaces or drops entries."""
    entries: dict[int, tuple[int, int, int] | None] = {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
        273: (4, 1, 122), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, 100),
    }  # fmt: skip
    entries |= {int(name.removeprefix("tag")): value for name, value in changes.items()}
    given = sorted((tag, *value) for tag, value in entries.items() if value is not None)
    directory = b"".join(struct.pack("<HHII", *entry) for entry in given)
    return b"II*\0" + struct.pack("<IH", 8, len(given)) + directory + bytes(104)


def webp_file(width: int, height: int, kind: str) -> bytes:
    """A small WebP that claims that size: `VP8 `, `VP8L` or `VP8X`."""
    image = Image.new("RGBA" if kind == "VP8X" else "RGB", (16, 16))
    data = saved(image, "WEBP", lossless=kind == "VP8L", exif=b"Exif\0\0" if kind == "VP8X" else b"")
    assert data[12:16] == kind.encode()
    if kind == "VP8X":
        size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        return data[:24] + size + data[30:]
    if kind == "VP8L":
        return data[:21] + struct.pack("<I", width - 1 | height - 1 << 14) + data[25:]
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


def bmp_file(width: int, height: int, runs: bytes | None = None) -> bytes:
    """A BMP that claims that size: of 24 bits, or of 8 bits and these runs."""
    bits, colors = (24, b"") if runs is None else (8, bytes(1024))
    body = bytes(64) if runs is None else runs
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0 if runs is None else 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(colors) + len(body), 0, 0, 54 + len(colors)) + info + colors + body


def gif_file(screen: tuple[int, int], first: tuple[int, int], before: bytes = b"") -> bytes:
    """A GIF whose screen and first picture claim these sizes, the picture disposed of by its background."""
    control = b"!\xf9\x04\x08\0\0\0\0"
    picture = b"," + struct.pack("<HHHH", 0, 0, *first) + b"\0\x02\x02\x44\x01\0;"
    return b"GIF89a" + struct.pack("<HH", *screen) + b"\x80\0\0" + bytes(6) + before + control + picture


def avif_file(width: int, height: int) -> bytes:
    """A small AVIF that claims that size."""
    data = saved(Image.new("RGB", (16, 16)), "AVIF")
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def pictures() -> dict[str, tuple[bytes, str]]:
    """By name: small files that would take gigabytes or hours, and the reason for which none of them is read."""
    bomb = zlib.compress(bytes(200 << 20), 9)
    rows = zlib.compress((b"\0" + bytes(30)) * 20)
    tile = {"tag273": None, "tag278": None, "tag279": None, "tag324": (4, 1, 150), "tag325": (4, 1, 50)}
    large = 2**31 - 1
    exif = jpeg_segment(0xE1, b"Exif\0\0" + bytes(60_000))
    zeros = zlib.compress(bytes(30_000) * 1000, 9)
    in_tiff = {"tag259": (3, 1, 7), "tag279": (4, 1, 1 << 20), "tag278": (4, 1, 5_000)}
    too_large = {
        "png 60000": png_file(60_000, 60_000),
        "png 2^31": png_file(large, large),
        "png line": png_file(120_000_000, 1),
        "jpeg 65500": jpeg_file(65_500, 65_500),
        "tiff 60000": tiff_file(60_000, 60_000),
        "tiff 2^32": tiff_file(2**32 - 1, 2**32 - 1),
        "webp": webp_file(16_383, 16_383, "VP8 "),
        "webp lossless": webp_file(16_384, 16_384, "VP8L"),
        "webp canvas": webp_file(1 << 24, 200, "VP8X"),
        "webp line": webp_file(100_000, 1, "VP8X"),
        "bmp": bmp_file(60_000, 60_000),
        "bmp 2^31": bmp_file(large, -large),
        "gif screen": gif_file((60_000, 60_000), (1, 1)),
        "gif picture": gif_file((1, 1), (60_000, 60_000)),
        "gif picture of much": gif_file((1, 1), (12_000, 11_000)),
    }
    unreadable = {
        "png text": png_file(10, 20, before=png_chunk(b"zTXt", b"k\0\0" + bomb), pixels=rows),
        "png international text": png_file(10, 20, png_chunk(b"iTXt", b"k\0\1\0\0\0" + bomb), pixels=rows),
        "png profile": png_file(10, 20, before=png_chunk(b"iCCP", b"k\0\0" + bomb), pixels=rows),
        "png chunk": png_file(10, 20)[:33] + struct.pack(">I", large) + b"iCCPxx",
        "png empty": png_file(0, 5),
        "jpeg empty": jpeg_file(0, 10),
        "tiff empty": tiff_file(0, 10),
        "tiff strips": tiff_file(10, 10, tag273=(4, 2**32 - 1, 8)),
        "tiff samples": tiff_file(10, 10, tag277=(3, 1, 65_535)),
        "tiff words for numbers": tiff_file(10, 10, tag256=(2, 4, 0x41414141)),
        "bigtiff": b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2**63),
        "jpeg exif": with_segments(jpeg_file(16, 16), 20 * exif + 60_000 * jpeg_segment(0xE1, b"Exif\0\0x")),
        "jpeg profiles": with_segments(jpeg_file(16, 16), 100_000 * jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1")),
        "jpeg junk": with_segments(jpeg_file(16, 16), bytes(1 << 20)),
        "nothing": b"",
        "webp of nothing": webp_file(16, 16, "VP8 ")[:20],
        "webp of another chunk": webp_file(16, 16, "VP8 ").replace(b"VP8 ", b"XMP "),
        "webp canvas of a smaller frame": webp_file(2_000, 2_000, "VP8X"),
        "bmp empty": bmp_file(0, 10),
        "bmp colors": bmp_file(10, 10, b"")[:46] + struct.pack("<I", large) + bytes(64),
        "bmp header": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<I", large) + bytes(64),
        "gif empty": gif_file((0, 0), (0, 0)),
        "gif comments": gif_file((9, 9), (9, 9), (b"!\xfe" + (b"\xff" + bytes(255)) * 4_000 + b"\0") * 2),
        "gif junk": gif_file((9, 9), (9, 9), bytes(1 << 20)),
    }
    truncated = {
        "png text after the pixels": png_file(10, 20, after=png_chunk(b"zTXt", b"k\0\0" + bomb), pixels=rows),
        "png without pixels": png_file(10_000, 10_000),
        "jpeg scans": jpeg_file(8_000, 8_000, scans=20_000),
        "jpeg scans of a small file": jpeg_file(4_900, 5_000, scans=900),
        "jpeg scans of a few pixels": jpeg_file(16, 16, scans=100_000),
        "tiff of a jpeg of many scans": tiff_file(5_600, 5_000, **in_tiff)[:122] + jpeg_file(5_600, 5_000, scans=98),
        "tiff tile of much": tiff_file(
            16,
            16,
            **(tile | {"tag325": (4, 1, len(zeros))}),
            tag259=(3, 1, 8),
            tag322=(4, 1, 30_000),
            tag323=(4, 1, 30_000),
        )[:150].ljust(150, b"\0")
        + zeros,
        "webp cut": webp_file(16, 16, "VP8L")[:-4] + bytes(4),
        "bmp without pixels": bmp_file(10_000, 10_000),
        "bmp runs": bmp_file(10_900, 11_000, b"\0\0" * 1000),
        "bmp runs of lines": bmp_file(1_000, 1_000, b"\1\0\0\0" * 100),
        "bmp runs of nothing": bmp_file(10, 10, b"\0\2\0\0" * 100_000),
        "gif without pixels": gif_file((9_000, 9_000), (9_000, 9_000)),
        "tiff tile": tiff_file(16, 16, **tile, tag322=(4, 1, large), tag323=(4, 1, large)),
        "tiff no tile": tiff_file(16, 16, **tile, tag322=(4, 1, 0), tag323=(4, 1, 0)),
    }
    if features.check("avif"):
        too_large["avif 200 million"] = avif_file(16_000, 12_500)
        unreadable["avif 60000"] = avif_file(60_000, 60_000)
        unreadable["avif empty"] = avif_file(0, 16)
        unreadable["avif cut"] = avif_file(16, 16)[:200]
    reasons = {"image_too_large": too_large, "image_unreadable": unreadable, "image_truncated": truncated}
    return {name: (data, reason) for reason, files in reasons.items() for name, data in files.items()}
