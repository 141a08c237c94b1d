#!/usr/bin/env python3
"""Pre-trains osm-nano's tower and LLM and writes them into the package: `pretrain_nano.py --work runs/nano`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# By default, glibc returns the memory of every freed large tensor to the system. It reads these variables at its start.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def main() -> int:
    if sys.platform == "linux" and not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**MALLOC, **os.environ})
    from osm.synthetic.pretraining.pretrain_cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
