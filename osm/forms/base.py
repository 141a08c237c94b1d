"""What all forms of annotation share. A form is one class: how its annotations are read from a set's files, written to
and read from a shard's sample, and listed as masks to name.

An instance is one annotated picture. The converter writes its members, training draws segments of it (`pick`), and
evaluation lists its masks (`targets`): what is wrong with an annotation is found by the same lines for all three.

Shapes: (H, W) the picture's own size, height first. A `Size` is (width, height).
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
MIN_PIXELS = 100  # a segment counts in training if it covers more than this in the crop
IMAGE_MEMBERS = ("jpg", "jpeg", "image.png")
# Values of a json member, each of which takes up to a hundred bytes: images in it are one string each.
MAX_VALUES = 5_000_000
_TURNING = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Size = tuple[int, int]


# What is left out.

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
"""Reasons for which an annotation is lost. They count against `--max_bad_annotations`. Crowds, ignored classes and
masks without a pixel do not; neither do notes like `polygon_unusable` (a polygon of several)."""


class Losses:
    """Annotations that were left out, by reason, and notes about those that were kept."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, int]] = []  # reason, message, count

    def add(self, reason: str, message: str, count: int = 1) -> None:
        self.found.append((reason, message, count))

    @property
    def counts(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for reason, _, count in self.found:
            counts[reason] += count
        return counts

    @property
    def lost(self) -> int:
        return sum(count for reason, _, count in self.found if reason in LOSSES)

    @property
    def first(self) -> str:
        return next((message for reason, message, _ in self.found if reason in LOSSES), "")


def too_many_lost(lost: int, kept: int, share: float, first: str) -> str:
    """Why a run that lost so many annotations fails, or an empty text. Above 0, one loss is always allowed."""
    allowed = max(1, int(share * (lost + kept))) if share > 0 else 0
    if lost <= allowed and (kept or not lost or share == 1):
        return ""
    return (
        f"{lost} of {lost + kept} annotations are unusable, --max_bad_annotations {share:g} allows {allowed}; the "
        f"first: {first}"
    )


# A set's files.


@dataclass(frozen=True)
class Entry:
    """One picture of a set and what its source says about it.

    Attributes:
        image: its file. masks: the files of its masks, by the member that they become.
        record: the json member, but for what the files have to tell. `segments_info` are the annotations that are right
            as far as that can be told without the picture.
        stated: the size that the source states.
        raw: the source's own words, for the prediction file: (image, annotations).
        places: for each of `segments_info`, its place among the raw annotations.
        key_hint: what its key begins with; empty = the file's name.
        order: of its annotations in the source.
        called: what the source calls the image, where it is not the name of its file.
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
    """What a set holds.

    Attributes:
        entries: all pictures, in the order of the source; those without annotations, too.
        digest: changes when the annotations do.
        categories: for `categories.json`; None where the source has no names.
        arguments: what else decides the content of the shards.
        losses: annotations that no entry has.
        left_out: pictures that are no entry, by reason.
        stated_categories: the source's own `categories`, in any state.
        no_image: what is said where none of the pictures is there.
    """

    entries: list[Entry]
    digest: str
    categories: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    losses: Losses = field(default_factory=Losses)
    left_out: Counter[str] = field(default_factory=Counter)
    stated_categories: tuple[dict[str, Any], ...] = ()
    no_image: str = ""


# One picture.


class Picture:
    """A picture that is not decoded yet, and whether it is turned upright.

    Attributes:
        size: (width, height), after turning.
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
        """Opens a picture whose annotations may have been drawn on the upright or on the raw picture.

        Args:
            exif: `raw`, `upright`, or `auto`: whichever has the stated size; upright where the size does not tell.
            stated: returns the size that the annotations state. undecided: called where the size does not tell.
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
        """The pixels, 8-bit RGB; see `read_rgb`."""
        return read_rgb(self.source, at_least, self.upright)


@dataclass(frozen=True)
class Segment:
    """One mask in a view, bool (crop_height, crop_width), and its class.

    Attributes:
        boxed: the mask is a box that the data give, and is asked about as one.
        whole: the class is one of whole objects, in a set of parts.
    """

    mask: np.ndarray
    label: LabelClass
    boxed: bool = False
    whole: bool = False

    @property
    def category_id(self) -> int:
        return self.label.id


@dataclass(frozen=True)
class Target:
    """A mask to name in a val split.

    Attributes:
        place: among the picture's `segments_info`; of a label map, its number.
        category_id: of its class.
        draw: makes the bool mask (H, W).
        boxed: it is a box, and asked about as one.
    """

    place: int
    category_id: int
    draw: Callable[[], np.ndarray]
    boxed: bool = False


class Form(ABC):
    """One annotated picture.

    Args:
        picture: not decoded. members: of the sample, without the picture. document: the json member.
        labels, rules: the set's classes and ways.

    Attributes of the class:
        name: of the form. what: what a set of it is, for the help.
        needs: the path fields of a row that a val split reads; `image_needs`: those that finding its images takes;
            `masks_field`: the one that says which masks there are.
        boxed: its masks are boxes. masks: what its `mask_dir` holds, for the help.
        mask_members: members that hold masks, and their fields in the published layout.
        published: the fields of the json member that the published layout keeps.
        unannotated: the reason for which a picture without annotations is left out; `nothing_usable`: the one for a
            picture whose annotations are all unusable.
        fine: reasons for which a file may give no sample without anything being wrong.
        prefix, suffix: what stands around the entries of a prediction file.
        category_key, id_key: where an annotation of a prediction file has its category id, and its own.
        more_arguments: of its converter, that are in `SetFiles.more`.
        phrased: the annotations have phrases of their own, so that a set of this form has no labels.
        unknown_is_lost: what `unknown_in_mask` counts in a val split are annotations that are lost.
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
        """Reads the annotations. Raises SampleError where they are not in the form."""

    # -- from the set's files ----------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the arguments of its converter that are fields of `SetFiles`."""

    @classmethod
    def whole_folders(cls, files: SetFiles) -> list[str]:
        """Of remote folders, those that are fetched whole, as no json names the files in them."""
        return []

    @classmethod
    @abstractmethod
    def listing(cls, files: SetFiles, labels: LabelSet | None) -> Listing:
        """What a set holds, read from what describes it as a whole (a json, the names in its folders).

        Args:
            labels: the classes there are; None = those of the source.

        Raises:
            OsmError: a field is wrong, or the source is, beyond single annotations.
        """

    @classmethod
    def labels_of(cls, row: Dataset) -> LabelSet:
        """The classes of a row without `labels`: those of its json.

        Raises:
            OsmError: it has none, or not in the form.
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
        """Reads the files of a picture's masks and compares everything with the picture's size.

        Returns:
            the masks' members; the annotations that can be used (None: the form has none in its json); and for each of
            them its place among the entry's `segments_info` (of a label map: its number).

        Raises:
            SampleError: nothing of the picture can be used.
        """

    # -- for training ------------------------------------------------------------------------------------------------

    @abstractmethod
    def pick(
        self, view: View, count: int, rng: np.random.Generator, fixed_view: bool = False, whole_prob: float = 0.0
    ) -> list[Segment]:
        """Up to `count` different counting segments of a view; empty where the view (or the draw) has none.

        Where the view was fixed beforehand, the draw is not to blame, and every segment of it is tried.

        Args:
            whole_prob: in a set of parts with maps of whole objects, how often one of these is drawn instead.
        """

    def faults(self) -> Counter[str]:
        """Annotations that were to be drawn and could not be used, by reason, each with `ANNOTATION` before it."""
        return Counter()

    @abstractmethod
    def has_segments(self) -> bool:
        """Whether anything in the sample may be named, whether or not enough of it is in a view."""

    def target(self, segment: Segment, rng: np.random.Generator, prepend_prob: float = 0.0) -> str:
        """The name that is trained for a segment: the first one of its class.

        Args:
            prepend_prob: in a set of parts with maps of whole objects, how often a part is named after its object.
        """
        return segment.label.target

    def image(self) -> Image.Image:
        return self.picture.rgb()

    def pixels(self, view: View) -> np.ndarray:
        """What a view shows of the image (crop_height, crop_width, 3); no more of it is decoded than is needed."""
        return view.image(np.array(self.picture.rgb(view.enough)), (self.width, self.height))

    # -- for evaluation ----------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self) -> list[Target]:
        """The masks to name, in the order of the annotations; crowds apart."""

    @classmethod
    def in_order(cls, entries: list[Entry]) -> list[Entry]:
        """The entries in the order of the prediction file."""
        return entries

    @classmethod
    def images(cls, files: SetFiles) -> tuple[list[Entry], str]:
        """Every image of a set, whatever masks it has, and a hash that changes when they do; reads `image_needs`."""
        listing = cls.listing(files, files.row.label_set)
        return listing.entries, listing.digest

    @classmethod
    def words(cls, entry: Entry) -> tuple[Any, list[dict[str, Any]]]:
        """An entry of the prediction file, a copy of its own, and its annotations within it."""
        image, annotations = copy.deepcopy(entry.raw)
        return [image, annotations], annotations

    @classmethod
    def key_of(cls, entry: Entry) -> Hashable:
        """What identifies an entry's image in a prediction file."""
        return entry.raw[0]["id"]

    @classmethod
    def outline(cls, entry: Entry) -> list[tuple[Hashable, Hashable]] | None:
        """(id, category id) of an entry's annotations but for crowds; None where only pixels tell."""
        return [
            (countable(annotation.get("id")), countable(annotation.get("category_id")))
            for annotation in entry.raw[1]
            if not is_crowd(annotation)
        ]

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        """Of each entry of a prediction file's document: what identifies the image (None: nothing does), and the
        image's annotations, named or not.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: it is in another form.
        """
        for image, of_image in document["pred"]:
            yield image.get("id"), of_image

    @classmethod
    def wrong_class(cls, annotation: Mapping[str, Any], label: LabelClass) -> str:
        """What shows that the class of a prediction file's annotation was another one; empty where nothing does."""
        return ""

    # -- of a sample -------------------------------------------------------------------------------------------------

    @classmethod
    def stated_size(cls, members: Mapping[str, bytes], document: Mapping[str, Any]) -> Size | None:
        """The size of the picture that the annotations were drawn on, as the json or a mask has it."""
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
        """A label map, checked to be of the image's size."""
        if ids.shape != (self.height, self.width):
            size = " x ".join(str(length) for length in ids.shape[1::-1])
            raise SampleError("size_mismatch", f"the mask is {size}, its image {self.width} x {self.height}")
        return ids


def sample_of(form: type[Form], members: Mapping[str, bytes], labels: LabelSet, rules: Rules | None = None) -> Form:
    """Reads a shard's sample, of either layout.

    Args:
        labels, rules: `label_set` and `rules` of the set's row.

    Raises:
        SampleError: what is wrong with it.
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
    """A part of a sample: a member of the plain layout, or a base64 string of the published one.

    Raises:
        SampleError: it is in neither, or the string is not base64.
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
    """The width and height that a json states, where it states both."""
    width, height = side(document.get("width")), side(document.get("height"))
    return None if width is None or height is None else (width, height)


_MARKS = ("iscrowd", "ignore")


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is a crowd, or marked to be ignored."""
    return any(truth(annotation.get(mark)) for mark in _MARKS)


def check_marks(annotation: Mapping[str, Any], where: str) -> None:
    """Raises SampleError `annotation_malformed` where nobody can tell whether an annotation is a crowd."""
    for mark in _MARKS:
        if truth(annotation.get(mark)) is None:
            value = shown(annotation[mark])
            raise SampleError("annotation_malformed", f"{where}: {mark} {value} is not 0 or 1, true or false")


def countable(value: Any) -> Hashable:
    """An id from a file as something that can be a key; no check asks what kind of value an annotation's own id is."""
    return value if isinstance(value, (int, str)) else repr(value)
