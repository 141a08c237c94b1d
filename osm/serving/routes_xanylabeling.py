"""X-AnyLabeling's protocol for remote models: the objects of an image as polygons with names and scores."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import Field

from osm.labeling.formats.label_format import LabelShape
from osm.labeling.formats.labelme_files import XAnyLabelingFiles
from osm.serving.bounded_route import BoundedRoute
from osm.serving.guard import RequestRefused
from osm.serving.http_schemas import Number
from osm.serving.jobs import MAX_SEGMENTS, NamingJob, NamingOptions, RegionAnswer, RegionPrompt
from osm.serving.routes_openai import OpenModel
from osm.serving.routes_rest import Shared
from osm.serving.services import original_names

router = APIRouter(route_class=BoundedRoute, tags=["X-AnyLabeling"])
_MAX_MARKS = 64


class PromptMark(OpenModel):
    """A point [x, y] or a rectangle [x1, y1, x2, y2] that the user drew. A point with the label 0 is background."""

    type: str
    data: list[Number] = Field(min_length=2, max_length=4)
    label: int = 1


class PredictParams(OpenModel):
    """The parameters of X-AnyLabeling. `mode` is an extension.

    `conf_threshold` is the minimum probability of a name. `epsilon_factor` is the tolerance of polygons as a fraction
    of their perimeter. `text_prompt` lists the allowed names, separated by commas or periods.
    """

    conf_threshold: float = Field(default=0.0, ge=0, le=1)
    epsilon_factor: float = Field(default=0.0, ge=0, le=1)
    text_prompt: str = Field(default="", max_length=20_000)
    marks: list[PromptMark] = Field(default_factory=list, max_length=_MAX_MARKS)
    mode: str = "any"
    max_segments: int = Field(default=MAX_SEGMENTS, ge=1, le=200)


class PredictBody(OpenModel):
    """An image and the parameters for it."""

    model: str | None = None
    image: str
    params: PredictParams = PredictParams()


@router.post("/v1/predict")
async def predict(body: PredictBody, shared: Shared) -> dict[str, Any]:
    """Name the object that points and rectangles mark, or all segments of the image if there are none."""
    model, params = shared.model(body.model), body.params
    names = tuple(dict.fromkeys(filter(None, map(str.strip, params.text_prompt.replace(".", ",").split(",")))))
    shared.check_counts(len(params.marks), len(names))
    prompts = _prompts(params.marks)
    image = await shared.images.read(body.image, "image")
    options = NamingOptions((params.mode,), vocabulary=names)
    everything = 0 if prompts else min(params.max_segments, shared.limits.regions)
    answer = await shared.run(model, NamingJob(image.job, prompts, everything, options, masks=True))
    labels = original_names(names)
    shapes: list[dict[str, Any]] = []
    below = 0
    for group, region in enumerate(answer.regions, 1):
        named = region.names[0]
        if named.skipped or not named.text:
            continue
        if named.likelihood < params.conf_threshold:
            below += 1
            continue
        label = labels.get(named.text, named.text)
        shapes += await asyncio.to_thread(_shapes, region, label, group, params.epsilon_factor)
    said = [f"{below} names are below conf_threshold"] if below else []
    if answer.skipped_segments:
        said.append(f"{answer.skipped_segments} smaller segments are left out")
    data = {"shapes": shapes, "description": "; ".join(said), "replace": not prompts}
    return {"success": True, "data": data | {"ignored": sorted(params.model_extra or {})}}


def _prompts(marks: list[PromptMark]) -> tuple[RegionPrompt, ...]:
    """Return one prompt for all points, which mark one object, and one for each rectangle."""
    points, inside, found = [], [], []
    for k, mark in enumerate(marks):
        count = {"point": 2, "rectangle": 4}.get(mark.type)
        if count != len(mark.data):
            sentence = f"params.marks[{k}] is neither a point of 2 numbers nor a rectangle of 4"
            raise RequestRefused(422, "invalid_request", sentence)
        if mark.type == "point":
            points.append((mark.data[0], mark.data[1]))
            inside.append(mark.label != 0)
        else:
            (x1, x2), (y1, y2) = sorted(mark.data[::2]), sorted(mark.data[1::2])
            found.append(RegionPrompt("box", (x1, y1, x2 - x1, y2 - y1), segment=True))
    if points and True not in inside:
        raise RequestRefused(422, "invalid_request", "params.marks needs at least one point with the label 1")
    if points:
        found.insert(0, RegionPrompt("points", tuple(points), tuple(inside), True))
    return tuple(found)


def _shapes(region: RegionAnswer, label: str, group: int, epsilon: float) -> list[dict[str, Any]]:
    """Return an object as X-AnyLabeling's shapes: one polygon for each part."""
    named = region.names[0]
    assert region.rle is not None
    shape = LabelShape(region.rle, name=label, prob=round(named.likelihood, 6))
    description = "unsure" if named.unsure else ""
    rows = XAnyLabelingFiles.rows_of(shape, group)
    for row in rows:
        row["points"] = _simplified(row["points"], epsilon)
    return [row | {"description": description} for row in rows]


def _simplified(points: list[list[float]], epsilon: float) -> list[list[float]]:
    """Simplify a polygon (Douglas-Peucker, with a tolerance of `epsilon` times its perimeter)."""
    if not epsilon or len(points) < 4:
        return points
    from skimage.measure import approximate_polygon

    closed = np.array([*points, points[0]], float)
    length = float(np.linalg.norm(np.diff(closed, axis=0), axis=1).sum())
    found = approximate_polygon(closed, epsilon * length)[:-1]
    return [[float(x), float(y)] for x, y in found] if len(found) >= 3 else points
