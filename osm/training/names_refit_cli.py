"""The command `osm refit_names`, which trains the classifier of a model's known names again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osm.command_parser import CommandParser
from osm.errors import OsmError, did_you_mean, run_command, shown
from osm.terminal import console_command, echo
from osm.training.refit_options import RefitOptions


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm refit_names`."""
    plain = RefitOptions()
    out = CommandParser(
        prog="osm refit_names",
        allow_abbrev=False,
        description="Train the classifier of a model's known names again, on all masks of shards and without the LLM, "
        "and write the model to a new folder. A calibration of the model is left out, because it no longer fits.",
    )
    out.add_argument("checkpoint", help="the trained model, such as RUN/final")
    out.add_argument("out", help="a new folder for the model; or a URL on s3:// or gs://")
    out.add_argument(
        "--shards", action="append", required=True, metavar="SET=PATTERN", help="shards of a dataset; repeatable"
    )
    out.add_argument("--datasets", metavar="YAML", help="datasets that the project does not know")
    out.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="SET=NUMBER",
        help="weight of a dataset in the loss and in the discriminant, relative to the other datasets [1]; repeatable",
    )
    out.add_argument("--steps", type=int, default=plain.steps, help="training steps [%(default)s]")
    out.add_argument("--masks", type=int, default=plain.masks, help="masks of each dataset in a step [%(default)s]")
    out.add_argument("--learning_rate", type=float, default=plain.learning_rate, help="of AdamW [%(default)s]")
    out.add_argument("--weight_decay", type=float, default=plain.weight_decay, help="of AdamW [%(default)s]")
    out.add_argument("--dropout", type=float, default=plain.dropout, help="of what the classifier reads [%(default)s]")
    out.add_argument("--smoothing", type=float, default=plain.smoothing, help="label smoothing [%(default)s]")
    out.add_argument(
        "--discriminant",
        type=float,
        default=plain.discriminant,
        help="weight of the logits of a linear discriminant, which are added to those of the trained classifier; 0 = "
        "none [%(default)s]",
    )
    out.add_argument(
        "--shrinkage",
        type=float,
        default=plain.shrinkage,
        help="share of the discriminant's covariance that is replaced by a multiple of the identity [%(default)s]",
    )
    out.add_argument(
        "--prior_masks",
        type=float,
        default=plain.prior_masks,
        help="the discriminant computes the mean of a name as if the name had so many more masks, with the mean inputs "
        "of its datasets [%(default)s]",
    )
    out.add_argument("--most", type=int, default=plain.most, help="use the first masks of a dataset only [%(default)s]")
    out.add_argument("--seed", type=int, default=plain.seed, help="seed of all random values [%(default)s]")
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    out.add_argument("--force", action="store_true", help="replace an older model at OUT")
    return out


def _pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """Split values of the form NAME=VALUE."""
    found: dict[str, str] = {}
    for value in values:
        name, separator, rest = value.partition("=")
        if not (name and separator and rest):
            raise OsmError(f"{flag} {shown(value)}: expected the name of a dataset, `=` and a value")
        if name in found:
            raise OsmError(f"{flag}: the dataset {name!r} is given twice")
        found[name] = rest
    return found


def _weights(values: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    weights = dict.fromkeys(names, 1.0)
    for name, text in _pairs(values, "--weights").items():
        if name not in weights:
            raise OsmError(
                f"--weights {name}: the datasets of --shards are {', '.join(names)}{did_you_mean(name, names)}"
            )
        try:
            weights[name] = float(text)
        except ValueError:
            raise OsmError(f"--weights {name}={text}: expected a number") from None
        if not 0 < weights[name] < 1e6:
            raise OsmError(f"--weights {name}={text}: must be greater than 0 and less than 1e6")
    return weights


def _refit(argv: Sequence[str] | None) -> None:
    args = parser().parse_args(argv)
    options = RefitOptions(**{name: getattr(args, name) for name in RefitOptions.__dataclass_fields__})
    patterns = _pairs(args.shards, "--shards")
    weights = _weights(args.weights, list(patterns))

    from osm.data.shard_lists import existing_shards
    from osm.datasets.table import DatasetTable
    from osm.models.factory import load_model, pick_device
    from osm.training.export import target
    from osm.training.names_refit import accuracy, direct_path, read_examples, refit
    from osm.training.run_config import trained_row

    table = DatasetTable() if args.datasets is None else DatasetTable().with_yaml(Path(args.datasets))
    rows = {name: trained_row(table.require(name, "--shards"), pattern) for name, pattern in patterns.items()}
    shards = {name: existing_shards(pattern, f"--shards {name}") for name, pattern in patterns.items()}
    with target(args.out, args.force) as folder:
        model, processor, _ = load_model(args.checkpoint)
        model.to(pick_device(args.device))
        path = direct_path(model, str(args.checkpoint))
        sets = {name: read_examples(model, processor, row, shards[name], options) for name, row in rows.items()}
        before = {name: accuracy(path, examples) for name, examples in sets.items()}
        refit(path, sets, weights, options)
        for name, examples in sets.items():
            after = accuracy(path, examples)
            echo(f"{name}: {before[name]:.1%} of {len(examples)} masks correct before, {after:.1%} after")
        if model.calibration is not None:
            echo("the calibration of the probabilities is left out; run osm calibrate with new predictions")
        model.calibration = None
        model.save_pretrained(folder)
    echo(f"written: {args.out}")


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm refit_names`. Return the exit code."""
    return run_command(_refit, argv)
