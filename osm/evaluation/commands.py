"""Code shared by all evaluation commands: exit codes and the table of datasets."""

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

    If the command raises an `OsmError`, the error is logged and the exit code is 2 (or 3 if the run had to stop, see
    `osm.errors.exit_code`). After Ctrl-C, the message `interrupted` is logged and the exit code is 130. The command
    reports success by returning None or 0.
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
    """Build the table of datasets for a command.

    Args:
        benchmark: YAML file with the paths of the datasets, or its name in `configs/`. None selects the built-in table.
        datasets: YAML file with the user's own datasets, which are added to the table. None adds no datasets.
    """
    table = DatasetTable()
    if benchmark is not None:
        table = table.with_yaml(find_config(benchmark))
    return table if datasets is None else table.with_yaml(datasets)
