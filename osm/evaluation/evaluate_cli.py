"""The command lines of `test/evaluate_pred.py` and `osm compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from osm.datasets.table import Dataset, DatasetTable
from osm.errors import OsmError
from osm.evaluation.metrics.base import Metric, Tools
from osm.evaluation.metrics.evaluate import SetResult, evaluate_folder
from osm.evaluation.metrics.measure import SetMeasures, find_tools, measure, read_frequencies
from osm.evaluation.metrics.scores import ALL, PUBLISHED, select_metrics
from osm.evaluation.metrics.statistics import Bootstrap
from osm.evaluation.predict.parts import made_with
from osm.evaluation.report.compare import compare_folders
from osm.evaluation.report.compare_page import comparison_lines, comparison_page
from osm.storage.cache import localize
from osm.storage.output import write_text
from osm.terminal import CommandParser, echo, message_logger

logger = message_logger(__name__)


def evaluate(argv: Sequence[str] | None) -> None:
    args = evaluate_parser().parse_args(argv)
    bootstrap = bootstrap_of(args)
    table = _table(args.datasets)
    frequencies = read_frequencies(args.frequencies, table)
    metrics = select_metrics(args.metrics)
    if args.metrics == PUBLISHED:
        refuse_unused(args, "bootstrap", "seed", "frequencies")
    results, notes = evaluate_folder(localize(args.out_dir, "out_dir", folder=True), args.parts, table)
    for result in results:
        echo(*result.lines().split("\n"))
        _tell(result)
    for note in notes:
        echo(note)
    document = {result.row.name: result.as_json() for result in results}
    if args.metrics != PUBLISHED:
        for name, measures in _measured(results, bootstrap, frequencies, metrics).items():
            echo("", *measures.lines(table[name]))
            document[name]["metrics"] = measures.as_json()
    if args.json:
        write_text(args.json, "--json", [_json(document)])


def _measured(
    results: Sequence[SetResult],
    bootstrap: Bootstrap,
    frequencies: Mapping[str, Mapping[int, str]],
    metrics: Sequence[Metric],
) -> dict[str, SetMeasures]:
    tools = find_tools()
    return {one.row.name: measure(one, tools, bootstrap, frequencies.get(one.row.name), metrics) for one in results}


def _tell(result: SetResult) -> None:
    """What is not counted; on stderr, as stdout is the published output."""
    logger.info(
        f"{result.row.name}: {result.without_prediction} masks without a prediction and {result.crowd} crowd "
        "annotations, not counted"
    )
    unspecific = sum(result.categories.values()) - result.specific.total
    if unspecific:
        logger.info(f"{result.row.name}: {unspecific} masks without a prediction in the set's own mode")
    if result.ignored:
        logger.info(f"{result.row.name}: {result.ignored} masks of ignored classes, not counted")
    for note in made_with(result.meta):
        logger.info(f"{result.row.name}: {note}")


def evaluate_parser() -> argparse.ArgumentParser:
    """The flags of `evaluate_pred.py`."""
    parser = CommandParser(
        prog="evaluate_pred.py", allow_abbrev=False, description="Prints Acc and Not-In-Vocab of prediction files."
    )
    parser.add_argument("out_dir", help="folder of the predictions, or its URL")
    parser.add_argument("parts", metavar="n", type=int, help="how many parts generate_pred.py was run in")
    parser.add_argument("--datasets", help="YAML with sets of your own")
    parser.add_argument("--json", help="also write the figures to this file, here or at a URL on s3:// or gs://")
    parser.add_argument(
        "--metrics",
        default=PUBLISHED,
        help="all: after the published lines, all metrics with intervals (docs/evaluation.md); or some of `osm list "
        "metrics`, with commas between them, or module:Class [%(default)s]",
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


def _table(datasets: str | None) -> Mapping[str, Dataset]:
    return DatasetTable().with_yaml(datasets) if datasets else DatasetTable()


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def compare(argv: Sequence[str] | None) -> None:
    args = compare_parser().parse_args(argv)
    bootstrap = bootstrap_of(args)
    if args.examples < 0:
        raise OsmError(f"--examples {args.examples}: expected 0 or more")
    titles, parts = _titles(args.titles), _parts(args.parts)
    tools = find_tools() if args.metrics != PUBLISHED else Tools()
    metrics = select_metrics(ALL if args.metrics == PUBLISHED else args.metrics)
    table = _table(args.datasets)
    a, b = (localize(getattr(args, name), name.upper(), folder=True) for name in "ab")
    found, notes = compare_folders((a, b), parts, table, tools, bootstrap, args.examples, metrics)
    for comparison in found:
        echo(*comparison_lines(comparison, titles))
    for note in notes:
        echo(note)
    if args.json:
        drawn = {"over": "images", "samples": bootstrap.samples, "seed": bootstrap.seed}
        about = {"titles": titles, "bootstrap": drawn}
        write_text(args.json, "--json", [_json({**about, "sets": {one.row.name: one.as_json() for one in found}})])
    if args.report:
        write_text(args.report, "--report", comparison_page(found, titles, notes, bootstrap))


def _parts(text: str) -> tuple[int, int]:
    numbers = text.split(",")
    counts = [int(number) for number in numbers if number.isascii() and number.isdigit()]
    if len(counts) != len(numbers) or len(counts) not in (1, 2) or min(counts) < 1:
        raise OsmError(f"--parts {text!r}: expected N, or N,M: in how many parts generate_pred.py made A and B")
    return counts[0], counts[-1]


def _titles(text: str) -> tuple[str, str]:
    titles = [title.strip() for title in text.split(",")]
    if len(titles) != 2 or not all(titles):
        raise OsmError(f"--titles {text!r}: expected two, with a comma between them")
    return titles[0], titles[1]


def compare_parser() -> argparse.ArgumentParser:
    """The flags of `osm compare`."""
    parser = CommandParser(
        prog="osm compare",
        allow_abbrev=False,
        description="Compares two folders of predictions for the same masks: rates, differences with paired intervals "
        "over images, and the masks that changed.",
    )
    parser.add_argument("a", metavar="A", help="folder of the predictions, or its URL")
    parser.add_argument("b", metavar="B", help="folder of the others, or its URL")
    parser.add_argument("--parts", required=True, metavar="N[,M]", help="the n of generate_pred.py, of A and of B")
    parser.add_argument("--titles", default="A,B", metavar="A,B", help="what they are called (%(default)s)")
    parser.add_argument("--datasets", help="YAML with sets of your own")
    parser.add_argument(
        "--metrics",
        default=ALL,
        help="all, published (no metric that needs a sentence encoder or WordNet), or names of metrics [%(default)s]",
    )
    parser.add_argument("--examples", type=int, default=10, help="masks that changed, of each kind (%(default)s)")
    parser.add_argument("--json", help="also write the figures to this file, here or at a URL on s3:// or gs://")
    parser.add_argument("--report", metavar="FILE.html", help="also write a page, here or there")
    add_bootstrap(parser)
    return parser
