"""Freed memory is kept in the process, and is not mapped again."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from osm.memory_reuse import keep_freed_memory

PROGRAM = """
import ctypes, resource, sys
from osm.memory_reuse import keep_freed_memory
keep = sys.argv[1] == "keep"
assert keep_freed_memory() and keep_freed_memory(keep)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = faults()
for _ in range(20):
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20)))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(faults() - before)
"""


def available() -> bool:
    try:
        return keep_freed_memory()
    finally:
        keep_freed_memory(False)


@pytest.mark.skipif(not available(), reason="the C library does not allow it")
def test_memory_is_mapped_once() -> None:
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, check=True).stdout)
        for which in ("keep", "return")
    )
    pages = (64 << 20) // resource.getpagesize()
    assert kept < returned / 4 and kept < 3 * pages


def test_the_settings_of_the_user_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory() and not keep_freed_memory(False)
