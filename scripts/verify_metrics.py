#!/usr/bin/env python3
"""Recompute the metrics of prediction files with other libraries, and compare them with the project's values.

    python3 scripts/verify_metrics.py PREDICTIONS 8 --datasets sets.yaml
    python3 scripts/verify_metrics.py --random 1000 --seed 1

The exit code is 1 if any value differs by more than its rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from verify.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
