"""The command `osm label`, which names masks from any annotation tool and writes the names in any tool's format."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.command_parser import CommandParser
from osm.datasets.labels import LabelClass
from osm.errors import OsmError, RunStopped, not_one_of, run_command
from osm.labeling.folder_cli import add_segmenter_flags, segmenter_from
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
from osm.startup import quick_loading
from osm.storage.cache import localize
from osm.terminal import console_command, echo, message_logger

if TYPE_CHECKING:
    from osm.labeling.formats.label_format import LabelFormat
    from osm.labeling.label_journal import LabelJournal
    from osm.labeling.labeler import ImageLabeler, KeepRules, LabelSummary, LabelTask

logger = message_logger(__name__)

_INTERRUPTED = "interrupted: the same command continues with the images that are not labeled yet"
# The flags that affect the labels. The same output folder cannot hold the labels of different values.
_SETTINGS = ("images", "masks", "image_dir", "format", "checkpoint", "mode", "way", "min_area", "max_new_tokens")
_MORE_SETTINGS = ("length_power", "prior_weight", "none_below", "segmenter", "sam_checkpoint", "sam_type", "auto")


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm label`."""
    out = CommandParser(
        prog="osm label",
        allow_abbrev=False,
        description="Name the masks of many images, and write the names in the formats of annotation tools.",
    )
    out.add_argument("images", type=Path, help="folder of the images, or the file with their masks (see --masks)")
    out.add_argument("out", type=Path, help="folder of the labels")
    out.add_argument(
        "--masks",
        type=Path,
        help="file or folder with the masks: COCO, SA-1B or SAM, LabelMe, X-AnyLabeling, YOLO, CVAT or Label Studio",
    )
    out.add_argument("--image_dir", type=Path, help="folder of the images, if it is not beside the file with the masks")
    out.add_argument("--from", dest="format", metavar="FORMAT", help="format of the masks [recognized by its content]")
    out.add_argument("--to", default="coco", metavar="FORMAT,...", help="formats of the labels [%(default)s]")
    out.add_argument("--strict", action="store_true", help="refuse a format that cannot hold all masks, scores and ids")
    out.add_argument("--auto", action="store_true", help="name all segments that a segmenter finds")
    add_segmenter_flags(out)
    add_checkpoint(out)
    out.add_argument("--mode", default="any", help="mode in which the model answers; any is open-ended [%(default)s]")
    out.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="allowed names: one per line, separated by commas, or a JSON file with ids",
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
    out.add_argument("--max_new_tokens", type=int, default=16, help="maximum number of tokens per name [%(default)s]")
    out.add_argument(
        "--processes", type=int, default=1, help="processes that label, each with its own model [%(default)s]"
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
    _check(args)
    reader, tasks = _tasks(args)
    formats = _formats(args.to)
    if args.dry_run:
        count = sum(len(task.source.rows) for task in tasks if task.source is not None)
        what = f"{count} masks ({reader.title})" if reader else f"what {args.segmenter} finds"
        echo(f"{len(tasks)} images, {what}, to {', '.join(one.title for one in formats)}: {args.out}")
        return 0
    from osm.labeling.label_journal import LabelJournal
    from osm.labeling.labeler import KeepRules, write_labels

    rules = KeepRules(args.min_area, args.min_prob, args.unsure)
    vocabulary = _vocabulary(args)
    journal = LabelJournal(args.out, _settings(args, tasks, vocabulary), args.overwrite)
    journal.repair()
    done = journal.places(failed=False)
    left = [task for task in tasks if task.number not in done]
    if done:
        logger.info(f"{len(done)} of {len(tasks)} images are labeled already")
    started = time.monotonic()
    if left:
        _label(args, left, reader, rules, journal)
    seconds = time.monotonic() - started
    summary = write_labels(
        journal, rules, formats, args.out, args.checkpoint, _ids(vocabulary, args.none_below), args.strict
    )
    echo(*_told(summary, args, len(left), seconds))
    return 1 if summary.failed else 0


def _check(args: argparse.Namespace) -> None:
    from osm.labeling.labeler import UNSURE

    if args.unsure not in UNSURE:
        raise not_one_of("--unsure", args.unsure, UNSURE)
    if not 0 <= args.min_prob <= 1:
        raise OsmError(f"--min_prob {args.min_prob} must be from 0 to 1")
    for flag in ("min_area", "processes", "max_new_tokens"):
        if getattr(args, flag) < 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be 1 or more")
    if args.auto and (args.masks or args.format):
        raise OsmError("--auto finds masks, so it cannot be combined with --masks or --from")
    if not args.auto and (args.sam_checkpoint or args.sam_type or args.segmenter != "auto"):
        raise OsmError("--segmenter, --sam_checkpoint and --sam_type have no effect without --auto; add --auto")
    if args.out.exists() and not args.out.is_dir():
        raise OsmError(f"out {args.out} is not a folder")
    method_of(args)
    ranking_of(args)
    check_modes(args.checkpoint, [args.mode])


def _formats(names: str) -> list[type[LabelFormat]]:
    """Return the formats named by `--to`."""
    from osm.labeling.formats import FORMATS

    chosen = [FORMATS.get(name.strip()) for name in names.split(",") if name.strip()]
    if not chosen:
        raise OsmError(f"--to {names!r}: expected one or more of {', '.join(_writable())}")
    for one in chosen:
        if not one.writes:
            raise OsmError(f"--to {one.name}: {one.title} has no field for a name; choose {', '.join(_writable())}")
    return list(dict.fromkeys(chosen))


def _writable() -> list[str]:
    from osm.labeling.formats import FORMATS

    return [name for name in FORMATS.names() if FORMATS.get(name).writes]


def _tasks(args: argparse.Namespace) -> tuple[type[LabelFormat] | None, list[LabelTask]]:
    """Find the images and their masks. Return the format of the masks, or None with `--auto`, and the tasks."""
    from osm.labeling.formats import FORMATS, recognized
    from osm.labeling.labeler import image_tasks_of, mask_tasks

    place = localize(args.images, "images", folder=not args.images.suffix)
    if not place.exists():
        raise OsmError(f"images {args.images}: no such file or folder")
    if args.auto:
        if not place.is_dir():
            raise OsmError(f"images {args.images}: --auto needs a folder of images")
        return None, image_tasks_of(place, args.out)
    masks = localize(args.masks, "--masks", folder=not args.masks.suffix) if args.masks else place
    try:
        reader = FORMATS.get(args.format) if args.format else recognized(masks)
    except OsmError:
        if args.masks or args.format or place.is_file():
            raise
        raise OsmError(
            f"images {args.images}: the folder holds no masks in a known format; name the file or folder with the "
            "masks with --masks, or add --auto to name what a segmenter finds"
        ) from None
    folder = args.image_dir or (place if place.is_dir() else place.parent)
    tasks = mask_tasks(reader.sources(masks), Path(folder))
    if not tasks:
        raise OsmError(f"--masks {masks}: lists no image")
    return reader, tasks


def _vocabulary(args: argparse.Namespace) -> list[str | LabelClass] | None:
    if args.vocabulary is None:
        return None
    from osm.recognition.vocabulary import read_vocabulary

    return list(read_vocabulary(args.vocabulary))


def _ids(vocabulary: list[str | LabelClass] | None, none_below: float) -> dict[str, int] | None:
    """Return the ids of the names of a vocabulary: its own, or the positions from 1. None without a vocabulary."""
    if vocabulary is None:
        return None
    from osm.recognition.vocabulary import NONE_OF_THESE

    ids = {one.target if isinstance(one, LabelClass) else one: one for one in vocabulary}
    found = {name: one.id if isinstance(one, LabelClass) else k for k, (name, one) in enumerate(ids.items(), 1)}
    return found | ({NONE_OF_THESE: max(found.values(), default=0) + 1} if none_below else {})


def _settings(
    args: argparse.Namespace, tasks: Sequence[LabelTask], vocabulary: list[str | LabelClass] | None
) -> dict[str, Any]:
    flags = {name: _plain(getattr(args, name)) for name in (*_SETTINGS, *_MORE_SETTINGS)}
    listed = [one if isinstance(one, str) else [one.id, *one.names] for one in vocabulary or ()]
    found = [(task.file_name, len(task.source.rows) if task.source is not None else 0) for task in tasks]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    return flags | {"the list of images": f"{len(tasks)} images ({digest})", "vocabulary": listed}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _label(
    args: argparse.Namespace,
    tasks: list[LabelTask],
    reader: type[LabelFormat] | None,
    rules: KeepRules,
    journal: LabelJournal,
) -> None:
    """Label images in this process, or in several processes that each take every n-th image."""
    count = min(args.processes, len(tasks))
    if count == 1:
        _labeler(args, reader, rules).run(tasks, journal)
        return
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(args, tasks[k::count], reader, rules, journal, k, count), daemon=True)
        for k in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers]
    if any(codes):
        raise RunStopped(f"--processes {count}: a process ended with exit code {next(c for c in codes if c)}; {_AGAIN}")


_AGAIN = "the same command continues with the images that are not labeled yet"


@quiet_command
def _work(
    args: argparse.Namespace,
    tasks: list[LabelTask],
    reader: type[LabelFormat] | None,
    rules: KeepRules,
    journal: LabelJournal,
    process: int,
    count: int,
) -> int:
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    if args.device == "auto" and torch.cuda.device_count() > 1:
        args.device = f"cuda:{process % torch.cuda.device_count()}"
    _labeler(args, reader, rules).run(tasks, journal, process)
    return 0


@quick_loading()
def _labeler(args: argparse.Namespace, reader: type[LabelFormat] | None, rules: KeepRules) -> ImageLabeler:
    """Load the model."""
    from osm.labeling.labeler import ImageLabeler
    from osm.labeling.naming import NamingRequest
    from osm.recognition.recognizer import load_recognizer

    options = {"max_new_tokens": args.max_new_tokens, **from_flags(args)}
    recognizer = load_recognizer(args.checkpoint, **config_options(args), device=args.device, **options)
    request = NamingRequest(args.mode, tuple(_vocabulary(args) or ()), method_of(args), top_k=1, **ranking_of(args))
    segmenter = segmenter_from(args, recognizer) if args.auto else None
    return ImageLabeler(recognizer, request, rules, reader, segmenter)


def _told(summary: LabelSummary, args: argparse.Namespace, images: int, seconds: float) -> list[str]:
    speed = f" ({images / seconds:.2g} images/s)" if images and seconds > 0 else ""
    lines = [f"{summary.images} images, {summary.masks} masks named{speed}: {args.out}"]
    lines += [f"  {count} masks left out: {reason}" for reason, count in sorted(summary.left_out.items())]
    for name, losses in summary.losses.items():
        lines += [f"  {name} cannot hold: {count} {reason}" for reason, count in sorted(losses.items())]
    return lines + [f"  not labeled: {path}: {reason}" for path, reason in summary.failed.items()]
