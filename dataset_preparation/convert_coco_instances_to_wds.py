"""Converts a dataset in COCO instance format to WebDataset shards. See README.md beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, installed or not

from osm.prepare.convert import main

if __name__ == "__main__":
    sys.exit(main("coco_instances"))
