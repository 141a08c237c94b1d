"""The val splits: which masks of which image are to be named, and what the prediction file says about that image."""

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
# Nothing of these images can be named, and that is no fault of the files.
_NOTHING = ("nothing_labelled", "no_part_masks", "no_id_in_png")
_UNKNOWN = ("id_not_in_json", "id_not_in_labels", "name_not_in_table")


@dataclass(frozen=True)
class Item:
    """One image, ready to be named.

    Attributes:
        picture: not decoded yet. size: height and width of its masks, equal to the picture's.
        entry: what the prediction file holds for it, a copy of its own.
        annotations: the parts of `entry` that are to be named; each takes the field `open_end_pred`.
        mask: the bool mask (H, W) of the k-th of `annotations`; all False where it has no pixel.
        counts: what was left out here: `crowd`, `unusable` (annotations with a fault), `missing_in_mask` (in the json
            alone), `unknown_in_mask` (in the PNG alone; of label maps and .mat files, what the labels lack).
        places: of `annotations`, among all of the entry's but for crowds: the others have a fault.
        boxed: of `annotations`, whether the mask is a box, and is asked about as one.
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
        """The pixels, 8-bit RGB."""
        return self.picture.rgb()


@dataclass(frozen=True)
class ImageFile:
    """An image of a set, whatever masks it has.

    Attributes:
        id: as the json has it; of a set without one, the file's name without its ending.
        names: what it may be called: its path below the image folder, and the json's `file_name`.
        size: height and width, where the json states them. exif: of its row.
    """

    id: int | str
    names: tuple[str, ...]
    path: Path
    size: tuple[int, int] | None = None
    exif: str = "auto"

    def picture(self) -> Picture:
        stated = None if self.size is None else (self.size[1], self.size[0])
        return Picture.by_rule(self.path, self.exif, lambda: stated, lambda: None)


class Split:
    """The items of one dataset row. What the json, or the names of the files, show to be wrong is an error at once.

    Args:
        form: of the row.
        max_bad_annotations: the share of annotations that may be unusable.

    Attributes:
        source_hash: changes when the masks do.
        first_fault: of the annotations that were read, what is wrong with the first that is unusable.
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
        """One annotated picture, as a shard's sample of it would be.

        Returns:
            the sample (None: it has nothing to name), its picture, what was left out of it, and for each of its
            annotations the place among the entry's raw ones.
        """
        entry, losses = self.entries[index], Losses()
        self.fetch([index])
        picture = self.picture(entry)
        try:
            members, segments, kept = self.form.check(self.files, entry, picture.size, losses)
        except SampleError as error:
            if error.reason not in _NOTHING:
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
        """An entry's picture. Raises OsmError where it cannot be read, or has another size than the json says."""
        try:
            picture = Picture.by_rule(entry.image, self.row.exif, lambda: entry_size(self.form, entry), lambda: None)
        except SampleError as error:
            raise OsmError(str(error)) from None  # it names the file
        if entry.stated is not None and entry.stated != picture.size:
            width, height = picture.size
            raise OsmError(
                f"{self.source}: image {self.form.key_of(entry)} has width {entry.stated[0]} and height "
                f"{entry.stated[1]} there, but {entry.image} is {width} x {height}; they must be equal"
            )
        return picture

    def fetch(self, indices: Iterable[int]) -> None:
        """Fetches the files of items that lie in remote folders."""
        self.files.fetch(path for index in indices for path in self.paths(index))

    def load(self, index: int) -> Item:
        """Reads one item's masks."""
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
            if self.form.outline(entry) is None:  # label maps: their ids are the annotations
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
        """The files that `load` and the image of an item read."""
        entry = self.entries[index]
        return [entry.image, *entry.masks.values()]

    def image_path(self, index: int) -> Path:
        return self.entries[index].image

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        """What an item's entry is about, without reading a picture.

        Returns:
            what identifies the image in a prediction file, and (id, category id) of every mask that is to be named;
            None where only pixels tell.
        """
        entry = self.entries[index]
        return self.form.key_of(entry), self.form.outline(entry)

    @property
    def source(self) -> str:
        """The file or folder that says which masks there are."""
        return public(getattr(self.row, self.form.masks_field))

    @property
    def source_files(self) -> dict[str, str]:
        """What is read, by field of the row."""
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
        """An item's entry as the prediction file has it."""
        return json.dumps(entry)


def recorded(location: str) -> str:
    """A location of a row as meta files have it."""
    return public(location) if is_remote(location) else str(Path(location).absolute())


def image_files(row: Dataset, form: type[Form]) -> SetFiles:
    """The files that finding a set's images takes. Raises OsmError where the row lacks one of them."""
    check_row(row, form, form.image_needs)
    return localize_files(replace(set_files(row), ann_dir=None), form)  # masks need not be there


def images_of(row: Dataset, form: type[Form], files: SetFiles | None = None) -> tuple[list[ImageFile], str]:
    """Every image of a set, and a hash that changes when they do; reads only `image_needs`.

    Args:
        files: `image_files`, where they are at hand.
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
    """Raises OsmError where a row lacks a path."""
    missing = next((key for key in needs if getattr(row, key) is None), None)
    if missing:
        raise OsmError(f"set {row.name!r}: its form {row.form} needs {missing}, which is not given")


def set_files(row: Dataset) -> SetFiles:
    """The files of a row's val split."""
    return SetFiles(
        row.name,
        str(row.image_dir),
        row,
        row.mask_dir,
        row.json_file,
        labels=row.labels,
        flag=f"{row.name}_{{}}",
        called={"ann_dir": "mask_dir"},
        more={name: getattr(row, name) for name in ("refs_file", "split") if getattr(row, name) is not None},
    )


def entry_size(form: type[Form], entry: Entry) -> tuple[int, int] | None:
    """The (width, height) of the picture that the annotations were drawn on; see `Form.stated_size`."""
    if entry.stated is not None:
        return entry.stated
    for path in entry.masks.values() if form.mask_members else ():  # the others' masks may have a size of their own
        if path.suffix.lower() != ".mat" and path.exists():
            return Picture(path).size
    return None


def check_files(split: Split, indices: range) -> None:
    """Raises OsmError where files are missing; known before hours of naming, not after them."""
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
    """Tells files that are gone in mid-run from those that were never right.

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
                    "goes on"
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
