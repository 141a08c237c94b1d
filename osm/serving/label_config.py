"""Label Studio's labeling config, and its results: how objects are drawn there, and with which labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from osm.documents import parse_xml
from osm.errors import OsmError, SampleError, shown
from osm.io.segmentation import rle_box
from osm.io.values import finite
from osm.labeling.formats.label_format import LabelShape, MaskSource
from osm.labeling.formats.label_studio_json import LabelStudioJson, brush_rle
from osm.labeling.outlines import corner_polygons
from osm.serving.jobs import RegionAnswer, RegionPrompt
from osm.serving.services import original_names

Size = tuple[int, int]
MAX_CONFIG = 1 << 20
"""The maximum length of a labeling config in characters."""
_CONTROLS = {  # tag -> the type of its results, from the most to the least precise
    "BrushLabels": "brushlabels",
    "PolygonLabels": "polygonlabels",
    "RectangleLabels": "rectanglelabels",
}
_POINTS = ("keypointlabels", "keypoint")
_DRAWN = ("brushlabels", "polygonlabels", "rectanglelabels", "brush", "polygon", "rectangle")
_SUPPORTED = ("keypointlabels", *_CONTROLS.values())


@dataclass(frozen=True)
class LabelControl:
    """The tag of a labeling config with which objects are drawn.

    Attributes:
        kind: the type of its results, such as `brushlabels`.
        from_name, to_name: the names of the tag and of its image.
        field: the field of a task's data that has the image.
        labels: the labels of the tag; empty if there are none.
    """

    kind: str
    from_name: str
    to_name: str
    field: str
    labels: tuple[str, ...]


def read_label_config(text: str) -> LabelControl:
    """Return the most precise tag for objects: brush, else polygon, else rectangle.

    Raises:
        OsmError: the config is not XML, or has no such tag for an image.
    """
    if len(text) > MAX_CONFIG:
        raise OsmError(f"label_config has {len(text)} characters, but the maximum is {MAX_CONFIG}")
    try:
        root = parse_xml(text)
    except ValueError as error:
        raise OsmError(f"label_config: {error}") from None
    images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
    for tag, kind in _CONTROLS.items():
        for control in root.iter(tag):
            to_name = control.get("toName", "")
            if to_name in images:
                labels = [label.get("value") or label.get("alias") or "" for label in control.iter("Label")]
                field = images[to_name].lstrip("$")
                return LabelControl(kind, control.get("name", ""), to_name, field, tuple(filter(None, labels)))
    raise OsmError(f"label_config needs a {', '.join(_CONTROLS)} tag for an <Image>")


def drawn_prompts(results: Sequence[Any], size: Size) -> tuple[RegionPrompt, ...]:
    """Return the regions that the user drew: masks as they are, and the segment of rectangles and key points.

    All key points mark one object together.

    Args:
        results: Label Studio's results.
        size: (width, height) of the image.

    Raises:
        OsmError: a result is malformed, or is of a type that is not supported.
    """
    points: list[tuple[float, float]] = []
    inside: list[bool] = []
    found: list[RegionPrompt] = []
    for k, row in enumerate(results):
        where = f"context.result[{k}]"
        value = row.get("value") if isinstance(row, Mapping) else None
        if not isinstance(value, Mapping):
            raise OsmError(f"{where}: value {shown(value)} is not an object")
        kind = str(row.get("type"))
        if kind in _POINTS:
            x, y = finite(value.get("x")), finite(value.get("y"))
            if x is None or y is None:
                raise OsmError(f"{where}: x and y of the key point are not numbers")
            points.append((min(x * size[0] / 100, size[0] - 1e-3), min(y * size[1] / 100, size[1] - 1e-3)))
            inside.append(bool(row.get("is_positive", value.get("is_positive", True))))
        elif kind in _DRAWN:
            found += _drawn(row, size, where)
        else:
            raise OsmError(f"{where}: the type {kind[:40]!r} is not supported; expected {', '.join(_SUPPORTED)}")
    if True in inside:
        found.append(RegionPrompt("points", tuple(points), tuple(inside), True))
    elif points:
        raise OsmError("context.result needs at least one positive key point")
    return tuple(found)


def _drawn(row: Mapping[str, Any], size: Size, where: str) -> list[RegionPrompt]:
    try:
        shapes = LabelStudioJson.read_shapes(row, MaskSource("", where), size, where)
    except SampleError as error:
        raise OsmError(str(error)) from None
    return [
        RegionPrompt("rle", dict(one.rle)) if one.box is None else RegionPrompt("box", one.box, segment=True)
        for one in shapes
    ]


def label_results(control: LabelControl, region: RegionAnswer, size: Size) -> list[dict[str, Any]]:
    """Return a named region as Label Studio's results: one for each part, if they are polygons."""
    named = region.names[0]
    assert region.rle is not None
    label = original_names(control.labels).get(named.text, named.text)
    width, height = size
    common = {
        "type": control.kind,
        "from_name": control.from_name,
        "to_name": control.to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": round(named.likelihood, 6),
    }
    values: list[dict[str, Any]]
    if control.kind == "brushlabels":
        values = [{"format": "rle", "rle": brush_rle(LabelShape(region.rle).mask)}]
    elif control.kind == "polygonlabels":
        scale = np.array([100 / width, 100 / height])
        lines = corner_polygons(LabelShape(region.rle).mask)
        values = [{"points": (np.array(line).reshape(-1, 2) * scale).tolist(), "closed": True} for line in lines]
    else:
        x, y, w, h = rle_box(region.rle)
        sides = {"x": x / width, "y": y / height, "width": w / width, "height": h / height}
        values = [{name: 100 * side for name, side in sides.items()} | {"rotation": 0}]
    return [{**common, "id": uuid4().hex[:10], "value": value | {control.kind: [label]}} for value in values]
