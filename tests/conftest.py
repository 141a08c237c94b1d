"""For all tests: no network is asked, and a process keeps to one thread."""

from __future__ import annotations

import os

# Before torch and the Hugging Face libraries are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
