"""MATLAB files (version 5) of other people: what they expand to is bounded before scipy reads them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from osm.errors import OsmError, SampleError

MAX_BYTES = 512 * 2**20  # of a file's variables, expanded: a hundred masks of 2000 x 2000 pass
_HEADER, _TAG = 128, 8
_COMPRESSED = 15
_CHUNK = 2**20


def read_mat(data: bytes, variable: str) -> Any:
    """A variable of a .mat file as scipy gives it: arrays, structures as arrays of records.

    Raises:
        SampleError: `image_unreadable`, `image_too_large` (`mask_...`, once named), or `mask_without_variable`.
        OsmError: scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise OsmError("reading .mat files needs scipy: pip install 'osm-recognition[prepare]'") from None
    _check_size(data)
    try:
        found = loadmat(io.BytesIO(data), variable_names=[variable])
    except Exception as error:  # scipy raises what the broken byte happens to cause
        raise SampleError("image_unreadable", f"is no readable .mat file ({error})") from None
    if variable not in found:
        raise SampleError("mask_without_variable", f"has no variable {variable!r}")
    return found[variable]


def _check_size(data: bytes) -> None:
    """Goes through the file's variables and expands them bit by bit, keeping nothing."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise SampleError("image_unreadable", "is no .mat file of version 5")
    at, total = _HEADER, 0
    while at + _TAG <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        body = memoryview(data)[at + _TAG : at + _TAG + size]
        if kind != _COMPRESSED:
            total += len(body)
        else:
            expander = zlib.decompressobj()
            for start in range(0, len(body), _CHUNK):  # what is not expanded yet is copied every time
                rest: bytes | memoryview = body[start : start + _CHUNK]
                while rest and total <= MAX_BYTES:
                    total += len(expander.decompress(rest, _CHUNK))
                    rest = expander.unconsumed_tail
        if total > MAX_BYTES:
            raise SampleError("image_too_large", f"expands to more than {MAX_BYTES} bytes")
        at += _TAG + size
