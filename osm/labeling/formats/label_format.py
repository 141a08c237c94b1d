"""The interface of an annotation tool's format: how its masks are read, and how named masks are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.errors import OsmError, SampleError, shown
from osm.io.segmentation import draw_segmentation, encode_rle, rle_box
from osm.io.values import finite
from osm.labeling.stored_images import StoredImage

Size = tuple[int, int]
RLE = Mapping[str, Any]


@dataclass(frozen=True)
class Holds:
    """What a format can hold besides a name and a single, hole-free outline for each object.

    Attributes:
        holes: masks with holes.
        parts: masks of several parts, as one object.
        overlaps: pixels that belong to several objects.
        scores: a probability for each object.
        ids: the id that an object has in its source.
        parents: the object that an object is a part of.
        masks: any mask at all. If not, the other attributes do not matter.
    """

    holes: bool = True
    parts: bool = True
    overlaps: bool = True
    scores: bool = True
    ids: bool = True
    parents: bool = False
    masks: bool = True


@dataclass(frozen=True)
class MaskSource:
    """The masks of one image as a format stores them, before they are decoded.

    Attributes:
        image: the name of the image file in the format, which may be a path or a URL.
        where: the beginning of error messages.
        rows: the format's own records, one for each object. Empty until `LabelFormat.loaded`, if the format has a file
            for each image.
        size: the (width, height) that the format states, or None.
        data: what else the format needs to decode the records.
        stated_count: the number of records, if it is known although `rows` is not loaded yet.
        by_id: whether `image` is the id of the image instead of its name.
        stored: where the image is, if the format itself contains it.
    """

    image: str
    where: str
    rows: tuple[Any, ...] = ()
    size: Size | None = None
    data: Any = None
    stated_count: int | None = None
    by_id: bool = False
    stored: StoredImage | None = None


@dataclass(frozen=True)
class LabelShape:
    """An object of an image: its mask, and what the source says about it.

    Attributes:
        rle: the mask as a compressed COCO RLE, in pixels of the image.
        box: (x, y, width, height) if the source has only a box, else None.
        id: the id of the object in its source, or None.
        label: the label in the source, or an empty text.
        name: the predicted name; empty if the object has none.
        prob: the probability of the name, calibrated if the model is calibrated.
        class_id: the id of the name in the vocabulary, or None.
        unsure: whether the calibrated probability is below the model's threshold.
        skipped: why the object has no name.
        row: the position of the object in the rows of its source, from 0, or None.
        parent: the position in the image's objects of the object that this one is a part of, or None.
        corrected: whether a person has confirmed or typed the name.
    """

    rle: RLE
    box: tuple[float, float, float, float] | None = None
    id: int | str | None = None
    label: str = ""
    name: str = ""
    prob: float = 0.0
    class_id: int | None = None
    unsure: bool = False
    skipped: str = ""
    row: int | None = None
    parent: int | None = None
    corrected: bool = False

    @property
    def mask(self) -> np.ndarray:
        """The mask, bool (H, W)."""
        return draw_segmentation(self.rle, tuple(self.rle["size"]))

    @property
    def bounds(self) -> list[float]:
        """The box, or the mask's bounding box, as [x, y, width, height] in pixels."""
        if self.box is not None:
            return list(self.box)
        return rle_box(self.rle)

    @property
    def area(self) -> int:
        """The number of the mask's pixels."""
        from pycocotools import mask as coco_mask  # type: ignore[import-untyped]

        return int(coco_mask.area(dict(self.rle)))


@dataclass(frozen=True)
class LabeledImage:
    """An image with its named objects.

    Attributes:
        number: the position of the image in the input, from 0.
        file_name: the path of the image, relative to the folder of the images, with forward slashes.
        path: the path or URL of the image file.
        size: (width, height) in pixels.
        shapes: the objects in the order of the source.
        member: where the image is in `path`, if that is a tar file or a Parquet table; see `StoredImage`.
    """

    number: int
    file_name: str
    path: str
    size: Size
    shapes: tuple[LabelShape, ...]
    member: tuple[int, int] | None = None


@dataclass
class LabeledImages:
    """All labeled images, which can be iterated several times, and the ids of their names.

    Attributes:
        images: the labeled images, in the order of the input. Only objects that have a name are included.
        categories: name -> id, from 1 in the order of first use, or the ids of the vocabulary.
        model: the name of the checkpoint that predicted the names.
    """

    images: Iterable[LabeledImage]
    categories: dict[str, int]
    model: str = ""

    @cached_property
    def positions(self) -> dict[str, int]:
        """Name -> position in the list of categories, from 0, as YOLO counts them."""
        return {name: k for k, name in enumerate(self.categories)}


class LabelFormat:
    """A format of annotation files.

    Attributes:
        name: the name of the format on the command line.
        title: the name of the format in messages and documentation.
        holds: what the format can hold.
        output: the file or folder that is written in the folder of the labels; an empty text if it is not known.
        reads, writes: whether the format can be read and written.
        fills: whether the names can be filled into the files that were read.
        needs: the optional package that writing the format needs, or an empty text.
        found_alone: whether the format is recognized if the masks are in the same folder as the images.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    holds: ClassVar[Holds] = Holds()
    output: ClassVar[str] = ""
    reads: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    fills: ClassVar[bool] = False
    needs: ClassVar[str] = ""
    found_alone: ClassVar[bool] = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Return whether a file or folder has this format, judging by its content."""
        return False

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        """Read the masks of all images, without decoding them.

        Raises:
            OsmError: the file is not in this format.
        """
        raise OsmError(f"--from {cls.name}: {cls.title} can be written, but not read")

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        """Return a source with its rows. Formats with a file for each image read the file here.

        Raises:
            SampleError: the file cannot be read, or does not fit an image of (width, height) pixels.
        """
        return source

    @classmethod
    def shapes(cls, source: MaskSource, size: Size) -> Iterator[LabelShape | SampleError]:
        """Decode the masks of one image of (width, height) pixels. A mask that cannot be used yields its error."""
        try:
            source = cls.loaded(source, size)
        except SampleError as error:
            yield error
            return
        for number, row in enumerate(source.rows):
            where = f"{source.where}[{number}]"
            try:
                for shape in cls.read_shapes(row, source, size, where):
                    yield replace(shape, row=number)
            except SampleError as error:
                error.row = number
                yield error

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        """Decode one of the records of an image. Raises SampleError if it is not usable."""
        raise NotImplementedError

    @classmethod
    def count(cls, source: MaskSource) -> int:
        """Return the number of records of a source. Files that are only read for this may be read here.

        Raises:
            OsmError: the file of the source cannot be read.
        """
        return len(source.rows) if source.stated_count is None else source.stated_count

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        """Write all labels into a folder, which exists.

        Raises:
            OsmError: the format has no field for a name.
        """
        raise OsmError(f"--to {cls.name}: {cls.title} can be read, but not written")

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        """Write the files that `sources` reads into a folder, which exists, with the names filled in.

        The `number` of an image is its position among the sources, and the `row` of a shape is its position among the
        rows of the source. Objects without a name keep what they have.
        """
        raise NotImplementedError


def shape_of(mask: np.ndarray, where: str, **facts: Any) -> LabelShape:
    """Return a mask (H, W) as a shape. Raises SampleError if the mask is empty."""
    if not mask.any():
        raise SampleError("annotation_without_mask", f"{where}: its mask has no pixel inside the image")
    return LabelShape(encode_rle(mask), **facts)


def check_map_size(pixels: np.ndarray, size: Size, where: str) -> None:
    """Raise SampleError if a map or mask (H, W) does not have the (width, height) of its image."""
    if pixels.shape != size[::-1]:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise SampleError("mask_size", f"{where}: has {found} pixels, but the image has {size[0]} x {size[1]}")


def category_names(document: Mapping[str, Any]) -> dict[Any, str]:
    """Return the names of the `categories` of a COCO document by their ids."""
    rows = document.get("categories") or ()
    return {row.get("id"): str(row.get("name", "")) for row in rows if isinstance(row, dict)}


def box_shape(box: Any, size: Size, where: str, **facts: Any) -> LabelShape:
    """Return a box [x, y, width, height] in pixels as a shape, whose mask is the filled box.

    Raises:
        SampleError: the box is not four numbers, or no part of it is inside the image.
    """
    values = [finite(value) for value in box] if isinstance(box, list | tuple) else []
    numbers = [float(value) for value in values if value is not None]
    if len(values) != 4 or len(numbers) != 4:
        raise SampleError("box_malformed", f"{where}: box {shown(box)} is not [x, y, width, height]")
    x, y, w, h = numbers
    if w <= 0 or h <= 0:
        raise SampleError("box_empty", f"{where}: box {shown(box)} has no area")
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(size[0], max(round(x + w), left + 1)), min(size[1], max(round(y + h), top + 1))
    if left >= right or top >= bottom or x + w <= 0 or y + h <= 0:
        raise SampleError("box_outside", f"{where}: box {shown(box)} lies outside its image ({size[0]} x {size[1]})")
    mask = np.zeros(size[::-1], bool)
    mask[top:bottom, left:right] = True
    return LabelShape(encode_rle(mask), box=(x, y, w, h), **facts)


def check_points(points: Any, size: Size, where: str, least: int = 3) -> list[tuple[float, float]]:
    """Return a list of points [[x, y], ...] as finite numbers.

    Raises:
        SampleError: there are too few points, or a point is not two numbers or lies far outside the image.
    """
    if not isinstance(points, list | tuple) or len(points) < least:
        raise SampleError("polygon_too_short", f"{where}: {shown(points)} has fewer than {least} points")
    if len(points) > 1_000_000:
        raise SampleError("polygon_outline", f"{where}: {len(points)} points are too many")
    found = []
    for point in points:
        pair = [finite(value) for value in point] if isinstance(point, list | tuple) and len(point) == 2 else [None]
        if None in pair:
            raise SampleError("polygon_not_numbers", f"{where}: point {shown(point)} is not [x, y]")
        if max(abs(float(value or 0)) for value in pair) > 10 * max(size):
            raise SampleError("polygon_outside", f"{where}: point {shown(point)} lies far outside its image")
        found.append((float(pair[0] or 0), float(pair[1] or 0)))
    return found


def filled_ids(categories: list[Any], names: Mapping[str, int]) -> dict[str, int]:
    """Add missing names to the `categories` of a COCO document, and return the ids of all names.

    A name that the list has keeps its id. A new name gets its own id from `names`, or the next free one.
    """
    found = {str(row.get("name")): row["id"] for row in categories if isinstance(row, dict) and "id" in row}
    taken = set(found.values())
    for name, wanted in names.items():
        if name not in found:
            number = wanted if wanted not in taken else max(v for v in taken if isinstance(v, int)) + 1
            categories.append({"id": number, "name": name})
            found[name] = number
            taken.add(number)
    return found
