"""Command-line interfaces of `osm report`, `osm picture` and `osm compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.evaluation.commands import add_datasets, add_json, add_predictions, dataset_table
from osm.evaluation.evaluate_cli import add_bootstrap, bootstrap_of, json_text, refuse_unused
from osm.evaluation.metrics.base import Tools
from osm.evaluation.metrics.measure import find_tools
from osm.evaluation.metrics.scores import ALL, PUBLISHED, select_metrics
from osm.evaluation.report.compare import compare_folders, comparison_lines, comparison_page
from osm.evaluation.report.report import TITLE, ReportOptions
from osm.evaluation.report.report_page import PAGE, RESULTS, write_report
from osm.evaluation.report.result_images import write_picture
from osm.files import read_json
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote, join
from osm.storage.output import check_output, locked, open_output, write_text
from osm.terminal import console_command, echo


@console_command
def report_main(argv: Sequence[str] | None = None) -> int:
    """Run `osm report out_dir` and return the exit code."""
    return run_command(_report, argv)


@console_command
def picture_main(argv: Sequence[str] | None = None) -> int:
    """Run `osm picture` and return the exit code."""
    return run_command(_picture, argv)


@console_command
def compare_main(argv: Sequence[str] | None = None) -> int:
    """Run `osm compare A B` and return the exit code."""
    return run_command(_compare, argv)


def _report(argv: Sequence[str] | None) -> None:
    args = report_parser().parse_args(argv)
    if args.parts < 1:
        raise OsmError(f"--parts {args.parts}: expected at least 1; use the n that was passed to generate_pred.py")
    bootstrap = bootstrap_of(args)
    if args.metrics == PUBLISHED:
        refuse_unused(args, "bootstrap")
    for flag in ("pictures", "surest"):
        if getattr(args, flag) < 0:
            raise OsmError(f"--{flag} {getattr(args, flag)}: expected 0 or more")
    folders = _folders(args.predictions)
    pictures_of = None if args.pictures_of is None else args.pictures_of.strip()
    if pictures_of not in (None, *folders):
        titles = ", ".join(map(repr, folders))
        raise OsmError(f"--pictures_of {args.pictures_of!r}: expected a title given with --predictions ({titles})")
    if args.run and is_remote(args.run):
        args.run = localize(join(check_location(args.run, "--run"), "log.jsonl"), "--run").parent
    if args.run and not (args.run / "log.jsonl").is_file():
        raise OsmError(f"--run {args.run}: the folder has no log.jsonl; expected a folder written by train.py")
    baselines = read_json(localize(args.baselines, "--baselines"), "--baselines")[0] if args.baselines else None
    table = dataset_table(datasets=args.datasets)
    options = ReportOptions(
        args.run,
        baselines,
        args.pictures,
        bootstrap.seed,
        args.title,
        args.surest,
        args.metrics,
        bootstrap.samples,
        pictures_of,
    )
    out_dir = check_output(args.out_dir, "out_dir")
    if not is_remote(out_dir):
        write_report(Path(out_dir), folders, args.parts, table, options)
        echo(Path(out_dir) / PAGE)
        return
    output = open_output(out_dir, "out_dir")
    with locked(output):
        write_report(output.path, folders, args.parts, table, options)
        output.put(RESULTS, PAGE)
    echo(output.location(PAGE))


def _folders(predictions: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each `--predictions TITLE=FOLDER` by its title. Remote folders are downloaded."""
    folders: dict[str, Path] = {}
    for given in predictions:
        title, equals, folder = given.partition("=")
        if not equals or not title.strip() or not folder:
            raise OsmError(f"--predictions {given!r}: expected TITLE=FOLDER")
        if title.strip() in folders:
            raise OsmError(f"--predictions {given!r}: the title {title.strip()!r} is given twice")
        local = localize(folder, "--predictions", folder=True)
        if not local.is_dir():
            raise OsmError(
                f"--predictions {given!r}: {folder} is not a folder; expected the out_dir that was passed to "
                "generate_pred.py"
            )
        folders[title.strip()] = local
    return folders


def report_parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm report`."""
    parser = CommandParser(
        prog="osm report",
        allow_abbrev=False,
        description="Write report.html (images, scores, loss curve, calibration, confusions) and results.json.",
    )
    parser.add_argument("out_dir", help="folder of the report, or its URL on s3:// or gs://")
    parser.add_argument(
        "--predictions",
        action="append",
        required=True,
        metavar="TITLE=FOLDER",
        help="folder of prediction files, or its URL; repeat the flag to compare folders. Images are shown for the "
        "first folder, or for the one that --pictures_of names; all other parts are shown for every folder",
    )
    parser.add_argument(
        "--parts", type=int, required=True, metavar="N", help="number of parts that generate_pred.py was run with"
    )
    add_datasets(parser)
    parser.add_argument("--run", type=Path, help="folder of the training run, for the loss curve")
    parser.add_argument(
        "--baselines", type=Path, metavar="FILE.json", help="{set: {name: percent}}, shown next to the scores"
    )
    parser.add_argument(
        "--pictures", type=int, default=12, help="maximum number of random images per dataset [%(default)s]"
    )
    parser.add_argument(
        "--pictures_of",
        metavar="TITLE",
        help="title of the predictions whose images are shown [the first --predictions]",
    )
    parser.add_argument(
        "--surest",
        type=int,
        default=3,
        help="number of images per dataset with the most confident wrong names, and with the most confident right "
        "names [%(default)s]",
    )
    parser.add_argument(
        "--metrics",
        default=ALL,
        help="all, published (only Acc and NIV), or comma-separated names from `osm list metrics`, or module:Class "
        "[%(default)s]",
    )
    add_bootstrap(parser)
    parser.add_argument("--title", default=TITLE, help="heading of the page [%(default)s]")
    return parser


def _picture(argv: Sequence[str] | None) -> None:
    args = picture_parser().parse_args(argv)
    for flag in ("images", "columns"):
        if getattr(args, flag) < 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
    table = dataset_table(datasets=args.datasets)
    out_dir = localize(args.out_dir, "out_dir", folder=True)
    echo(write_picture(args.output, out_dir, args.parts, table, args.set, args.images, args.columns))


def picture_parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm picture`."""
    parser = CommandParser(
        prog="osm picture",
        allow_abbrev=False,
        description="Draw a mosaic of images with the predicted names of their masks.",
    )
    add_predictions(parser)
    parser.add_argument("output", type=Path, help="the .jpg file to write")
    parser.add_argument("--set", required=True, help="dataset whose images are drawn")
    add_datasets(parser)
    parser.add_argument("--images", type=int, default=6, help="maximum number of images [%(default)s]")
    parser.add_argument("--columns", type=int, default=3, help="maximum number of images per row [%(default)s]")
    return parser


def _compare(argv: Sequence[str] | None) -> None:
    args = compare_parser().parse_args(argv)
    bootstrap = bootstrap_of(args)
    if args.examples < 0:
        raise OsmError(f"--examples {args.examples}: expected 0 or more")
    titles, parts = _titles(args.titles), _parts(args.parts)
    tools = find_tools() if args.metrics != PUBLISHED else Tools()
    metrics = select_metrics(ALL if args.metrics == PUBLISHED else args.metrics)
    table = dataset_table(None, args.datasets)
    a, b = (localize(getattr(args, name), name.upper(), folder=True) for name in "ab")
    found, notes = compare_folders((a, b), parts, table, tools, bootstrap, args.examples, metrics)
    for comparison in found:
        echo(*comparison_lines(comparison, titles))
    for note in notes:
        echo(note)
    if args.json:
        drawn = {"over": "images", "samples": bootstrap.samples, "seed": bootstrap.seed}
        about = {"titles": titles, "bootstrap": drawn}
        write_text(args.json, "--json", [json_text({**about, "sets": {one.row.name: one.as_json() for one in found}})])
    if args.report:
        write_text(args.report, "--report", comparison_page(found, titles, notes, bootstrap))


def _parts(text: str) -> tuple[int, int]:
    numbers = text.split(",")
    counts = [int(number) for number in numbers if number.isascii() and number.isdigit()]
    if len(counts) != len(numbers) or len(counts) not in (1, 2) or min(counts) < 1:
        raise OsmError(f"--parts {text!r}: expected N, or N,M for the numbers of parts of A and B")
    return counts[0], counts[-1]


def _titles(text: str) -> tuple[str, str]:
    titles = [title.strip() for title in text.split(",")]
    if len(titles) != 2 or not all(titles):
        raise OsmError(f"--titles {text!r}: expected two comma-separated titles")
    return titles[0], titles[1]


def compare_parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm compare`."""
    parser = CommandParser(
        prog="osm compare",
        allow_abbrev=False,
        description="Compare two folders of predictions for the same masks: rates, differences with paired intervals "
        "over images, and changed masks.",
    )
    parser.add_argument("a", metavar="A", help="folder of the predictions, or its URL")
    parser.add_argument("b", metavar="B", help="folder of the predictions to compare with A, or its URL")
    parser.add_argument("--parts", required=True, metavar="N[,M]", help="numbers of parts of A and B")
    parser.add_argument("--titles", default="A,B", metavar="A,B", help="titles of A and B [%(default)s]")
    add_datasets(parser)
    parser.add_argument(
        "--metrics",
        default=ALL,
        help="all, published (only metrics that need no sentence encoder and no WordNet), or names of metrics "
        "[%(default)s]",
    )
    parser.add_argument(
        "--examples", type=int, default=10, help="maximum number of examples of each kind of change [%(default)s]"
    )
    add_json(parser)
    parser.add_argument("--report", metavar="FILE.html", help="also write an HTML page to this file, or to a URL")
    add_bootstrap(parser)
    return parser
