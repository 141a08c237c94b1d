"""Runs the command `osm` as `python -m osm`."""

import sys

from osm.cli import main

if __name__ == "__main__":
    sys.exit(main())
