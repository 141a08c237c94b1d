"""The command `train.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from osm.errors import OsmError


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, trains, and turns a user's mistake into one line and exit code 2."""
    from osm.training.config import parse
    from osm.training.loop import train

    try:
        train(parse(argv))
    except OsmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130
    return 0
