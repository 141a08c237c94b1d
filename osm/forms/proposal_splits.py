"""Val splits whose masks are read from a proposal file instead of the dataset's ground truth.

The proposal file is a list in COCO results format ({image_id or file_name, segmentation}), a COCO JSON file {images,
annotations}, or the masks of one image in SA-1B format ({image, annotations}). In a box dataset, a proposal's mask is
its filled `bbox`, or the filled bounding box of its segmentation if there is no `bbox`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np

from osm.datasets.table import Dataset
from osm.errors import OsmError, SampleError, shown
from osm.files import read_json
from osm.forms.base import Form, Losses, too_many_lost
from osm.forms.instances import corners, draw_box, usable_box
from osm.forms.split import MAX_BAD_ANNOTATIONS, ImageFile, Item, Split, image_files, images_of, recorded
from osm.io.segmentation import decode_segmentation, read_segmentation
from osm.io.values import finite, whole
from osm.storage.cache import localize
from osm.storage.locations import public

_EXPECTED = (
    "expected a list of {image_id or file_name, segmentation}, a COCO json {images, annotations}, or one image's "
    "{image, annotations} in SA-1B format"
)
NumberedProposal = tuple[int, dict[str, Any]]  # the index in the file, and the proposal


class ProposalSplit(Split):
    """A val split with one item for each image that has proposals.

    The items are in the order in which the images first appear in the proposal file. The prediction file lists all
    usable proposals, grouped by image.

    Args:
        row, form, max_bad_annotations: as in `Split`.
        file: path or URL of the proposal file.

    Raises:
        OsmError: the file is malformed, refers to an image outside the dataset, or has too many unusable proposals.
    """

    kind = "proposals"

    def __init__(
        self, row: Dataset, form: type[Form], file: str | Path, max_bad_annotations: float = MAX_BAD_ANNOTATIONS
    ) -> None:
        self.row, self.form, self._file, self._given = row, form, localize(file, "--masks"), public(file)
        self.files = image_files(row, form)
        images, images_hash = images_of(row, form, self.files)
        proposals, own_hash = read_json(self._file, "--masks")
        self.source_hash = hashlib.sha256(f"{images_hash} {own_hash}".encode()).hexdigest()
        losses = Losses()
        found = by_image(row, form, images, proposals, f"--masks {self._given}", losses)
        self.first_fault = losses.first
        self._items = [(image, numbered) for image, numbered in found.values() if numbered]
        kept = sum(len(numbered) for _, numbered in self._items)
        if failed := too_many_lost(losses.lost, kept, max_bad_annotations, losses.first):
            raise OsmError(failed)

    def __len__(self) -> int:
        return len(self._items)

    def load(self, index: int) -> Item:
        image, numbered = self._items[index]
        self.fetch([index])
        picture = image.picture()
        size = (picture.size[1], picture.size[0])
        proposals = [copy.deepcopy(proposal) for _, proposal in numbered]

        def mask(k: int) -> np.ndarray:
            where = f"--masks {self._given}: proposal {numbered[k][0]} (image {image.path})"
            return mask_of(proposals[k], self.form.boxed, size, where)

        boxed = [self.form.boxed] * len(proposals)
        return Item(picture, size, proposals, proposals, mask, Counter(), list(range(len(proposals))), boxed)

    def paths(self, index: int) -> list[Path]:
        return [self._items[index][0].path]

    def image_path(self, index: int) -> Path:
        return self._items[index][0].path

    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        return str(self._items[index][0].path), None  # a proposal has no id and no category

    @property
    def source(self) -> str:
        return self._given

    @property
    def source_files(self) -> dict[str, str]:
        files = {name: recorded(getattr(self.row, name)) for name in self.form.image_needs}
        return {**files, "masks": recorded(self._given)}

    @property
    def prefix(self) -> str:
        return "["

    @property
    def suffix(self) -> str:
        return "]"

    def text(self, entry: Any) -> str:
        return ", ".join(json.dumps(proposal) for proposal in entry)


def by_image(
    row: Dataset, form: type[Form], images: list[ImageFile], document: Any, where: str, losses: Losses
) -> dict[Path, tuple[ImageFile, list[NumberedProposal]]]:
    """Check all proposals in a proposal file and group the valid ones by image path.

    Args:
        row: row of the dataset table.
        form: the row's annotation format.
        images: all images of the dataset.
        document: the content of the proposal file.
        where: the name of the file, with which error messages begin.
        losses: collects unusable proposals.

    Raises:
        OsmError: the document is in a different format, or a proposal refers to an image outside the dataset.
    """
    proposals = _listed(document, where)
    finder = _ImageFinder(row, images)
    of_image: dict[Path, tuple[ImageFile, list[NumberedProposal]]] = {}
    for number, proposal in enumerate(proposals):
        about = f"{where}: proposal {number}"
        image = finder.image_of(proposal, about)
        try:
            _check(proposal, form.boxed, image, about)
        except SampleError as error:
            losses.add(error.reason, str(error))
            continue
        of_image.setdefault(image.path, (image, []))[1].append((number, proposal))
    return of_image


def _listed(document: Any, where: str) -> list[dict[str, Any]]:
    """Return the proposals in a proposal file. A proposal contains its image's `image_id` or `file_name`."""
    proposals = document
    image: dict[str, Any] = {}
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        proposals = document["annotations"]
        if isinstance(document.get("image"), dict):
            image = {key: document["image"][key] for key in ("file_name", "image_id") if key in document["image"]}
            if "file_name" in image:  # image ids of SA-1B do not match the dataset's ids
                image.pop("image_id", None)
    if not isinstance(proposals, list) or not all(isinstance(proposal, dict) for proposal in proposals):
        raise OsmError(f"{where}: {_EXPECTED}, found {shown(document)}")
    if image:
        return [{**image, **proposal} for proposal in proposals]
    nameless = [proposal for proposal in proposals if "image_id" not in proposal and "file_name" not in proposal]
    if nameless and len(nameless) == len(proposals) and "predicted_iou" in nameless[0]:
        raise OsmError(
            f"{where}: the masks have neither image_id nor file_name (SAM's automatic generator writes neither), so "
            "their images are unknown; add image_id or file_name to each mask"
        )
    return proposals


class _ImageFinder:
    """Finds the image that a proposal's `image_id` or `file_name` refers to."""

    def __init__(self, row: Dataset, images: list[ImageFile]) -> None:
        self._row, self._count = row, len(images)
        self._by_id: dict[Any, list[ImageFile]] = {}
        for image in images:
            self._by_id.setdefault(_id(image.id), []).append(image)
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
            raise OsmError(f"{where}: has neither image_id nor file_name, so its image is unknown")
        if found[0] != found[-1]:
            raise OsmError(
                f"{where}: image_id {proposal['image_id']!r} and file_name {proposal['file_name']!r} refer to "
                f"different images in dataset {self._row.name!r}; expected the same image"
            )
        return found[0]

    def _find(self, key: str, value: Any, where: str) -> ImageFile:
        found: list[ImageFile] = []
        if key == "image_id":
            found = self._by_id.get(_id(value), [])
        elif key == "file_name" and isinstance(value, str):
            found = self._by_name.get(value, [])
        if len(found) != 1:
            matched = str(len(found)) if found else "none"
            raise OsmError(
                f"{where}: {key} {shown(value)} matches {matched} of the {self._count} images in dataset "
                f"{self._row.name!r}; expected exactly one image"
            )
        return found[0]


def _id(value: Any) -> Hashable:
    """Convert an id to an integer if possible, or else to a string, so that 1 and "1" become the same key."""
    number = whole(value)
    return str(value) if number is None else number


def mask_of(proposal: dict[str, Any], boxed: bool, size: tuple[int, int], where: str) -> np.ndarray:
    """Return a proposal's mask as bool (H, W). An empty mask is False everywhere.

    Args:
        proposal: the proposal.
        boxed: whether the masks of the dataset are boxes.
        size: (height, width) of the image.
        where: the location of the proposal, for error messages.

    Raises:
        SampleError: the proposal has no valid mask.
    """
    if boxed and proposal.get("bbox") is not None:
        return draw_box(corners(proposal["bbox"], (size[1], size[0]), where), size)
    mask = decode_segmentation(proposal["segmentation"], size, where)
    if boxed and mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return mask


def _check(proposal: dict[str, Any], boxed: bool, image: ImageFile, where: str) -> None:
    """Check a proposal without decoding its mask. The `bbox` field is checked only in a box dataset.

    Raises:
        OsmError: the proposal has neither a mask nor a box, or its score is not a number.
        SampleError: the mask or box is not usable.
    """
    box, segmentation = proposal.get("bbox") if boxed else None, proposal.get("segmentation")
    if box is not None:
        height, width = image.size or (sys.maxsize, sys.maxsize)
        usable_box(box, (width, height), where)
    elif not isinstance(segmentation, (dict, list)):
        either = ", and there is no bbox" if boxed else ""
        raise OsmError(
            f"{where}: segmentation {shown(segmentation)} is neither an RLE {{size, counts}} nor polygons{either}"
        )
    elif image.size is not None:
        read_segmentation(segmentation, image.size, where)
    if proposal.get("score") is not None and finite(proposal["score"]) is None:
        raise OsmError(f"{where}: score {shown(proposal['score'])} is not a number")
