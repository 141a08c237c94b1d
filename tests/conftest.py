"""For all tests: no network is asked, and a process keeps to one thread."""

from __future__ import annotations

import os
import tempfile

# Before torch and the Hugging Face libraries are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests fetch and index is not the user's.
os.environ.setdefault("OSM_CACHE", tempfile.mkdtemp(prefix="osm_test_cache_"))
