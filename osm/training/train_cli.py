"""The command `train.py`."""

from __future__ import annotations

from collections.abc import Sequence

from osm.errors import OsmError, RunStopped
from osm.quiet import quiet_command
from osm.terminal import console_command, message_logger

logger = message_logger(__name__)


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Parses, trains, and turns what ends a run into one line and an exit code.

    Returns:
        0 done, 2 a user's mistake, 3 a run that could not go on, 75 stopped by a signal with a checkpoint written, 130
        interrupted without one.
    """
    from osm.training.config import parse
    from osm.training.signals import EXIT_FAILED, EXIT_STOPPED, Stopped
    from osm.training.trainer import train

    try:
        train(parse(argv))
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
        return 130
    return 0
