"""Stored results of earlier code: sample orders, shards, checkpoints and predictions stay as they were.

Names and orders are compared exactly, probabilities and losses within 1e-4 (they depend on the processor).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from frozen_parts import needs_frozen
from record import RECORDERS, moved, stored


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_frozen) if n == "small" else n for n in RECORDERS])
def test_nothing_moved(name: str, tmp_path: Path) -> None:
    found = json.loads(json.dumps(RECORDERS[name](tmp_path)))
    lines = moved(stored(name), found, tolerance=1e-4)
    assert not lines, f"{len(lines)} items moved: {lines[:5]}"
    assert found
