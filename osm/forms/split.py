"""Validation splits, which provide the masks to name and the prediction-file entry for each image."""

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
from osm.forms.base import Entry, Form, Listing, Losses, SetFiles, countable, is_crowd, too_many_lost
from osm.forms.picture import Picture
from osm.forms.set_files import localize_files
from osm.storage.locations import is_remote, public

FIELD = "open_end_pred"
MAX_BAD_ANNOTATIONS = 0.05
# Reasons why an image with valid files may have no mask to name.
_NO_MASK_REASONS = ("nothing_labelled", "no_part_masks", "no_id_in_png")
_UNKNOWN = ("id_not_in_json", "id_not_in_labels", "name_not_in_table")


@dataclass(frozen=True)
class Item:
    """An image and its masks to name.

    Attributes:
        picture: the image, not decoded yet.
        size: (height, width) of the image and of its masks.
        entry: the image's entry in the prediction file. It is a copy that may be changed.
        annotations: the annotations in `entry` to name. Predictions are stored in their field `open_end_pred`.
        mask: a function of k that returns the bool mask (H, W) of `annotations[k]`; an empty mask is all False.
        counts: the numbers of skipped annotations: `crowd`, `unusable` (invalid annotations), `missing_in_mask` (only
            in the JSON file), `unknown_in_mask` (only in the PNG; for label maps and .mat files, ids without a label).
        places: for each of `annotations`, its index among the annotations in `entry` that are not crowds.
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
        """Return the decoded image as 8-bit RGB."""
        return self.picture.rgb()


@dataclass(frozen=True)
class ImageFile:
    """An image file of a dataset, with or without masks.

    Attributes:
        id: the image id in the JSON file; in a dataset without a JSON file, the file name without extension.
        names: the names by which a proposal may refer to the image: the path relative to the image folder, and the
            JSON file's `file_name`.
        path: the path of the file.
        size: (height, width) if stated in the json.
        exif: the EXIF setting in the dataset's row.
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
    """The images and masks of a dataset's val split. The constructor checks the JSON file and the file names.

    Args:
        row: the row of the dataset table.
        form: the row's annotation format.
        max_bad_annotations: the share of annotations that may be unusable.

    Attributes:
        source_hash: a hash that changes if the masks change.
        first_fault: the error message about the first unusable annotation that was read.

    Raises:
        OsmError: a file is missing or malformed, or too many annotations are unusable.
    """

    kind = "pred"
    first_fault = ""

    def __init__(self, row: Dataset, form: type[Form], max_bad_annotations: float = MAX_BAD_ANNOTATIONS) -> None:
        self.row, self.form = row, form
        self.rules = replace(row.rules, whole_labels=None)  # only parts are named, not whole objects
        check_row(row, form, form.needs)
        self.files = localize_files(set_files(row), form)
        self.listing: Listing = form.listing(self.files, row.label_set)
        self.entries = form.in_order(self.listing.entries)
        self.source_hash = self.listing.digest
        kept = sum(len(entry.record.get("segments_info", ())) for entry in self.entries)
        losses = self.listing.losses
        failed = too_many_lost(losses.lost, kept, max_bad_annotations, losses.first)
        if failed or self.listing.no_image:
            raise OsmError(f"dataset {row.name!r}: {failed or self.listing.no_image}")

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> tuple[Form | None, Picture, Losses, tuple[int, ...]]:
        """Read an annotated image from the dataset's own files, using the same class as for shard samples.

        Returns:
            the sample (None if it has no mask to name), its image, the skipped annotations, and for each usable
            annotation its index among the entry's raw annotations.
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
        """Open an entry's image. Raises OsmError if the image is unreadable or the JSON file states another size."""
        try:
            picture = Picture.by_rule(entry.image, self.row.exif, lambda: entry_size(self.form, entry), lambda: None)
        except SampleError as error:
            raise OsmError(str(error)) from None  # the message already names the file
        if entry.stated is not None and entry.stated != picture.size:
            width, height = picture.size
            raise OsmError(
                f"{self.source}: image {self.form.key_of(entry)} is listed as {entry.stated[0]} x "
                f"{entry.stated[1]} pixels, but {entry.image} has {width} x {height} pixels; the sizes must match"
            )
        return picture

    def fetch(self, indices: Iterable[int]) -> None:
        """Download the image and mask files of the given items, if they are in remote folders."""
        self.files.fetch(path for index in indices for path in self.paths(index))

    def load(self, index: int) -> Item:
        """Read the image at `index` and return it together with its masks as an `Item`."""
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
            if self.form.outline(entry) is None:  # a label map has one annotation for each id
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
        """Return the paths of an item's image and mask files."""
        entry = self.entries[index]
        return [entry.image, *entry.masks.values()]

    def image_path(self, index: int) -> Path:
        """Return the path of an item's image."""
        return self.entries[index].image

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        """Return an item's image key and annotation ids without reading its files.

        Returns:
            the key of the image in a prediction file, and (id, category id) of every mask to name. The list is None if
            only the pixels of a label map contain the ids.
        """
        entry = self.entries[index]
        return self.form.key_of(entry), self.form.outline(entry)

    @property
    def source(self) -> str:
        """The location of the file or folder that determines which masks exist."""
        return public(getattr(self.row, self.form.masks_field))

    @property
    def source_files(self) -> dict[str, str]:
        """The locations of the files and folders that the split reads, keyed by field of the dataset's row."""
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
        """Serialize an item's entry for the prediction file."""
        return json.dumps(entry)


def recorded(location: str) -> str:
    """Return a location in the form stored in metadata files: an absolute path or a URL without credentials."""
    return public(location) if is_remote(location) else str(Path(location).absolute())


def image_files(row: Dataset, form: type[Form]) -> SetFiles:
    """Return the files needed to find a dataset's images.

    Raises OsmError if a required path field is not set.
    """
    check_row(row, form, form.image_needs)
    return localize_files(replace(set_files(row), ann_dir=None), form)  # masks need not exist


def images_of(row: Dataset, form: type[Form], files: SetFiles | None = None) -> tuple[list[ImageFile], str]:
    """Return all images of a dataset and a hash that changes when the images change. Masks are not read.

    Args:
        row: the row of the dataset table.
        form: the row's annotation format.
        files: the result of `image_files`; None = call `image_files` here.
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
    """Raise OsmError if a dataset's row does not set all the path fields in `needs`."""
    missing = next((key for key in needs if getattr(row, key) is None), None)
    if missing:
        raise OsmError(f"dataset {row.name!r}: the annotation format {row.form} needs {missing}, which is not set")


def set_files(row: Dataset) -> SetFiles:
    """Return the locations of the files in a dataset's val split."""
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
    """Return an image's (width, height) from the JSON file, or from a mask if the JSON file states no size."""
    if entry.stated is not None:
        return entry.stated
    for path in entry.masks.values() if form.mask_members else ():  # masks of other formats may differ in size
        if path.suffix.lower() != ".mat" and path.exists():
            return Picture(path).size
    return None


def check_files(split: Split, indices: range) -> None:
    """Raise OsmError if any file of the given items is missing, so that a long run fails right away."""
    split.fetch(indices)
    read = [path for index in indices for path in split.paths(index)]
    missing = [path for path in read if not os.path.exists(path)]  # Path.exists raises OSError for overlong names
    if missing:
        raise OsmError(
            f"dataset {split.row.name!r}: {len(missing)} of the {len(read)} files to read are missing; the "
            f"first one is {missing[0]}"
        )
    for path in read:
        check_regular_file(path, f"dataset {split.row.name!r}:")


@contextmanager
def files_stay(split: Split, indices: range) -> Iterator[None]:
    """Convert an OsmError to RunStopped if it was caused by a file that disappeared during the run.

    Raises:
        RunStopped: a file of the given items can no longer be opened.
    """
    try:
        yield
    except OsmError:
        for path in (path for index in indices for path in split.paths(index)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise RunStopped(
                    f"{path}: {error.strerror}; the file existed when the run started; restore it and rerun the same "
                    "command to resume"
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
