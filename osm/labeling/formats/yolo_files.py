"""YOLO's segmentation files: one text file for each image, and data.yaml with the names of the classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from osm.errors import OsmError, SampleError, shown
from osm.files import read_text, read_yaml, write_atomically
from osm.io.images import SUFFIXES
from osm.labeling.formats.label_format import (
    Holds,
    LabeledImages,
    LabelFormat,
    LabelShape,
    MaskSource,
    Size,
    box_shape,
    check_points,
    shape_of,
)
from osm.labeling.outlines import center_polygons, draw_centers


class YoloFiles(LabelFormat):
    """YOLO segmentation: `labels/<image>.txt` with lines `class x1 y1 x2 y2 ...`, from 0 to 1, and `data.yaml`.

    Lines with four numbers after the class are boxes (center, width, height), as in YOLO's detection files.
    """

    name, title = "yolo", "YOLO segmentation"
    output = "yolo"
    holds = Holds(holes=False, parts=False, scores=False, ids=False)
    fills = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return (path.is_dir() and (path / "data.yaml").is_file()) or path.name == "data.yaml"

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        file = path if path.is_file() else path / "data.yaml"
        names = _names(file)
        folder = file.parent / "labels"
        if not folder.is_dir():
            raise OsmError(f"--masks {file}: there is no folder {folder}")
        for text in sorted(folder.rglob("*.txt")):
            lines = _lines(text)
            name = text.relative_to(folder).with_suffix("").as_posix()
            yield MaskSource(_image_of(file.parent, name), f"{text}: line", tuple(lines), None, names)

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        try:
            number, values = int(row[0]), np.array([float(value) for value in row[1:]])
        except ValueError:
            raise SampleError("annotation_malformed", f"{where}: {shown(' '.join(row))} is not numbers") from None
        label = source.data.get(number, str(number))
        if len(values) == 4:
            center, extent = values[:2] * size, values[2:] * size
            box = [*(center - extent / 2), *extent]
            return [box_shape([float(value) for value in box], size, where, label=label)]
        if len(values) % 2 or len(values) < 6:
            raise SampleError("polygon_too_short", f"{where}: has {len(values)} coordinates, not x y x y x y ...")
        points = check_points((values.reshape(-1, 2) * size).tolist(), size, where)
        return [shape_of(draw_centers([np.rint(points)], size[::-1]), where, label=label)]  # type: ignore[list-item]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        file = path if path.is_file() else path / "data.yaml"
        document, names = read_yaml(file, "--masks"), _names(file)
        numbers = {name: number for number, name in reversed(names.items())}
        for name in labels.categories:
            if name not in numbers:
                numbers[name] = max(numbers.values(), default=-1) + 1
                names[numbers[name]] = name
        texts = sorted((file.parent / "labels").rglob("*.txt"))
        for image in labels.images:
            lines = _lines(texts[image.number])
            for shape in image.shapes:
                lines[shape.row or 0][0] = str(numbers[shape.name])
            place = out / texts[image.number].relative_to(file.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, [" ".join(line) + "\n" for line in lines])
        document |= {"names": names}
        write_atomically(out / "data.yaml", [yaml.safe_dump(document, allow_unicode=True, sort_keys=False)])

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        folder = out / cls.name
        for image in labels.images:
            lines = []
            for shape in image.shapes:
                polygons = center_polygons(shape.mask)
                lines += [_line(labels.positions[shape.name], one, image.size) for one in polygons]
            file = (folder / "labels" / image.file_name).with_suffix(".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lines)
        listed = dict(enumerate(labels.categories))
        document = {"path": ".", "train": "images", "val": "images", "names": listed}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "data.yaml", [yaml.safe_dump(document, allow_unicode=True, sort_keys=False)])


def _lines(file: Path) -> list[list[str]]:
    return [line.split() for line in read_text(file, "--masks").splitlines() if line.strip()]


def _line(number: int, polygon: list[tuple[int, int]], size: Size) -> str:
    numbers = [f"{value / side:.8g}" for point in polygon for value, side in zip(point, size, strict=True)]
    return " ".join([str(number), *numbers]) + "\n"


def _names(file: Path) -> dict[int, str]:
    document = read_yaml(file, "--masks")
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict) and all(isinstance(number, int) for number in names):
        return {number: str(name) for number, name in names.items()}
    raise OsmError(f"--masks {file}: names is {shown(names)}; expected a list, or numbers with their names")


def _image_of(folder: Path, name: str) -> str:
    """Return the name of the image that belongs to a text file, with its suffix if the image is beside it."""
    found = (f"{name}{suffix}" for suffix in SUFFIXES if (folder / "images" / f"{name}{suffix}").is_file())
    return next(found, name)
