"""Command-line interface of `test/evaluate_pred.py` (also `osm evaluate`), and flags shared with `osm report`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.evaluation.commands import add_datasets, add_json, add_predictions, dataset_table
from osm.evaluation.metrics.base import Metric
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.metrics.measure import SetMeasures, find_tools, measure, read_frequencies
from osm.evaluation.metrics.scores import ALL, PUBLISHED, select_metrics
from osm.evaluation.metrics.statistics import Bootstrap
from osm.evaluation.predict.prediction_files import made_with
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)


@console_command
def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """Run `evaluate_pred.py out_dir n` and return the exit code."""
    return run_command(_evaluate, argv)


def _evaluate(argv: Sequence[str] | None) -> None:
    args = evaluate_parser().parse_args(argv)
    bootstrap = bootstrap_of(args)
    table = dataset_table(None, args.datasets)
    frequencies = read_frequencies(args.frequencies, table)
    metrics = select_metrics(args.metrics)
    if args.metrics == PUBLISHED:
        refuse_unused(args, "bootstrap", "seed", "frequencies")
    results, notes = evaluate_folder(localize(args.out_dir, "out_dir", folder=True), args.parts, table)
    for result in results:
        echo(*result.lines().split("\n"))
        _report_uncounted(result)
    for note in notes:
        echo(note)
    document = {result.row.name: result.as_json() for result in results}
    if args.metrics != PUBLISHED:
        for name, measures in _measured(results, bootstrap, frequencies, metrics).items():
            echo("", *measures.lines(table[name]))
            document[name]["metrics"] = measures.as_json()
    if args.json:
        write_text(args.json, "--json", [json_text(document)])


def _measured(
    results: Sequence[SetResult],
    bootstrap: Bootstrap,
    frequencies: Mapping[str, Mapping[int, str]],
    metrics: Sequence[Metric],
) -> dict[str, SetMeasures]:
    tools = find_tools()
    return {one.row.name: measure(one, tools, bootstrap, frequencies.get(one.row.name), metrics) for one in results}


def _report_uncounted(result: SetResult) -> None:
    """Log the number of masks that were not scored.

    Log messages go to stderr, because the scores are printed to stdout.
    """
    logger.info(
        f"{result.row.name}: {result.without_prediction} masks without a prediction and {result.crowd} crowd "
        "annotations, not counted"
    )
    unspecific = sum(result.categories.values()) - result.specific.total
    if unspecific:
        logger.info(f"{result.row.name}: {unspecific} masks without a prediction in own mode")
    if result.ignored:
        logger.info(f"{result.row.name}: {result.ignored} masks of ignored classes, not counted")
    for note in made_with(result.meta):
        logger.info(f"{result.row.name}: {note}")


def evaluate_parser() -> argparse.ArgumentParser:
    """Return the argument parser of `evaluate_pred.py`."""
    parser = CommandParser(
        prog="evaluate_pred.py", allow_abbrev=False, description="Print Acc and Not-In-Vocab of prediction files."
    )
    add_predictions(parser)
    add_datasets(parser)
    add_json(parser)
    parser.add_argument(
        "--metrics",
        default=PUBLISHED,
        help="all: after the published lines, print all metrics with intervals (docs/evaluation.md); or "
        "comma-separated names from `osm list metrics`, or module:Class [%(default)s]",
    )
    parser.add_argument(
        "--frequencies",
        action="append",
        default=[],
        metavar="SET=FILE",
        help="JSON file whose categories have a frequency (rare, common or frequent), as in LVIS",
    )
    add_bootstrap(parser)
    return parser


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """Add the command-line flags for bootstrap intervals; `bootstrap_of` reads them."""
    known = Bootstrap()
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help=f"number of bootstrap samples over images; 0 disables intervals [{known.samples}]",
    )
    parser.add_argument("--seed", type=int, help=f"random seed [{known.seed}]")


def bootstrap_of(args: argparse.Namespace) -> Bootstrap:
    """Return the bootstrap parameters set by the flags. Raise OsmError if a flag is negative."""
    known = Bootstrap()
    samples = known.samples if args.bootstrap is None else args.bootstrap
    seed = known.seed if args.seed is None else args.seed
    if samples < 0:
        raise OsmError(f"--bootstrap {samples}: expected 0 or more samples")
    if seed < 0:
        raise OsmError(f"--seed {seed}: expected 0 or more")
    return Bootstrap(samples, seed)


def refuse_unused(args: argparse.Namespace, *flags: str) -> None:
    """Raise OsmError if a given flag is set without `--metrics all`, because the flag would have no effect."""
    for flag in flags:
        if getattr(args, flag) not in (None, []):
            value = getattr(args, flag)
            given = " ".join(value) if isinstance(value, list) else value
            raise OsmError(f"--{flag} {given} has no effect with --metrics {PUBLISHED}; use --metrics {ALL} instead")


def json_text(document: Any) -> str:
    """Return a document as JSON text. Raise ValueError if the document contains NaN."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
