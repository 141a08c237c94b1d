"""The command `osm schema`. This module does not import torch, so that `--help` stays fast."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from osm.command_parser import CommandParser
from osm.terminal import console_command, echo


def parser() -> argparse.ArgumentParser:
    """Return the argument parser for `osm schema`, which has no flags of its own."""
    return CommandParser(prog="osm schema", description="Prints the JSON schema of the config files.")


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm schema` and return its exit code."""
    parser().parse_args(argv)
    from osm.training.schema import config_schema

    echo(*json.dumps(config_schema(), indent=2).split("\n"))
    return 0
