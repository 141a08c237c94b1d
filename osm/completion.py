"""The command `osm completion`, which prints a script that lets a shell complete commands and flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.terminal import console_command, echo

SHELLS = ("bash", "zsh")
_HOW = """\
for bash:  osm completion bash > ~/.local/share/bash-completion/completions/osm
for zsh:   osm completion zsh > ~/.zfunc/_osm   (a folder of $fpath)
"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm completion`."""
    out = CommandParser(
        prog="osm completion",
        description="Print a script that lets a shell complete the commands and flags of `osm`.",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("shell", choices=SHELLS, help="the shell: %(choices)s")
    return out


def osm_parser() -> argparse.ArgumentParser:
    """Return a parser of the whole command `osm`, with all its commands as subparsers."""
    # COMMANDS is imported here and not at the top of the file, because `osm.cli` is downstream of this module.
    from osm.cli import COMMANDS

    out = argparse.ArgumentParser(prog="osm")
    commands = out.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        inner = command.build_parser()
        commands.add_parser(name, help=command.what, parents=[inner], add_help=False, conflict_handler="resolve")
    return out


def _print(shell: str) -> None:
    try:
        import shtab
    except ImportError:
        raise OsmError("osm completion needs the package shtab: pip install shtab") from None
    echo(*shtab.complete(osm_parser(), shell).split("\n"))


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm completion` and return its exit code."""
    args = parser().parse_args(argv)
    return run_command(_print, args.shell, interrupted="interrupted")
