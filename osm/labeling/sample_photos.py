"""The command `osm sample`, which names hand-drawn masks in the photos that come with this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from osm.command_parser import CommandParser
from osm.errors import run_command, write_failed
from osm.files import read_json, replacing
from osm.io.images import as_rgb
from osm.recognition.draw import draw_names
from osm.recognition.flags import SHIPPED
from osm.startup import quick_loading
from osm.terminal import console_command, echo

if TYPE_CHECKING:
    from osm.recognition.answers import Recognition
    from osm.recognition.recognizer import Recognizer

PANEL_HEIGHT = 420  # in pixels
_GAP = 8


@dataclass(frozen=True)
class SamplePhoto:
    """A photo with masks.

    Attributes:
        name: the name of the photo.
        image: the photo, RGB.
        masks: bool (K, H, W).
    """

    name: str
    image: Image.Image
    masks: np.ndarray


def sample_photos() -> list[SamplePhoto]:
    """Return the photos that come with this package, which are in the public domain or under CC0."""
    folder = Path(str(resources.files("osm.labeling"))) / "photos"
    document, _ = read_json(folder / "photos.json", "photos")
    found = []
    for row in document["photos"]:
        image = as_rgb(folder / row["file"])
        masks = np.stack([polygon_mask(corners, image.size) for corners in row["masks"]])
        found.append(SamplePhoto(Path(row["file"]).stem, image, masks))
    return found


def polygon_mask(corners: Sequence[Sequence[int]], size: tuple[int, int]) -> np.ndarray:
    """Return the filled polygon, bool (H, W), for corners (x, y) in pixels and the image's (width, height)."""
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).polygon([(x, y) for x, y in corners], fill=1)
    return np.asarray(mask)


def draw_sample(recognizer: Recognizer) -> tuple[Image.Image, list[str]]:
    """Name the masks of all sample photos in mode `any`.

    Returns:
        one picture of all photos side by side, and a line with the names of each photo.
    """
    panels, lines = [], []
    for photo in sample_photos():
        recognizer.set_image(photo.image)
        answers = [answer for (answer,) in recognizer.name(photo.masks)]
        drawn = draw_names(photo.image, photo.masks, [_label(answer) for answer in answers])
        width = round(drawn.width * PANEL_HEIGHT / drawn.height)
        panels.append(drawn.resize((width, PANEL_HEIGHT), Image.Resampling.LANCZOS))
        lines.append(f"{photo.name}: " + ", ".join(map(_label, answers)))
    picture = Image.new("RGB", (sum(p.width for p in panels) + _GAP * (len(panels) - 1), PANEL_HEIGHT), "white")
    left = 0
    for panel in panels:
        picture.paste(panel, (left, 0))
        left += panel.width + _GAP
    return picture, lines


def _label(answer: Recognition) -> str:
    prob = answer.likelihood
    return f"{answer.text}{'?' if answer.unsure else ''} {prob:.0%}"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm sample`."""
    out = CommandParser(
        prog="osm sample",
        description="Name hand-drawn masks in the photos that come with this package, and draw the names. A question "
        "mark means that the model is unsure.",
    )
    out.add_argument("out", type=Path, nargs="?", default=Path("sample.jpg"), help="the picture [%(default)s]")
    out.add_argument("--checkpoint", default=SHIPPED, help="trained model [%(default)s]")
    out.add_argument("--device", default="auto", help="device of the model [%(default)s]")
    return out


@quick_loading()
def _recognizer(args: argparse.Namespace) -> Recognizer:
    from osm.recognition.recognizer import load_recognizer

    return load_recognizer(args.checkpoint, device=args.device)


def _sample(args: argparse.Namespace) -> None:
    picture, lines = draw_sample(_recognizer(args))
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as file:
            picture.save(file, "JPEG", quality=88, optimize=True)
    except OSError as error:
        raise write_failed(error, f"out {args.out}", "a file that can be written") from None
    echo(*lines, f"picture: {args.out}")


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run `osm sample` and return its exit code."""
    return run_command(_sample, parser().parse_args(argv), interrupted="interrupted")
