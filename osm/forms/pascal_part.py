"""Draws the masks in a Pascal-Part .mat file into two label maps, one for objects and one for parts."""

from __future__ import annotations

import io
import json
from collections.abc import Container, Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.errors import SampleError
from osm.forms.base import Entry, Losses
from osm.forms.picture import Size
from osm.forms.set_files import naming_file, read_file
from osm.io.images import panoptic_pixels
from osm.io.mat import read_mat

_TABLE = "pascal_part"
NamedMasks = list[tuple[str, np.ndarray]]  # raw names and bool masks (H, W), in drawing order


@cache
def ids() -> dict[str, int]:
    """Map each raw name in Pascal-Part, such as "cow" or "cow:lear" (a cow's left ear), to its id.

    Names that are not used in training also have ids, because masks with these names may overwrite other masks.
    """
    table = resources.files("osm.datasets") / "labels" / f"{_TABLE}.json"
    document = json.loads(table.read_text(encoding="utf-8"))
    return {row["raw_name"]: row["id"] for row in [*document["categories"], *document["ignored"]]}


def draw_maps(
    entry: Entry, size: Size, losses: Losses, labels: Container[int], id_coding: str = "rgb"
) -> dict[str, bytes]:
    """Draw the masks in a .mat file as two label maps (parts and whole objects), and return the maps as sample members.

    Args:
        entry: the entry of the image.
        size: (width, height) of the image.
        losses: collects masks whose names are unknown.
        labels: the ids of the parts that are used in training.
        id_coding: how the PNGs store ids; see `Rules`.

    Raises:
        SampleError: the file cannot be read, or none of its parts is used in training.
    """
    path = entry.masks["mat"]
    with naming_file(path, "mask"):
        whole, parts = named_masks(read_mat(read_file(path), "anno"))
        maps = [_draw(masks, size, losses, path) for masks in (parts, whole)]
    if not any(i in labels for i in np.unique(maps[0]).tolist()):
        raise SampleError("no_part_masks", f"mask {path}: no object has a part that is in the label table")
    return {"part.png": _png(maps[0], id_coding), "whole.png": _png(maps[1], id_coding)}


def named_masks(anno: Any) -> tuple[NamedMasks, NamedMasks]:
    """Return the object masks and the part masks in a .mat file's variable `anno`, in file order.

    Raises:
        SampleError: `annotation_malformed`.
    """
    try:
        whole: NamedMasks = []
        parts: NamedMasks = []
        for one in _records(anno["objects"]):
            name = _text(one["class"])
            whole.append((name, _mask(one["mask"])))
            parts += [(f"{name}:{_text(part['part_name'])}", _mask(part["mask"])) for part in _records(one["parts"])]
        return whole, parts
    except (IndexError, KeyError, TypeError, ValueError) as error:
        needed = "anno.objects[] with class, mask and parts[] (part_name, mask)"
        raise SampleError("annotation_malformed", f"does not have the form {needed}: {error!r}") from None


def _records(cell: Any) -> Iterator[Any]:
    """Yield the entries of a MATLAB structure array, which may be wrapped in single-element cells."""
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


def _draw(masks: NamedMasks, size: Size, losses: Losses, path: Path) -> np.ndarray:
    """Draw masks into an int32 label map (H, W). Where masks overlap, later masks overwrite earlier ones."""
    canvas = np.zeros((size[1], size[0]), np.int32)
    for name, mask in masks:
        if mask.shape != canvas.shape:
            found = f"{mask.shape[1]} x {mask.shape[0]}"
            raise SampleError("size_mismatch", f"the mask of {name!r} is {found}, its image {size[0]} x {size[1]}")
        if name in ids():
            canvas[mask] = ids()[name]
        else:
            losses.add("name_not_in_table", f"mask {path}: {name!r} is not in the table {_TABLE}, ignored")
    return canvas


def _png(canvas: np.ndarray, id_coding: str) -> bytes:
    # 16 bits are enough, because all ids in the table are below 65536.
    pixels = panoptic_pixels(canvas) if id_coding == "rgb" else canvas.astype(np.uint16)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()
