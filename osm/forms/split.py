"""Val splits: the masks of each image that are named, and the image's entry in the prediction file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.datasets.table import Dataset
from osm.errors import OsmError, RunStopped, SampleError
from osm.files import check_regular_file
from osm.forms.base import Entry, Form, Listing, Losses, Picture, SetFiles, countable, is_crowd, too_many_lost
from osm.forms.set_files import localize_files
from osm.storage.locations import is_remote, public

FIELD = "open_end_pred"
MAX_BAD_ANNOTATIONS = 0.05
# Reasons for which an image has no mask to name although its files are correct.
_NO_MASK_REASONS = ("nothing_labelled", "no_part_masks", "no_id_in_png")
_UNKNOWN = ("id_not_in_json", "id_not_in_labels", "name_not_in_table")


@dataclass(frozen=True)
class Item:
    """One image with the masks to name.

    Attributes:
        picture: the image, not decoded yet. size: (height, width) of the image and of its masks.
        entry: the image's entry in the prediction file. It is a copy that may be changed.
        annotations: the annotations in `entry` that are named. The prediction is stored in their field `open_end_pred`.
        mask: returns the bool mask (H, W) of the k-th of `annotations`; all False if the mask has no pixel.
        counts: the annotations that were left out: `crowd`, `unusable` (invalid annotations), `missing_in_mask` (in the
            json only), `unknown_in_mask` (in the PNG only; for label maps and .mat files, ids without a label).
        places: for each of `annotations`, its index among all annotations of the entry that are not crowds.
        boxed: for each of `annotations`, whether the mask is a box and the prompt asks about a box.
    """

    picture: Picture
    size: tuple[int, int]
    entry: Any
    annotations: list[dict[str, Any]]
    mask: Callable[[int], np.ndarray]
    counts: Counter[str]
    places: list[int]
    boxed: list[bool]

    @property
    def image_path(self) -> Path:
        return Path(str(self.picture.source))

    def image(self) -> Image.Image:
        """Return the decoded image, 8-bit RGB."""
        return self.picture.rgb()


@dataclass(frozen=True)
class ImageFile:
    """An image of a dataset, with or without masks.

    Attributes:
        id: the image id in the json; in a dataset without a json, the file name without extension.
        names: the names that a proposal may use: the path below the image folder, and the json's `file_name`.
        size: (height, width) if the json states them. exif: EXIF setting of the dataset's row.
    """

    id: int | str
    names: tuple[str, ...]
    path: Path
    size: tuple[int, int] | None = None
    exif: str = "auto"

    def picture(self) -> Picture:
        """Open the image without decoding it."""
        stated = None if self.size is None else (self.size[1], self.size[0])
        return Picture.by_rule(self.path, self.exif, lambda: stated, lambda: None)


class Split:
    """The images and masks of a dataset's val split. Errors in the json and in file names are raised immediately.

    Args:
        row: row of the dataset table. form: the row's form of annotation.
        max_bad_annotations: the share of annotations that may be unusable.

    Attributes:
        source_hash: hash that changes if the masks change.
        first_fault: error message of the first unusable annotation that was read.

    Raises:
        OsmError: a file is missing or malformed, or too many annotations are unusable.
    """

    kind = "pred"
    first_fault = ""

    def __init__(self, row: Dataset, form: type[Form], max_bad_annotations: float = MAX_BAD_ANNOTATIONS) -> None:
        self.row, self.form = row, form
        self.rules = replace(row.rules, whole_labels=None)  # parts are named, whole objects are not
        check_row(row, form, form.needs)
        self.files = localize_files(set_files(row), form)
        self.listing: Listing = form.listing(self.files, row.label_set)
        self.entries = form.in_order(self.listing.entries)
        self.source_hash = self.listing.digest
        kept = sum(len(entry.record.get("segments_info", ())) for entry in self.entries)
        losses = self.listing.losses
        failed = too_many_lost(losses.lost, kept, max_bad_annotations, losses.first)
        if failed or self.listing.no_image:
            raise OsmError(f"set {row.name!r}: {failed or self.listing.no_image}")

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> tuple[Form | None, Picture, Losses, tuple[int, ...]]:
        """Read one annotated image in the same way as a sample of a shard.

        Returns:
            the sample (None if it has no mask to name), its image, the annotations that were left out, and the index of
            each annotation among the entry's raw annotations.
        """
        entry, losses = self.entries[index], Losses()
        self.fetch([index])
        picture = self.picture(entry)
        try:
            members, segments, kept = self.form.check(self.files, entry, picture.size, losses)
        except SampleError as error:
            if error.reason not in _NO_MASK_REASONS:
                raise OsmError(str(error)) from None
            if error.reason == "no_id_in_png":
                losses.add("id_not_in_png", str(error), len(entry.places))
            return None, picture, losses, entry.places
        document = {key: value for key, value in entry.record.items() if key not in ("width", "height")}
        if segments is not None:
            document["segments_info"] = segments
        sample = self.form(picture, members, document, self.row.label_set, self.rules)
        places = () if segments is None else tuple(entry.places[place] for place in kept)
        return sample, picture, losses, places

    def picture(self, entry: Entry) -> Picture:
        """Open an entry's image. Raises OsmError if it cannot be read, or if the json states another size."""
        try:
            picture = Picture.by_rule(entry.image, self.row.exif, lambda: entry_size(self.form, entry), lambda: None)
        except SampleError as error:
            raise OsmError(str(error)) from None  # the message already names the file
        if entry.stated is not None and entry.stated != picture.size:
            width, height = picture.size
            raise OsmError(
                f"{self.source}: image {self.form.key_of(entry)} has width {entry.stated[0]} and height "
                f"{entry.stated[1]} there, but {entry.image} is {width} x {height}; they must be equal"
            )
        return picture

    def fetch(self, indices: Iterable[int]) -> None:
        """Download the files of items that are stored in remote folders."""
        self.files.fetch(path for index in indices for path in self.paths(index))

    def load(self, index: int) -> Item:
        """Read one item with its masks."""
        entry = self.entries[index]
        sample, picture, losses, places = self.read(index)
        size = (picture.size[1], picture.size[0])
        words, annotations = self.form.words(entry)
        drawn: list[Callable[[], np.ndarray]]
        if sample is None:
            asked = [place for place in places if not is_crowd(annotations[place])]
            drawn, boxed = [lambda: np.zeros(size, bool)] * len(asked), [False] * len(asked)
        else:
            targets = sample.targets()
            drawn, boxed = [target.draw for target in targets], [target.boxed for target in targets]
            if self.form.outline(entry) is None:  # in a label map, each id is an annotation
                annotations += [{self.form.id_key: target.category_id} for target in targets]
                places = tuple(range(len(targets)))
            asked = [places[target.place] for target in targets]
        all_places = [place for place, annotation in enumerate(annotations) if not is_crowd(annotation)]
        counts = Counter(
            crowd=len(annotations) - len(all_places),
            missing_in_mask=losses.counts["id_not_in_png"],
            unknown_in_mask=sum(losses.counts[reason] for reason in _UNKNOWN),
            unusable=len(all_places) - len(asked),
        )
        named = [annotations[place] for place in asked]
        self.first_fault = self.first_fault or self.listing.losses.first or losses.first
        places_of = {place: number for number, place in enumerate(all_places)}
        numbers = [places_of[place] for place in asked]
        return Item(picture, size, words, named, lambda k: drawn[k](), counts, numbers, boxed)

    def paths(self, index: int) -> list[Path]:
        """Return the files of an item: its image and its mask files."""
        entry = self.entries[index]
        return [entry.image, *entry.masks.values()]

    def image_path(self, index: int) -> Path:
        """Return the path of an item's image."""
        return self.entries[index].image

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        """Return the ids of an item without reading its files.

        Returns:
            the key of the image in a prediction file, and (id, category id) of every mask to name. The list is None if
            the ids are only in the pixels of a label map.
        """
        entry = self.entries[index]
        return self.form.key_of(entry), self.form.outline(entry)

    @property
    def source(self) -> str:
        """The file or folder that determines which masks exist."""
        return public(getattr(self.row, self.form.masks_field))

    @property
    def source_files(self) -> dict[str, str]:
        """The files and folders that are read, by field of the row."""
        return {field: recorded(getattr(self.row, field)) for field in self.form.needs}

    @property
    def id_key(self) -> str:
        return self.form.id_key

    @property
    def category_key(self) -> str:
        return self.form.category_key

    @property
    def prefix(self) -> str:
        return self.form.prefix

    @property
    def suffix(self) -> str:
        return self.form.suffix

    def text(self, entry: Any) -> str:
        """Return an item's entry as text for the prediction file."""
        return json.dumps(entry)


def recorded(location: str) -> str:
    """Return a location of a row as it is written to metadata files."""
    return public(location) if is_remote(location) else str(Path(location).absolute())


def image_files(row: Dataset, form: type[Form]) -> SetFiles:
    """Return the files that are needed to find a dataset's images. Raises OsmError if the row lacks one of them."""
    check_row(row, form, form.image_needs)
    return localize_files(replace(set_files(row), ann_dir=None), form)  # masks need not exist


def images_of(row: Dataset, form: type[Form], files: SetFiles | None = None) -> tuple[list[ImageFile], str]:
    """Return every image of a dataset, and a hash that changes if the images change. Masks are not read.

    Args:
        files: the result of `image_files`; None = call it.
    """
    files = image_files(row, form) if files is None else files
    entries, digest = form.images(files)
    root, found = Path(files.image_dir), []
    for entry in entries:
        called = (entry.image.relative_to(root).as_posix(), entry.record["file_name"], entry.called)
        names = tuple(dict.fromkeys(name for name in called if isinstance(name, str)))
        stated = None if entry.stated is None else (entry.stated[1], entry.stated[0])
        found.append(ImageFile(entry.record["image_id"], names, entry.image, stated, row.exif))
    return found, digest


def check_row(row: Dataset, form: type[Form], needs: tuple[str, ...]) -> None:
    """Raise OsmError if a row lacks one of the path fields `needs`."""
    missing = next((key for key in needs if getattr(row, key) is None), None)
    if missing:
        raise OsmError(f"set {row.name!r}: its form {row.form} needs {missing}, which is not given")


def set_files(row: Dataset) -> SetFiles:
    """Return the files of a row's val split."""
    return SetFiles(
        row.name,
        str(row.image_dir),
        row,
        row.mask_dir,
        row.json_file,
        labels=row.labels,
        flag=f"{row.name}_{{}}",
        flag_names={"ann_dir": "mask_dir"},
        extra_fields={name: getattr(row, name) for name in ("refs_file", "split") if getattr(row, name) is not None},
    )


def entry_size(form: type[Form], entry: Entry) -> tuple[int, int] | None:
    """Return the (width, height) of the image that the annotations were drawn on; see `Form.stated_size`."""
    if entry.stated is not None:
        return entry.stated
    for path in entry.masks.values() if form.mask_members else ():  # masks of other forms may have another size
        if path.suffix.lower() != ".mat" and path.exists():
            return Picture(path).size
    return None


def check_files(split: Split, indices: range) -> None:
    """Raise OsmError if files of the items are missing, before hours are spent on naming."""
    split.fetch(indices)
    read = [path for index in indices for path in split.paths(index)]
    missing = [path for path in read if not os.path.exists(path)]  # Path.exists fails for a name that is too long
    if missing:
        raise OsmError(
            f"set {split.row.name!r}: {len(missing)} of the {len(read)} files that are to be read are missing, the "
            f"first is {missing[0]}"
        )
    for path in read:
        check_regular_file(path, f"set {split.row.name!r}:")


@contextmanager
def files_stay(split: Split, indices: range) -> Iterator[None]:
    """Raise RunStopped instead of OsmError if the cause is a file that disappeared during the run.

    Raises:
        RunStopped: a file of these items can no longer be opened.
    """
    try:
        yield
    except OsmError:
        for path in (path for index in indices for path in split.paths(index)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise RunStopped(
                    f"{path}: {error.strerror}; it was there when the run began: put it back, and the same command "
                    "resumes"
                ) from None
        raise


__all__ = [
    "FIELD",
    "ImageFile",
    "Item",
    "Split",
    "check_files",
    "countable",
    "files_stay",
    "image_files",
    "images_of",
    "set_files",
]
