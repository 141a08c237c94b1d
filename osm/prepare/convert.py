"""Converts data sets to WebDataset shards.

Every sample is checked before it is written: a fault is cheaper to see here than in the middle of a training run.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from osm.data.shard_writer import CATEGORIES, LAYOUTS, SUMMARY, ShardWriter
from osm.errors import OsmError, exit_code, write_failed
from osm.forms.base import LOSSES, Entry, Listing, SetFiles, too_many_lost
from osm.forms.remote import localized
from osm.forms.split import MAX_BAD_ANNOTATIONS
from osm.io.pool import default_workers, in_order
from osm.prepare.build import SEED, build, keyed
from osm.prepare.own_sets import SETS, Convertible
from osm.storage.locations import join, public
from osm.storage.output import check_output, disk_of
from osm.terminal import CommandParser, ProgressBar, console_command, message_logger

logger = message_logger(__name__)

_FILE_FIELDS = ("ann_dir", "json_file", "labels", "filter_lvis_val")
_EXAMPLES = 5  # messages shown of what the json itself lacks
_ONCE = ("exif_undecided",)


class BadSamplesError(OsmError):
    """The run went to its end and wrote its summary, but too many samples were bad."""


@dataclass(frozen=True)
class Options:
    """What all converters take.

    Attributes:
        num_workers: processes; None for min(8, CPUs). The shards do not depend on it.
        max_bad_samples: the share of bad samples the run may leave out and still succeed. Above 0 one bad sample is
            always allowed, so that a set of ten images does not fail for one; 0 allows none.
        max_bad_annotations: the same of annotations. Crowds, ignored classes and empty masks are not bad.
    """

    output_dir: str | Path
    layout: str = "webdataset"
    num_files_per_shard: int = 1000
    num_workers: int | None = None
    max_bad_samples: float = 0.01
    max_bad_annotations: float = MAX_BAD_ANNOTATIONS

    @property
    def where(self) -> str:
        """The folder as messages call it."""
        return public(self.output_dir)

    def check(self) -> None:
        check_output(self.output_dir, "--output_dir")
        if self.layout not in LAYOUTS:
            raise OsmError(f"--format {self.layout!r} is not one of {', '.join(LAYOUTS)}")
        if self.num_files_per_shard < 1:
            raise OsmError(f"--num_files_per_shard {self.num_files_per_shard} has to be 1 or more")
        if self.num_workers is not None and self.num_workers < 1:
            raise OsmError(f"--num_workers {self.num_workers} has to be 1 or more")
        for flag in ("max_bad_samples", "max_bad_annotations"):
            if not 0 <= getattr(self, flag) <= 1:
                raise OsmError(f"--{flag} {getattr(self, flag)} is a share: 0 to 1")


def _too_bad(bad: int, written: int, share: float, first: str) -> str:
    """Why the run has failed, or an empty string."""
    allowed = max(1, int(share * (bad + written))) if share > 0 else 0
    if bad > allowed:
        return f"{bad} of {bad + written} samples are bad, --max_bad_samples {share:g} allows {allowed}; {first}"
    return "" if written else "no sample was written"


def _fill(
    writer: ShardWriter, chosen: Convertible, files: SetFiles, items: Sequence[tuple[str, Entry]], workers: int
) -> None:
    """Writes what is not written yet."""
    start = writer.next_item
    if start:
        logger.info(f"resuming: {len(writer.sizes)} whole shards in {writer.where} ({start} of {len(items)} samples)")
    # Without the labels that it has loaded, and without listings: it goes to every worker.
    light = replace(files, row=replace(files.row), folders={})
    make = partial(build, form=chosen.form, files=light, layout=writer.arguments["layout"])
    with ProgressBar(files.name, len(items), "samples", start) as progress:
        for index, built in enumerate(in_order(make, items[start:], workers), start):
            if built.reason and writer.leave_out(index, built.reason, built.message):
                logger.info(f"left out ({built.reason}): {built.message}", fields={"reason": built.reason})
            for reason, message, count in built.losses.found:
                told = reason in _ONCE and writer.tally.warnings[reason] > count
                if writer.warn(reason, message, count) and not told:
                    logger.warning(message, fields={"reason": reason})
            if not built.reason:
                writer.write(index, items[index][0], built.members, built.annotations)
            progress.step()


def convert_set(chosen: Convertible, files: SetFiles, options: Options) -> dict[str, Any]:
    """Converts a set.

    Returns:
        The summary, as it is in `summary.json`.

    Raises:
        OsmError: an argument or what describes the set is wrong, or the folder holds other shards.
        RunStopped: the disk is full, or the server of a remote folder does not answer.
        BadSamplesError: more bad samples than `options.max_bad_samples` allows, more bad annotations than
            `options.max_bad_annotations` does, or no sample that is good.
    """
    options.check()
    files = localized(files, chosen.form)
    listing = chosen.form.listing(files, None)
    files.fetch(path for entry in _annotated(listing) for path in (entry.image, *entry.masks.values()))
    try:
        summary, failed = _convert(chosen, files, listing, options)
    except OSError as error:
        raise write_failed(error, disk_of(options.output_dir, "output_dir"), "a folder that can be written") from None
    logger.info(f"written: {summary['written']} samples in {summary['shards']} shards to {options.where}")
    for kind in ("left_out", "warnings"):
        if summary[kind]:
            counts = ", ".join(f"{reason} {count}" for reason, count in summary[kind].items())
            logger.info(f"{kind.replace('_', ' ')}: {counts}", fields=summary[kind])
    if failed:
        raise BadSamplesError(f"{failed} (all counts: {join(options.where, SUMMARY)})")
    return summary


def _annotated(listing: Listing) -> list[Entry]:
    return [entry for entry in listing.entries if entry.record.get("segments_info") != []]


def _convert(chosen: Convertible, files: SetFiles, listing: Listing, options: Options) -> tuple[dict[str, Any], str]:
    """Writes the shards; returns the summary, and why the run has failed (empty where it has not)."""
    fine = chosen.fine | chosen.form.fine
    annotated = _annotated(listing)
    left_out = Counter(listing.left_out)
    left_out += Counter({chosen.form.unannotated: len(listing.entries) - len(annotated)})
    items = [(key, replace(entry, raw=None)) for key, entry in keyed(annotated, Path(files.image_dir))]
    for reason, message, _ in listing.losses.found[:_EXAMPLES]:
        logger.info(f"left out ({reason}): {message}", fields={"reason": reason})
    arguments = {**listing.arguments, "seed": SEED}
    with ShardWriter(options.output_dir, options.layout, options.num_files_per_shard, arguments) as writer:

        def verdict() -> str:
            counts = {reason: n for reason, n in writer.tally.left_out.items() if reason not in fine}
            first = next((m for reason in counts or writer.tally.left_out for m in writer.tally.examples[reason]), "")
            bad = sum(counts.values())
            return _too_bad(bad, writer.tally.written, options.max_bad_samples, f"the first: {first}") or _too_many(
                writer, listing, options.max_bad_annotations
            )

        if writer.finished and verdict():
            writer.start_over()  # the bad files may have been mended since
        if listing.no_image and not writer.next_item:
            raise OsmError(listing.no_image)
        if listing.categories is not None:
            writer.put_json(CATEGORIES, {"categories": listing.categories})
        _fill(writer, chosen, files, items, options.num_workers or default_workers())
        summary = writer.finish(left_out, listing.losses.counts)
        if not writer.tally.written and set(writer.tally.left_out) == {"no_id_in_png"}:
            raise OsmError(writer.tally.examples["no_id_in_png"][0] + " (and so in every other PNG)")
        return summary, verdict()


def _too_many(writer: ShardWriter, listing: Listing, share: float) -> str:
    """Why the run has lost too many annotations, or an empty string."""
    tally = writer.tally
    lost = listing.losses.lost + sum(count for reason, count in tally.warnings.items() if reason in LOSSES)
    messages = (m for reason, texts in tally.examples.items() if reason in LOSSES for m in texts)
    return too_many_lost(lost, tally.annotations, share, listing.losses.first or next(messages, ""))


def convert_coco_panoptic(
    json_file: str | Path, image_dir: str | Path, ann_dir: str | Path, options: Options, filter_lvis_val: bool = True
) -> dict[str, Any]:
    """Converts a set in COCO-panoptic form, as `convert_set` does; `ann_dir` is the folder of the panoptic PNGs."""
    chosen = SETS["coco_panoptic"]
    files = SetFiles(chosen.row.name, image_dir, chosen.row, ann_dir, json_file, filter_lvis_val=filter_lvis_val)
    return convert_set(chosen, files, options)


def convert_coco_instances(
    json_file: str | Path, image_dir: str | Path, options: Options, filter_lvis_val: bool = True
) -> dict[str, Any]:
    """Converts a set in COCO-instances form, as `convert_set` does."""
    chosen = SETS["coco_instances"]
    files = SetFiles(chosen.row.name, image_dir, chosen.row, None, json_file, filter_lvis_val=filter_lvis_val)
    return convert_set(chosen, files, options)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Those of the set `name`: its form's, and what all take."""
    chosen, defaults = SETS[name], Options("")
    parser.add_argument("--output_dir", required=True, help="folder for the shards, or its URL on s3:// or gs://")
    chosen.form.add_arguments(parser)
    if chosen.of_coco:
        parser.add_argument(
            "--filter_lvis_val",
            type=_true_or_false,
            default=True,
            metavar="True|False",
            help="leave out the COCO train images that are in LVIS val; other sets are not touched (default True)",
        )
    parser.add_argument("--num_files_per_shard", type=int, default=defaults.num_files_per_shard, help="default 1000")
    parser.add_argument("--format", choices=LAYOUTS, default=defaults.layout, help="default webdataset")
    parser.add_argument("--num_workers", type=int, help="processes (default: min(8, CPUs)); no effect on the shards")
    parser.add_argument(
        "--max_bad_samples",
        type=float,
        default=defaults.max_bad_samples,
        help="share of bad samples from which the run fails (default 0.01; above 0, one is always allowed)",
    )
    parser.add_argument(
        "--max_bad_annotations",
        type=float,
        default=defaults.max_bad_annotations,
        help="share of unusable annotations from which the run fails (default 0.05; above 0, one is always allowed)",
    )
    parser.set_defaults(set=name, **chosen.defaults)


def _files(args: argparse.Namespace) -> SetFiles:
    """What the arguments of a set say about its files."""
    chosen = SETS[args.set]
    given = {name: value for name, value in vars(args).items() if name in _FILE_FIELDS}
    more = {name: value for name, value in vars(args).items() if name in chosen.form.more_arguments}
    name = args.set if chosen.row.exact_names else chosen.row.form
    return SetFiles(name, args.image_dir, chosen.row, **given, more=more)


def parser(name: str | None = None) -> argparse.ArgumentParser:
    """The command line of the set `name`, or (None) that of all: the set's name comes first."""
    if name is not None:
        own = CommandParser(description=f"Converts {SETS[name].what} to WebDataset shards.")
        _add_arguments(own, name)
        return own
    every = CommandParser(prog="osm prepare", description="Converts a data set to WebDataset shards.")
    choices = every.add_subparsers(metavar="SET", required=True, help="osm prepare SET --help tells its arguments")
    for known, row in SETS.items():
        _add_arguments(choices.add_parser(known, help=row.what, description=row.what), known)
    return every


@console_command
def main(name: str | None = None, argv: Sequence[str] | None = None) -> int:
    """The command line of a set.

    Returns:
        the exit code: 1 for too many bad samples, 2 for a mistake in the call, 3 for a full disk or a server
            that is gone.
    """
    args = parser(name).parse_args(argv)
    options = Options(
        output_dir=args.output_dir,
        layout=args.format,
        num_files_per_shard=args.num_files_per_shard,
        num_workers=args.num_workers,
        max_bad_samples=args.max_bad_samples,
        max_bad_annotations=args.max_bad_annotations,
    )
    try:
        convert_set(SETS[args.set], _files(args), options)
    except (OsmError, OSError) as error:
        logger.error(" ".join(str(error).split()))
        if isinstance(error, BadSamplesError):
            return 1
        return exit_code(error) if isinstance(error, OsmError) else 2
    except KeyboardInterrupt:
        logger.info("stopped: the same command resumes after the last whole shard")
        return 130
    return 0


def prepare(argv: Sequence[str] | None = None) -> int:
    """`osm prepare SET ...`."""
    return main(None, argv)
