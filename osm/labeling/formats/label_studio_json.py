"""Label Studio: a json list of tasks with annotations, and with predictions when written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from osm.errors import OsmError, SampleError, shown
from osm.files import read_json, write_atomically
from osm.io.segmentation import draw_segmentation
from osm.io.values import finite
from osm.labeling.formats.coco_labels import json_document
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

_KINDS = ("polygonlabels", "rectanglelabels", "brushlabels", "polygon", "rectangle", "brush")
_SIZES = (3, 4, 8, 16)  # the widths in bits of a run's length in a brush RLE
_WORD = 8
_LOCAL = re.compile(r"^/data/local-files/\?d=")


class LabelStudioJson(LabelFormat):
    """Label Studio. Masks are written as brush strokes, which hold every pixel, and boxes as rectangles."""

    name, title = "label_studio", "Label Studio"
    output = "label_studio.json"
    holds = Holds(parents=True)
    fills = True

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        document = json_document(path)
        first = document[0] if isinstance(document, list) and document else None
        return isinstance(first, dict) and isinstance(first.get("data"), dict)

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        document, _ = read_json(path, "--masks", nesting=None)
        if not isinstance(document, list):
            raise OsmError(f"--masks {path}: is not a list of tasks")
        for number, task in enumerate(document):
            data = task.get("data") if isinstance(task, dict) else None
            if not isinstance(data, dict):
                raise OsmError(f"--masks {path}: [{number}] is not a task with 'data'")
            values = [data.get("image"), data.get("img"), *data.values()]
            name = next((value for value in values if isinstance(value, str) and value), None)
            if name is None:
                raise OsmError(f"--masks {path}: [{number}].data names no image")
            where = f"{path}: task {number}, result"
            yield MaskSource(unquote(_LOCAL.sub("", name)), where, tuple(_rows(task)))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        value = row.get("value")
        if not isinstance(value, Mapping):
            raise SampleError("annotation_malformed", f"{where}: value {shown(value)} is not an object")
        labels = value.get(_kind(row))
        facts = {"label": str(labels[0]) if isinstance(labels, list) and labels else "", "id": _id(row)}
        scale = np.array(size) / 100
        if "points" in value:
            points = np.array(check_points(value["points"], (100, 100), where)) * scale
            return [shape_of(draw_segmentation([points.ravel().tolist()], size[::-1]), where, **facts)]
        if "rle" in value:
            return [shape_of(_decoded(value["rle"], size, where), where, **facts)]
        numbers = [finite(value.get(key)) for key in ("x", "y", "width", "height")]
        if value.get("rotation"):
            raise SampleError("box_malformed", f"{where}: rectangles that are rotated are not supported")
        if None in numbers:
            raise SampleError("box_malformed", f"{where}: x, y, width and height are {shown(numbers)}")
        x, y, w, h = (float(number or 0) for number in numbers)
        return [box_shape([x * scale[0], y * scale[1], w * scale[0], h * scale[1]], size, where, **facts)]

    @classmethod
    def fill(cls, path: Path, labels: LabeledImages, out: Path) -> None:
        document, _ = read_json(path, "--masks", nesting=None)
        for image in labels.images:
            rows = _rows(document[image.number])
            for shape in image.shapes:
                row = rows[shape.row or 0]
                kind = f"{_kind(row).removesuffix('labels')}labels"
                row |= {"type": kind, "score": shape.prob, "value": row["value"] | {kind: [shape.name]}}
        write_atomically(out / path.name, [json.dumps(document, ensure_ascii=False), "\n"])

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        write_atomically(out / "label_studio.json", cls._chunks(labels))

    @classmethod
    def _chunks(cls, labels: LabeledImages) -> Iterator[str]:
        comma = "["
        for image in labels.images:
            result = [_result(shape, image.number, k, image.size) for k, shape in enumerate(image.shapes)]
            for row, shape in zip(result, image.shapes, strict=True):
                if shape.parent is not None:
                    row["parentID"] = result[shape.parent]["id"]
            score = sum(shape.prob for shape in image.shapes) / max(1, len(image.shapes))
            prediction = {"model_version": labels.model, "score": score, "result": result}
            task = {"data": {"image": image.file_name}, "predictions": [prediction]}
            yield f"{comma}\n{json.dumps(task, ensure_ascii=False)}"
            comma = ","
        yield "\n]\n" if comma == "," else "[]\n"


def _result(shape: LabelShape, image: int, k: int, size: Size) -> dict[str, Any]:
    kind = "brushlabels" if shape.box is None else "rectanglelabels"
    value: dict[str, Any]
    if shape.box is None:
        value = {"format": "rle", "rle": brush_rle(shape.mask)}
    else:
        numbers = np.array(shape.box).reshape(2, 2) / size * 100
        value = dict(zip(("x", "y", "width", "height"), map(float, numbers.ravel()), strict=True)) | {"rotation": 0}
    return {
        "id": f"{image}-{k}" if shape.id is None else str(shape.id),
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": size[0],
        "original_height": size[1],
        "image_rotation": 0,
        "score": shape.prob,
        "value": value | {kind: [shape.name]},
    }


def _parts(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the task's annotations, or its predictions if nobody has annotated it."""
    for key in ("annotations", "predictions"):
        parts = [part for part in task.get(key) or () if isinstance(part, Mapping) and part.get("result")]
        if parts:
            return parts[:1] if key == "predictions" else parts
    return []


def _rows(task: Mapping[str, Any]) -> list[Any]:
    """Return the task's results that have a mask or a box."""
    return [row for part in _parts(task) for row in part.get("result") or () if _kind(row) in _KINDS]


def _kind(row: Any) -> str:
    return str(row.get("type")) if isinstance(row, Mapping) else ""


def _id(row: Mapping[str, Any]) -> str | None:
    found = row.get("id")
    return found if isinstance(found, str) else None


# A brush RLE is a stream of bits: the number of bytes (32 bits), the width of a byte minus 1 (5 bits), and four widths
# minus 1 (4 bits each). Then, for each run: whether one value repeats (1 bit), which of the four widths the length has
# (2 bits), the length minus 1, and the value or values. The bytes are those of an RGBA image; the mask is where alpha
# is not 0.


def brush_rle(mask: np.ndarray) -> list[int]:
    """Encode a mask (H, W) as Label Studio's RLE, whose elements are bytes."""
    flat = mask.ravel()
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    ends = [0, *changes.tolist(), flat.size]
    bits = [f"{flat.size * 4:032b}", f"{_WORD - 1:05b}", *(f"{width - 1:04b}" for width in _SIZES)]
    for start, end in zip(ends, ends[1:], strict=False):
        value = "11111111" if flat[start] else "00000000"
        left = (end - start) * 4
        while left:
            length = min(left, 1 << _SIZES[-1])
            which = next(k for k, width in enumerate(_SIZES) if length <= 1 << width)
            bits.append(f"1{which:02b}{length - 1:0{_SIZES[which]}b}{value}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _decoded(rle: Any, size: Size, where: str) -> np.ndarray:
    """Decode Label Studio's RLE to a mask (H, W). Raises SampleError if it does not fit the image."""
    expected = size[0] * size[1] * 4
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise SampleError("rle_malformed", f"{where}: rle {shown(rle)} is not a list of bytes") from None
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
    at = 0

    def read(count: int) -> int:
        nonlocal at
        if at + count > len(bits):
            raise SampleError("rle_malformed", f"{where}: rle ends after {len(data)} bytes, in the middle of a run")
        value = 0
        for bit in bits[at : at + count]:
            value = value << 1 | bit
        at += count
        return value

    total, word = read(32), read(5) + 1
    if total != expected:
        found = f"rle is of {total} bytes, but the image of {size[0]} x {size[1]} pixels has {expected}"
        raise SampleError("rle_size", f"{where}: {found}")
    widths = [read(4) + 1 for _ in range(4)]
    out, filled = np.zeros(total, np.uint8), 0
    while filled < total:
        repeats, length = read(1), read(widths[read(2)]) + 1
        if filled + length > total:
            raise SampleError("rle_malformed", f"{where}: the runs of rle are longer than the image")
        if repeats:
            out[filled : filled + length] = read(word) > 0
        else:
            out[filled : filled + length] = [read(word) > 0 for _ in range(length)]
        filled += length
    return out.reshape(size[1], size[0], 4)[..., 3] > 0
