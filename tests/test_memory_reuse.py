"""Freed memory is kept in the process, and is not mapped again."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from osm.memory_reuse import keep_freed_memory

PROGRAM = """
import resource, sys
import numpy as np
from osm.memory_reuse import keep_freed_memory
keep = sys.argv[1] == "keep"
assert keep_freed_memory() and keep_freed_memory(keep)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(20):
    np.ones(64 << 20, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(not keep_freed_memory(False), reason="the C library has no mallopt")
def test_memory_is_mapped_once() -> None:
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, check=True).stdout)
        for which in ("keep", "return")
    )
    pages = (64 << 20) // resource.getpagesize()
    # Large pages may need one fault for many pages, but then in both cases.
    assert kept < returned / 4 and kept < 3 * pages
