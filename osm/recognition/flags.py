"""Command-line flags shared by several commands. This module does not import torch, so that `--help` stays fast."""

from __future__ import annotations

import argparse
from typing import Any

from osm.config import add_settings
from osm.errors import OsmError

SHIPPED = "osm_small"
"""The name of the trained model that ships with the package."""
METHOD_HELP = "with --vocabulary: constrained, scored or mapped [constrained]"


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint`, which defaults to the model that ships with the package, and the model-config flags."""
    what = "a trained model: a folder `final`, a hub id or a .pt file [%(default)s, which comes with the package]"
    parser.add_argument("--checkpoint", default=SHIPPED, help=what)
    parser.add_argument("--config", help="the model config of a .pt file that does not have its own")
    add_settings(parser)


def config_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the `load_recognizer` arguments that correspond to the flags `--config` and `--set`."""
    return {"config": args.config, **({"settings": args.settings} if args.settings else {})}


def method_of(args: argparse.Namespace) -> str:
    """Return the naming method (`--way`). Raises OsmError if `--way` is given without `--vocabulary`."""
    if args.way is not None and args.vocabulary is None:
        raise OsmError(f"--way {args.way} has no effect without --vocabulary; give --vocabulary as well")
    return args.way or "constrained"
