"""The command `osm prepare SET` and the scripts `convert_*_to_wds.py`, which convert datasets to WebDataset shards.

Samples are checked before they are written, because otherwise invalid samples would only be found during training.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from osm.command_parser import CommandParser
from osm.data.shard_writer import CATEGORIES, LAYOUTS, SUMMARY, ShardWriter
from osm.datasets.table import BUILTIN, Dataset
from osm.errors import INTERRUPTED, OsmError, exit_code, not_one_of, write_failed
from osm.forms import FORMS, Form, form_class
from osm.forms.base import LOSSES, Entry, Listing, SetFiles, too_many_lost
from osm.forms.instances import OpenImages
from osm.forms.maps import PascalParts
from osm.forms.set_files import localize_files
from osm.forms.split import MAX_BAD_ANNOTATIONS
from osm.io.pool import default_workers, in_order
from osm.prepare.build import SEED, build, keyed
from osm.storage.locations import join, public
from osm.storage.output import check_output, disk_of
from osm.terminal import ProgressBar, console_command, message_logger

logger = message_logger(__name__)

_FILE_FIELDS = ("ann_dir", "json_file", "labels", "filter_lvis_val")
_EXAMPLES = 5  # the number of messages that are printed about skipped annotations in the json
_ONCE = ("exif_undecided",)
_ROWS = {row.name: row for row in BUILTIN}


@dataclass(frozen=True)
class ConvertibleSet:
    """A built-in dataset that can be converted, or an annotation format for converting other datasets.

    Attributes:
        row: the row of the dataset table, which determines how files are named and read.
        what: the description in the help text.
        reads: the class that reads the original files; None = the class of the row's annotation format.
        defaults: the default values of arguments.
        fine: reasons for skipping a sample that are not errors, in addition to the reasons in the annotation format.
        of_coco: whether the images may be COCO's, so that images in LVIS val can be skipped.
    """

    row: Dataset
    what: str
    reads: type[Form] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fine: frozenset[str] = frozenset()
    of_coco: bool = False

    @property
    def form(self) -> type[Form]:
        return self.reads or form_class(self.row.form)


def _own(form: str, **more: Any) -> ConvertibleSet:
    row = Dataset(form, form, form_class(form).what, "")
    return ConvertibleSet(row, form_class(form).what, **more)


SETS = {
    "coco": ConvertibleSet(_ROWS["coco"], "COCO panoptic", of_coco=True),
    "ade20k": ConvertibleSet(_ROWS["ade20k"], "ADE20K panoptic", of_coco=True),
    "cityscapes": ConvertibleSet(_ROWS["cityscapes"], "Cityscapes panoptic"),
    "lvis": ConvertibleSet(_ROWS["lvis"], "LVIS v1"),
    # Some V3Det images are no longer available, so missing images are not errors.
    "v3det": ConvertibleSet(_ROWS["v3det"], "V3Det", fine=frozenset({"image_missing"})),
    "a847": ConvertibleSet(_ROWS["a847"], "A-847 (ADE20K full)", defaults={"labels": "a847"}),
    "pc459": ConvertibleSet(_ROWS["pc459"], "PC-459 (Pascal Context full)", defaults={"labels": "pc459"}),
    "partimagenet": ConvertibleSet(_ROWS["partimagenet"], "PartImageNet"),
    "pascal_part": ConvertibleSet(_ROWS["pascal_part"], "Pascal-Part", PascalParts),
    "visual_genome": ConvertibleSet(_ROWS["visual_genome"], "Visual Genome: its region descriptions, or its objects"),
    # Objects365 and Open Images are often downloaded only partially, so missing images are not errors.
    "objects365": ConvertibleSet(_ROWS["objects365"], "Objects365", fine=frozenset({"image_missing"})),
    "openimages": ConvertibleSet(_ROWS["openimages"], "Open Images", OpenImages, fine=frozenset({"image_missing"})),
    "paco": ConvertibleSet(_ROWS["paco"], "PACO: objects and their parts"),
    "coco_panoptic": _own("coco_panoptic", of_coco=True),
    "coco_instances": _own("coco_instances", of_coco=True),
    "boxes": _own("boxes"),
    "semantic": _own("semantic"),
    "regions": _own("regions"),
}


def convertible_set(name: str) -> ConvertibleSet:
    """Return the dataset called `name`, or a generic dataset that uses the annotation format called `name`.

    Raises:
        OsmError: neither a dataset nor an annotation format has this name.
    """
    return SETS[name] if name in SETS else _own(name)


def is_added_form(name: str) -> bool:
    """Return whether `name` is an annotation format that is not built in, or a class path such as `module:Class`."""
    return ":" in name or (name in FORMS and FORMS.origin(name) != "built in")


class BadSamplesError(OsmError):
    """Raised if the conversion finished and wrote its summary, but too many samples or annotations were bad."""


@dataclass(frozen=True)
class ConvertOptions:
    """The options of all converters.

    Attributes:
        output_dir: the folder or URL of the shards.
        layout: the layout of the samples.
        num_files_per_shard: the number of samples per shard.
        num_workers: the number of processes; None = min(8, CPUs). It does not affect the shards.
        max_bad_samples: the share of bad samples that the conversion may skip and still succeed. If it is above 0, one
            bad sample is always allowed, so that one bad image does not fail the conversion of a small dataset.
        max_bad_annotations: the same for annotations. Crowds, ignored classes and empty masks are not bad.
    """

    output_dir: str | Path
    layout: str = "webdataset"
    num_files_per_shard: int = 1000
    num_workers: int | None = None
    max_bad_samples: float = 0.01
    max_bad_annotations: float = MAX_BAD_ANNOTATIONS

    @property
    def where(self) -> str:
        """The output folder as shown in messages."""
        return public(self.output_dir)

    def check(self) -> None:
        """Raise OsmError if an option is invalid."""
        check_output(self.output_dir, "--output_dir")
        if self.layout not in LAYOUTS:
            raise not_one_of("--format", self.layout, LAYOUTS)
        if self.num_files_per_shard < 1:
            raise OsmError(f"--num_files_per_shard {self.num_files_per_shard} must be 1 or more")
        if self.num_workers is not None and self.num_workers < 1:
            raise OsmError(f"--num_workers {self.num_workers} must be 1 or more")
        for flag in ("max_bad_samples", "max_bad_annotations"):
            if not 0 <= getattr(self, flag) <= 1:
                raise OsmError(f"--{flag} {getattr(self, flag)} must be between 0 and 1")


def _too_bad(bad: int, written: int, share: float, first: str) -> str:
    """Return an error message if too many samples were bad or none were written, else an empty string."""
    allowed = max(1, int(share * (bad + written))) if share > 0 else 0
    if bad > allowed:
        return f"{bad} of {bad + written} samples are bad, --max_bad_samples {share:g} allows {allowed}; {first}"
    return "" if written else "no sample was written"


def _fill(
    writer: ShardWriter, chosen: ConvertibleSet, files: SetFiles, items: Sequence[tuple[str, Entry]], workers: int
) -> None:
    """Build and write all samples that an earlier, interrupted conversion did not write."""
    start = writer.next_item
    if start:
        logger.info(f"resuming: {len(writer.sizes)} whole shards in {writer.where} ({start} of {len(items)} samples)")
    # Drop loaded labels and folder listings, because `files` is sent to every worker process.
    light = replace(files, row=replace(files.row), folders={})
    make = partial(build, form=chosen.form, files=light, layout=writer.arguments["layout"])
    with ProgressBar(files.name, len(items), "samples", start) as progress:
        for index, built in enumerate(in_order(make, items[start:], workers), start):
            if built.reason and writer.leave_out(index, built.reason, built.message):
                logger.info(f"left out ({built.reason}): {built.message}", fields={"reason": built.reason})
            for reason, message, count in built.losses.found:
                already_printed = reason in _ONCE and writer.tally.warnings[reason] > 0
                if writer.warn(reason, message, count) and not already_printed:
                    logger.warning(message, fields={"reason": reason})
            if not built.reason:
                writer.write(index, items[index][0], built.members, built.annotations)
            progress.step()


def convert_set(chosen: ConvertibleSet, files: SetFiles, options: ConvertOptions) -> dict[str, Any]:
    """Convert a dataset to shards, or resume an interrupted conversion.

    Returns:
        the content of `summary.json`.

    Raises:
        OsmError: an argument or a file of the dataset is invalid, or the folder has shards that were written with
            different arguments.
        RunStopped: the disk is full, or the server of a remote folder does not answer.
        BadSamplesError: more samples are bad than `options.max_bad_samples` allows, more annotations are bad than
            `options.max_bad_annotations` allows, or no sample is usable.
    """
    options.check()
    files = localize_files(files, chosen.form)
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


def _convert(
    chosen: ConvertibleSet, files: SetFiles, listing: Listing, options: ConvertOptions
) -> tuple[dict[str, Any], str]:
    """Write the shards, and return the summary and an error message (empty if the conversion succeeded)."""
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
            writer.start_over()  # the invalid files may have been repaired since the last run
        if listing.no_image and not writer.next_item:
            raise OsmError(listing.no_image)
        if listing.categories is not None:
            writer.put_json(CATEGORIES, {"categories": listing.categories})
        _fill(writer, chosen, files, items, options.num_workers or default_workers())
        summary = writer.finish(left_out, listing.losses.counts)
        if not writer.tally.written and set(writer.tally.left_out) == {"no_id_in_png"}:
            raise OsmError(writer.tally.examples["no_id_in_png"][0] + " (every other PNG has the same problem)")
        return summary, verdict()


def _too_many(writer: ShardWriter, listing: Listing, share: float) -> str:
    """Return an error message if too many annotations were unusable, else an empty string."""
    tally = writer.tally
    lost = listing.losses.lost + sum(count for reason, count in tally.warnings.items() if reason in LOSSES)
    messages = (m for reason, texts in tally.examples.items() if reason in LOSSES for m in texts)
    return too_many_lost(lost, tally.annotations, share, listing.losses.first or next(messages, ""))


def convert_coco_panoptic(
    json_file: str | Path,
    image_dir: str | Path,
    ann_dir: str | Path,
    options: ConvertOptions,
    filter_lvis_val: bool = True,
) -> dict[str, Any]:
    """Convert a dataset in COCO panoptic format; see `convert_set`. `ann_dir` is the folder with the panoptic PNGs."""
    chosen = SETS["coco_panoptic"]
    files = SetFiles(chosen.row.name, image_dir, chosen.row, ann_dir, json_file, filter_lvis_val=filter_lvis_val)
    return convert_set(chosen, files, options)


def convert_coco_instances(
    json_file: str | Path, image_dir: str | Path, options: ConvertOptions, filter_lvis_val: bool = True
) -> dict[str, Any]:
    """Convert a dataset in COCO instance format; see `convert_set`."""
    chosen = SETS["coco_instances"]
    files = SetFiles(chosen.row.name, image_dir, chosen.row, None, json_file, filter_lvis_val=filter_lvis_val)
    return convert_set(chosen, files, options)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found {text!r}")
    return text.lower() == "true"


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the command-line arguments for a dataset's annotation format, and the arguments that all converters share."""
    chosen, defaults = convertible_set(name), ConvertOptions("")
    parser.add_argument("--output_dir", required=True, help="folder for the shards, or its URL on s3:// or gs://")
    chosen.form.add_arguments(parser)
    if chosen.of_coco:
        parser.add_argument(
            "--filter_lvis_val",
            type=_true_or_false,
            default=True,
            metavar="True|False",
            help="leave out COCO train images that are in LVIS val; no effect on other datasets (default True)",
        )
    parser.add_argument("--num_files_per_shard", type=int, default=defaults.num_files_per_shard, help="default 1000")
    parser.add_argument("--format", choices=LAYOUTS, default=defaults.layout, help="default webdataset")
    parser.add_argument("--num_workers", type=int, help="processes (default: min(8, CPUs)); no effect on the shards")
    parser.add_argument(
        "--max_bad_samples",
        type=float,
        default=defaults.max_bad_samples,
        help="share of bad samples above which the run fails (default 0.01; above 0, one is always allowed)",
    )
    parser.add_argument(
        "--max_bad_annotations",
        type=float,
        default=defaults.max_bad_annotations,
        help="share of unusable annotations above which the run fails (default 0.05; above 0, one is always allowed)",
    )
    parser.set_defaults(set=name, **chosen.defaults)


def _files(args: argparse.Namespace) -> SetFiles:
    """Create a dataset's `SetFiles` object from the parsed arguments."""
    chosen = convertible_set(args.set)
    given = {name: value for name, value in vars(args).items() if name in _FILE_FIELDS}
    extra = {name: value for name, value in vars(args).items() if name in chosen.form.more_arguments}
    name = args.set if chosen.row.exact_names else chosen.row.form
    return SetFiles(name, args.image_dir, chosen.row, **given, extra_fields=extra)


def parser(name: str | None = None) -> argparse.ArgumentParser:
    """Return the argument parser for a dataset's script, or for `osm prepare` if `name` is None."""
    if name is not None:
        prog = f"osm prepare {name}" if is_added_form(name) else None
        own = CommandParser(prog=prog, description=f"Converts {convertible_set(name).what} to WebDataset shards.")
        _add_arguments(own, name)
        return own
    every = CommandParser(prog="osm prepare", description="Converts a dataset to WebDataset shards.")
    choices = every.add_subparsers(metavar="SET", required=True, help="osm prepare SET --help lists its arguments")
    for known, row in SETS.items():
        _add_arguments(choices.add_parser(known, help=row.what, description=row.what), known)
    return every


@console_command
def main(name: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run a dataset's script, or the command `osm prepare` if `name` is None.

    Returns:
        the exit code: 0 for success, 1 for too many bad samples or annotations, 2 for invalid arguments or files, 3 for
            a full disk or a server that does not answer.
    """
    args = parser(name).parse_args(argv)
    options = ConvertOptions(
        output_dir=args.output_dir,
        layout=args.format,
        num_files_per_shard=args.num_files_per_shard,
        num_workers=args.num_workers,
        max_bad_samples=args.max_bad_samples,
        max_bad_annotations=args.max_bad_annotations,
    )
    try:
        convert_set(convertible_set(args.set), _files(args), options)
    except (OsmError, OSError) as error:
        logger.error(" ".join(str(error).split()))
        if isinstance(error, BadSamplesError):
            return 1
        return exit_code(error) if isinstance(error, OsmError) else 2
    except KeyboardInterrupt:
        logger.info("stopped: the same command resumes after the last complete shard")
        return INTERRUPTED
    return 0


def prepare(argv: Sequence[str] | None = None) -> int:
    """Run `osm prepare SET ...` and return its exit code. SET is a dataset or an annotation format."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given and is_added_form(given[0]):
            return main(given[0], given[1:])
    except OsmError as error:  # the annotation format cannot be imported
        logger.error(" ".join(str(error).split()))
        return exit_code(error)
    return main(None, given)
