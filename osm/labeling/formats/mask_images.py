"""Masks that are stored as images: label maps (VOC, mmseg), and folders of mask PNGs (SAM's command)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osm.errors import SampleError
from osm.io.images import open_image, read_ids, read_mask
from osm.labeling.formats.label_format import LabelFormat, LabelShape, MaskSource, Size, check_map_size, shape_of

_VOID = (0, 255)  # background, and the border of objects in VOC
_FEW = 64  # a gray PNG with more values than this is a photo


class LabelMapFiles(LabelFormat):
    """A PNG for each image, whose pixels are the ids of objects or classes (VOC, mmseg). 0 and 255 are no objects."""

    name, title = "label_maps", "label maps (VOC, mmseg)"
    writes = found_alone = False

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        files = _pngs(path)[:1] if path.is_dir() else []
        return bool(files) and files[0].parent == path and _is_map(files[0])

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        for file in _pngs(path):
            name = file.relative_to(path).with_suffix("").as_posix()
            yield MaskSource(name, f"{file}: id", data=file)

    @classmethod
    def count(cls, source: MaskSource) -> int:
        return len(_ids_of(read_ids(source.data)))

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        ids = read_ids(source.data)
        check_map_size(ids, size, str(source.data))
        return replace(source, rows=tuple(_ids_of(ids)), data=ids)

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        return [shape_of(source.data == row, where, id=row, label=str(row))]


class MaskFolders(LabelFormat):
    """A folder for each image with a PNG for each mask, as SAM's command writes them. Pixels above 0 are the mask."""

    name, title = "mask_folders", "folders of mask PNGs"
    writes = found_alone = False

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        files = _pngs(path)[:1] if path.is_dir() else []
        return bool(files) and files[0].parent != path and len(set(_values(files[0]))) <= 2

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        folders: dict[Path, list[Path]] = {}
        for file in _pngs(path):
            if file.parent != path:
                folders.setdefault(file.parent, []).append(file)
        for folder, files in folders.items():
            name = folder.relative_to(path).as_posix()
            yield MaskSource(name, f"{folder}: mask", tuple(sorted(files, key=_number)))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        return [shape_of(read_mask(row, size) > 0, f"{row}", id=row.stem)]


def _pngs(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*.png") if not file.name.startswith("._")) if path.is_dir() else []


def _number(path: Path) -> tuple[int, str]:
    """Return the key by which numbered files are sorted: 2.png is before 10.png."""
    return (int(path.stem) if path.stem.isdecimal() else -1, path.name)


def _values(file: Path) -> list[int]:
    """Return the values of a PNG with one channel, or an empty list for other images."""
    try:
        image = open_image(file)
        return np.unique(read_ids(file)).tolist() if image.mode in ("1", "L", "P", "I", "I;16") else []
    except SampleError:
        return []


def _is_map(file: Path) -> bool:
    values = _values(file)
    return bool(values) and (open_image(file).mode == "P" or len(values) <= _FEW)


def _ids_of(ids: np.ndarray) -> list[int]:
    void = _VOID if ids.max(initial=0) <= 255 else (0,)
    return [int(value) for value in np.unique(ids) if value not in void]
