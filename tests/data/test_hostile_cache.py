"""Files of the feature cache that hold something else than they should, or claim more than they hold."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from old_files import make_old

from osm.data.feature_cache import FeatureCache
from osm.errors import OsmError


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def described(kind: str, shape: str) -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}"


ARRAYS = {
    "a pickle": npy(described("|O", "(1,)"), pickle.dumps([1])),
    "200 terabytes": npy(described("<f2", f"({10**9}, {10**5})"), bytes(100)),
    "2^64 values": npy(described("<f2", f"({2**62}, 4)"), bytes(100)),
    "10^30 rows": npy(described("<f2", f"({10**30}, 4)"), bytes(100)),
    "negative sizes": npy(described("<f2", "(-2, -3)"), bytes(12)),
    "other numbers": npy(described("<f4", "(2, 3)"), bytes(24)),
    "one axis": npy(described("<f2", "(6,)"), bytes(12)),
    "no header": npy("os.mkdir('ran')"),
    "a deep header": npy("(" * 5000),
    "a long header": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{",
    "a zip": b"PK\3\4" + bytes(100),
    "only a pickle": pickle.dumps([1]),
    "nothing": b"",
    "cut": npy(described("<f2", "(2, 3)"), bytes(11)),
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("case", ARRAYS)
def test_a_cached_view_that_lies_is_named(tmp_path: Path, case: str) -> None:
    cache = FeatureCache(tmp_path, "fingerprint")
    cache.save("set", "key", 0, torch.ones(2, 3))
    path = cache.path("set", "key", 0)
    assert torch.equal(cache.load("set", "key", 0), torch.ones(2, 3, dtype=torch.float16))
    path.write_bytes(ARRAYS[case])
    tracemalloc.start()
    try:
        with pytest.raises(
            OsmError, match="--feature_cache: .* cannot be read .* delete the file and start again"
        ) as error:
            cache.load("set", "key", 0)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value) and len(str(error.value)) < 600


def test_a_cached_view_is_a_copy(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "fingerprint")
    cache.save("set", "key", 0, torch.ones(2, 3))
    cache.load("set", "key", 0).zero_()
    assert cache.load("set", "key", 0).all() and np.load(cache.path("set", "key", 0)).all()


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "f")
    cache.save("coco", "image", 0, torch.zeros(2, 3))
    left = cache.path("coco", "image", 0).with_name(f".image.npy.{'0' * 32}.tmp")
    left.touch()
    make_old(left)
    cache.remove_abandoned("coco")
    assert list(left.parent.iterdir()) == [cache.path("coco", "image", 0)]
