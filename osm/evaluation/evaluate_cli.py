"""The command lines of `test/evaluate_pred.py` and `osm compare`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from osm.errors import OsmError
from osm.evaluation.commands import dataset_table, run_command
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.metrics.measure import ALL, METRICS, PUBLISHED, SetMeasures, find_tools, measure, read_frequencies
from osm.evaluation.metrics.statistics import Bootstrap
from osm.evaluation.predict.prediction_files import made_with
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import echo


def evaluate_main(argv: Sequence[str] | None = None) -> int:
    """Run `evaluate_pred.py out_dir n` and return the exit code."""
    return run_command(_evaluate, argv)


def _evaluate(argv: Sequence[str] | None) -> None:
    args = evaluate_parser().parse_args(argv)
    bootstrap = bootstrap_of(args)
    table = dataset_table(None, args.datasets)
    frequencies = read_frequencies(args.frequencies, table)
    if args.metrics == PUBLISHED:
        refuse_unused(args, "bootstrap", "seed", "frequencies")
    results, notes = evaluate_folder(localize(args.out_dir, "out_dir", folder=True), args.parts, table)
    for result in results:
        echo(*result.lines().split("\n"))
        _tell(result)
    for note in notes:
        echo(note)
    document = {result.row.name: result.as_json() for result in results}
    if args.metrics == ALL:
        for name, measures in _measured(results, bootstrap, frequencies).items():
            echo("", *measures.lines(table[name]))
            document[name]["metrics"] = measures.as_json()
    if args.json:
        write_text(args.json, "--json", [json_text(document)])


def _measured(
    results: Sequence[SetResult], bootstrap: Bootstrap, frequencies: Mapping[str, Mapping[int, str]]
) -> dict[str, SetMeasures]:
    tools = find_tools()
    return {one.row.name: measure(one, tools, bootstrap, frequencies.get(one.row.name)) for one in results}


def _tell(result: SetResult) -> None:
    """What is not counted; on stderr, as stdout is the published output."""
    echo(
        f"{result.row.name}: {result.without_prediction} masks without a prediction and {result.crowd} crowd "
        "annotations, not counted",
        file=sys.stderr,
    )
    unspecific = sum(result.categories.values()) - result.specific.total
    if unspecific:
        echo(f"{result.row.name}: {unspecific} masks without a prediction in the set's own mode", file=sys.stderr)
    if result.ignored:
        echo(f"{result.row.name}: {result.ignored} masks of ignored classes, not counted", file=sys.stderr)
    for note in made_with(result.meta):
        echo(f"{result.row.name}: {note}", file=sys.stderr)


def evaluate_parser() -> argparse.ArgumentParser:
    """The flags of `evaluate_pred.py`."""
    parser = argparse.ArgumentParser(
        prog="evaluate_pred.py", allow_abbrev=False, description="Prints Acc and Not-In-Vocab of prediction files."
    )
    parser.add_argument("out_dir", help="folder of the predictions, or its URL")
    parser.add_argument("parts", metavar="n", type=int, help="how many parts generate_pred.py was run in")
    parser.add_argument("--datasets", help="YAML with sets of your own")
    parser.add_argument("--json", help="also write the figures to this file, here or at a URL on s3:// or gs://")
    parser.add_argument(
        "--metrics",
        choices=METRICS,
        default=PUBLISHED,
        help="all: after the published lines, further metrics with intervals (docs/evaluation.md) [%(default)s]",
    )
    parser.add_argument(
        "--frequencies",
        action="append",
        default=[],
        metavar="SET=FILE",
        help="a json whose categories say which classes are rare, common and frequent, as LVIS's do",
    )
    add_bootstrap(parser)
    return parser


def add_bootstrap(parser: argparse.ArgumentParser) -> None:
    """The flags of the intervals; `bootstrap_of` reads them."""
    known = Bootstrap()
    parser.add_argument(
        "--bootstrap", type=int, metavar="N", help=f"samples of images for intervals; 0: none [{known.samples}]"
    )
    parser.add_argument("--seed", type=int, help=f"of what is drawn by chance [{known.seed}]")


def bootstrap_of(args: argparse.Namespace) -> Bootstrap:
    """Raises OsmError where a flag is below 0."""
    known = Bootstrap()
    samples = known.samples if args.bootstrap is None else args.bootstrap
    seed = known.seed if args.seed is None else args.seed
    if samples < 0:
        raise OsmError(f"--bootstrap {samples}: expected 0 or more samples")
    if seed < 0:
        raise OsmError(f"--seed {seed}: expected 0 or more")
    return Bootstrap(samples, seed)


def refuse_unused(args: argparse.Namespace, *flags: str) -> None:
    """Raises OsmError where one of these is given, which mean something with all metrics alone."""
    for flag in flags:
        if getattr(args, flag) not in (None, []):
            value = getattr(args, flag)
            told = " ".join(value) if isinstance(value, list) else value
            raise OsmError(f"--{flag} {told}: means nothing with --metrics {PUBLISHED}; give --metrics {ALL} as well")


def json_text(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
