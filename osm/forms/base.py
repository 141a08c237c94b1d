"""Base class for all annotation formats.

Each annotation format is a class. The class methods read annotations from a dataset's files and build the samples of
its shards. Each instance of such a class represents one annotated image. Training picks random segments of the image
with `pick`, and evaluation gets the masks to name from `targets`. Conversion, training and evaluation use the same code
to validate annotations.

Shapes: (H, W) is the image size, height first. A `Size` is (width, height).
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
from osm.forms.picture import Picture, Size
from osm.forms.set_files import SetFiles
from osm.io.images import open_image
from osm.io.values import side, truth, whole

if TYPE_CHECKING:  # osm.io.views imports torch, which converters do not need
    from osm.io.views import View

ANNOTATION = "annotation: "
MIN_PIXELS = 100  # training uses a segment only if it covers more than this number of pixels of the crop
IMAGE_MEMBERS = ("jpg", "jpeg", "image.png")
# The maximum number of values in a sample's .json member. Each takes up to 100 bytes. A base64 image is one value.
MAX_VALUES = 5_000_000


# Skipped annotations.

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
"""The reasons why an annotation counts as lost. The limit `--max_bad_annotations` applies to lost annotations. Crowds,
ignored classes, empty masks and faults such as `polygon_unusable` (one polygon of several) do not count as lost."""


class Losses:
    """Records skipped annotations and why they were skipped, as well as problems that did not lead to a skip."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, int]] = []  # reason, message, count

    def add(self, reason: str, message: str, count: int = 1) -> None:
        """Record `count` skipped annotations, or `count` problems that did not cause an annotation to be skipped."""
        self.found.append((reason, message, count))

    @property
    def counts(self) -> Counter[str]:
        """The number of skipped annotations or other problems recorded for each reason."""
        counts: Counter[str] = Counter()
        for reason, _, count in self.found:
            counts[reason] += count
        return counts

    @property
    def lost(self) -> int:
        """The number of lost annotations, which is limited by `--max_bad_annotations`."""
        return sum(count for reason, _, count in self.found if reason in LOSSES)

    @property
    def first(self) -> str:
        """The error message for the first lost annotation, or an empty string if none was lost."""
        return next((message for reason, message, _ in self.found if reason in LOSSES), "")


def too_many_lost(lost: int, kept: int, share: float, first: str) -> str:
    """Return an error message if too many annotations were lost, or an empty string otherwise.

    Args:
        lost, kept: the number of lost annotations, and the number of usable ones.
        share: the largest accepted share of lost annotations. If it is above 0, one lost annotation is always accepted.
        first: the message about the first lost annotation.
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
    """One image of a dataset and its annotations, as read from the dataset's own files (the source).

    Attributes:
        image: the image file.
        masks: the image's mask files. The keys are the names of the sample's members that will hold the masks.
        record: the JSON member of the sample, without the fields that require opening the image or the masks. Its
            `segments_info` lists the annotations that passed all checks that do not need the image.
        stated: the image size in the source.
        raw: (image, annotations), unchanged from the source, for the prediction file.
        places: for each entry of `segments_info`, its index in the raw annotations.
        key_hint: the start of the sample's key; if empty, the key starts with the name of the image file.
        order: the position of the annotations in the source.
        called: the image's name in the source, if it differs from the file name.
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
    """The images and annotations of a dataset, as read from the dataset's own files (the source).

    Attributes:
        entries: all images in the order of the source, including images without annotations.
        digest: a hash that changes when the annotations change.
        categories: the content of `categories.json`; None if the source has no class names.
        arguments: all other values that determine the content of the shards.
        losses: the annotations that belong to no entry.
        left_out: the number of images without an entry, by reason.
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


@dataclass(frozen=True)
class Segment:
    """A mask in a crop, and its class.

    Attributes:
        mask: bool (crop_height, crop_width).
        label: the class.
        boxed: True if the annotation is a box, which the model receives as a rectangular mask.
        whole: True if the segment is a whole object in a dataset of parts.
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
        boxed: True if the annotation is a box, which the model receives as a rectangular mask.
    """

    place: int
    category_id: int
    draw: Callable[[], np.ndarray]
    boxed: bool = False


class Form(ABC):
    """An annotated image. Each subclass implements one annotation format.

    Args:
        picture: the image, not decoded.
        members: the members of the sample without the image.
        document: the JSON member.
        labels: the classes of the dataset.
        rules: further fields of the dataset's row that the annotation format needs.

    Attributes of the class:
        name: the name of the annotation format.
        what: a description of a dataset in this annotation format, for the command-line help.
        needs: the path fields of a row that a validation split reads.
        image_needs: the path fields of a row that are needed to find its images.
        masks_field: the path field of a row that determines which masks exist.
        boxed: True if all masks are boxes.
        masks: a description of the content of `mask_dir`, for the command-line help.
        mask_members: for each member of a sample that holds masks, the member's field in the published layout.
        published: the fields of the JSON member that the published layout keeps.
        unannotated: the reason that is counted for skipped images without annotations.
        nothing_usable: the reason that is counted for skipped images without a usable annotation.
        fine: the reasons for skipping an image that do not make it a bad sample.
        prefix, suffix: the text before and after the entries of a prediction file.
        category_key: the field that holds the category id of an annotation in a prediction file.
        id_key: the field that holds the id of an annotation in a prediction file.
        more_arguments: the converter's arguments that are stored in `SetFiles.extra_fields`.
        phrased: True if annotations have phrases, so that a dataset in this annotation format has no labels.
        unknown_is_lost: True if annotations that a validation split counts as `unknown_in_mask` are lost annotations.
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
        """Read the sample's annotations. Raises SampleError if the annotations are in another format."""

    # -- from the files of a dataset ----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the command-line arguments of this format's converter. Each one sets a field of `SetFiles`."""

    @classmethod
    def whole_folders(cls, files: SetFiles) -> list[str]:
        """Return the remote folders that must be downloaded in full because no JSON file lists their files."""
        return []

    @classmethod
    @abstractmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        """List a dataset's images and annotations, based on its JSON file or on the file names in its folders.

        Args:
            files: the paths of the dataset's files.
            labels: the classes of the dataset; if None, the classes in the dataset's own files are used.

        Raises:
            OsmError: A field or a file is invalid. Single invalid annotations are skipped and raise no error.
        """

    @classmethod
    def labels_of(cls, row: Dataset) -> LabelSet:
        """Return the classes in the JSON file of a dataset whose row in the dataset table does not set `labels`.

        Raises:
            OsmError: The row has no JSON file, or the classes in the JSON file are invalid.
        """
        if row.json_file is None:
            raise OsmError(
                f"dataset {row.name!r}: its class names are unknown; add a dataset row with --datasets and set "
                "`labels` to the categories.json that `osm prepare` wrote next to the shards"
            )
        return load_labels(row.json_file)

    @classmethod
    @abstractmethod
    def check(
        cls, files: SetFiles, entry: Entry, size: Size, losses: Losses
    ) -> tuple[dict[str, bytes], list[dict[str, Any]] | None, tuple[int, ...]]:
        """Read an image's mask files and check that the masks and annotations match the image size.

        Returns:
            The sample's members that hold masks, the usable annotations (None if this annotation format stores none in
            the JSON), and for each usable annotation its index in the entry's `segments_info`, or its number in a
            label map.

        Raises:
            SampleError: No mask and no annotation of the image is usable.
        """

    # -- for training ------------------------------------------------------------------------------------------------

    @abstractmethod
    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        """Randomly pick up to `count` distinct segments visible in a view (a crop). The list may be empty.

        Args:
            view: the crop.
            count: the largest number of segments.
            rng: the random number generator.
            fixed_view: True if the view was chosen independently of the segments. Then every segment is tried.
            whole_prob: the probability of drawing a whole object, in a dataset of parts with maps of whole objects.
        """

    def faults(self) -> Counter[str]:
        """Return how many unusable annotations `pick` has skipped, by reason. Each reason starts with `ANNOTATION`."""
        return Counter()

    @abstractmethod
    def has_segments(self) -> bool:
        """Return whether the whole image, and not just one crop of it, has any segment to name."""

    def target(self, segment: Segment, rng: np.random.Generator, prepend_prob: float = 0.0) -> str:
        """Return the training target for a segment: the first name of its class.

        Args:
            segment: the segment.
            rng: the random number generator.
            prepend_prob: the probability that the name of the whole object is put before the name of the part, in a
                dataset of parts with maps of whole objects.
        """
        return segment.label.target

    def image(self) -> Image.Image:
        """Return the decoded image as 8-bit RGB."""
        return self.picture.rgb()

    def pixels(self, view: View) -> np.ndarray:
        """Return the crop `view` as uint8 (crop_height, crop_width, 3). JPEGs may be decoded at a reduced size."""
        return view.image(self.picture.pixels(view.enough), (self.width, self.height))

    # -- for evaluation ----------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self) -> list[Target]:
        """Return the masks that the model has to name, in annotation order. Crowds are skipped."""

    @classmethod
    def in_order(cls, entries: list[Entry]) -> list[Entry]:
        """Return the entries of all images, in the order used in the prediction file."""
        return entries

    @classmethod
    def images(cls, files: SetFiles) -> tuple[list[Entry], str]:
        """Return all images of a dataset, with or without masks, and a hash that changes when the images change.

        Only the files and folders listed in `image_needs` are read.
        """
        listing = cls.listing(files, files.row.label_set)
        return listing.entries, listing.digest

    @classmethod
    def words(cls, entry: Entry) -> tuple[Any, list[dict[str, Any]]]:
        """Return a new prediction-file entry for an image, and the list of annotations inside that entry."""
        image, annotations = copy.deepcopy(entry.raw)
        return [image, annotations], annotations

    @classmethod
    def key_of(cls, entry: Entry) -> Hashable:
        """Return the value that identifies the entry's image in a prediction file."""
        return entry.raw[0]["id"]

    @classmethod
    def outline(cls, entry: Entry) -> list[tuple[Hashable, Hashable]] | None:
        """Return the (id, category id) of each non-crowd annotation, or None if only pixels store the ids."""
        return [
            (countable(annotation.get("id")), countable(annotation.get("category_id")))
            for annotation in entry.raw[1]
            if not is_crowd(annotation)
        ]

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        """Yield (image key, annotations) for each entry in a prediction file.

        The image key identifies the image, or is None if the entry contains no identifier.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: The document is not in this annotation format.
        """
        for image, of_image in document["pred"]:
            yield image.get("id"), of_image

    @classmethod
    def wrong_class(cls, annotation: Mapping[str, Any], label: LabelClass) -> str:
        """Return an error message, or '' if a prediction file's annotation is consistent with the class `label`."""
        return ""

    # -- from a sample -------------------------------------------------------------------------------------------------

    @classmethod
    def stated_size(cls, members: Mapping[str, bytes], document: Mapping[str, Any]) -> Size | None:
        """Return the annotated image's size from the JSON member, or from a mask if the JSON member states no size."""
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
        """Check that a label map has the same size as the image, and return the label map."""
        if ids.shape != (self.height, self.width):
            size = " x ".join(str(length) for length in ids.shape[1::-1])
            raise SampleError("size_mismatch", f"the mask is {size}, its image {self.width} x {self.height}")
        return ids


def sample_of(form: type[Form], members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Form:
    """Parse a shard's sample, in either the plain layout or the layout of the published shards.

    Args:
        form: the annotation format of the dataset.
        members: the members of the sample.
        labels, rules: `label_set` and `rules` of the dataset's row.

    Raises:
        SampleError: The sample is invalid.
    """
    rules = Rules() if rules is None else rules
    if "json" not in members:
        raise SampleError("missing_member", "the sample has no .json member")
    values = sum(members["json"].count(mark) for mark in b",:[{")
    if values > MAX_VALUES:
        raise SampleError("bad_json", f"the .json member has about {values} values (maximum {MAX_VALUES})")
    try:
        document = parse_json(members["json"], nesting=None)
    except ValueError as error:
        raise SampleError("bad_json", f"the .json member: {error}") from None
    if not isinstance(document, dict):
        raise SampleError("bad_json", "the .json member is not an object")
    data = member(members, document, "image_base64", IMAGE_MEMBERS)
    if rules.exif == "raw":
        picture = Picture(data)
    elif document.get("upright") is True:
        picture = Picture(data, upright=True)
    else:
        picture = Picture.by_rule(data, rules.exif, lambda: form.stated_size(members, document), lambda: None)
    return form(picture, members, document, labels, rules)


def member(members: Mapping[str, bytes], document: Mapping[str, Any], key: str, names: tuple[str, ...]) -> bytes:
    """Return the bytes of an image or mask stored as a sample member or as a base64 string in the JSON member.

    Args:
        members: the members of the sample.
        document: the JSON member.
        key: the field of the JSON member that holds the base64 string in the published layout.
        names: the possible names of the member in the plain layout.

    Raises:
        SampleError: The sample has neither the member nor the field, or the string is not base64.
    """
    for name in names:
        if name in members:
            return members[name]
    import pybase64

    value = document.get(key)
    if not isinstance(value, str):
        raise SampleError("missing_member", f"the sample has neither a .{names[0]} member nor a JSON field {key!r}")
    try:
        return pybase64.b64decode(value, validate=True)  # 40 times as fast as Python's own
    except ValueError as error:
        raise SampleError("bad_json", f"{key} is not base64 ({error})") from None


def stated_size(document: Mapping[str, Any]) -> Size | None:
    """Return (width, height) from a JSON object, or None if either one is missing."""
    width, height = side(document.get("width")), side(document.get("height"))
    return None if width is None or height is None else (width, height)


_MARKS = ("iscrowd", "ignore")


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation is marked as a crowd or as ignored."""
    return any(truth(annotation.get(mark)) for mark in _MARKS)


def check_marks(annotation: Mapping[str, Any], where: str) -> None:
    """Raise SampleError if the value of an annotation's `iscrowd` or `ignore` field is not a valid true/false value."""
    for mark in _MARKS:
        if truth(annotation.get(mark)) is None:
            value = shown(annotation[mark])
            raise SampleError("annotation_malformed", f"{where}: {mark} {value} is not 0 or 1, true or false")


def countable(value: Any) -> Hashable:
    """Return an annotation's id as a hashable value, because an untrusted file may use any JSON value as an id."""
    return value if isinstance(value, (int, str)) else repr(value)
