"""The command `osm review`, which writes a page for checking the names that `osm label` has found."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.quiet import quiet_command
from osm.terminal import console_command, echo


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm review`."""
    out = CommandParser(
        prog="osm review",
        allow_abbrev=False,
        description="Write one offline HTML page on which a person accepts, retypes or removes the names of osm label.",
    )
    out.add_argument("labels", type=Path, help="folder of the labels, in which review.html is written")
    out.add_argument(
        "--limit", type=int, default=1000, help="objects on the page; the most doubtful are shown [%(default)s]"
    )
    out.add_argument("--all", action="store_true", help="also show the objects that a person has decided already")
    return out


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm review` and return the exit code."""
    return run_command(_run, parser().parse_args(argv), interrupted="interrupted")


def _run(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise OsmError(f"--limit {args.limit} must be 1 or more")
    from osm.labeling.review import review_page

    page, shown, total = review_page(args.labels, args.limit, args.all)
    echo(
        f"{page}: {shown} of {total} objects, the most doubtful first",
        "Open it in a browser, save the corrections, and apply them: run the same osm label command again with "
        "--corrections corrections.json",
    )
    return 0
