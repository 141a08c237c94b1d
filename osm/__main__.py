"""Entry point for `python -m osm`, which runs the command-line program `osm`."""

import sys

from osm.cli import main

if __name__ == "__main__":
    sys.exit(main())
