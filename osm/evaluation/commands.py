"""What the command lines of evaluation have in common: their exit codes and their table of datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from osm.config import find_config
from osm.datasets.table import DatasetTable
from osm.errors import OsmError, exit_code
from osm.quiet import quiet_command
from osm.terminal import message_logger

logger = message_logger(__name__)

INTERRUPTED = 130


@quiet_command
def run_command(
    command: Callable[..., int | None],
    *arguments: Any,
    interrupted: str = "interrupted: the same command resumes where it stopped",
) -> int:
    """Call `command(*arguments)` and return the exit code of the process.

    An `OsmError` is logged and becomes exit code 2 (3 if the run had to stop, see `osm.errors.exit_code`).
    Ctrl-C logs `interrupted` and becomes exit code 130. A command that returns nothing succeeded.
    """
    try:
        return command(*arguments) or 0
    except OsmError as error:
        logger.error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        logger.info(interrupted)
        return INTERRUPTED


def dataset_table(benchmark: str | None = "benchmark", datasets: str | None = None) -> DatasetTable:
    """Build the table of datasets that a command works on.

    Args:
        benchmark: YAML file with the paths of the datasets, or its name in `configs/`. None: the built-in table.
        datasets: YAML file with the user's own datasets, which are added to the table. None: no more datasets.
    """
    table = DatasetTable()
    if benchmark is not None:
        table = table.with_yaml(find_config(benchmark))
    return table if datasets is None else table.with_yaml(datasets)
