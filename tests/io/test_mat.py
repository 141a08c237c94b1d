""".mat files of other people: what scipy is let near, and that nothing expands without bound."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from osm.errors import OsmError, SampleError
from osm.io import mat
from osm.io.mat import read_mat


def made(compressed: bool = True, **variables: object) -> bytes:
    data = io.BytesIO()
    savemat(data, variables, do_compression=compressed)
    return data.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_a_variable_is_read(compressed: bool) -> None:
    wanted = np.arange(12, dtype=np.uint16).reshape(3, 4)
    data = made(compressed, other=np.zeros(3), LabelMap=wanted)
    assert (read_mat(data, "LabelMap") == wanted).all()
    with pytest.raises(SampleError, match="has no variable 'anno'"):
        read_mat(data, "anno")


@pytest.mark.parametrize("compressed", [True, False])
def test_size_is_bounded_before_it_is_read(compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(compressed, LabelMap=np.zeros((300, 300)))
    monkeypatch.setattr(mat, "MAX_BYTES", 800_000)
    assert read_mat(data, "LabelMap").shape == (300, 300)
    monkeypatch.setattr(mat, "MAX_BYTES", 600_000)
    with pytest.raises(SampleError, match="expands to more than 600000 bytes") as raised:
        read_mat(data, "LabelMap")
    assert raised.value.reason == "image_too_large"


def test_a_bomb_is_not_expanded() -> None:
    body = zlib.compress(bytes(600 * 2**20), 1)
    data = made()[:128] + struct.pack("<II", 15, len(body)) + body
    with pytest.raises(SampleError, match="expands to more than"):
        read_mat(data, "LabelMap")


@pytest.mark.parametrize("data", [b"", b"no" * 99, b"MATLAB 7.3 MAT-file".ljust(126) + b"XX" + bytes(99)])
def test_no_mat_file(data: bytes) -> None:
    with pytest.raises(SampleError, match="is not a .mat file of version 5"):
        read_mat(data, "LabelMap")


def test_every_cut_is_told_of() -> None:
    whole = made(LabelMap=np.random.default_rng(0).integers(0, 9, (20, 20)))
    for end in range(0, len(whole), 7):
        with pytest.raises(SampleError):
            read_mat(whole[:end], "LabelMap")


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(OsmError, match=r"requires scipy: pip install scipy"):
        read_mat(b"", "LabelMap")
