"""Read variables from MATLAB files (version 5). The decompressed size is checked before SciPy reads a file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from osm.errors import OsmError, SampleError

MAX_BYTES = 512 * 2**20  # The maximum decompressed size of a file. The limit allows 100 masks of 2000 x 2000 pixels.
_HEADER, _TAG = 128, 8
_COMPRESSED = 15
_CHUNK = 2**20


def read_mat(data: bytes, variable: str) -> Any:
    """Return a variable from a .mat file as represented by SciPy: an array, or an array of records for a structure.

    Raises:
        SampleError: the reason is `image_unreadable`, `image_too_large` or `mask_without_variable`. Callers that read
            masks rename the first two reasons to `mask_...`.
        OsmError: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise OsmError("reading .mat files requires scipy: pip install scipy") from None
    _check_size(data)
    try:
        found = loadmat(io.BytesIO(data), variable_names=[variable])
    except Exception as error:  # Corrupt data can make SciPy raise any exception.
        raise SampleError("image_unreadable", f"is not a readable .mat file ({error})") from None
    if variable not in found:
        raise SampleError("mask_without_variable", f"has no variable {variable!r}")
    return found[variable]


def _check_size(data: bytes) -> None:
    """Check a .mat file's decompressed size. Only one decompressed chunk is in memory at a time."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise SampleError("image_unreadable", "is not a .mat file of version 5")
    at, total = _HEADER, 0
    while at + _TAG <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = memoryview(data)[at + _TAG : at + _TAG + size]
        if kind != _COMPRESSED:
            total += len(body)
        else:
            expander = zlib.decompressobj()
            for start in range(0, len(body), _CHUNK):  # Each call to zlib copies any input not yet consumed.
                rest: bytes | memoryview = body[start : start + _CHUNK]
                while rest and total <= MAX_BYTES:
                    total += len(expander.decompress(rest, _CHUNK))
                    rest = expander.unconsumed_tail
        if total > MAX_BYTES:
            raise SampleError("image_too_large", f"expands to more than {MAX_BYTES} bytes")
        at += _TAG + size
