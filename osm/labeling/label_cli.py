"""The command `osm label`, which names masks from any annotation tool and writes the names in any tool's format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from osm.command_parser import CommandParser
from osm.errors import run_command
from osm.labeling.folder_cli import add_segmenter_flags
from osm.quiet import quiet_command
from osm.recognition.flags import (
    METHOD_HELP,
    add_checkpoint,
    add_ranking,
    check_modes,
    config_options,
    method_of,
    ranking_of,
)
from osm.recognition.placement import add_flags, from_flags
from osm.storage.locations import is_remote
from osm.terminal import console_command, echo

if TYPE_CHECKING:
    from osm.datasets.labels import LabelClass
    from osm.labeling.label_options import LabelOptions
    from osm.labeling.label_output import LabelSummary

_INTERRUPTED = "interrupted: the same command continues with the images that are not labeled yet"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm label`."""
    out = CommandParser(
        prog="osm label",
        allow_abbrev=False,
        description="Name the masks of many images, and write the names in the formats of annotation tools.",
    )
    out.add_argument(
        "images",
        help="folder of the images or its URL, a text file that lists them, WebDataset shards, a video, or the file "
        "with their masks (see --masks)",
    )
    out.add_argument("out", type=Path, help="folder of the labels; with --to parts, it may be on s3:// or gs://")
    out.add_argument(
        "--masks",
        help="file or folder with the masks: COCO, SA-1B or SAM, LabelMe, X-AnyLabeling, YOLO, CVAT, Label Studio, "
        "label maps, or mask PNGs",
    )
    out.add_argument(
        "--tracks",
        help="masks of objects that were tracked through a video: a folder of PNGs, a json of RLEs, or an .npz file; "
        "each object gets one name",
    )
    out.add_argument("--image_dir", help="folder of the images, if it is not beside the file with the masks")
    out.add_argument("--from", dest="format", metavar="FORMAT", help="format of the masks [recognized by its content]")
    out.add_argument(
        "--to",
        metavar="FORMAT,...",
        help="formats of the labels; same fills the names into the files of the masks, and parts writes Parquet files "
        "part by part [coco; parts with --share, with --engine ray, or if the labels are written to s3:// or gs://]",
    )
    out.add_argument("--strict", action="store_true", help="refuse a format that cannot hold all masks, scores and ids")
    out.add_argument("--auto", action="store_true", help="name all segments that a segmenter finds")
    add_segmenter_flags(out)
    add_checkpoint(out)
    out.add_argument("--mode", default="any", help="mode in which the model answers; any is open-ended [%(default)s]")
    out.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="file of allowed names: one name per line, or names separated by commas, or JSON with ids",
    )
    out.add_argument("--way", help=METHOD_HELP)
    add_ranking(out)
    out.add_argument("--min_area", type=int, default=1, help="masks with fewer pixels are not named [%(default)s]")
    out.add_argument("--min_prob", type=float, default=0.0, help="leave out names that are less probable [%(default)s]")
    out.add_argument(
        "--unsure",
        default="keep",
        help="names that are probably wrong, according to the calibrated model: keep, drop, or review, which writes "
        "them to review.jsonl [%(default)s]",
    )
    out.add_argument(
        "--overlaps",
        default="keep",
        help="masks that overlap: keep, merge, which gives each pixel to the most probable object, or parts, which "
        "writes which object is a part of which [%(default)s]",
    )
    out.add_argument(
        "--views", type=int, default=4, help="with --tracks: frames from which an object gets its name [%(default)s]"
    )
    out.add_argument(
        "--combine", default="", help="with --tracks: how the frames are combined: tokens or probs [by the model]"
    )
    out.add_argument(
        "--corrections", type=Path, metavar="FILE", help="names that a person has corrected on the page of `osm review`"
    )
    out.add_argument("--max_new_tokens", type=int, default=16, help="maximum number of tokens per name [%(default)s]")
    out.add_argument(
        "--processes", type=int, default=1, help="processes that label, each with its own model [%(default)s]"
    )
    out.add_argument(
        "--cpus_per_process", type=int, help="threads of each process [an equal share of the CPU cores; 1 with Ray]"
    )
    out.add_argument(
        "--part_images", type=int, default=500, help="with --to parts: images in a part, which is a file [%(default)s]"
    )
    out.add_argument(
        "--share",
        metavar="K/N",
        help="with --to parts: label every N-th shard, table or part, from the K-th, counted from 0; for job arrays",
    )
    out.add_argument("--engine", default="local", help="what runs the processes: local, or ray [%(default)s]")
    out.add_argument("--ray_address", help="address of the Ray cluster [RAY_ADDRESS, or a cluster of this machine]")
    out.add_argument(
        "--gpus_per_process",
        type=float,
        help="with --engine ray: the share of a GPU that each process has [an equal share of the cluster's GPUs]",
    )
    out.add_argument("--dry_run", action="store_true", help="say what would be labeled, and write nothing")
    out.add_argument("--overwrite", action="store_true", help="label everything again")
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    add_flags(out)
    return out


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm label` and return the exit code: 0, or 1 if an image could not be labeled, or 2 after a user error."""
    args = parser().parse_args(argv)
    return run_command(_run, args, interrupted=_INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    from osm.labeling.label_run import find_input, label_images
    from osm.labeling.label_tasks import counted

    options = options_of(args)
    if options.in_parts:
        from osm.labeling.label_processes import ending_on_sigterm
        from osm.labeling.parts.part_run import label_parts, planned

        if args.dry_run:
            echo(planned(options))
            return 0
        with ending_on_sigterm():
            summary, speed = label_parts(options)
        echo(*_told(summary, options.destination, speed))
        return 1 if summary.failed else 0
    found = find_input(options)
    if args.dry_run:
        what = f"{counted(found)} masks ({found.reader.title})" if found.reader else f"what {args.segmenter} finds"
        echo(f"{len(found.tasks)} images, {what}, to {', '.join(options.formats)}: {args.out}")
        return 0
    summary, speed = label_images(options, found)
    echo(*_told(summary, args.out, speed))
    return 1 if summary.failed else 0


def options_of(args: argparse.Namespace) -> LabelOptions:
    """Check the flags, and return them as the options of a run."""
    from osm.labeling.label_options import LabelOptions

    vocabulary: tuple[str | LabelClass, ...] = ()
    if args.vocabulary is not None:
        from osm.recognition.vocabulary import read_vocabulary

        vocabulary = tuple(read_vocabulary(args.vocabulary))
    given = {name: getattr(args, name) for name in _SAME_NAMES}
    options = LabelOptions(
        **given,
        form=args.format or "",
        to=None if args.to is None else tuple(name.strip() for name in args.to.split(",") if name.strip()),
        model_options={**config_options(args), **from_flags(args)},
        vocabulary=vocabulary,
        way=method_of(args),
        ranking=ranking_of(args),
    )
    options.check()
    check_modes(args.checkpoint, [args.mode])
    return options


_SAME_NAMES = (
    *("images", "out", "masks", "tracks", "image_dir", "strict", "auto", "segmenter", "sam_checkpoint", "sam_type"),
    *("checkpoint", "device", "mode", "min_area", "min_prob", "unsure", "overlaps", "max_new_tokens", "views"),
    *("combine", "corrections", "processes", "overwrite", "engine", "ray_address", "cpus_per_process"),
    *("gpus_per_process", "part_images", "share"),
)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _told(summary: LabelSummary, out: str | Path, speed: float) -> list[str]:
    rate = f" ({speed:.2g} images/s)" if speed else ""
    lines = [f"{_count(summary.images, 'image')}, {_count(summary.masks, 'mask')} named{rate}: {out}"]
    if summary.unsure:
        review = "" if is_remote(out) else f"; osm review {out} shows them first"
        lines.append(f"  {summary.unsure} of the names are probably wrong{review}")
    lines += [f"  {_count(count, 'mask')} left out: {reason}" for reason, count in sorted(summary.left_out.items())]
    if summary.kept_in_same:
        lines.append(f"  same keeps them with their old names: {_count(summary.kept_in_same, 'mask')}")
    if summary.corrected:
        lines.append(f"  {_count(summary.corrected, 'correction')} applied")
    if summary.stale:
        lines.append(
            f"  {_count(summary.stale, 'correction')} not applied, because there is no such object with the predicted "
            f"name; the first is for {summary.stale_example}"
        )
    if summary.older:
        lines.append(f"  not written by this run, so with the names of an earlier one: {', '.join(summary.older)}")
    for name, losses in summary.losses.items():
        lines += [f"  {name} cannot hold: {count} {reason}" for reason, count in sorted(losses.items())]
    lines += [f"  not labeled: {path}: {reason}" for path, reason in summary.failed.items()]
    if summary.more_failed:
        lines.append(f"  {_count(summary.more_failed, 'further image')} not labeled; their rows have the reasons")
    return lines
