"""The command `osm name`, which names masks, boxes, points or all segments of one image."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osm.command_parser import CommandParser
from osm.errors import OsmError, run_command
from osm.labeling.folder_cli import add_segmenter_flags, segmenter_from
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
from osm.storage.locations import public
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

if TYPE_CHECKING:
    from PIL import Image

    from osm.recognition.answers import Alternative, Recognition
    from osm.recognition.recognizer import Recognizer


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm name`."""
    out = CommandParser(
        prog="osm name",
        allow_abbrev=False,
        description="Name masks, boxes, points or all segments of an image.",
    )
    out.add_argument("image", help="file or URL of a JPEG, PNG, TIFF, WebP, BMP, GIF or AVIF")
    add_checkpoint(out)
    out.add_argument(
        "--mask", type=Path, action="append", help="mask image of the same size, white is inside, or a .npy file"
    )
    out.add_argument("--mask_id", type=int, metavar="N", help="treat each --mask as a label map and name the id N")
    out.add_argument("--box", action="append", metavar="X,Y,W,H", help="box to name, in pixels")
    out.add_argument("--point", action="append", metavar="X,Y", help="point in pixels; a small disc around it is named")
    out.add_argument("--auto", action="store_true", help="name all segments that a segmenter finds, the largest first")
    add_segmenter_flags(out)
    out.add_argument("--mode", action="append", help="mode in which the model answers; any is open-ended [any]")
    out.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="file of allowed names: one name per line, or names separated by commas, or JSON",
    )
    out.add_argument("--way", help=METHOD_HELP)
    add_ranking(out)
    out.add_argument("--top_k", type=int, default=1, help="number of candidate names per region [%(default)s]")
    out.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    add_flags(out)
    return out


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm name`. Return the exit code, which is 0 unless an error occurred."""
    args = parser().parse_args(argv)
    return run_command(lambda: echo(*_answer(args)), interrupted="interrupted")


@dataclass
class _Question:
    """What a checked command line asks for: the regions of an image, and the loaded model that names them."""

    photo: Image.Image
    masks: list[Any]
    boxes: list[list[float]]
    points: list[list[float]]
    listed: dict[str, Any]  # the vocabulary and how its names are ranked
    recognizer: Recognizer


def _question(args: argparse.Namespace) -> _Question:
    boxes = [_numbers(text, 4, "--box", "X,Y,W,H") for text in args.box or ()]
    points = [_numbers(text, 2, "--point", "X,Y") for text in args.point or ()]
    if not (args.mask or boxes or points or args.auto):
        raise OsmError("nothing to name: add --mask FILE, --box X,Y,W,H, --point X,Y or --auto")
    if args.mask_id is not None and not args.mask:
        raise OsmError(f"--mask_id {args.mask_id} selects an id in a label map; pass the label map with --mask FILE")
    if not args.auto and (args.sam_checkpoint or args.sam_type or args.segmenter != "auto"):
        raise OsmError("--segmenter, --sam_checkpoint and --sam_type have no effect without --auto; add --auto")
    method, ranking = method_of(args), ranking_of(args)
    image = localize(args.image, "image")
    if not image.is_file():
        raise OsmError(f"{public(args.image)}: no such image")
    from osm.io.images import as_rgb

    photo = as_rgb(image)
    masks: list[Any] = [_mask_of(path, photo.size[::-1], args.mask_id) for path in args.mask or ()]
    _check_places(photo.size, boxes, points)
    check_modes(args.checkpoint, args.mode or ())
    from osm.recognition.recognizer import load_recognizer
    from osm.recognition.vocabulary import read_vocabulary

    names = read_vocabulary(args.vocabulary) if args.vocabulary else None
    recognizer = load_recognizer(args.checkpoint, **config_options(args), device=args.device, **from_flags(args))
    listed = {"vocabulary": names, "method": method, **ranking}
    return _Question(photo, masks, boxes, points, listed, recognizer)


def _answer(args: argparse.Namespace) -> list[str]:
    with quick_loading():
        asked = _question(args)
    recognizer, masks = asked.recognizer, asked.masks
    recognizer.set_image(asked.photo)
    segments = _segments(args, asked.photo, recognizer) if args.auto else []
    masks += [segment["segmentation"] for segment in segments]
    found = recognizer.name(
        masks,
        boxes=asked.boxes,
        points=asked.points,
        modes=args.mode or ["any"],
        top_k=args.top_k,
        **asked.listed,
    )
    titles = [f"mask {public(path)}" for path in args.mask or ()]
    titles += [
        f"segment {k} (box {','.join(f'{x:g}' for x in s['bbox'])}, {s['area']} pixels)"
        for k, s in enumerate(segments, 1)
    ]
    titles += [f"box {text}" for text in args.box or ()] + [f"point {text}" for text in args.point or ()]
    if args.json:
        regions = [
            {"region": title, "answers": [_answer_record(a) for a in answers]}
            for title, answers in zip(titles, found, strict=True)
        ]
        for region, segment in zip(regions[len(args.mask or ()) :], segments, strict=False):
            region.update(segment)
        document = {"image": public(args.image), "size": list(recognizer.image_size), "regions": regions}
        return json.dumps(document, indent=1).split("\n")
    return [_line(title, answer) for title, answers in zip(titles, found, strict=True) for answer in answers]


def _mask_of(path: Path, size_hw: tuple[int, int], label_id: int | None) -> Any:
    from osm.io.any_mask import read_mask_file

    return read_mask_file(localize(path, "--mask"), size_hw, f"--mask {public(path)}", label_id)


def _check_places(size: tuple[int, int], boxes: list[list[float]], points: list[list[float]]) -> None:
    """Check boxes and points before the model is loaded. A box that extends beyond the image is reported.

    Raises:
        OsmError: a box or point is outside the image, which is `size` = (width, height) pixels.
    """
    from osm.recognition.regions import regions_of

    regions_of(size, boxes=boxes or None, points=points or None)
    for x, y, width, height in boxes:
        if x < 0 or y < 0 or x + width > size[0] or y + height > size[1]:
            logger.warning(
                f"box {x:g},{y:g},{width:g},{height:g} extends beyond the image, which is {size[0]} x {size[1]} "
                "pixels; only the part inside the image is named"
            )


def _segments(args: argparse.Namespace, image: Image.Image, recognizer: Recognizer) -> list[dict[str, Any]]:
    """Find all segments of an image.

    Masks are returned as RLEs, because many decoded masks would take too much memory.
    """
    from osm.io.segmentation import encode_rle, rle_box

    segmenter = segmenter_from(args, recognizer)
    segmenter.set_image(image)
    found = []
    for segment in segmenter.everything():
        rle = encode_rle(segment.mask)
        found.append({"score": segment.score, "area": segment.area, "bbox": rle_box(rle), "segmentation": rle})
    if not found:
        logger.info(f"{public(args.image)}: the segmenter {segmenter.name} found no segment")
    return found


def _numbers(text: str, count: int, flag: str, form: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise OsmError(f"{flag} {text!r} is not {form}")
    return numbers


def _answer_record(answer: Recognition) -> dict[str, Any]:
    found: dict[str, Any] = {"mode": answer.mode, "name": answer.text, "prob": answer.prob}
    if answer.skipped:
        return {"mode": answer.mode, "skipped": answer.skipped}
    if answer.calibrated_prob is not None:
        found |= {"calibrated_prob": answer.calibrated_prob, "unsure": answer.unsure}
    if answer.token_probs:
        found["token_probs"] = list(answer.token_probs)
    if answer.class_id is not None:
        found["class_id"] = answer.class_id
    if answer.said:
        found["said"] = answer.said
    if answer.top:
        found["top"] = [other.as_record() for other in answer.top]
    return found


def _line(title: str, answer: Recognition) -> str:
    from osm.recognition.vocabulary import NONE_OF_THESE

    if answer.skipped:
        return f"{title} [{answer.mode}]: no name, {answer.skipped}"
    class_id = "" if answer.class_id is None else f" (id {answer.class_id})"
    name = f"{answer.text or '(nothing)'}{class_id}"
    relation = "instead of" if answer.text == NONE_OF_THESE else "nearest to"
    said = f"{relation} {answer.said!r}" if answer.said else ""
    if answer.calibrated_prob is not None:
        facts = filter(None, (said, f"{answer.calibrated_prob:.0%} likely correct"))
        name = f"{'unsure: maybe ' if answer.unsure else ''}{name} ({', '.join(facts)})"
    elif said:
        name += f" ({said} {answer.prob:.1%})"
    else:
        name += f" {answer.prob:.1%}"
    return f"{title} [{answer.mode}]: " + ", ".join([name, *map(_candidate, answer.top[1:])])


def _candidate(other: Alternative) -> str:
    likely = f"cosine {other.cosine:.2f}" if other.cosine is not None else f"{other.prob:.1%}"
    return f"{other.text or '(nothing)'} {likely}"
