"""Makes PC-459's images and 16-bit TIFFs from the original release. See README.md beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, installed or not

from osm.prepare.originals.originals_cli import main

if __name__ == "__main__":
    sys.exit(main("pc459"))
