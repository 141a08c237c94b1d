"""Reads JSON files in COCO format: COCO, LVIS, V3Det, Cityscapes and exports from annotation tools.

Conversion and evaluation both use this module to read COCO JSON files. Fields that neither conversion nor evaluation
uses are not checked. Invalid annotations are skipped, and the image's other annotations are kept. Ids are compared by
value, so 1, 1.0 and "1" are the same id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from osm.datasets.category_names import spoken_categories
from osm.datasets.labels import LabelSet, clean_categories, load_labels
from osm.errors import OsmError, SampleError, shown
from osm.files import read_json
from osm.forms.base import Entry, Listing, Losses, SetFiles, check_marks, is_crowd, stated_size
from osm.forms.locate import FileFinder
from osm.forms.picture import Size
from osm.io.paths import image_name
from osm.io.values import side, storable, whole
from osm.terminal import message_logger

logger = message_logger(__name__)

_TOLERATED = 0.05  # the share of category names that may differ from the project's table without a warning
Annotation = dict[str, Any]


@dataclass
class ImageAnnotations:
    """The annotations of one image.

    Attributes:
        segments: the usable annotations.
        places: the index of each usable annotation in `raw`.
        raw: all annotations, unchanged.
        masks: the names of the image's mask files. The keys are the members of the sample that will hold the masks.
        panoptic_row: the image's row in the `annotations` of a panoptic json.
        order: the index of the image's last row in `annotations`.
    """

    segments: list[Annotation]
    places: list[int]
    raw: list[Annotation]
    masks: dict[str, Any]
    panoptic_row: Any = None
    order: int = 0


class CocoJson:
    """The content of a COCO JSON file, validated as far as possible without opening the images.

    Args:
        files: the locations of the dataset's files.
        labels: the classes that annotations may have; None = the JSON file's `categories`.
        read: the document and the SHA-256 of its file, if a file in a different format was converted to COCO format.

    Attributes:
        losses: the skipped annotations.

    Raises:
        OsmError: the file is not a COCO JSON file, or an image has no valid id.
    """

    def __init__(self, files: SetFiles, labels: LabelSet | None, read: tuple[Any, str] | None = None) -> None:
        self.files, self.path, self.losses = files, Path(str(files.json_file)), Losses()
        if read is None:
            read = read_json(self.path, files.flag.format("json_file"), nesting=None)
        self.document, self.sha256 = read
        rows = self._list("images")
        self._list("annotations")
        self.categories: list[dict[str, Any]] | None = None
        if labels is None:
            self.categories = clean_categories(self._list("categories"), str(self.path))
            labels = LabelSet.from_categories(self.categories, str(self.path))
            self.categories = spoken_categories(self.categories, files.row.category_names)
        self.labels = labels
        self.images: dict[int | str, dict[str, Any]] = {}
        for number, image in enumerate(rows):
            self._add_image(number, image)
        self._by_value = _unique({_value(image_id): image_id for image_id in self.images}, self.images)

    def _list(self, name: str) -> list[Any]:
        found = self.document.get(name) if isinstance(self.document, dict) else None
        if not isinstance(found, list):
            raise OsmError(f"{self.files.where('json_file')}: has no list {name!r}")
        return found

    def _add_image(self, number: int, image: Any) -> None:
        where = f"{self.path}: images[{number}]"
        image_id = image.get("id") if isinstance(image, dict) else None
        if isinstance(image_id, bool) or not isinstance(image_id, (int, float, str)):
            raise OsmError(f"{where}: expected an 'id' that is a number or a string")
        if isinstance(image_id, float):
            image_id = whole(image_id)
            if image_id is None:
                raise OsmError(f"{where}: the id {shown(image['id'])} is not an integer")
            image = {**image, "id": image_id}
        # Merged JSON files may list an image twice, sometimes with a string id the second time.
        first = next((known for known in (image_id, _other_kind(image_id)) if known in self.images), None)
        if first is None:
            self.images[image_id] = image
        elif _identity(self.images[first]) != _identity(image):
            raise OsmError(f"{where}: two different images have the id {image_id!r}")

    def image_of(self, annotation: Mapping[str, Any], where: str) -> int | str:
        """Return the id of the image that an annotation belongs to. Raises SampleError if the image is not listed."""
        value = annotation.get("image_id")
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            found = value if value in self.images else self._by_value.get(_value(value))
            if found is not None:
                return whole(found) if isinstance(found, float) else found  # type: ignore[return-value]
        raise SampleError(
            "annotation_without_image", f"{where}: there is no image with the id {shown(value)} in the list 'images'"
        )

    def category_of(self, annotation: Mapping[str, Any], where: str) -> int:
        """Return the category id of an annotation. Raises SampleError if no class has this category id."""
        value = annotation.get("category_id")
        category = value if type(value) is int else whole(value)
        if category is None or category not in self.labels:
            known = f"the {len(self.labels.classes)} categories of {self.labels.source}"
            raise SampleError("category_unknown", f"{where}: category_id {shown(value)} is not among {known}")
        return category

    def by_image(self, read: Callable[[str, Annotation, ImageAnnotations], None]) -> dict[int | str, ImageAnnotations]:
        """Collect the annotations of every image.

        Args:
            read: a function that is called for every annotation. Its arguments are the annotation's location for error
                messages, the annotation, and the annotations collected for its image so far. It adds the annotation to
                the collected annotations, or raises SampleError to skip the annotation.
        """
        found = {image_id: ImageAnnotations([], [], [], {}) for image_id in self.images}
        for number, row in enumerate(self.document["annotations"]):
            where = self.place(number)
            try:
                if not isinstance(row, dict):
                    raise SampleError("annotation_malformed", f"{where}: {shown(row)} is not an object")
                if "id" in row:
                    where += f" (id {shown(row['id'])})"
                image_id = self.image_of(row, where)
                if "segments_info" not in row:
                    check_marks(row, where)
                found[image_id].order = number
                read(f"{where}, image {shown(image_id)}", row, found[image_id])
            except SampleError as error:
                self.losses.add(error.reason, str(error))
        return found

    def place(self, number: int) -> str:
        """Return an annotation's location in the file, for error messages."""
        return f"{self.path}: annotations[{number}]"

    def add_mask(self, where: str, row: Annotation, segment: Annotation, collected: ImageAnnotations) -> None:
        """Add an annotation's mask file to the annotations of its image.

        The base method does nothing, because COCO JSON files do not list mask files.

        Raises:
            SampleError: in subclasses, if the mask file does not exist.
        """

    def listing(self, found: Mapping[int | str, ImageAnnotations]) -> Listing:
        """Return a `Listing` of the dataset, with one entry for each image."""
        files, row = self.files, self.files.row
        left_out: Counter[str] = Counter()
        unwanted = self._unwanted()
        named = [
            (image, self._name_of(number, image, collected))
            for number, (image, collected) in enumerate(_paired(self, found))
        ]
        images = self._finder("image_dir", (name for _, name in named))
        masks, mask_paths = self._find_masks(found)
        entries = []
        places = [
            (name, images.find(name, f"{self.path}: images[{number}] (id {image['id']!r}), {files.where('image_dir')}"))
            for number, (image, name) in enumerate(named)
        ]
        for (image, name), path in zip(named, images.settle(places), strict=True):
            image_id, collected = image["id"], found[image["id"]]
            if image_id in unwanted and path.stem == f"{image_id:012d}":
                left_out[unwanted[image_id]] += 1
                continue
            sizes = {key: image[key] for key in ("width", "height") if image.get(key) is not None}
            record = {"file_name": name, **sizes, "image_id": image_id, "segments_info": collected.segments}
            # If no mask folder was given, only the images are needed.
            at = {member: mask_paths[image_id, member] for member in collected.masks} if masks is not None else {}
            raw = (image, collected.raw) if collected.panoptic_row is None else collected.panoptic_row
            hint = _key(row.keys, image, path)
            called, places_of = image.get("file_name"), tuple(collected.places)
            entries.append(Entry(path, at, record, stated_size(image), raw, places_of, hint, collected.order, called))
        for finder in (images, *([] if masks is None else [masks])):
            self._report_guesses(finder, len(entries))
        stated = self.document.get("categories")
        own = tuple(row for row in stated if isinstance(row, dict)) if isinstance(stated, list) else ()
        arguments, missing = self._arguments(), self._no_image(images, entries)
        return Listing(entries, self.sha256, self.categories, arguments, self.losses, left_out, own, missing)

    def _find_masks(
        self, found: Mapping[int | str, ImageAnnotations]
    ) -> tuple[FileFinder | None, dict[tuple[int | str, str], Path]]:
        """Return a FileFinder for the mask folder and a dict that maps (image id, sample member) to the mask's path."""
        files = self.files
        if not files.ann_dir or not _has_masks(found):
            return None, {}
        names = {
            (image_id, member): name
            for image_id, collected in found.items()
            for member, name in collected.masks.items()
        }
        finder = self._finder("ann_dir", names.values())
        where = files.where("ann_dir")
        paths = [(name, finder.find(name, f"{self.path}: image {key[0]!r}, {where}")) for key, name in names.items()]
        return finder, dict(zip(names, finder.settle(paths), strict=True))

    def _finder(self, field_name: str, names: Iterable[Any]) -> FileFinder:
        """Return a FileFinder that searches a folder such as `image_dir` for the files named in the JSON file."""
        folder, exact = self.files.folder(field_name), self.files.row.exact_names
        if exact or field_name not in self.files.folders:
            return FileFinder(folder, exact, names)
        listed = self.files.listed(field_name)
        return FileFinder(folder, listed is None, names, listed)

    def _name_of(self, number: int, image: dict[str, Any], collected: ImageAnnotations) -> Any:
        mask = next(iter(collected.masks.values()), None)
        try:
            return image_name(self.files.row.image_names, image, mask, f"{self.path}: images[{number}]")
        except OsmError:
            if self.files.row.exact_names or "file_name" in image:
                raise
            return image.get("coco_url")

    def _no_image(self, images: FileFinder, entries: list[Entry]) -> str:
        """Return an error message if the image folder contains none of the JSON file's images, or '' otherwise."""
        if images.exact or not entries or any(images.holds(entry.image) for entry in entries):
            return ""
        return (
            f"{self.files.where('image_dir')}: none of the {len(entries)} images of {self.path} exists; the json "
            f"says {shown(entries[0].record['file_name'])}, but {images.what_is_there()}"
        )

    def _report_guesses(self, finder: FileFinder, count: int) -> None:
        if finder.guessed:
            name, path = finder.guessed[0]
            logger.warning(
                f"{self.path}: {len(finder.guessed)} of {count} names are spelled differently from the files in "
                f"{finder.folder}; for example, {shown(name)} was matched to {finder.relative(path)!r}"
            )

    def _arguments(self) -> dict[str, Any]:
        files = self.files
        return {
            "form": files.name,
            "json_file": files.recorded("json_file"),
            "json_sha256": self.sha256,
            **{name: files.recorded(name) for name in ("image_dir", "ann_dir") if getattr(files, name)},
            "filter_lvis_val": files.filter_lvis_val,
        }

    def _unwanted(self) -> dict[int | str, str]:
        """Map the id of each COCO image that must be skipped to the reason for skipping it.

        The caller must also check that the image's file name follows COCO's naming scheme, because other datasets may
        use the same ids.
        """
        if not self.files.filter_lvis_val or not _of_coco(self.labels):
            return {}
        table = resources.files("osm.datasets") / "labels" / "coco_train2017_in_lvis_val.txt"
        return {int(line): "in_lvis_val" for line in table.read_text(encoding="utf-8").split()}

    def compare(self, table: str) -> None:
        """Warn if the category names differ from a label table, which suggests a different release of the dataset."""

        def plain(names: Iterable[str]) -> set[str]:
            return {re.sub(r"\(.*?\)|[\W_]", "", name.lower()) for name in names}

        known, own = load_labels(table).classes, self.labels.classes
        other = [n for n, one in own.items() if n not in known or not plain(one.names) & plain(known[n].names)]
        if len(other) > _TOLERATED * len(own):
            first = own[other[0]]
            there = repr(known[first.id].target) if first.id in known else "nothing"
            logger.warning(
                f"{self.path}: {len(other)} of {len(own)} category ids mean something else in the project's table "
                f"{table!r} (id {first.id} is {first.target!r} here and {there} there); is this a different release? "
                "To train on this data, add a dataset row whose labels are the categories.json written here"
            )


def kept_fields(row: Annotation, names: tuple[str, ...], number: int, category: int | None) -> Annotation:
    """Keep only the given fields of an annotation, so that unused fields cannot make the sample invalid.

    Args:
        row: the annotation.
        names: the fields to keep.
        number: the id to use if the annotation has no valid id.
        category: the category id; None for a crowd without a category.
    """
    crowd = is_crowd(row)
    kept: Annotation = {name: row[name] for name in names if name in row and not (crowd and not storable(row[name]))}
    kept.pop("category_id", None)
    if category is not None:
        kept["category_id"] = category
    own = row.get("id")
    return kept | {"id": own if isinstance(own, (int, str)) else number, "iscrowd": int(crowd)}


def _identity(image: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields that are compared to decide whether two entries with the same id describe the same image."""
    return image.get("file_name"), image.get("coco_url"), side(image.get("width")), side(image.get("height"))


def _other_kind(image_id: int | str) -> int | str | None:
    """Convert an integer id such as 1 to the string "1", or a string id such as "1" to the integer 1."""
    if isinstance(image_id, int):
        return str(image_id)
    number = whole(image_id)
    return number if str(number) == image_id else None


def _paired(
    source: CocoJson, found: Mapping[int | str, ImageAnnotations]
) -> list[tuple[dict[str, Any], ImageAnnotations]]:
    return [(image, found[image_id]) for image_id, image in source.images.items()]


def _has_masks(found: Mapping[int | str, ImageAnnotations]) -> bool:
    return any(collected.masks for collected in found.values())


def _key(keys: str, image: dict[str, Any], path: Path) -> str:
    if keys == "id":  # file names are unique only within each class folder
        return f"{image['id']:08d}" if isinstance(image["id"], int) else re.sub(r"[^\w-]", "_", image["id"])
    return path.stem.removesuffix("_leftImg8bit") if keys == "cityscapes" else ""


def _value(image_id: Any) -> Any:
    number = whole(image_id)
    return image_id if number is None else number


def _unique(by_value: dict[Any, int | str], images: Mapping[Any, Any]) -> dict[Any, int | str]:
    """Remove ambiguous values from `by_value`. For example, "7" and "07" both have the value 7, so 7 is removed."""
    counts = Counter(map(_value, images))
    return {value: image_id for value, image_id in by_value.items() if counts[value] == 1}


def _of_coco(labels: LabelSet) -> bool:
    """Return whether all categories belong to COCO.

    Thing classes are compared by id and name, but stuff classes only by id.
    """
    coco = load_labels("coco").classes
    return all(
        own.id in coco and (not coco[own.id].isthing or own.target in coco[own.id].names)
        for own in labels.classes.values()
    )


def size_key(image_id: int | str) -> tuple[bool, int | str]:
    """Return a sort key for an image id. Integers are sorted before strings."""
    return isinstance(image_id, str), image_id


__all__ = ["Annotation", "CocoJson", "ImageAnnotations", "Size", "kept_fields", "size_key"]
