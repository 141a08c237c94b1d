"""Command-line entry point for `train.py` and `osm train`."""

from __future__ import annotations

from collections.abc import Sequence

from osm.errors import INTERRUPTED, OsmError, RunStopped
from osm.quiet import quiet_command
from osm.startup import quick_loading
from osm.terminal import console_command, message_logger
from osm.training.train_flags import read_flags, train_parser

logger = message_logger(__name__)

__all__ = ["main", "train_parser"]


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and train. Errors are reported as one line on stderr and as an exit code.

    Returns:
        the exit code: 0 if the run is complete, 2 for a user error, 3 if the run could not continue, 75 if a signal
        ended the run after a checkpoint was written, 130 if the run was interrupted before a checkpoint was written.
    """
    try:
        flags, table = read_flags(argv)
    except OsmError as error:
        logger.error(error)
        return 2
    with quick_loading():
        from osm.training.run_config import resolve
        from osm.training.stopping import EXIT_FAILED, EXIT_STOPPED, Stopped
        from osm.training.trainer import train

    try:
        train(resolve(flags, table))
    except Stopped as stopped:
        logger.info(stopped)
        return EXIT_STOPPED
    except RunStopped as error:
        logger.error(error)
        return EXIT_FAILED
    except OsmError as error:
        logger.error(error)
        return 2
    except KeyboardInterrupt:
        logger.info("interrupted: the same command resumes from the newest checkpoint")
        return INTERRUPTED
    return 0
