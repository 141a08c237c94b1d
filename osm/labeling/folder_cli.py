"""The command `osm folder` (also demo_with_sam.py), which finds and names the segments of every image in a folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.command_parser import CommandParser
from osm.datasets.labels import LabelClass
from osm.errors import OsmError, not_one_of
from osm.quiet import quiet_command
from osm.recognition.flags import (
    METHODS,
    RANKING_FLAGS,
    add_checkpoint,
    add_ranking,
    check_mode,
    check_modes,
    config_options,
    ranking_of,
)
from osm.recognition.placement import add_flags, from_flags
from osm.startup import quick_loading
from osm.storage.cache import localize
from osm.storage.locations import is_remote, public, suffix_of
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

if TYPE_CHECKING:
    from osm.labeling.folder import FolderDemo
    from osm.labeling.formats.label_format import LabelFormat


def parser(prog: str = "osm folder") -> argparse.ArgumentParser:
    """Return the argument parser of `osm folder`."""
    out = CommandParser(
        prog=prog, allow_abbrev=False, description="Find and name the segments of every image in a folder."
    )
    out.add_argument("images", type=Path, nargs="+", help="folders or images (JPEG, PNG, TIFF, WebP, BMP, GIF or AVIF)")
    add_checkpoint(out)
    out.add_argument("--output_dir", type=Path, default=Path("demo_vis"), help="folder of the results [%(default)s]")
    add_segmenter_flags(out)
    out.add_argument("--mode", default="any", help="mode in which the model answers; any is open-ended [%(default)s]")
    out.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="file of allowed names: one name per line, or names separated by commas, or JSON",
    )
    out.add_argument(
        "--way",
        default="constrained",
        help="how the vocabulary is applied: constrained, scored or mapped [%(default)s]",
    )
    add_ranking(out)
    out.add_argument("--min_area", type=int, default=100, help="segments with fewer pixels are not named [%(default)s]")
    out.add_argument(
        "--min_prob", type=float, default=0.2, help="names with a lower probability are not drawn [%(default)s]"
    )
    out.add_argument("--alpha", type=float, default=0.7, help="opacity of the mask colors, 0 to 1 [%(default)s]")
    out.add_argument("--max_new_tokens", type=int, default=16, help="maximum number of tokens per name [%(default)s]")
    out.add_argument("--panoptic", action="store_true", help="also write the label map in COCO's panoptic form")
    out.add_argument(
        "--to", default="", metavar="FORMAT,...", help="also write labels/ in formats of osm label, such as coco [none]"
    )
    out.add_argument("--overwrite", action="store_true", help="name images again whose results exist")
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    add_flags(out)
    return out


def add_segmenter_flags(out: argparse.ArgumentParser) -> None:
    """Add the command-line flags that select a segmenter."""
    out.add_argument(
        "--segmenter",
        default="auto",
        help="a segmenter of `osm list segmenters`, module:Class, or auto: embedded (no download) without "
        "--sam_checkpoint, else sam or transformers [%(default)s]",
    )
    out.add_argument(
        "--sam_checkpoint",
        metavar="FILE",
        help="a SAM checkpoint (.pth), or the folder or hub id of a SAM 2 or 3 model of transformers",
    )
    out.add_argument("--sam_type", help="vit_h, vit_l or vit_b; needed if the file name does not contain it")


def segmenter_from(args: argparse.Namespace, recognizer: Any) -> Any:
    """Load the segmenter selected by the flags that `add_segmenter_flags` adds."""
    from osm.recognition.segmenters import load_segmenter

    checkpoint = args.sam_checkpoint
    if checkpoint and is_remote(checkpoint):
        folder = suffix_of(checkpoint) not in (".pth", ".pt")
        checkpoint = str(localize(checkpoint, "--sam_checkpoint", folder=folder))
    options = {"sam_type": args.sam_type} if args.sam_type else {}
    try:
        return load_segmenter(args.segmenter, checkpoint, recognizer, args.device, **options)
    except TypeError:
        raise OsmError(f"--sam_type {args.sam_type} applies only to a SAM checkpoint file (.pth)") from None


@quiet_command
@console_command
def main(argv: Sequence[str] | None = None, prog: str = "osm folder") -> int:
    """Run `osm folder` and return the exit code.

    The exit code is 0 if no image failed, 1 if at least one image failed, or 2 after a user error.
    """
    args = parser(prog).parse_args(argv)
    try:
        return _run(args)
    except OsmError as error:
        logger.error(error)
    except OSError as error:  # raised by an output file; an error of an input image only fails that image
        logger.error(f"--output_dir {args.output_dir}: {error}")
    return 2


@quick_loading()
def _prepare(args: argparse.Namespace) -> tuple[FolderDemo, list[Path]]:
    """Check the arguments, and load the model. Return the demo and the images to name."""
    from osm.io.images import SUFFIXES
    from osm.labeling.folder import FolderDemo, find_images
    from osm.labeling.naming import MapRequest
    from osm.models.checkpoint import published_state_dict
    from osm.models.weights import fingerprint_tensors
    from osm.recognition.recognizer import load_recognizer
    from osm.recognition.vocabulary import read_vocabulary

    _check(args)
    places = [localize(place, "images", folder=suffix_of(place) not in SUFFIXES) for place in args.images]
    images, others = find_images(places, args.output_dir)
    if others:
        logger.info(f"{len(others)} files are not images and are skipped: {', '.join(p.name for p in others[:5])}")
    ranking = ranking_of(args)
    names = read_vocabulary(args.vocabulary) if args.vocabulary else None
    check_modes(args.checkpoint, [args.mode])
    args.output_dir.mkdir(parents=True, exist_ok=True)
    options = {"max_new_tokens": args.max_new_tokens, **from_flags(args)}
    recognizer = load_recognizer(args.checkpoint, **config_options(args), device=args.device, **options)
    check_mode(args.mode, recognizer.modes)
    segmenter = segmenter_from(args, recognizer)
    areas = {"min_area": args.min_area, "min_prob": args.min_prob}
    request = MapRequest(args.mode, tuple(names or ()), args.way, **areas, **ranking)
    settings = {key: _setting_value(getattr(args, key)) for key in _SETTINGS} | {
        "vocabulary": None if names is None else [_entry_setting(one) for one in names],
        "segmenter": segmenter.name,
    }
    # Flags that are not given are left out, so that the results of earlier versions stay valid.
    settings |= {flag: value for flag in RANKING_FLAGS if (value := getattr(args, flag))}
    # The fingerprint lets the next run detect that the checkpoint at the same path has been replaced.
    settings["fingerprint"] = fingerprint_tensors(published_state_dict(recognizer.model))
    demo = FolderDemo(recognizer, segmenter, request, settings, args.overwrite, args.panoptic, args.alpha)
    return demo, images


def _run(args: argparse.Namespace) -> int:
    demo, images = _prepare(args)
    from osm.labeling.folder import image_tasks

    tasks = image_tasks(images, args.output_dir)
    outcome = demo.run(tasks)
    if args.to:
        from osm.labeling.folder_labels import write_folder_labels

        # In a folder of its own, because a picture may be called labels.jpg.
        write_folder_labels(tasks, _formats(args.to), args.output_dir / "labels", args.checkpoint)
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    echo(f"{outcome.named} images named, {outcome.existing} skipped{failed}: {args.output_dir}")
    for image, reason in outcome.failed.items():
        echo(f"  {image}: {reason}")
    return 1 if outcome.failed else 0


def _formats(names: str) -> list[type[LabelFormat]]:
    from osm.labeling.label_options import chosen_formats

    return chosen_formats(name.strip() for name in names.split(",") if name.strip())


# The command-line flags that affect the results for an image.
_SETTINGS = (
    "checkpoint",
    "config",
    "sam_checkpoint",
    "sam_type",
    "mode",
    "way",
    "min_area",
    "min_prob",
    "alpha",
    "max_new_tokens",
)


def _entry_setting(entry: str | LabelClass) -> str | list[Any]:
    """Return a name or class of the vocabulary as a JSON-compatible value."""
    return entry if isinstance(entry, str) else [entry.id, *entry.names]


def _setting_value(value: Any) -> Any:
    """Convert a flag's value to the value recorded in an image's JSON file."""
    return public(value) if isinstance(value, str) else value


def _check(args: argparse.Namespace) -> None:
    _formats(args.to)
    for flag in ("min_prob", "alpha"):
        if not 0 <= getattr(args, flag) <= 1:
            raise OsmError(f"--{flag} {getattr(args, flag)} must be from 0 to 1")
    if args.min_area < 1:
        raise OsmError(f"--min_area {args.min_area} must be 1 or more")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise OsmError(f"--output_dir {args.output_dir} is not a folder")
    if args.way not in METHODS:
        raise not_one_of("--way", args.way, METHODS)
