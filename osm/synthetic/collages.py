"""The command `osm collages`, which pastes cut-outs with known names onto photos to make a COCO-panoptic dataset.

    osm collages data/things --table cutouts.yaml --cutouts stamps/ --backgrounds photos/ --images 400

"Copy-paste" (Ghiasi et al., CVPR 2021, https://arxiv.org/abs/2012.07177) makes a training dataset from a few cut-out
images of each object. A cut-out is either an image with an alpha channel or a segment from a dataset in COCO-panoptic
format. A table maps object names to cut-out images.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from osm.command_parser import CommandParser
from osm.datasets.labels import LabelSet
from osm.errors import OsmError, SampleError, not_one_of, run_command, shown, write_failed
from osm.files import read_json, read_yaml, write_atomically
from osm.io.images import SUFFIXES, decode, open_image, read_panoptic, read_rgb
from osm.prepare.originals.original_release import PanopticWriter, write_whole
from osm.storage.output import check_here
from osm.terminal import console_command, echo, message_logger

logger = message_logger(__name__)

SPLITS = ("train", "val")
SIZES = ((640, 480), (480, 640), (560, 560))  # the sizes of collages, (width, height)
MAX_THINGS = 4
MIN_SEGMENT = 72  # a segment is used as a cut-out if its area is at least MIN_SEGMENT**2 pixels
MIN_VISIBLE = 0.4  # cut-outs with a smaller visible share of their area stay in the image, but are not annotated
_MAX_ENLARGED = 3.0
_BLURRED = 0.3  # the share of blurred backgrounds, because not every training image should have a sharp background
_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Cutout:
    """An image of one object, whose shape is given by the alpha channel of `path` or by a segment in the PNG `mask`."""

    path: Path
    mask: Path | None = None
    segment: int = 0

    def load(self) -> Image.Image:
        """Return the cut-out as an RGBA image, cropped to its opaque pixels.

        Raises:
            OsmError: a file cannot be read (a SampleError), or the image has no alpha channel or no opaque pixel.
        """
        if self.mask is None:
            opened = open_image(self.path)
            if "A" not in opened.getbands() and "transparency" not in opened.info:
                raise OsmError(f"{self.path}: the image has no alpha channel, so the object's outline is unknown")
            image = decode(opened, "RGBA")
        else:
            image, ids = read_rgb(self.path).convert("RGBA"), read_panoptic(self.mask)
            if ids.shape != (image.height, image.width):
                raise SampleError("size_mismatch", f"mask {self.mask} and image {self.path} differ in size")
            image.putalpha(Image.fromarray(np.where(ids == self.segment, 255, 0).astype(np.uint8)))
        box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
        if box is None:
            raise OsmError(
                f"{self.path}: the image has no opaque pixels; the alpha channel of a cut-out must mark the object's "
                "pixels"
            )
        return image.crop(box)


Pool = Mapping[str, Sequence[Cutout]]


@dataclass(frozen=True)
class CollageOptions:
    """The options of `osm collages`.

    Attributes:
        table: a YAML file of names, each with its cut-out files under `train` or `val`.
        cutouts: the folder of the cut-out files.
        backgrounds: the folders of photos.
        segments: folders in COCO-panoptic format (images/, panoptic/, panoptic.json). In the split `train`, their
            segments are further cut-outs; in `val`, only their names are used.
        split: the split of the table whose files are used.
        images: the number of collages.
        seed: the random seed of the dataset.
    """

    table: Path
    cutouts: Path
    backgrounds: tuple[Path, ...]
    segments: tuple[Path, ...] = ()
    split: str = "train"
    images: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise not_one_of("--split", self.split, SPLITS)
        if self.images < 1:
            raise OsmError(f"--images {self.images} must be 1 or more")
        if self.seed < 0:
            raise OsmError(f"--seed {self.seed} must be 0 or more")

    @cached_property
    def photos(self) -> list[Path]:
        """The paths of the background photos, in a fixed order."""
        found = []
        for folder in self.backgrounds:
            paths = (path for path in folder.glob("*") if not path.name.startswith("._"))  # macOS writes `._` files
            photos = sorted(path for path in paths if path.suffix.lower() in SUFFIXES)
            if not photos:
                raise OsmError(
                    f"--backgrounds {folder}: the folder contains no images (expected {', '.join(SUFFIXES)})"
                )
            found += photos
        return found


def read_table(table: Path, folder: Path) -> dict[str, dict[str, list[Cutout]]]:
    """Return the cut-outs listed in a table, grouped by name and split.

    Raises:
        OsmError: the structure of the table is invalid, or a file in the table is not in the folder.
    """
    found = read_yaml(table, "--table")
    if not isinstance(found, dict) or not found:
        raise OsmError(
            f"--table {table}: expected a mapping from object names to lists of files under {' or '.join(SPLITS)}"
        )
    out: dict[str, dict[str, list[Cutout]]] = {}
    for name, splits in found.items():
        where = f"--table {table}: {shown(name)}"
        if not isinstance(name, str) or not name.strip():
            raise OsmError(f"{where} is not a name")
        if not isinstance(splits, dict) or set(splits) - set(SPLITS):
            raise OsmError(f"{where}: expected lists of files under {' or '.join(SPLITS)}, found {shown(splits)}")
        out[name] = {split: _files(splits.get(split, []), folder, f"{where}, {split}") for split in SPLITS}
    return out


def _files(names: object, folder: Path, where: str) -> list[Cutout]:
    if not isinstance(names, list):
        raise OsmError(f"{where}: expected a list of files, found {shown(names)}")
    out = []
    for name in names:
        path = folder / str(name)
        if not isinstance(name, str) or "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
            raise OsmError(f"{where}: {shown(name)} is not a file in {folder}")
        if not path.is_file():
            raise OsmError(f"{where}: {name} is not in --cutouts {folder}")
        out.append(Cutout(path))
    return out


def read_segments(folder: Path) -> dict[str, list[Cutout]]:
    """Return the segments in a COCO-panoptic folder that are large enough to be cut-outs, grouped by category name.

    Raises:
        OsmError: the json is not in COCO-panoptic format, or refers to a file outside of the folder.
    """
    path = folder / "panoptic.json"
    document = read_json(path, "--segments")[0]
    try:
        LabelSet.from_categories(document["categories"], f"--segments {path}")  # rejects names that are not strings
        names = {one["id"]: one["name"] for one in document["categories"]}
        images = {one["id"]: one["file_name"] for one in document["images"]}
        out: dict[str, list[Cutout]] = {name: [] for name in names.values()}
        for entry in document["annotations"]:
            image, mask = folder / "images" / images[entry["image_id"]], folder / "panoptic" / entry["file_name"]
            for file in (image, mask):
                if "\0" in str(file) or not file.resolve().is_relative_to(folder.resolve()):
                    raise OsmError(f"--segments {path}: {file} is outside of the folder")
            for one in entry["segments_info"]:
                if not one.get("iscrowd") and one["area"] >= MIN_SEGMENT**2:
                    out[names[one["category_id"]]].append(Cutout(image, mask, one["id"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise OsmError(f"--segments {path}: not in COCO-panoptic format ({type(error).__name__}: {error})") from None
    return out


def write_collages(folder: Path, options: CollageOptions) -> Path:
    """Write a split of collages to a folder and return the folder. A finished split is not changed.

    The output depends only on the options and the input files.

    Raises:
        OsmError: the folder has collages that were made with different options or files, the folder cannot be written,
            or an input file is not usable.
    """
    table = read_table(options.table, options.cutouts)
    pool = {name: splits[options.split] for name, splits in table.items()}
    for segments in options.segments:
        for name, cutouts in read_segments(segments).items():
            pool[name] = [*pool.get(name, []), *(cutouts if options.split == "train" else [])]
    categories = {name: number for number, name in enumerate(sorted(pool), 1)}
    drawn = {name: pool[name] for name in sorted(pool) if pool[name]}
    if not drawn:
        raise OsmError(f"--table {options.table}: none of the names in the table has any files under {options.split}")
    made: dict[str, Any] = {key: str(value) for key, value in vars(options).items() if key != "photos"}
    made |= {"names": sorted(pool), "files": _fingerprint([*(c for n in drawn for c in drawn[n]), *options.photos])}
    summary = folder / "collages.json"
    if summary.is_file():
        if read_json(summary, "collages")[0] != made:
            raise OsmError(f"{folder} contains collages made with different flags or files; choose a different folder")
        logger.info(f"{folder}: finished already, {options.images} collages")
        return folder
    try:
        for name in ("images", "panoptic"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        pairs = [_write_one(folder, options, drawn, categories, index) for index in range(options.images)]
        document = {
            "images": [image for image, _ in pairs],
            "annotations": [annotation for _, annotation in pairs],
            "categories": [{"id": number, "name": name, "isthing": 1} for name, number in categories.items()],
        }
        write_atomically(folder / "panoptic.json", [json.dumps(document)])
        write_atomically(summary, [json.dumps(made, indent=1) + "\n"])
    except OSError as error:
        raise write_failed(error, str(folder), "a writable folder with free disk space") from None
    except SampleError as error:
        raise OsmError(str(error)) from None
    return folder


def _fingerprint(files: Sequence[Cutout | Path]) -> str:
    """Hash the names and sizes of the input files to detect changes that would affect the dataset."""
    digest = hashlib.sha256()
    for file in files:
        path, segment = (file.path, file.segment) if isinstance(file, Cutout) else (file, 0)
        try:
            digest.update(f"{path}\0{path.stat().st_size}\0{segment}\n".encode())
        except OSError as error:
            raise OsmError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()


def _write_one(
    folder: Path, options: CollageOptions, pool: Pool, categories: Mapping[str, int], index: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    image, ids, names = compose(pool, options.photos, random.Random(f"{options.seed} {options.split} {index}"))
    panoptic = PanopticWriter(image.height, image.width)
    for number, name in names.items():
        panoptic.add(number, categories[name], ids == number)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    write_whole(folder / "images" / f"{index:06d}.jpg", data.getvalue())
    panoptic.write(folder / "panoptic" / f"{index:06d}.png")
    return (
        {"id": index, "file_name": f"{index:06d}.jpg", "width": image.width, "height": image.height},
        {"image_id": index, "file_name": f"{index:06d}.png", "segments_info": panoptic.segments},
    )


def compose(pool: Pool, photos: Sequence[Path], rng: random.Random) -> tuple[Image.Image, np.ndarray, dict[int, str]]:
    """Compose a collage. Every object name is equally likely, regardless of the number of cut-outs with that name.

    Returns:
        the image (RGB), the ids as int32 (H, W) with 0 for the background, and the names of the ids that are
        sufficiently visible.

    Raises:
        SampleError: a photo or cut-out cannot be read.
    """
    size = rng.choice(SIZES)
    image = _background(read_rgb(rng.choice(photos)), size, rng)
    ids, areas, names = np.zeros((size[1], size[0]), np.int32), {}, {}
    for number in range(1, rng.randint(1, MAX_THINGS) + 1):
        name = rng.choice(list(pool))
        thing = _vary(rng.choice(pool[name]).load(), min(size), rng)
        # Up to an eighth of the cut-out's width and height may extend beyond the image.
        x, y = (rng.randint(-d // 8, max(full - d + d // 8, -d // 8)) for d, full in zip(thing.size, size, strict=True))
        layer = Image.new("L", size)
        layer.paste(thing.getchannel("A"), (x, y))
        image.paste(thing.convert("RGB"), (x, y), thing.getchannel("A"))
        mask = np.asarray(layer) > 127
        ids[mask] = number
        areas[number], names[number] = int(mask.sum()), name
    visible = {number: int((ids == number).sum()) for number in names}
    return image, ids, {n: name for n, name in names.items() if visible[n] and visible[n] >= MIN_VISIBLE * areas[n]}


def _background(photo: Image.Image, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return a random crop of a background photo, resized to the collage size and randomly mirrored and blurred."""
    scale = min(photo.width / size[0], photo.height / size[1]) * rng.uniform(0.6, 1.0)
    width, height = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    x, y = rng.randint(0, max(photo.width - width, 0)), rng.randint(0, max(photo.height - height, 0))
    image = photo.resize(
        size, Image.Resampling.BICUBIC, (x, y, min(x + width, photo.width), min(y + height, photo.height))
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(2, 12))) if rng.random() < _BLURRED else image


def _vary(thing: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """Randomly resize, mirror and rotate a cut-out, and randomly adjust its colors."""
    scale = min(side * rng.uniform(0.25, 0.8) / max(thing.size), _MAX_ENLARGED)
    thing = thing.resize(
        (max(round(thing.width * scale), 1), max(round(thing.height * scale), 1)), Image.Resampling.BICUBIC
    )
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        thing = thing.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    alpha = thing.getchannel("A")
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        thing = kind(thing).enhance(rng.uniform(0.75, 1.25))
    thing.putalpha(alpha)
    return thing


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of `osm collages`."""
    out = CommandParser(
        prog="osm collages",
        allow_abbrev=False,
        description="Pastes cut-outs with known names on photos, and writes a dataset in COCO panoptic format.",
    )
    out.add_argument("out", type=Path, help="folder; a split goes to <out>/<split>")
    out.add_argument("--table", type=Path, required=True, help="YAML: names, each with its files under train or val")
    out.add_argument(
        "--cutouts", type=Path, required=True, help="the folder of these files, which are images with an alpha channel"
    )
    out.add_argument("--backgrounds", type=Path, required=True, nargs="+", help="folders of photos")
    out.add_argument(
        "--segments", type=Path, nargs="*", default=[], help="COCO-panoptic folders whose segments are also cut out"
    )
    out.add_argument("--split", default="train", help=f"{' or '.join(SPLITS)} [%(default)s]")
    out.add_argument("--images", type=int, default=400, help="number of images [%(default)s]")
    out.add_argument("--seed", type=int, default=0, help="random seed [%(default)s]")
    return out


@console_command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `osm collages` and return the exit code."""
    args = parser().parse_args(argv)
    return run_command(_write, args, interrupted="interrupted: the same command makes the same collages")


def _write(args: argparse.Namespace) -> None:
    check_here(args.out, "out")
    options = CollageOptions(
        args.table,
        args.cutouts,
        tuple(args.backgrounds),
        tuple(args.segments),
        args.split,
        args.images,
        args.seed,
    )
    echo(write_collages(args.out / args.split, options))
