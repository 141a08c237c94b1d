"""Sets with a json in COCO's form: panoptic and instances."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from osm.benchmark.items.base import ImageFile, Item, Split, countable, image_size, join, read_map
from osm.data.datasets import Dataset
from osm.data.image_names import image_name
from osm.data.images import read_panoptic
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.errors import OsmError, shown
from osm.files import read_json


class _Json:
    """A set's json, checked as far as all forms have it in common."""

    def __init__(self, row: Dataset) -> None:
        self.row, self.path = row, Path(str(row.json_file))
        self.document, self.hash = read_json(self.path, "annotations")
        self.images: dict[Any, dict[str, Any]] = {}
        for image in objects(self.document, "images", self.path):
            if type(image.get("id")) not in (int, str):
                raise OsmError(f"{self.path}: image id {image.get('id')!r} is neither an integer nor a string")
            if image["id"] in self.images:
                raise OsmError(f"{self.path}: image id {image['id']!r} is given twice")
            self.images[image["id"]] = image
        if len({type(image_id) for image_id in self.images}) > 1:
            raise OsmError(f"{self.path}: image ids are integers and strings mixed; expected one kind")

    def annotations(self) -> list[dict[str, Any]]:
        return objects(self.document, "annotations", self.path)

    def image_of(self, annotation: dict[str, Any], where: str) -> dict[str, Any]:
        image_id = annotation.get("image_id")
        if type(image_id) not in (int, str) or image_id not in self.images:
            raise OsmError(f"{where}: image_id {image_id!r} is not among the json's images")
        return self.images[image_id]

    def image_path(self, image: dict[str, Any], mask_name: Any = None) -> Path:
        where = f"{self.path}: image {image['id']}"
        return join(self.row.image_dir, image_name(self.row.image_names, image, mask_name, where), where)

    def check_category(self, annotation: dict[str, Any], where: str) -> None:
        category_id = annotation.get("category_id")
        labels = self.row.label_set
        if type(category_id) is not int or category_id not in labels:
            raise OsmError(
                f"{where}: category_id {category_id!r} is not in the label set {labels.source} of set "
                f"{self.row.name!r} ({len(labels.classes)} ids)"
            )

    def image_files(self, mask_names: dict[Any, Any]) -> list[ImageFile]:
        """All images; `mask_names`: of their panoptic PNGs, by image id."""
        files = []
        for image_id, image in self.images.items():
            path = self.image_path(image, mask_names.get(image_id))
            called = (path.relative_to(str(self.row.image_dir)).as_posix(), image.get("file_name"))
            height, width = image.get("height"), image.get("width")
            stated = (height, width) if isinstance(height, int) and isinstance(width, int) else None
            names = tuple(dict.fromkeys(name for name in called if isinstance(name, str)))
            files.append(ImageFile(image_id, names, path, stated))
        return files


class CocoPanoptic(Split):
    """COCO-panoptic form: one item an entry of `annotations`, masks in a PNG with id = R + 256 G + 65536 B."""

    needs = ("image_dir", "mask_dir", "json_file")

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        self._json = _Json(row)
        self.source_hash = self._json.hash
        self._entries = self._json.annotations()
        for number, entry in enumerate(self._entries):
            where = f"{self._json.path}: annotation {number}"
            image = self._json.image_of(entry, where)
            join(row.mask_dir, entry.get("file_name"), where)
            self._json.image_path(image, entry["file_name"])
            for segment in objects(entry, "segments_info", where):
                if type(segment.get("id")) is not int:
                    raise OsmError(f"{where}: segment id {segment.get('id')!r} is not an integer")
                if not segment.get("iscrowd"):
                    about = f"{where} (image_id {entry['image_id']}), segment {segment['id']}"
                    self._json.check_category(segment, about)

    def __len__(self) -> int:
        return len(self._entries)

    def image_path(self, index: int) -> Path:
        entry = self._entries[index]
        return self._json.image_path(self._json.images[entry["image_id"]], entry["file_name"])

    def mask_path(self, index: int) -> Path:
        return join(self.row.mask_dir, self._entries[index]["file_name"], self._json.path)

    def read_ids(self, index: int) -> np.ndarray:
        """The ids of an item's PNG, (H, W)."""
        image_path = self.image_path(index)
        return read_map(self.mask_path(index), read_panoptic, image_path, image_size(image_path))

    def load(self, index: int) -> Item:
        entry = copy.deepcopy(self._entries[index])
        panoptic = self.read_ids(index)
        segments = entry["segments_info"]
        named = [segment for segment in segments if not segment.get("iscrowd")]
        drawn = set(np.unique(panoptic).tolist()) - {0}
        counts = Counter(
            crowd=len(segments) - len(named),
            missing_in_mask=sum(segment["id"] not in drawn for segment in named),
            unknown_in_mask=len(drawn - {segment["id"] for segment in segments}),
        )
        size = (panoptic.shape[0], panoptic.shape[1])
        return Item(self.image_path(index), size, entry, named, lambda k: panoptic == named[k]["id"], counts)

    def paths(self, index: int) -> list[Path]:
        return [self.image_path(index), self.mask_path(index)]

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        entry = self._entries[index]
        return entry["image_id"], _outline(entry["segments_info"])

    @classmethod
    def images(cls, row: Dataset) -> tuple[list[ImageFile], str]:
        source = _Json(row)
        masks = {}
        for number, entry in enumerate(source.annotations()):
            image = source.image_of(entry, f"{source.path}: annotation {number}")
            masks[image["id"]] = entry.get("file_name")
        return source.image_files(masks), source.hash

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        if not isinstance(document, list):
            raise TypeError("expected a list of annotations")
        for entry in document:
            yield entry.get("image_id"), entry["segments_info"]


class CocoInstances(Split):
    """COCO- and LVIS-instances form: one item an image, in order of id; masks are polygons or RLE."""

    needs = ("image_dir", "json_file")
    prefix = '{"pred": ['
    suffix = "]}"

    def __init__(self, row: Dataset) -> None:
        super().__init__(row)
        self._json = _Json(row)
        self.source_hash = self._json.hash
        images = self._json.images
        self._images = [images[image_id] for image_id in sorted(images)]
        for image in self._images:
            self._json.image_path(image)
        self._annotations: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        for number, annotation in enumerate(self._json.annotations()):
            where = f"{self._json.path}: annotation {annotation.get('id', f'number {number}')}"
            image = self._json.image_of(annotation, where)
            if not annotation.get("iscrowd"):
                self._json.check_category(annotation, where)
                check_segmentation(annotation.get("segmentation"), where)
            self._annotations[image["id"]].append(annotation)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> Item:
        image = copy.deepcopy(self._images[index])
        annotations = copy.deepcopy(self._annotations[image["id"]])
        image_path = self._json.image_path(image)
        size = image_size(image_path)
        stated = (image.get("height", size[0]), image.get("width", size[1]))
        if stated != size:
            raise OsmError(
                f"{self._json.path}: image {image['id']} has width {stated[1]} and height {stated[0]} there, but "
                f"{image_path} is {size[1]} x {size[0]}; they must be equal"
            )
        named = [annotation for annotation in annotations if not annotation.get("iscrowd")]

        def mask(k: int) -> np.ndarray:
            where = f"{self._json.path}: annotation {named[k].get('id')} of image {image_path}"
            return decode_segmentation(named[k]["segmentation"], size, where)

        counts = Counter(crowd=len(annotations) - len(named))
        return Item(image_path, size, [image, annotations], named, mask, counts)

    def paths(self, index: int) -> list[Path]:
        return [self._json.image_path(self._images[index])]

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        image = self._images[index]
        return image["id"], _outline(self._annotations[image["id"]])

    @classmethod
    def images(cls, row: Dataset) -> tuple[list[ImageFile], str]:
        source = _Json(row)
        return source.image_files({}), source.hash

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        for image, of_image in document["pred"]:
            yield image.get("id"), of_image


def _outline(annotations: list[dict[str, Any]]) -> list[tuple[Hashable, Hashable]]:
    """(id, category id) of the annotations that are to be named."""
    named = [annotation for annotation in annotations if not annotation.get("iscrowd")]
    return [(countable(annotation.get("id")), annotation["category_id"]) for annotation in named]


def objects(holder: Any, key: str, where: str | Path) -> list[dict[str, Any]]:
    """The list of objects that a json has under a key."""
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise OsmError(f"{where}: expected a list of objects {key!r}, found {shown(value)}")
    return value
