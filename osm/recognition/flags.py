"""Flags that several command lines share; nothing here imports torch."""

from __future__ import annotations

import argparse

from osm.errors import OsmError

SHIPPED = "osm_small"
"""The trained model that comes with the package."""
METHOD_HELP = "with --vocabulary: constrained, scored or mapped [constrained]"


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, for those who try things out: without it the model that comes with the package."""
    what = "a trained model: a folder `final`, a hub id or a .pt file [%(default)s, which comes with the package]"
    parser.add_argument("--checkpoint", default=SHIPPED, help=what)
    parser.add_argument("--config", help="of a .pt file that does not tell its own")


def method_of(args: argparse.Namespace) -> str:
    """How the names of a list come out. Raises OsmError where it is said without a list."""
    if args.way is not None and args.vocabulary is None:
        raise OsmError(f"--way {args.way}: says how names of a list come out; give --vocabulary as well")
    return args.way or "constrained"
