"""Label Studio's protocol for ML backends: predictions for tasks, and for what the user points at."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from fastapi import APIRouter, Request
from pydantic import Field

from osm.documents import parse_json
from osm.errors import OsmError
from osm.serving.bounded_route import BoundedRoute
from osm.serving.guard import RequestRefused, is_origin
from osm.serving.http_images import RequestImage
from osm.serving.jobs import MAX_SEGMENTS, NamingJob, NamingOptions
from osm.serving.label_config import LabelControl, drawn_prompts, label_results, read_label_config
from osm.serving.routes_openai import OpenModel
from osm.serving.routes_rest import Shared
from osm.serving.services import Services
from osm.terminal import printable

router = APIRouter(route_class=BoundedRoute, tags=["Label Studio"])
URL_VARIABLE, KEY_VARIABLE = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"
"""The environment variables with the address of Label Studio, and with the token for downloads from it."""
_MAX_PROJECTS = 100
_MAX_TASKS = 64


class SetupBody(OpenModel):
    """What Label Studio says about a project. `extra_params` is a JSON text with `model`, `mode`, `max_segments`."""

    project: str | int | None = None
    # `schema` is a name of pydantic's own, so the field needs another name here.
    label_config: str = Field("", alias="schema")
    hostname: str = Field("", max_length=1000)
    access_token: str = Field("", max_length=4000)
    extra_params: Any = None


class PredictTasksBody(OpenModel):
    """Tasks to predict. With `params.context.result`, only what the user drew is named."""

    tasks: list[dict[str, Any]] = Field(min_length=1, max_length=_MAX_TASKS)
    project: str | int | None = None
    label_config: str = ""
    params: dict[str, Any] | None = None


@dataclass(frozen=True)
class BackendProject:
    """What is kept of a project.

    Attributes:
        label_config: the labeling config.
        hostname: the address of Label Studio.
        token: the token for downloads from it.
        model, mode, max_segments: the user's extra parameters.
    """

    label_config: str = ""
    hostname: str = ""
    token: str = ""
    model: str = ""
    mode: str = "any"
    max_segments: int = MAX_SEGMENTS


class BackendProjects:
    """The most recent projects that Label Studio has set up."""

    def __init__(self) -> None:
        self._projects: OrderedDict[str, BackendProject] = OrderedDict()

    def put(self, number: object, project: BackendProject) -> None:
        """Keep a project."""
        self._projects[_project_id(number)] = project
        self._projects.move_to_end(_project_id(number))
        while len(self._projects) > _MAX_PROJECTS:
            self._projects.popitem(last=False)

    def get(self, number: object) -> BackendProject:
        """Return a project, or one without any settings."""
        return self._projects.get(_project_id(number), BackendProject())


@router.post("/setup")
async def setup(body: SetupBody, shared: Shared, request: Request) -> dict[str, str]:
    """Keep the settings of a project, and return the name of its model."""
    extra = _extra(body.extra_params)
    model = shared.model(str(extra.get("model") or "") or None)
    segments = extra.get("max_segments", MAX_SEGMENTS)
    if type(segments) is not int or not 1 <= segments <= 200:
        raise RequestRefused(422, "invalid_request", "extra_params.max_segments is not an integer from 1 to 200")
    mode = str(extra.get("mode") or "any")
    if mode not in shared.info(model).modes:
        known = ", ".join(shared.info(model).modes)
        raise RequestRefused(422, "invalid_request", f"extra_params.mode {mode[:40]!r} is not one of: {known}")
    if body.label_config:
        _control(body.label_config)
    if body.hostname and not is_origin(body.hostname.rstrip("/")):
        raise RequestRefused(422, "invalid_request", f"hostname {body.hostname[:80]!r} is not like http://studio:8080")
    _projects(request).put(
        body.project,
        BackendProject(body.label_config, body.hostname, body.access_token, model.name, mode, segments),
    )
    return {"model_version": model.name}


@router.post("/predict")
async def predict_tasks(body: PredictTasksBody, shared: Shared, request: Request) -> dict[str, Any]:
    """Return a prediction for each task: its segments with names, or what the user points at."""
    project = _projects(request).get(body.project)
    control = _control(body.label_config or project.label_config)
    context = (body.params or {}).get("context")
    drawn = context.get("result") if isinstance(context, dict) else None
    if drawn is not None and not isinstance(drawn, list):
        raise RequestRefused(422, "invalid_request", "params.context.result is not a list")
    shared.check_counts(len(drawn or ()), len(control.labels))
    tries = [_predicted(task, project, control, drawn, shared) for task in body.tasks]
    found = await asyncio.gather(*tries, return_exceptions=True)
    refused = [one for one in found if isinstance(one, BaseException)]
    if refused and (len(refused) == len(found) or not all(isinstance(one, RequestRefused) for one in refused)):
        raise refused[0]
    # A task that fails has an empty result and the reason, so that the others are not lost.
    empty = {"result": [], "score": 0.0, "model_version": shared.model(project.model or None).name}
    return {"results": [empty | {"error": str(one)} if isinstance(one, BaseException) else one for one in found]}


@router.post("/webhook")
async def webhook(body: dict[str, Any]) -> dict[str, str]:
    """Accept Label Studio's events. They have no effect, because this server does not train."""
    return {"status": "ignored", "detail": "this server does not train"}


async def _predicted(
    task: dict[str, Any], project: BackendProject, control: LabelControl, drawn: list[Any] | None, shared: Services
) -> dict[str, Any]:
    model = shared.model(project.model or None)
    image = await _image(task, project, control, shared)
    try:
        prompts = await asyncio.to_thread(drawn_prompts, drawn or [], image.size)
    except OsmError as error:
        raise RequestRefused(422, "invalid_request", f"params.{error}") from None
    options = NamingOptions((project.mode,), vocabulary=control.labels)
    everything = 0 if prompts else min(project.max_segments, shared.limits.regions)
    job = NamingJob(image.job, prompts, everything, options, masks=True)
    answer = await shared.run(model, job)
    regions = [one for one in answer.regions if one.names[0].text and not one.names[0].skipped]
    rows = [await asyncio.to_thread(label_results, control, region, answer.size) for region in regions]
    result = [row for of_region in rows for row in of_region]
    scores = [one.names[0].likelihood for one in regions]
    score = round(sum(scores) / len(scores), 6) if scores else 0.0
    return {"result": result, "score": score, "model_version": model.name}


async def _image(
    task: dict[str, Any], project: BackendProject, control: LabelControl, shared: Services
) -> RequestImage:
    where = printable(f"task {str(task.get('id'))[:40]}: data.{control.field[:80]}")
    data = task.get("data")
    value = data.get(control.field) if isinstance(data, dict) else None
    if not isinstance(value, str) or not value:
        raise RequestRefused(422, "invalid_request", f"{where} is not the address of an image")
    headers: dict[str, str] = {}
    # The server's own token only goes to the server's own Label Studio, whatever a request says.
    host, token = os.environ.get(URL_VARIABLE, ""), os.environ.get(KEY_VARIABLE, "")
    if not (host and token):
        host, token = project.hostname, project.token
    if value.startswith("/") and not value.startswith("//"):  # a file that Label Studio itself serves
        if not host:
            raise RequestRefused(422, "invalid_request", f"{where} is relative, but /setup gave no hostname")
        value = urljoin(host, value)
    if token and urlsplit(value)[:2] == urlsplit(host)[:2]:
        headers["Authorization"] = f"Token {token}"
    return await shared.images.read(value, where, headers)


def _control(label_config: str) -> LabelControl:
    try:
        return read_label_config(label_config)
    except OsmError as error:
        raise RequestRefused(422, "invalid_request", str(error)) from None


def _extra(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.strip():
        try:
            value = parse_json(value)
        except ValueError:
            raise RequestRefused(422, "invalid_request", "extra_params is not JSON") from None
    if value and not isinstance(value, dict):
        raise RequestRefused(422, "invalid_request", "extra_params is not an object")
    return value or {}


def _projects(request: Request) -> BackendProjects:
    found: BackendProjects = request.app.state.projects
    return found


def _project_id(number: object) -> str:
    return str(number).split(".")[0]  # Label Studio appends the time of the project's creation
