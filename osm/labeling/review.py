"""The review page of `osm review`: one offline HTML file on which a person accepts, retypes or removes names."""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import FunctionLoader
from markupsafe import Markup, escape
from PIL import Image

from osm.errors import OsmError
from osm.files import read_text, write_atomically
from osm.html_pages import page_environment
from osm.labeling.corrections import REMOVED
from osm.labeling.formats.label_format import LabeledImage, LabelShape
from osm.labeling.label_journal import FOLDER, LabelJournal, image_of
from osm.labeling.label_rules import TOO_SMALL
from osm.labeling.parts.part_journal import open_journal
from osm.labeling.stored_images import StoredImage
from osm.terminal import ProgressBar, message_logger

logger = message_logger(__name__)

PAGE = "review.html"
_SIZE = (320, 240)  # pixels of a thumbnail
_MARGIN = 0.4  # shown around an object, as a share of its box
_LEAST = 48  # pixels of the image that a thumbnail shows at least
_DIM = 0.4  # brightness of the pixels outside the mask
_LINE = (255, 176, 0)
_QUALITY = 82


@dataclass(frozen=True)
class ReviewItem:
    """An object on the page.

    Attributes:
        image: the image without its objects.
        number: the position of the object among the image's objects, from 0.
        shape: the object.
    """

    image: LabeledImage
    number: int
    shape: LabelShape

    @property
    def doubt(self) -> tuple[bool, bool, float]:
        """The key by which objects are sorted: names that the model is unsure of first, then by probability."""
        return (not self.shape.unsure, bool(self.shape.skipped), self.shape.prob)


def review_page(out: Path, limit: int = 1000, everything: bool = False) -> tuple[Path, int, int]:
    """Write the review page of a folder that `osm label` has written.

    Args:
        out: the folder of the labels.
        limit: the maximum number of objects on the page. The most doubtful ones are shown.
        everything: also show the objects that a person has decided already.

    Returns:
        the page, the number of objects on it, and the number of objects that could be shown.

    Raises:
        OsmError: the folder has no labels, or nothing is left to review.
    """
    if not (out / FOLDER / "settings.json").is_file():
        raise OsmError(f"{out}: holds no labels of `osm label`")
    journal = open_journal(out)
    found, total = _chosen(journal, limit, everything)
    if not found:
        raise OsmError(f"{out}: nothing is left to review{'' if everything else '; --all also shows what is decided'}")
    items = list(_cards(found))
    listed = [one if isinstance(one, str) else one[1] for one in journal.settings().get("vocabulary", [])]
    names = sorted({item.shape.name for item in found if item.shape.name} | set(_names(out)) | set(listed))
    settings = json.dumps({"key": f"osm-review-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}"})
    page = (
        page_environment(FunctionLoader(_part))
        .get_template("review.html")
        .render(
            title=out.name or str(out),
            items=items,
            names=names,
            shown=len(items),
            total=total,
            style=Markup(_part("review.css")),
            script=Markup(_part("review.js")),
            settings=Markup(settings),
        )
    )
    write_atomically(out / PAGE, [page, "\n"])
    return out / PAGE, len(items), total


def _chosen(journal: LabelJournal, limit: int, everything: bool) -> tuple[list[ReviewItem], int]:
    """Return the most doubtful objects, and the number of all, without masks that were too small to be named."""
    corrections = journal.corrections()
    total = 0

    def items() -> Iterator[ReviewItem]:
        nonlocal total
        for record in journal.records():
            if record["failed"]:
                continue
            image = image_of(record)
            bare = replace(image, shapes=())
            for number, (shape, now) in enumerate(zip(image.shapes, corrections.applied(image), strict=True)):
                decided = now.corrected or now.skipped == REMOVED
                if shape.skipped == TOO_SMALL or (decided and not everything):
                    continue
                total += 1
                yield ReviewItem(bare, number, shape)

    return heapq.nsmallest(limit, items(), key=lambda item: item.doubt), total


def _cards(found: list[ReviewItem]) -> Iterator[dict[str, Any]]:
    """Yield the values that the page shows for each object. An image is opened once for all of its objects."""
    places: dict[int, list[int]] = {}
    for k, item in enumerate(found):
        places.setdefault(item.image.number, []).append(k)
    pictures: dict[int, Image.Image] = {}
    with ProgressBar("drawing", len(places), "images") as progress:
        for numbers in places.values():
            image = found[numbers[0]].image
            photo = StoredImage(image.path, image.member).photo(image.size)
            for k in numbers:
                pictures[k] = thumbnail(photo, found[k].shape)
            progress.step()
    for k, item in enumerate(found):
        shape = item.shape
        buffer = io.BytesIO()
        pictures[k].save(buffer, "JPEG", quality=_QUALITY)
        facts = shape.skipped or f"{'unsure, ' if shape.unsure else ''}{shape.prob:.0%}"
        yield {
            # In attributes, names stay as they are, because corrections refer to them.
            "exact": {"file": escape(item.image.file_name), "predicted": escape(shape.name)},
            "file_name": item.image.file_name,
            "shape": item.number,
            "predicted": shape.name,
            "facts": f"{facts}, {shape.area} pixels",
            "picture": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
            "width": pictures[k].width,
            "height": pictures[k].height,
        }


def thumbnail(photo: Image.Image, shape: LabelShape) -> Image.Image:
    """Draw an object in its surroundings: the other pixels are dimmed, and a line goes around the object."""
    x, y, w, h = shape.bounds
    wide, high = (max(extent * (1 + 2 * _MARGIN), _LEAST) for extent in (w, h))
    wide, high = max(wide, high * _SIZE[0] / _SIZE[1]), max(high, wide * _SIZE[1] / _SIZE[0])
    sides = []
    for start, extent, side, wanted in ((x, w, photo.width, wide), (y, h, photo.height, high)):
        low = max(0, int(start + extent / 2 - wanted / 2))
        sides.append((min(low, side - 1), min(side, max(low + 1, int(start + extent / 2 + wanted / 2)))))
    (left, right), (top, bottom) = sides
    crop = photo.crop((left, top, right, bottom))
    scale = min(_SIZE[0] / crop.width, _SIZE[1] / crop.height)
    size = (max(1, round(crop.width * scale)), max(1, round(crop.height * scale)))
    pixels = np.asarray(crop.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    part = Image.fromarray(shape.mask[top:bottom, left:right])
    mask = np.asarray(part.resize(size, Image.Resampling.NEAREST))
    pixels[~mask] *= _DIM
    padded = np.pad(mask, 2)
    near = np.zeros_like(mask)
    for dy in range(5):
        for dx in range(5):
            near |= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    pixels[near & ~mask] = _LINE
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _names(out: Path) -> list[str]:
    file = out / "names.txt"
    return [line for line in read_text(file, "names").splitlines() if line] if file.is_file() else []


def _part(name: str) -> str:
    return (files("osm.labeling") / "review_page" / name).read_text(encoding="utf-8")
