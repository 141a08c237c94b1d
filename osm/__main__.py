"""Runs the command-line program `osm` when Python is started with `python -m osm`."""

import sys

from osm.cli import main

if __name__ == "__main__":
    sys.exit(main())
