#!/usr/bin/env python3
"""Finds and names the segments of every picture of a folder: python3 demo_with_sam.py --help (= osm folder)."""

import sys

from osm.labeling.folder_cli import main

if __name__ == "__main__":
    sys.exit(main(prog="demo_with_sam.py"))
