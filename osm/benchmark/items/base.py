"""What the val splits of all forms have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from osm.data.datasets import Dataset
from osm.data.images import open_image
from osm.data.paths import safe_join
from osm.errors import OsmError, SampleError

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


@dataclass(frozen=True)
class ImageFile:
    """An image of a set, whatever masks it has.

    Attributes:
        id: as the json has it; of a set without one, the file's name without its ending.
        names: what it may be called: its path below the image folder, and the json's `file_name`.
        size: height and width, where the json states them.
    """

    id: int | str
    names: tuple[str, ...]
    path: Path
    size: tuple[int, int] | None = None


class Split(ABC):
    """The items of one dataset row. What the json, or the names of the files, show to be wrong is an error at once.

    Attributes:
        needs: the path fields of the row that are read; `image_needs`: those that finding its images takes.
        masks_field: the one of them that says which masks there are.
        source_hash: changes when the masks do.
        prefix, suffix: what stands around the entries in the prediction file.
        kind: in the prediction file's name.
        category_key, id_key: where an annotation of the prediction file has its category id, and its own.
    """

    needs: tuple[str, ...]
    image_needs: ClassVar[tuple[str, ...]] = ("image_dir", "json_file")
    masks_field: ClassVar[str] = "json_file"
    prefix: ClassVar[str] = "["
    suffix: ClassVar[str] = "]"
    kind: ClassVar[str] = "pred"
    category_key: ClassVar[str] = "category_id"
    id_key: ClassVar[str] = "id"
    source_hash: str

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

    @abstractmethod
    def paths(self, index: int) -> list[Path]:
        """The files that `load` and the image of an item read."""

    @abstractmethod
    def outline(self, index: int) -> tuple[Hashable, list[tuple[Hashable, Hashable]] | None]:
        """What an item's entry is about, without reading a picture.

        Returns:
            what identifies the image in a prediction file, and (id, category id) of every mask that is to be named;
            None where only pixels tell.
        """

    @classmethod
    @abstractmethod
    def images(cls, row: Dataset) -> tuple[list[ImageFile], str]:
        """Every image of a set, and a hash that changes when they do; reads only `image_needs`."""

    @classmethod
    @abstractmethod
    def entries_in(cls, document: Any) -> Iterator[tuple[Hashable, list[dict[str, Any]]]]:
        """Of each entry of a prediction file's document: what identifies the image (None: nothing does), and the
        image's annotations, named or not.

        Raises:
            TypeError, KeyError, ValueError, AttributeError: it is in another form.
        """

    @classmethod
    def annotations_in(cls, document: Any) -> Iterator[dict[str, Any]]:
        """The annotations of all entries."""
        for _, of_image in cls.entries_in(document):
            yield from of_image

    @property
    def source(self) -> str:
        """The file or folder that says which masks there are."""
        return str(getattr(self.row, self.masks_field))

    @property
    def files(self) -> dict[str, str]:
        """What is read, by field of the row."""
        return {field: str(Path(getattr(self.row, field)).absolute()) for field in self.needs}

    def text(self, entry: Any) -> str:
        """An item's entry as the prediction file has it."""
        return json.dumps(entry)


def countable(value: Any) -> Hashable:
    """An id from a file as something that can be a key; no check asks what kind of value an annotation's own id is."""
    return value if isinstance(value, (int, str)) else repr(value)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, not decoded."""
    with open_image(path) as image:
        return image.height, image.width


def read_map(path: Path, read: Callable[[Path], np.ndarray], image_path: Path, size: tuple[int, int]) -> np.ndarray:
    """A map of ids (H, W), once it is known to fit the image of that height and width."""
    try:
        ids = read(path)
    except SampleError as error:
        raise OsmError(f"{path}: {error}") from None
    if ids.shape != size:
        raise OsmError(
            f"{path}: {ids.shape[1]} x {ids.shape[0]}, but its image {image_path} is {size[1]} x {size[0]}; they must "
            "be equal"
        )
    return ids


def join(root: str | None, name: Any, where: str | Path) -> Path:
    """The path of a file that a json names."""
    try:
        return safe_join(Path(str(root)), name)
    except OsmError as error:
        raise OsmError(f"{where}: {error}") from None
