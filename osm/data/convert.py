"""Converts data sets to WebDataset shards.

Every sample is checked before it is written: a fault is cheaper to see here than in the middle of a training run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from osm.data.pool import Progress, default_workers, in_order, say
from osm.data.shard_writer import LAYOUTS, SUMMARY, ShardWriter, write_json
from osm.data.sources import SETS
from osm.data.sources.base import Item, Plan, Source
from osm.data.sources.coco import CocoInstances, CocoPanoptic
from osm.errors import OsmError, exit_code, write_failed

CATEGORIES = "categories.json"


class BadSamplesError(OsmError):
    """The run went to its end and wrote its summary, but too many samples were bad."""


@dataclass(frozen=True)
class Options:
    """What all converters take.

    Attributes:
        num_workers: processes; None for min(8, CPUs). The shards do not depend on it.
        max_bad_samples: the share of bad samples the run may leave out and still succeed. Above 0 one bad sample is
            always allowed, so that a set of ten images does not fail for one; 0 allows none.
    """

    output_dir: str | Path
    layout: str = "webdataset"
    num_files_per_shard: int = 1000
    num_workers: int | None = None
    max_bad_samples: float = 0.01

    def check(self) -> None:
        if self.layout not in LAYOUTS:
            raise OsmError(f"--format {self.layout!r} is not one of {', '.join(LAYOUTS)}")
        if self.num_files_per_shard < 1:
            raise OsmError(f"--num_files_per_shard {self.num_files_per_shard} has to be 1 or more")
        if self.num_workers is not None and self.num_workers < 1:
            raise OsmError(f"--num_workers {self.num_workers} has to be 1 or more")
        if not 0 <= self.max_bad_samples <= 1:
            raise OsmError(f"--max_bad_samples {self.max_bad_samples} is a share: 0 to 1")


def _too_bad(bad: int, written: int, share: float, first: str) -> str:
    """Why the run has failed, or an empty string."""
    allowed = max(1, int(share * (bad + written))) if share > 0 else 0
    if bad > allowed:
        return f"{bad} of {bad + written} samples are bad, --max_bad_samples {share:g} allows {allowed}; {first}"
    return "" if written else "no sample was written"


def _fill(writer: ShardWriter, source: Source, items: Sequence[Item], workers: int) -> None:
    """Writes what is not written yet."""
    start = writer.next_item
    if start:
        say("resuming", f"{len(writer.sizes)} whole shards in {writer.output_dir} ({start} of {len(items)} samples)")
    progress = Progress(len(items), start)
    build = partial(source.build, layout=writer.arguments["layout"])
    for index, built in enumerate(in_order(build, items[start:], workers), start):
        if built.reason and writer.leave_out(index, built.reason, built.message):
            say(f"left out ({built.reason})", built.message)
        for reason, message, count in built.warnings:
            if writer.warn(reason, message, count):
                say(f"warning ({reason})", message)
        if not built.reason:
            writer.write(index, items[index].key, built.members)
        progress.step()
    progress.show(end="\n")


def convert_set(source: Source, options: Options) -> dict[str, Any]:
    """Converts a set.

    Returns:
        The summary, as it is in `summary.json`.

    Raises:
        OsmError: an argument or what describes the set is wrong, or the folder holds other shards.
        RunStopped: the disk is full.
        BadSamplesError: more bad samples than `options.max_bad_samples` allows, or none that is good.
    """
    options.check()
    plan = source.plan()
    try:
        summary, failed = _convert(source, plan, options)
    except OSError as error:
        raise write_failed(error, f"output_dir {options.output_dir}", "a folder that can be written") from None
    say("written", f"{summary['written']} samples in {summary['shards']} shards to {options.output_dir}")
    for kind in ("left_out", "warnings"):
        if summary[kind]:
            counts = ", ".join(f"{reason} {count}" for reason, count in summary[kind].items())
            say(kind.replace("_", " "), counts)
    if failed:
        raise BadSamplesError(f"{failed} (all counts: {Path(options.output_dir) / SUMMARY})")
    return summary


def _convert(source: Source, plan: Plan, options: Options) -> tuple[dict[str, Any], str]:
    """Writes the shards; returns the summary, and why the run has failed (empty where it has not)."""
    with ShardWriter(options.output_dir, options.layout, options.num_files_per_shard, plan.arguments) as writer:

        def verdict() -> str:
            counts = {reason: n for reason, n in writer.tally.left_out.items() if reason not in source.fine}
            first = next((m for reason in counts or writer.tally.left_out for m in writer.tally.examples[reason]), "")
            bad = sum(counts.values())
            return _too_bad(bad, writer.tally.written, options.max_bad_samples, f"the first: {first}")

        if writer.finished and verdict():
            writer.start_over()  # the bad files may have been mended since
        if plan.categories is not None:
            write_json(writer.output_dir / CATEGORIES, {"categories": plan.categories})
        _fill(writer, source, plan.items, options.num_workers or default_workers())
        summary = writer.finish(plan.left_out)
        return summary, verdict()


def convert_coco_panoptic(
    json_file: str | Path, image_dir: str | Path, ann_dir: str | Path, options: Options, filter_lvis_val: bool = True
) -> dict[str, Any]:
    """Converts a set in COCO-panoptic form, as `convert_set` does; `ann_dir` is the folder of the panoptic PNGs."""
    return convert_set(CocoPanoptic(json_file, image_dir, filter_lvis_val, ann_dir), options)


def convert_coco_instances(
    json_file: str | Path, image_dir: str | Path, options: Options, filter_lvis_val: bool = True
) -> dict[str, Any]:
    """Converts a set in COCO-instances form, as `convert_set` does."""
    return convert_set(CocoInstances(json_file, image_dir, filter_lvis_val), options)


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Those of the set `name`: its form's, and what all take."""
    row, defaults = SETS[name], Options("")
    parser.add_argument("--output_dir", required=True, help="folder for the shards")
    row.source.add_arguments(parser)
    parser.add_argument("--num_files_per_shard", type=int, default=defaults.num_files_per_shard, help="default 1000")
    parser.add_argument("--format", choices=LAYOUTS, default=defaults.layout, help="default webdataset")
    parser.add_argument("--num_workers", type=int, help="processes (default: min(8, CPUs)); no effect on the shards")
    parser.add_argument(
        "--max_bad_samples",
        type=float,
        default=defaults.max_bad_samples,
        help="share of bad samples from which the run fails (default 0.01; above 0, one is always allowed)",
    )
    parser.set_defaults(set=name, **row.defaults)


def parser(name: str | None = None) -> argparse.ArgumentParser:
    """The command line of the set `name`, or (None) that of all: the set's name comes first."""
    if name is not None:
        own = argparse.ArgumentParser(description=f"Converts {SETS[name].what} to WebDataset shards.")
        _add_arguments(own, name)
        return own
    every = argparse.ArgumentParser(prog="osm prepare", description="Converts a data set to WebDataset shards.")
    choices = every.add_subparsers(metavar="SET", required=True, help="osm prepare SET --help tells its arguments")
    for known, row in SETS.items():
        _add_arguments(choices.add_parser(known, help=row.what, description=row.what), known)
    return every


def main(name: str | None = None, arguments: Sequence[str] | None = None) -> int:
    """The command line of a set.

    Returns:
        the exit code: 1 for too many bad samples, 2 for a mistake in the call, 3 for a full disk.
    """
    args = parser(name).parse_args(arguments)
    options = Options(
        output_dir=args.output_dir,
        layout=args.format,
        num_files_per_shard=args.num_files_per_shard,
        num_workers=args.num_workers,
        max_bad_samples=args.max_bad_samples,
    )
    try:
        convert_set(SETS[args.set].source.from_arguments(args), options)
    except (OsmError, OSError) as error:
        say("error", " ".join(str(error).split()))
        if isinstance(error, BadSamplesError):
            return 1
        return exit_code(error) if isinstance(error, OsmError) else 2
    except KeyboardInterrupt:
        say("stopped", "the same command goes on after the last whole shard")
        return 130
    return 0


def prepare(arguments: Sequence[str] | None = None) -> int:
    """`osm prepare SET ...`."""
    return main(None, arguments)
