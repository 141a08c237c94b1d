"""Masks of a set's images from a file of proposals (COCO's results form) instead of the set's ground truth."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from osm.benchmark.items import SPLITS
from osm.benchmark.items.base import ImageFile, Item, Split, image_size
from osm.data.datasets import Dataset
from osm.data.segmentation import check_segmentation, decode_segmentation
from osm.errors import OsmError, shown
from osm.files import read_json


class Proposals(Split):
    """One item an image that has proposals, in the order in which they first name it.

    The prediction file is a list of the proposals, image by image.
    """

    kind = "proposals"

    def __init__(self, row: Dataset, file: str | Path) -> None:
        form = SPLITS[row.form]
        self.needs = form.image_needs
        super().__init__(row)
        self._file = Path(file)
        images, images_hash = form.images(row)
        proposals, own_hash = read_json(self._file, "--masks")
        self.source_hash = hashlib.sha256(f"{images_hash} {own_hash}".encode()).hexdigest()
        self._items = list(by_image(row, images, proposals, f"--masks {file}").items())

    def __len__(self) -> int:
        return len(self._items)

    def load(self, index: int) -> Item:
        path, numbered = self._items[index]
        size = image_size(path)
        proposals = [copy.deepcopy(proposal) for _, proposal in numbered]

        def mask(k: int) -> np.ndarray:
            where = f"--masks {self._file}: proposal {numbered[k][0]} (image {path})"
            return decode_segmentation(proposals[k]["segmentation"], size, where)

        return Item(path, size, proposals, proposals, mask, Counter())

    def paths(self, index: int) -> list[Path]:
        return [self._items[index][0]]

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        return str(self._items[index][0]), None  # a proposal has neither id nor category

    @property
    def source(self) -> str:
        return str(self._file)

    @property
    def files(self) -> dict[str, str]:
        return {**super().files, "masks": str(self._file.absolute())}

    def text(self, entry: Any) -> str:
        return ", ".join(json.dumps(proposal) for proposal in entry)

    @classmethod
    def images(cls, row: Dataset) -> tuple[list[ImageFile], str]:
        return SPLITS[row.form].images(row)

    @classmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        for proposal in document:
            yield proposal.get("image_id", proposal.get("file_name")), [proposal]


def by_image(
    row: Dataset, images: list[ImageFile], proposals: Any, where: str
) -> dict[Path, list[tuple[int, dict[str, Any]]]]:
    """Proposals, checked, with their numbers in their file, by the path of their image.

    Raises:
        OsmError: they are no list of proposals of these images of the set; `where` says which file that is.
    """
    if not isinstance(proposals, list) or not all(isinstance(proposal, dict) for proposal in proposals):
        expected = "expected a list of {image_id or file_name, segmentation: {size, counts}}"
        raise OsmError(f"{where}: {expected}, found {shown(proposals)}")
    finder = _Finder(row, images)
    of_image: dict[Path, list[tuple[int, dict[str, Any]]]] = {}
    for number, proposal in enumerate(proposals):
        about = f"{where}: proposal {number}"
        image = finder.image_of(proposal, about)
        _check(proposal, image, about)
        of_image.setdefault(image.path, []).append((number, proposal))
    return of_image


class _Finder:
    """Images by what a proposal calls them."""

    def __init__(self, row: Dataset, images: list[ImageFile]) -> None:
        self._row = row
        self._by_id = {image.id: image for image in images}
        self._by_name: dict[str, list[ImageFile]] = {}
        for image in images:
            for name in image.names:
                self._by_name.setdefault(name, []).append(image)

    def image_of(self, proposal: dict[str, Any], where: str) -> ImageFile:
        found = []
        for key in ("image_id", "file_name"):
            if key in proposal:
                found.append(self._find(key, proposal[key], where))
        if not found:
            raise OsmError(f"{where}: has neither image_id nor file_name; one of them says whose mask it is")
        if found[0] != found[-1]:
            raise OsmError(
                f"{where}: image_id {proposal['image_id']!r} and file_name {proposal['file_name']!r} are two images of "
                f"set {self._row.name!r}; expected one"
            )
        return found[0]

    def _find(self, key: str, value: Any, where: str) -> ImageFile:
        found: list[ImageFile] = []
        if key == "image_id" and type(value) in (int, str) and value in self._by_id:
            found = [self._by_id[value]]
        elif key == "file_name" and isinstance(value, str):
            found = self._by_name.get(value, [])
        if len(found) != 1:
            called = "is not" if not found else f"is {len(found)} images"
            raise OsmError(
                f"{where}: {key} {shown(value)} {called} among the {len(self._by_id)} images of set "
                f"{self._row.name!r}; expected one of them"
            )
        return found[0]


def _check(proposal: dict[str, Any], image: ImageFile, where: str) -> None:
    """Raises OsmError where a proposal is not in the form, as far as it can be told without its pixels."""
    segmentation = proposal.get("segmentation")
    if not isinstance(segmentation, dict):
        raise OsmError(f"{where}: segmentation {shown(segmentation)} is not an RLE {{size, counts}}")
    check_segmentation(segmentation, where)
    if image.size is not None and segmentation["size"] != list(image.size):
        size = f"{shown(segmentation['size'])} (height, width)"
        raise OsmError(f"{where}: RLE size {size}, but its image {image.path} is {list(image.size)}")
    if "score" in proposal and not _finite(proposal["score"]):
        raise OsmError(f"{where}: score {shown(proposal['score'])} is not a number")
    if "bbox" in proposal:
        box = proposal["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
            raise OsmError(f"{where}: bbox {shown(box)} is not [x, y, width, height]")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300  # false for nan, too
