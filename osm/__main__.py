"""`python -m osm` is the command `osm`."""

import sys

from osm.cli import main

if __name__ == "__main__":
    sys.exit(main())
