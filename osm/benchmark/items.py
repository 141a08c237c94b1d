"""The val splits: which masks of which image are to be named, and what the prediction file says about that image.

One class a form of annotation (`SPLITS`); generation and evaluation know nothing else about a set. A form for semantic
sets is one more class, and a name in `osm.data.datasets.FORMS`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.data.datasets import Dataset
from osm.data.images import open_image, read_panoptic
from osm.data.paths import safe_join
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.errors import OsmError, SampleError, shown
from osm.files import read_json

FIELD = "open_end_pred"


@dataclass(frozen=True)
class Item:
    """One image, ready to be named.

    Attributes:
        image_path: the image, not decoded yet.
        size: height and width of its masks, equal to the image's.
        entry: what the prediction file holds for it, a copy of its own.
        annotations: the parts of `entry` that are to be named; each takes the field `open_end_pred`.
        mask: the bool mask (H, W) of the k-th of `annotations`; all False where it has no pixel.
        counts: what was left out here: `crowd`, `missing_in_mask` (in the json alone), `unknown_in_mask` (in the PNG
            alone).
    """

    image_path: Path
    size: tuple[int, int]
    entry: Any
    annotations: list[dict[str, Any]]
    mask: Callable[[int], np.ndarray]
    counts: Counter[str]


class Split(ABC):
    """The items of one dataset row. Whatever the json alone shows to be wrong is an error at construction."""

    needs: ClassVar[tuple[str, ...]]
    """The path fields of the row that this form reads."""
    prefix: ClassVar[str] = "["
    suffix: ClassVar[str] = "]"
    """What stands around the entries in the prediction file."""
    category_key: ClassVar[str] = "category_id"
    """Where an annotation of the prediction file has its category id."""
    source_hash: str
    """Changes when the annotations do."""

    def __init__(self, row: Dataset) -> None:
        self.row = row
        missing = next((key for key in self.needs if getattr(row, key) is None), None)
        if missing:
            raise OsmError(f"set {row.name!r}: its form {row.form} needs {missing}, which is not given")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Item:
        """Reads one item's masks."""

    @classmethod
    @abstractmethod
    def annotations_in(cls, document: Any) -> Iterator[dict[str, Any]]:
        """The annotations in a prediction file's document, named or not; TypeError, KeyError or ValueError if wrong."""

    def _check_category(self, annotation: dict[str, Any], where: str) -> None:
        category_id = annotation.get("category_id")
        if type(category_id) is not int or category_id not in self.row.label_set:
            labels = self.row.label_set
            raise OsmError(
                f"{where}: category_id {category_id!r} is not in the label set {labels.source} of set "
                f"{self.row.name!r} ({len(labels.classes)} ids)"
            )


class CocoPanoptic(Split):
    """COCO-panoptic form: one item an entry of `annotations`, masks in a PNG with id = R + 256 G + 65536 B."""

    needs = ("image_dir", "mask_dir", "json_file")

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        self._json = Path(str(row.json_file))
        document, self.source_hash = read_json(self._json, "annotations")
        self._images = _images_by_id(document, self._json)
        self._entries = _objects(document, "annotations", self._json)
        for number, entry in enumerate(self._entries):
            where = f"{self._json}: annotation {number}"
            image = _image_of(entry, self._images, where)
            _join(row.image_dir, image.get("file_name"), f"{self._json}: image {image['id']}")
            _join(row.mask_dir, entry.get("file_name"), where)
            for segment in _objects(entry, "segments_info", where):
                if type(segment.get("id")) is not int:
                    raise OsmError(f"{where}: segment id {segment.get('id')!r} is not an integer")
                if not segment.get("iscrowd"):
                    self._check_category(segment, f"{where} (image_id {entry['image_id']}), segment {segment['id']}")

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, index: int) -> Item:
        entry = copy.deepcopy(self._entries[index])
        image_path = _join(self.row.image_dir, self._images[entry["image_id"]]["file_name"], self._json)
        mask_path = _join(self.row.mask_dir, entry["file_name"], self._json)
        size = _size(image_path)
        try:
            panoptic = read_panoptic(mask_path)
        except SampleError as error:
            raise OsmError(f"{mask_path}: {error}") from None
        if panoptic.shape != size:
            raise OsmError(
                f"{mask_path}: {panoptic.shape[1]} x {panoptic.shape[0]}, but its image {image_path} is "
                f"{size[1]} x {size[0]}; they must be equal"
            )
        segments = entry["segments_info"]
        named = [segment for segment in segments if not segment.get("iscrowd")]
        drawn = set(np.unique(panoptic).tolist()) - {0}
        counts = Counter(
            crowd=len(segments) - len(named),
            missing_in_mask=sum(segment["id"] not in drawn for segment in named),
            unknown_in_mask=len(drawn - {segment["id"] for segment in segments}),
        )
        return Item(image_path, size, entry, named, lambda k: panoptic == named[k]["id"], counts)

    @classmethod
    def annotations_in(cls, document: Any) -> Iterator[dict[str, Any]]:
        if not isinstance(document, list):
            raise TypeError("expected a list of annotations")
        for entry in document:
            yield from entry["segments_info"]


class CocoInstances(Split):
    """COCO- and LVIS-instances form: one item an image, in order of id; masks are polygons or RLE."""

    needs = ("image_dir", "json_file")
    prefix = '{"pred": ['
    suffix = "]}"

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        self._json = Path(str(row.json_file))
        document, self.source_hash = read_json(self._json, "annotations")
        images = _images_by_id(document, self._json)
        self._images = [images[image_id] for image_id in sorted(images)]
        for image in self._images:
            _join(row.image_dir, _instances_file_name(image), f"{self._json}: image {image['id']}")
        self._annotations: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        for number, annotation in enumerate(_objects(document, "annotations", self._json)):
            where = f"{self._json}: annotation {annotation.get('id', f'number {number}')}"
            image = _image_of(annotation, images, where)
            if not annotation.get("iscrowd"):
                self._check_category(annotation, where)
                check_segmentation(annotation.get("segmentation"), where)
            self._annotations[image["id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Item:
        image = copy.deepcopy(self._images[index])
        annotations = copy.deepcopy(self._annotations[image["id"]])
        image_path = _join(self.row.image_dir, _instances_file_name(image), self._json)
        size = _size(image_path)
        stated = (image.get("height", size[0]), image.get("width", size[1]))
        if stated != size:
            raise OsmError(
                f"{self._json}: image {image['id']} has width {stated[1]} and height {stated[0]} there, but "
                f"{image_path} is {size[1]} x {size[0]}; they must be equal"
            )
        named = [annotation for annotation in annotations if not annotation.get("iscrowd")]

        def mask(k: int) -> np.ndarray:
            where = f"{self._json}: annotation {named[k].get('id')} of image {image_path}"
            return decode_segmentation(named[k]["segmentation"], size, where)

        counts = Counter(crowd=len(annotations) - len(named))
        return Item(image_path, size, [image, annotations], named, mask, counts)

    @classmethod
    def annotations_in(cls, document: Any) -> Iterator[dict[str, Any]]:
        for _, annotations_of_image in document["pred"]:
            yield from annotations_of_image


SPLITS: dict[str, type[Split]] = {"coco_panoptic": CocoPanoptic, "coco_instances": CocoInstances}


def no_split(row: Dataset) -> str:
    """What is said of a set that can be trained on, but not predicted on."""
    return f"sets of form {row.form} cannot be predicted on yet (only {', '.join(SPLITS)})"


def _objects(holder: Any, key: str, where: str | Path) -> list[dict[str, Any]]:
    """The list of objects that a json has under a key."""
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise OsmError(f"{where}: expected a list of objects {key!r}, found {shown(value)}")
    return value


def _images_by_id(document: Any, json_file: Path) -> dict[Any, dict[str, Any]]:
    images: dict[Any, dict[str, Any]] = {}
    for image in _objects(document, "images", json_file):
        if type(image.get("id")) not in (int, str):
            raise OsmError(f"{json_file}: image id {image.get('id')!r} is neither an integer nor a string")
        if image["id"] in images:
            raise OsmError(f"{json_file}: image id {image['id']!r} is given twice")
        images[image["id"]] = image
    if len({type(image_id) for image_id in images}) > 1:
        raise OsmError(f"{json_file}: image ids are integers and strings mixed; expected one kind")
    return images


def _image_of(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], where: str) -> dict[str, Any]:
    image_id = annotation.get("image_id")
    if type(image_id) not in (int, str) or image_id not in images:
        raise OsmError(f"{where}: image_id {image_id!r} is not among the json's images")
    return images[image_id]


def _join(root: str | None, name: Any, where: str | Path) -> Path:
    try:
        return safe_join(Path(str(root)), name)
    except OsmError as error:
        raise OsmError(f"{where}: {error}") from None


def _instances_file_name(image: dict[str, Any]) -> str:
    # LVIS has no file_name: its images lie in COCO's folders, which the last two parts of the address name.
    return image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:])


def _size(image_path: Path) -> tuple[int, int]:
    with open_image(image_path) as image:
        return image.height, image.width
