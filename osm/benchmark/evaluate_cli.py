"""The command lines of `test/evaluate_pred.py` and `osm compare`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osm.benchmark.compare import compare_folders
from osm.benchmark.compare_page import comparison_lines, comparison_page
from osm.benchmark.evaluate import SetResult, evaluate_folder
from osm.benchmark.measure import ALL, METRICS, PUBLISHED, SetMeasures, find_tools, measure, read_frequencies
from osm.benchmark.metrics.scores import Tools
from osm.benchmark.metrics.statistics import Bootstrap
from osm.data.datasets import Dataset, DatasetTable
from osm.errors import OsmError
from osm.files import write_atomically


def evaluate(argv: Sequence[str] | None) -> None:
    args = evaluate_parser().parse_args(argv)
    bootstrap = _bootstrap(args)
    table = _table(args.datasets)
    frequencies = read_frequencies(args.frequencies, table)
    results, notes = evaluate_folder(args.out_dir, args.parts, table)
    for result in results:
        print(result.lines())
        _tell(result)
    for note in notes:
        print(note)
    document = {result.row.name: result.as_json() for result in results}
    if args.metrics == ALL:
        for name, measures in _measured(results, bootstrap, frequencies).items():
            print("\n".join(["", *measures.lines(table[name])]))
            document[name]["metrics"] = measures.as_json()
    if args.json:
        _write(args.json, "--json", [_json(document)])


def _measured(
    results: Sequence[SetResult], bootstrap: Bootstrap, frequencies: Mapping[str, Mapping[int, str]]
) -> dict[str, SetMeasures]:
    tools = find_tools()
    return {one.row.name: measure(one, tools, bootstrap, frequencies.get(one.row.name)) for one in results}


def _tell(result: SetResult) -> None:
    """What is not counted; on stderr, as stdout is the published output."""
    print(
        f"{result.row.name}: {result.without_prediction} masks without a prediction and {result.crowd} crowd "
        "annotations, not counted",
        file=sys.stderr,
    )
    unspecific = sum(result.categories.values()) - result.specific.total
    if unspecific:
        print(f"{result.row.name}: {unspecific} masks without a prediction in the set's own mode", file=sys.stderr)
    if result.ignored:
        print(f"{result.row.name}: {result.ignored} masks of ignored classes, not counted", file=sys.stderr)
    if result.meta.get("alter", "none") != "none":
        print(f"{result.row.name}: made with --alter {result.meta['alter']}", file=sys.stderr)


def evaluate_parser() -> argparse.ArgumentParser:
    """The flags of `evaluate_pred.py`."""
    parser = argparse.ArgumentParser(
        prog="evaluate_pred.py", allow_abbrev=False, description="Prints Acc and Not-In-Vocab of prediction files."
    )
    parser.add_argument("out_dir", type=Path, help="folder of the predictions")
    parser.add_argument("parts", metavar="n", type=int, help="how many parts generate_pred.py was run in")
    parser.add_argument("--datasets", help="YAML with sets of your own")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
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
    """The flags of the intervals."""
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="samples of images for intervals; 0: none [%(default)s]",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn by chance (%(default)s)")


def _bootstrap(args: argparse.Namespace) -> Bootstrap:
    if args.bootstrap < 0:
        raise OsmError(f"--bootstrap {args.bootstrap}: expected 0 or more samples")
    if args.seed < 0:
        raise OsmError(f"--seed {args.seed}: expected 0 or more")
    return Bootstrap(args.bootstrap, args.seed)


def _table(datasets: str | None) -> Mapping[str, Dataset]:
    return DatasetTable().with_yaml(datasets) if datasets else DatasetTable()


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _write(path: Path, flag: str, chunks: Iterable[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, chunks)
    except OSError as error:
        raise OsmError(f"{flag} {path}: {error.strerror}; expected a file that can be written") from None


def compare(argv: Sequence[str] | None) -> None:
    args = compare_parser().parse_args(argv)
    bootstrap = _bootstrap(args)
    if args.examples < 0:
        raise OsmError(f"--examples {args.examples}: expected 0 or more")
    titles = _titles(args.titles)
    tools = find_tools() if args.metrics == ALL else Tools()
    table = _table(args.datasets)
    found, notes = compare_folders((args.a, args.b), _parts(args.parts), table, tools, bootstrap, args.examples)
    for comparison in found:
        print("\n".join(comparison_lines(comparison, titles)))
    for note in notes:
        print(note)
    if args.json:
        about = {"titles": titles, "bootstrap": {"over": "images", "samples": args.bootstrap, "seed": args.seed}}
        _write(args.json, "--json", [_json({**about, "sets": {one.row.name: one.as_json() for one in found}})])
    if args.report:
        _write(args.report, "--report", comparison_page(found, titles, notes, bootstrap))


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
    parser = argparse.ArgumentParser(
        prog="osm compare",
        allow_abbrev=False,
        description="Compares two folders of predictions for the same masks: rates, differences with paired intervals "
        "over images, and the masks that changed.",
    )
    parser.add_argument("a", metavar="A", type=Path, help="folder of the predictions")
    parser.add_argument("b", metavar="B", type=Path, help="folder of the others")
    parser.add_argument("--parts", required=True, metavar="N[,M]", help="the n of generate_pred.py, of A and of B")
    parser.add_argument("--titles", default="A,B", metavar="A,B", help="what they are called (%(default)s)")
    parser.add_argument("--datasets", help="YAML with sets of your own")
    parser.add_argument("--metrics", choices=METRICS, default=ALL, help="published: names alone [%(default)s]")
    parser.add_argument("--examples", type=int, default=10, help="masks that changed, of each kind (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also write a page")
    add_bootstrap(parser)
    return parser
