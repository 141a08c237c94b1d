"""The command line `train.py` and `osm train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from osm.errors import OsmError, RunStopped
from osm.quiet import quiet_command
from osm.terminal import echo


@quiet_command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train. An error ends the run with one line on stderr and an exit code.

    Returns:
        the exit code: 0 if the run is complete, 2 for a user's mistake, 3 if the run could not continue, 75 if a signal
        ended it after a checkpoint was written, 130 if it was interrupted without one.
    """
    from osm.training.config import parse
    from osm.training.stopping import EXIT_FAILED, EXIT_STOPPED, Stopped
    from osm.training.trainer import train

    try:
        train(parse(argv))
    except Stopped as stopped:
        echo(stopped, file=sys.stderr)
        return EXIT_STOPPED
    except RunStopped as error:
        echo(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except OsmError as error:
        echo(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        echo("interrupted; run the same command to resume from the newest checkpoint", file=sys.stderr)
        return 130
    return 0
