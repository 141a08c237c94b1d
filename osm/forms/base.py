"""The base class of all forms of annotation.

A form is one class. It reads annotations from a dataset's files, writes them to samples of shards, reads them from the
samples, and lists the masks to name. An instance is one annotated image. The converter writes its members, training
draws segments of it (`pick`), and evaluation lists its masks (`targets`). All three use the same checks of annotations.

Shapes: (H, W) is the size of the image, height first. A `Size` is (width, height).
"""

from __future__ import annotations

import argparse
import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from osm.datasets.labels import LabelClass, LabelSet, load_labels
from osm.datasets.table import Dataset, Rules
from osm.documents import parse_json
from osm.errors import OsmError, SampleError, shown
from osm.forms.set_files import SetFiles
from osm.io.images import open_image, orientation, read_rgb
from osm.io.values import side, truth, whole

if TYPE_CHECKING:  # it imports torch, which converters do without
    from osm.io.views import View

ANNOTATION = "annotation: "
MIN_PIXELS = 100  # a segment is trained if it covers more pixels of the crop than this
IMAGE_MEMBERS = ("jpg", "jpeg", "image.png")
# The largest number of values in a json member. A value takes up to a hundred bytes. An image in it is one value.
MAX_VALUES = 5_000_000
_TURNING = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Size = tuple[int, int]


# Annotations that are left out.

LOSSES = frozenset(
    {
        "annotation_malformed",
        "annotation_without_image",
        "annotation_without_mask",
        "category_unknown",
        "image_annotated_twice",
        "polygon_not_numbers",
        "polygon_outline",
        "polygon_outside",
        "polygon_too_short",
        "rle_malformed",
        "rle_size",
        "segmentation_malformed",
        "box_malformed",
        "box_empty",
        "box_outside",
        "id_not_in_png",
        "id_not_in_labels",
        "name_not_in_table",
        "phrase_missing",
    }
)
"""Reasons for which an annotation is lost. Lost annotations count against `--max_bad_annotations`. Crowds, ignored
classes and masks without a pixel do not count, nor do notes such as `polygon_unusable` (one polygon of several)."""


class Losses:
    """The annotations that were left out, by reason, and notes on annotations that were kept."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, int]] = []  # reason, message, count

    def add(self, reason: str, message: str, count: int = 1) -> None:
        """Record that `count` annotations were left out, or a note on them."""
        self.found.append((reason, message, count))

    @property
    def counts(self) -> Counter[str]:
        """The number of annotations by reason."""
        counts: Counter[str] = Counter()
        for reason, _, count in self.found:
            counts[reason] += count
        return counts

    @property
    def lost(self) -> int:
        """The number of annotations that count against `--max_bad_annotations`."""
        return sum(count for reason, _, count in self.found if reason in LOSSES)

    @property
    def first(self) -> str:
        """The first message on a lost annotation; empty if none is lost."""
        return next((message for reason, message, _ in self.found if reason in LOSSES), "")


def too_many_lost(lost: int, kept: int, share: float, first: str) -> str:
    """Return why a run with these losses fails, or an empty string if it does not fail.

    Args:
        lost, kept: the numbers of annotations.
        share: the largest accepted share of lost annotations. If it is above 0, one loss is always accepted.
        first: the message on the first lost annotation.
    """
    allowed = max(1, int(share * (lost + kept))) if share > 0 else 0
    if lost <= allowed and (kept or not lost or share == 1):
        return ""
    return (
        f"{lost} of {lost + kept} annotations are unusable, --max_bad_annotations {share:g} allows {allowed}; the "
        f"first: {first}"
    )


# The files of a dataset.


@dataclass(frozen=True)
class Entry:
    """One image of a dataset and its annotations in the source.

    Attributes:
        image: the image file.
        masks: the files of the image's masks, by the name of the sample's member that they become.
        record: the json member of the sample, without the fields that need the files. Its `segments_info` are the
            annotations that are valid as far as this can be checked without the image.
        stated: the image size in the source.
        raw: (image, annotations) as they are in the source, for the prediction file.
        places: for each entry of `segments_info`, its index in the raw annotations.
        key_hint: the start of the sample's key; empty: the name of the image file.
        order: the position of the annotations in the source.
        called: the name of the image in the source, if it is not the name of the file.
    """

    image: Path
    masks: Mapping[str, Path]
    record: dict[str, Any]
    stated: Size | None = None
    raw: Any = None
    places: tuple[int, ...] = ()
    key_hint: str = ""
    order: int = 0
    called: Any = None


@dataclass(frozen=True)
class Listing:
    """The content of a dataset.

    Attributes:
        entries: all images in the order of the source, including images without annotations.
        digest: a hash that changes when the annotations change.
        categories: the content of `categories.json`; None if the source has no class names.
        arguments: all other values that determine the content of the shards.
        losses: annotations that are in no entry.
        left_out: the number of images that are in no entry, by reason.
        stated_categories: the `categories` of the source, unchecked.
        no_image: the error message if none of the image files exists.
    """

    entries: list[Entry]
    digest: str
    categories: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    losses: Losses = field(default_factory=Losses)
    left_out: Counter[str] = field(default_factory=Counter)
    stated_categories: tuple[dict[str, Any], ...] = ()
    no_image: str = ""


# One image.


class Picture:
    """An image file that is not decoded yet.

    Attributes:
        source: the bytes or the path of the file.
        upright: whether the EXIF orientation is applied when the image is decoded.
        size: (width, height), after the orientation is applied.
    """

    def __init__(self, source: bytes | Path, upright: bool = False) -> None:
        self.source, self.upright = source, upright
        with open_image(source) as image:
            self._take_size(image)

    def _take_size(self, image: Image.Image) -> None:
        self.size: Size = image.size
        if self.upright and orientation(image) in _TURNING:
            self.size = (image.height, image.width)

    @classmethod
    def by_rule(
        cls, source: bytes | Path, exif: str, stated: Callable[[], Size | None], undecided: Callable[[], None]
    ) -> Picture:
        """Open an image whose annotations were drawn either on the stored or on the upright image.

        Args:
            source: the bytes or the path of the file.
            exif: `raw`, `upright`, or `auto`. `auto` chooses whichever has the size that the annotations state, and
                upright if the size does not decide.
            stated: returns the size that the annotations state.
            undecided: is called if the size does not decide.
        """
        picture = cls.__new__(cls)
        picture.source, picture.upright = source, exif == "upright"
        with open_image(source) as image:
            if exif == "auto" and (turn := orientation(image)) != 1:
                size = stated() if turn in _TURNING and image.width != image.height else None
                picture.upright = size != image.size
                if size is None:
                    undecided()
            picture._take_size(image)
        return picture

    def rgb(self, at_least: Size | None = None) -> Image.Image:
        """Decode the image as 8-bit RGB; see `read_rgb`."""
        return read_rgb(self.source, at_least, self.upright)


@dataclass(frozen=True)
class Segment:
    """A mask in a crop, and its class.

    Attributes:
        mask: bool (crop_height, crop_width).
        label: the class.
        boxed: True if the annotation is a box, which the model gets as a box mask.
        whole: True if the class is a class of whole objects in a dataset of parts.
    """

    mask: np.ndarray
    label: LabelClass
    boxed: bool = False
    whole: bool = False

    @property
    def category_id(self) -> int:
        """The category id of the class."""
        return self.label.id


@dataclass(frozen=True)
class Target:
    """A mask to name in a validation split.

    Attributes:
        place: the index in the image's `segments_info`, or the number of the segment in a label map.
        category_id: the category id of the annotated class.
        draw: returns the bool mask (H, W).
        boxed: True if the annotation is a box, which the model gets as a box mask.
    """

    place: int
    category_id: int
    draw: Callable[[], np.ndarray]
    boxed: bool = False


class Form(ABC):
    """One annotated image.

    Args:
        picture: the image, not decoded.
        members: the members of the sample without the image.
        document: the json member.
        labels: the classes of the dataset.
        rules: the other fields of the dataset's row that the form needs.

    Attributes of the class:
        name: the name of the form.
        what: a description of a dataset in this form, for the help.
        needs: the path fields of a row that a validation split reads.
        image_needs: the path fields of a row that are needed to find its images.
        masks_field: the path field of a row that determines which masks there are.
        boxed: True if all masks are boxes.
        masks: a description of the content of `mask_dir`, for the help.
        mask_members: for each member of a sample with masks, its field in the published layout.
        published: the fields of the json member that the published layout keeps.
        unannotated: the reason under which images without annotations are counted as left out.
        nothing_usable: the reason under which images without a usable annotation are counted as left out.
        fine: reasons for left-out files that do not count as bad samples.
        prefix, suffix: the text before and after the entries of a prediction file.
        category_key: the field of the category id in the annotations of a prediction file.
        id_key: the field of the annotation id in the annotations of a prediction file.
        more_arguments: the converter's arguments that are stored in `SetFiles.more`.
        phrased: True if annotations have phrases, so that a dataset in this form has no labels.
        unknown_is_lost: True if annotations that are counted as `unknown_in_mask` in a validation split are lost.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("image_dir", "json_file")
    image_needs: ClassVar[tuple[str, ...]] = ("image_dir", "json_file")
    masks_field: ClassVar[str] = "json_file"
    boxed: ClassVar[bool] = False
    masks: ClassVar[str] = ""
    mask_members: ClassVar[Mapping[str, str]] = {}
    published: ClassVar[tuple[str, ...]] = ()
    unannotated: ClassVar[str] = "no_annotations"
    nothing_usable: ClassVar[str] = "no_masks"
    fine: ClassVar[frozenset[str]] = frozenset()
    prefix: ClassVar[str] = '{"pred": ['
    suffix: ClassVar[str] = "]}"
    category_key: ClassVar[str] = "category_id"
    id_key: ClassVar[str] = "id"
    more_arguments: ClassVar[tuple[str, ...]] = ()
    unknown_is_lost: ClassVar[bool] = False
    phrased: ClassVar[bool] = False

    def __init__(
        self,
        picture: Picture,
        members: Mapping[str, bytes],
        document: Mapping[str, Any],
        labels: LabelSet,
        rules: Rules,
    ) -> None:
        self.picture, self.labels, self.rules = picture, labels, rules
        self.width, self.height = picture.size
        self._take(members, document)

    @abstractmethod
    def _take(self, members: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        """Read the annotations.

        Raises:
            SampleError: The annotations are not in the form.
        """

    # -- from the files of a dataset ----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the arguments of the form's converter. They are fields of `SetFiles`."""

    @classmethod
    def whole_folders(cls, files: SetFiles) -> list[str]:
        """Return the remote folders that are fetched completely, because no json names the files in them."""
        return []

    @classmethod
    @abstractmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        """List the content of a dataset from its json or from the file names in its folders.

        Args:
            files: the paths of the dataset's files.
            labels: the classes of the dataset; None: the classes of the source.

        Raises:
            OsmError: A field or the source is wrong. Mistakes in single annotations are not errors.
        """

    @classmethod
    def labels_of(cls, row: Dataset) -> LabelSet:
        """Return the classes of a row without `labels`, which are the classes of its json.

        Raises:
            OsmError: The row has no json, or its classes are not in the format.
        """
        if row.json_file is None:
            raise OsmError(
                f"set {row.name!r}: nothing tells the names of its classes: give it a row (--datasets) whose labels "
                "are the categories.json that `osm prepare` wrote beside its shards"
            )
        return load_labels(row.json_file)

    @classmethod
    @abstractmethod
    def check(
        cls, files: SetFiles, entry: Entry, size: Size, losses: Losses
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None, tuple[int, ...]]:
        """Read the files of an image's masks, and check masks and annotations against the size of the image.

        Returns:
            The members with the masks, the usable annotations (None: annotations of this form are not in the json), and
            for each usable annotation its index in the entry's `segments_info`, or its number in a label map.

        Raises:
            SampleError: Nothing of the image is usable.
        """

    # -- for training ------------------------------------------------------------------------------------------------

    @abstractmethod
    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        """Draw up to `count` different segments of a view. The list is empty if the draw or the view has none.

        Args:
            view: the crop.
            count: the largest number of segments.
            rng: the source of randomness.
            fixed_view: True if the view was chosen independently of the segments. Then every segment is tried.
            whole_prob: in a dataset of parts with maps of whole objects, the probability that a whole object is drawn.
        """

    def faults(self) -> Counter[str]:
        """Return the number of unusable drawn annotations by reason. Each reason starts with `ANNOTATION`."""
        return Counter()

    @abstractmethod
    def has_segments(self) -> bool:
        """Return whether the sample has any segment to name, whether or not it is visible in a view."""

    def target(self, segment: Segment, rng: np.random.Generator, prepend_prob: float = 0.0) -> str:
        """Return the name that is trained for a segment, which is the first name of its class.

        Args:
            segment: the segment.
            rng: the source of randomness.
            prepend_prob: in a dataset of parts with maps of whole objects, the probability that the name of the whole
                object is put before the name of the part.
        """
        return segment.label.target

    def image(self) -> Image.Image:
        """Return the decoded image, 8-bit RGB."""
        return self.picture.rgb()

    def pixels(self, view: View) -> np.ndarray:
        """Return the pixels of a view, uint8 (crop_height, crop_width, 3).

        JPEGs are decoded at a reduced size if that is enough for the view.
        """
        return view.image(np.array(self.picture.rgb(view.enough)), (self.width, self.height))

    # -- for evaluation ----------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self) -> list[Target]:
        """Return the masks to name in the order of the annotations, without crowds."""

    @classmethod
    def in_order(cls, entries: list[Entry]) -> list[Entry]:
        """Return the entries in the order of the prediction file."""
        return entries

    @classmethod
    def images(cls, files: SetFiles) -> tuple[list[Entry], str]:
        """Return all images of a dataset, with or without masks, and a hash that changes when the images change.

        Only the fields in `image_needs` are read.
        """
        listing = cls.listing(files, files.row.label_set)
        return listing.entries, listing.digest

    @classmethod
    def words(cls, entry: Entry) -> tuple[Any, list[dict[str, Any]]]:
        """Return a new entry of the prediction file, and the list of annotations inside it."""
        image, annotations = copy.deepcopy(entry.raw)
        return [image, annotations], annotations

    @classmethod
    def key_of(cls, entry: Entry) -> Hashable:
        """Return the value that identifies the image of an entry in a prediction file."""
        return entry.raw[0]["id"]

    @classmethod
    def outline(cls, entry: Entry) -> list[tuple[Hashable, Hashable]] | None:
        """Return (id, category id) of an entry's annotations without crowds, or None if they are only in the pixels."""
        return [
            (countable(annotation.get("id")), countable(annotation.get("category_id")))
            for annotation in entry.raw[1]
            if not is_crowd(annotation)
        ]

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        """Yield the image key and the annotations of each entry of a prediction file.

        The key identifies the image. It is None if the entry has no identifier.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: The document is not in this form.
        """
        for image, of_image in document["pred"]:
            yield image.get("id"), of_image

    @classmethod
    def wrong_class(cls, annotation: Mapping[str, Any], label: LabelClass) -> str:
        """Return why the class of an annotation in a prediction file contradicts `label`, or an empty string."""
        return ""

    # -- from a sample -------------------------------------------------------------------------------------------------

    @classmethod
    def stated_size(cls, members: Mapping[str, bytes], document: Mapping[str, Any]) -> Size | None:
        """Return the size of the image that the annotations were drawn on, from the json or from a mask."""
        size = stated_size(document)
        if size is None and cls.mask_members:
            published = next(iter(cls.mask_members.values()))
            names = tuple(name for name, other in cls.mask_members.items() if other == published)
            with open_image(member(members, document, published, names)) as mask:
                size = mask.size
        return size

    def _check_size(self, document: Mapping[str, Any]) -> None:
        for name in ("width", "height"):
            if name in document and document[name] is not None and whole(document[name]) != getattr(self, name):
                message = f"{name} {shown(document[name])} in the json, {getattr(self, name)} in the image"
                raise SampleError("size_mismatch", message)

    def _map(self, ids: np.ndarray) -> np.ndarray:
        """Return a label map after checking that it has the size of the image."""
        if ids.shape != (self.height, self.width):
            size = " x ".join(str(length) for length in ids.shape[1::-1])
            raise SampleError("size_mismatch", f"the mask is {size}, its image {self.width} x {self.height}")
        return ids


def sample_of(form: type[Form], members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Form:
    """Read a sample of a shard in the plain or in the published layout.

    Args:
        form: the form of the dataset.
        members: the members of the sample.
        labels, rules: `label_set` and `rules` of the dataset's row.

    Raises:
        SampleError: The sample is wrong.
    """
    rules = Rules() if rules is None else rules
    if "json" not in members:
        raise SampleError("missing_member", "the sample has no .json member")
    values = sum(members["json"].count(mark) for mark in b",:[{")
    if values > MAX_VALUES:
        raise SampleError("bad_json", f"the .json member: about {values} values, over {MAX_VALUES}")
    try:
        document = parse_json(members["json"], nesting=None)
    except ValueError as error:
        raise SampleError("bad_json", f"the .json member: {error}") from None
    if not isinstance(document, dict):
        raise SampleError("bad_json", "the .json member is no object")
    data = member(members, document, "image_base64", IMAGE_MEMBERS)
    if rules.exif == "raw":
        picture = Picture(data)
    elif document.get("upright") is True:
        picture = Picture(data, upright=True)
    else:
        picture = Picture.by_rule(data, rules.exif, lambda: form.stated_size(members, document), lambda: None)
    return form(picture, members, document, labels, rules)


def member(members: Mapping[str, bytes], document: Mapping[str, Any], key: str, names: tuple[str, ...]) -> bytes:
    """Return a part of a sample, from a member (plain layout) or from a base64 string (published layout).

    Args:
        members: the members of the sample.
        document: the json member.
        key: the field of the json member in the published layout.
        names: the possible names of the member in the plain layout.

    Raises:
        SampleError: The sample has neither, or the string is not base64.
    """
    for name in names:
        if name in members:
            return members[name]
    import pybase64

    value = document.get(key)
    if not isinstance(value, str):
        raise SampleError("missing_member", f"the sample has neither a member .{names[0]} nor a json field {key!r}")
    try:
        return pybase64.b64decode(value, validate=True)  # 40 times as fast as Python's own
    except ValueError as error:
        raise SampleError("bad_json", f"{key} is not base64 ({error})") from None


def stated_size(document: Mapping[str, Any]) -> Size | None:
    """Return (width, height) from a json, or None if the json lacks one of them."""
    width, height = side(document.get("width")), side(document.get("height"))
    return None if width is None or height is None else (width, height)


_MARKS = ("iscrowd", "ignore")


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation is a crowd, or marked as ignored."""
    return any(truth(annotation.get(mark)) for mark in _MARKS)


def check_marks(annotation: Mapping[str, Any], where: str) -> None:
    """Check the fields that mark crowds and ignored annotations.

    Raises:
        SampleError: `annotation_malformed`, a field is neither true nor false.
    """
    for mark in _MARKS:
        if truth(annotation.get(mark)) is None:
            value = shown(annotation[mark])
            raise SampleError("annotation_malformed", f"{where}: {mark} {value} is not 0 or 1, true or false")


def countable(value: Any) -> Hashable:
    """Return an id from a file as a hashable value. The id of an annotation may be any json value."""
    return value if isinstance(value, (int, str)) else repr(value)
