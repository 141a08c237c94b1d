"""CVAT for images 1.1: one XML file with the masks, polygons and boxes of all images."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from osm.documents import parse_xml
from osm.errors import OsmError, SampleError, shown
from osm.files import read_text, write_atomically
from osm.io.segmentation import draw_segmentation
from osm.io.values import whole
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

_MAX_XML_BYTES = 1 << 30


class CvatXml(LabelFormat):
    """CVAT for images 1.1. Masks are written as `<mask>`, which holds every pixel, and boxes as `<box>`."""

    name, title = "cvat", "CVAT for images 1.1"
    output = "cvat.xml"
    holds = Holds(scores=False, ids=False)
    fills = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".xml"

    @classmethod
    def _read(cls, path: Path) -> ElementTree.Element:
        text = read_text(path, "--masks", _MAX_XML_BYTES)
        try:
            root = parse_xml(text)
        except ValueError as error:
            raise OsmError(f"--masks {path}: {error}") from None
        if root.tag != "annotations":
            raise OsmError(f"--masks {path}: its root is <{root.tag}>, but CVAT's is <annotations>")
        return root

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        root = cls._read(path)
        for image in root.iter("image"):
            name = image.get("name", "")
            if not name:
                raise OsmError(f"--masks {path}: an <image> has no name")
            width, height = whole(image.get("width")), whole(image.get("height"))
            size = (width, height) if width and height else None
            yield MaskSource(name, f"{path}: image {shown(name)}, shape", tuple(image), size)

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        label = row.get("label", "")
        if row.tag == "box":
            left, top, right, bottom = (_number(row, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
            return [box_shape([left, top, right - left, bottom - top], size, where, label=label)]
        if row.tag == "polygon":
            pairs = [pair.split(",") for pair in row.get("points", "").split(";")]
            points = check_points([[_float(value, where) for value in pair] for pair in pairs], size, where)
            flat = [value for point in points for value in point]
            return [shape_of(draw_segmentation([flat], size[::-1]), where, label=label)]
        if row.tag == "mask":
            return [shape_of(_unrolled(row, size, where), where, label=label)]
        if row.tag in ("attribute", "tag"):
            return []
        raise SampleError("shape_without_area", f"{where}: <{row.tag}> is not a mask, polygon or box")

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        root = cls._read(path)
        images = list(root.iter("image"))
        for image in labels.images:
            rows = list(images[image.number])
            for shape in image.shapes:
                rows[shape.row or 0].set("label", shape.name)
        for listed in root.iter("labels"):
            known = {label.findtext("name") for label in listed.iter("label")}
            for name in labels.categories:
                if name not in known:
                    label = ElementTree.SubElement(listed, "label")
                    ElementTree.SubElement(label, "name").text = name
                    ElementTree.SubElement(label, "attributes")
        head = '<?xml version="1.0" encoding="utf-8"?>\n'
        write_atomically(out / path.name, [head, ElementTree.tostring(root, encoding="unicode"), "\n"])

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        write_atomically(out / "cvat.xml", cls._chunks(labels))

    @classmethod
    def _chunks(cls, labels: LabeledImages) -> Iterator[str]:
        yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        yield "  <meta>\n    <task>\n      <labels>\n"
        for name in labels.categories:
            yield f"        <label><name>{escape(name)}</name><type>any</type><attributes></attributes></label>\n"
        yield "      </labels>\n    </task>\n  </meta>\n"
        for image in labels.images:
            width, height = image.size
            name = quoteattr(image.file_name)
            yield f'  <image id="{image.number}" name={name} width="{width}" height="{height}">\n'
            for shape in image.shapes:
                yield _element(shape)
            yield "  </image>\n"
        yield "</annotations>\n"


def _element(shape: LabelShape) -> str:
    label = quoteattr(shape.name)
    if shape.box is not None:
        x, y, w, h = shape.box
        corners = f'xtl="{x:g}" ytl="{y:g}" xbr="{x + w:g}" ybr="{y + h:g}"'
        return f'    <box label={label} source="auto" occluded="0" {corners} z_order="0"></box>\n'
    x, y, w, h = (int(value) for value in shape.bounds)
    values = shape.mask[y : y + h, x : x + w].ravel()
    changes = np.flatnonzero(np.diff(values.astype(np.int8), prepend=0))
    runs = np.diff([0, *changes.tolist(), values.size]).tolist()
    rle = ", ".join(map(str, runs))
    place = f'left="{x}" top="{y}" width="{w}" height="{h}"'
    return f'    <mask label={label} source="auto" occluded="0" rle="{rle}" {place} z_order="0"></mask>\n'


def _unrolled(row: Any, size: Size, where: str) -> np.ndarray:
    """Decode a `<mask>`: runs of zeros and ones by rows within its box, beginning with zeros."""
    left, top, width, height = (int(_number(row, key, where)) for key in ("left", "top", "width", "height"))
    inside = left >= 0 and top >= 0 and 0 < width <= size[0] - left and 0 < height <= size[1] - top
    if not inside:
        place = f"{width} x {height} pixels at ({left}, {top})"
        raise SampleError("mask_size", f"{where}: the mask has {place}, beyond its image ({size[0]} x {size[1]})")
    runs = [whole(part.strip()) for part in row.get("rle", "").split(",")]
    counts = [run for run in runs if run is not None and run >= 0]
    if len(counts) != len(runs) or sum(counts) != width * height:
        raise SampleError("rle_malformed", f"{where}: rle does not add up to {width} x {height} pixels")
    values = np.fromiter(itertools.islice(itertools.cycle((False, True)), len(counts)), bool)
    mask = np.zeros(size[::-1], bool)
    mask[top : top + height, left : left + width] = np.repeat(values, counts).reshape(height, width)
    return mask


def _number(row: Any, key: str, where: str) -> float:
    return _float(row.get(key, ""), where)


def _float(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SampleError("annotation_malformed", f"{where}: {shown(text)} is not a number") from None
