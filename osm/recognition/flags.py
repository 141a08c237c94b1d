"""Command-line flags shared by several commands. This module does not import torch, so that `--help` stays fast."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from osm.config import add_settings
from osm.errors import OsmError, did_you_mean, not_one_of
from osm.files import read_json
from osm.shipped import shipped_model
from osm.storage.locations import is_remote

METHODS = ("constrained", "scored", "mapped")
"""The ways in which a vocabulary is applied."""
SHIPPED = "osm_small"
"""The name of the trained model that ships with the package."""
RANKING_FLAGS = ("length_power", "prior_weight", "none_below")
NONE_BELOW_HELP = (
    "with --vocabulary: answer 'none of these' if the best name is less than this many times as likely as the free "
    "name, 0 to 1 [%(default)s: never]"
)
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


def check_modes(checkpoint: str, modes: Iterable[str]) -> None:
    """Check the asked modes before a model is loaded, if the checkpoint is a folder with a config.

    Raises:
        OsmError: a mode is not one of the model's.
    """
    path = (shipped_model(checkpoint) or Path(checkpoint)) / "config.json"
    if is_remote(checkpoint) or not path.is_file():
        return
    document, _ = read_json(path, "config of the checkpoint")
    model = document.get("model") if isinstance(document, dict) else None
    stored = model.get("modes") if isinstance(model, dict) else None
    if not isinstance(stored, list):
        return
    for mode in modes:
        check_mode(mode, [str(known) for known in stored])


def check_mode(mode: str, known: Sequence[str]) -> None:
    """Raise OsmError if the mode given by `--mode` is not one of the model's modes."""
    if mode not in known:
        raise OsmError(f"--mode {mode!r} is not one of this model's: {', '.join(known)}{did_you_mean(mode, known)}")


def add_ranking(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the names of a vocabulary are compared; `ranking_of` reads them."""
    parser.add_argument(
        "--length_power",
        type=float,
        default=0.0,
        help="with --vocabulary: divide a name's log-likelihood by its number of tokens to this power [%(default)s]",
    )
    parser.add_argument(
        "--prior_weight",
        type=float,
        default=0.0,
        help="with --vocabulary: subtract this share of a name's log-likelihood for a gray image, for names that the "
        "model was not trained with [%(default)s]",
    )
    parser.add_argument("--none_below", type=float, default=0.0, help=NONE_BELOW_HELP)


def ranking_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Recognizer.name` that correspond to the flags of `add_ranking`.

    Raises:
        OsmError: a flag is out of range, or has no effect without `--vocabulary` or with `--way mapped`.
    """
    given = {name: getattr(args, name) for name in RANKING_FLAGS}
    for name, value in given.items():
        if value and (args.vocabulary is None or args.way == "mapped"):
            without = "with --way mapped" if args.vocabulary is not None else "without --vocabulary"
            raise OsmError(f"--{name} {value} has no effect {without}")
        most = 1 if name == "none_below" else 2
        if not 0 <= value <= most:
            raise OsmError(f"--{name} {value} is not between 0 and {most}")
    from osm.recognition.vocabulary import Ranking

    none_below = given.pop("none_below")
    return {"ranking": Ranking(**given), "none_below": none_below}


def method_of(args: argparse.Namespace) -> str:
    """Return the naming method (`--way`). Raises OsmError if `--way` is given without `--vocabulary`."""
    if args.way is not None and args.vocabulary is None:
        raise OsmError(f"--way {args.way} has no effect without --vocabulary; give --vocabulary as well")
    if args.way is not None and args.way not in METHODS:
        raise not_one_of("--way", args.way, METHODS)
    return args.way or "constrained"
