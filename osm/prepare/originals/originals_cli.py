"""The helpers' command line: `osm prepare_original SET`, and the scripts `make_*.py`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from types import ModuleType

from osm.errors import OsmError, exit_code, write_failed
from osm.io.pool import default_workers
from osm.prepare.originals import a847, ade20k, cityscapes, pc459
from osm.terminal import CommandParser, console_command, message_logger

logger = message_logger(__name__)

SETS: dict[str, ModuleType] = {"ade20k": ade20k, "cityscapes": cityscapes, "a847": a847, "pc459": pc459}


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    SETS[name].add_arguments(parser)
    parser.add_argument("--num_workers", type=int, default=default_workers(), help="processes (default: min(8, CPUs))")
    parser.set_defaults(set=name)


def parser(name: str | None = None) -> argparse.ArgumentParser:
    """The command line of one helper, or (None) of all: the set's name comes first."""
    if name is not None:
        own = CommandParser(description=f"Makes {SETS[name].WHAT}.")
        _add_arguments(own, name)
        return own
    every = CommandParser(
        prog="osm prepare_original", description="Makes from an original release the files that osm prepare reads."
    )
    choices = every.add_subparsers(metavar="SET", required=True, help="prepare_original SET --help tells its arguments")
    for known, module in SETS.items():
        _add_arguments(choices.add_parser(known, help=module.WHAT, description=f"Makes {module.WHAT}."), known)
    return every


@console_command
def main(name: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Runs a helper; returns the exit code: 1 where some files could not be made, 2 for a mistake in the call."""
    args = parser(name).parse_args(argv)
    faults: Counter[str] = Counter()
    try:
        if args.num_workers < 1:
            raise OsmError(f"--num_workers {args.num_workers} has to be 1 or more")
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
        return 130
    logger.info(f"made: {made} files")
    if faults:
        counts = ", ".join(f"{reason} {count}" for reason, count in sorted(faults.items()))
        logger.info(f"left out: {counts}", fields=faults)
    return 1 if faults or not made else 0


def prepare(argv: Sequence[str] | None = None) -> int:
    """`osm prepare_original SET ...`."""
    return main(None, argv)
