"""The command `osm prepare_original SET` and the scripts `make_*.py`, which prepare original dataset releases."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from osm.command_parser import CommandParser
from osm.errors import INTERRUPTED, OsmError, exit_code, write_failed
from osm.io.pool import default_workers
from osm.prepare.originals.original_release import OriginalRelease
from osm.prepare.originals.panoptic_releases import Ade20kRelease, CityscapesRelease
from osm.prepare.originals.semantic_releases import A847Release, Pc459Release
from osm.terminal import console_command, message_logger

logger = message_logger(__name__)

SETS: dict[str, type[OriginalRelease]] = {
    "ade20k": Ade20kRelease,
    "cityscapes": CityscapesRelease,
    "a847": A847Release,
    "pc459": Pc459Release,
}


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    SETS[name].add_arguments(parser)
    parser.add_argument("--num_workers", type=int, default=default_workers(), help="processes (default: min(8, CPUs))")
    parser.set_defaults(set=name)


def parser(name: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser for a dataset's script, or for `osm prepare_original` if `name` is None."""
    if name is not None:
        own = CommandParser(description=f"Makes {SETS[name].what}.")
        _add_arguments(own, name)
        return own
    every = CommandParser(
        prog="osm prepare_original", description="Makes the files that osm prepare reads from an original release."
    )
    choices = every.add_subparsers(metavar="SET", required=True, help="prepare_original SET --help lists its arguments")
    for known, release in SETS.items():
        _add_arguments(choices.add_parser(known, help=release.what, description=f"Makes {release.what}."), known)
    return every


@console_command
def main(name: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run a dataset's script, or the command `osm prepare_original` if `name` is None.

    Returns:
        the exit code: 0 for success, 1 if some files could not be made, 2 for invalid arguments or files.
    """
    args = parser(name).parse_args(argv)
    faults: Counter[str] = Counter()
    try:
        if args.num_workers < 1:
            raise OsmError(f"--num_workers {args.num_workers} must be 1 or more")
        made = SETS[args.set].make(args, args.num_workers, faults)
    except OSError as error:
        failed = write_failed(error, str(error.filename or "a file"), "a file that can be read or written")
        logger.error(" ".join(str(failed).split()))
        return exit_code(failed)
    except OsmError as error:
        logger.error(" ".join(str(error).split()))
        return exit_code(error)
    except KeyboardInterrupt:
        logger.info("stopped: start the same command again")
        return INTERRUPTED
    logger.info(f"made: {made} files")
    if faults:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(faults.items()))
        logger.info(f"left out: {counts}", fields=faults)
    return 1 if faults or not made else 0


def prepare(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm prepare_original SET ...` and return its exit code."""
    return main(None, argv)
