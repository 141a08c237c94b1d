"""Pascal-Part: VOC2010 images, and a .mat file an image with the masks of its objects and of their parts."""

from __future__ import annotations

import argparse
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from osm.data.labels import load_labels
from osm.data.mat import read_mat
from osm.data.sources.base import (
    SEED,
    Item,
    Items,
    Plan,
    Size,
    Source,
    Warnings,
    about,
    digest,
    files_by_stem,
    read,
)
from osm.data.sources.semantic import categories, known_ids
from osm.errors import SampleError

_TABLE = "pascal_part"
Drawing = list[tuple[str, np.ndarray]]  # raw names and masks, in the order in which they are drawn


@cache
def ids() -> dict[str, int]:
    """By raw name ("cow", "cow:lear"); those without a name to learn too, as they cover what lies below them."""
    table = resources.files("osm.data") / "labels" / f"{_TABLE}.json"
    document = json.loads(table.read_text(encoding="utf-8"))
    return {row["raw_name"]: row["id"] for row in [*document["categories"], *document["ignored"]]}


@dataclass(frozen=True)
class PascalPart(Source):
    """Both label maps are PNGs with id = R + 256 G + 65536 B, 0 for nothing; later masks cover earlier ones."""

    image_dir: str | Path
    ann_dir: str | Path

    form: ClassVar[str] = "pascal_part"
    what: ClassVar[str] = "Pascal-Part"
    fine: ClassVar[frozenset[str]] = frozenset({"no_part_masks"})

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--image_dir", required=True, help="VOC2010's folder JPEGImages")
        parser.add_argument("--ann_dir", required=True, help="folder of the .mat files (Annotations_Part)")

    def plan(self) -> Plan:
        images = files_by_stem("image_dir", Path(self.image_dir), (".jpg", ".jpeg"))
        mats = files_by_stem("ann_dir", Path(self.ann_dir), (".mat",))
        items = Items()
        for stem, mat in mats.items():
            image = images.get(stem, Path(self.image_dir) / f"{stem}.jpg")
            items.add(f"--ann_dir {self.ann_dir}", stem, image, {"mat": mat}, {"file_name": image.name})
        unannotated = len(images.keys() - mats.keys())  # half of VOC2010
        arguments = {
            "form": self.form,
            "image_dir": str(Path(self.image_dir).resolve()),
            "ann_dir": str(Path(self.ann_dir).resolve()),
            "files_sha256": digest(path.name for path in [*images.values(), *mats.values()]),
            "seed": SEED,
        }
        left_out = Counter({"no_mat_file": unannotated} if unannotated else {})
        return Plan(items.shuffled(), left_out, arguments, categories(load_labels(_TABLE)))

    def check(self, item: Item, size: Size, warnings: Warnings) -> tuple[dict[str, bytes], dict[str, Any]]:
        path = item.masks["mat"]
        with about(path, "mask"):
            whole, parts = drawings(read_mat(read(path), "anno"))
            maps = [_draw(drawing, size, warnings, path) for drawing in (parts, whole)]
        if not known_ids(_TABLE) & set(np.unique(maps[0]).tolist()):
            raise SampleError("no_part_masks", f"mask {path}: none of its objects has parts with a name")
        return {"part.png": _png(maps[0]), "whole.png": _png(maps[1])}, {}


def drawings(anno: Any) -> tuple[Drawing, Drawing]:
    """The objects' masks and the parts' masks of an `anno`, in the file's order.

    Raises:
        SampleError: `annotation_malformed`.
    """
    try:
        whole: Drawing = []
        parts: Drawing = []
        for one in _records(anno["objects"]):
            name = _text(one["class"])
            whole.append((name, _mask(one["mask"])))
            parts += [(f"{name}:{_text(part['part_name'])}", _mask(part["mask"])) for part in _records(one["parts"])]
        return whole, parts
    except (IndexError, KeyError, TypeError, ValueError) as error:
        needed = "anno.objects[] with class, mask and parts[] (part_name, mask)"
        raise SampleError("annotation_malformed", f"has not the form {needed}: {error!r}") from None


def _records(cell: Any) -> Iterator[Any]:
    """The entries of a structure array, however it is wrapped; an empty array has none."""
    while isinstance(cell, np.ndarray) and cell.dtype == object and cell.size == 1:
        cell = cell.item()
    if not isinstance(cell, np.ndarray) or cell.size and cell.dtype.names is None:
        raise TypeError(f"a structure is needed, found {type(cell).__name__}")
    yield from cell.ravel()


def _text(cell: Any) -> str:
    while isinstance(cell, np.ndarray) and cell.size == 1:
        cell = cell.item()
    if not isinstance(cell, str):
        raise TypeError(f"a name is needed, found {cell!r:.50}")
    return cell


def _mask(cell: Any) -> np.ndarray:
    if not isinstance(cell, np.ndarray) or cell.ndim != 2 or cell.dtype.kind not in "buif":
        raise TypeError("a mask is needed")
    return cell != 0


def _draw(drawing: Drawing, size: Size, warnings: Warnings, path: Path) -> np.ndarray:
    canvas = np.zeros((size[1], size[0]), np.int32)
    for name, mask in drawing:
        if mask.shape != canvas.shape:
            found = f"{mask.shape[1]} x {mask.shape[0]}"
            raise SampleError("size_mismatch", f"the mask of {name!r} is {found}, its image {size[0]} x {size[1]}")
        if name in ids():
            canvas[mask] = ids()[name]
        else:
            warnings.append(("name_not_in_table", f"mask {path}: {name!r} is not in the table {_TABLE}, ignored", 1))
    return canvas


def _png(canvas: np.ndarray) -> bytes:
    rgb = np.stack([canvas % 256, canvas // 256 % 256, canvas // 65536], axis=-1).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(rgb).save(data, "PNG")
    return data.getvalue()
