"""Chat completions in OpenAI's protocol: an image whose alpha channel is the mask, and the name as the message."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from osm.serving.bounded_route import BoundedRoute
from osm.serving.guard import RequestRefused
from osm.serving.http_images import RequestImage
from osm.serving.http_schemas import Method, Name
from osm.serving.jobs import NamingJob, NamingOptions, RegionPrompt, answer_record
from osm.serving.routes_rest import Shared
from osm.serving.services import Services

router = APIRouter(route_class=BoundedRoute, tags=["chat"])
_CREATED = 1_764_201_600  # models have no date of their own


class OpenModel(BaseModel):
    """A JSON object of another tool's protocol, which may have further fields."""

    model_config = ConfigDict(extra="allow")


class ImageUrl(OpenModel):
    """A data URI, or a URL of an allowed host."""

    url: str


class ContentPart(OpenModel):
    """A part of a message: `image_url` or `text`."""

    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class ChatMessage(OpenModel):
    """A message of the chat."""

    role: str
    content: str | list[ContentPart] | None = None


class StreamOptions(OpenModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatBody(OpenModel):
    """A chat with one RGBA image, whose pixels with alpha > 0 are named.

    `mode`, `vocabulary` and `method` are extensions of the protocol, as in /v1/name.
    """

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    mode: str = "any"
    vocabulary: list[Name] = Field(default_factory=list)
    method: Method = "constrained"


@router.post("/v1/chat/completions", response_model=None)
@router.post("/chat/completions", response_model=None, include_in_schema=False)
async def chat(body: ChatBody, shared: Shared) -> dict[str, Any] | StreamingResponse:
    """Name the region that the alpha channel of an image marks.

    Text and sampling parameters have no effect. The field `osm` of the answer lists them as `ignored`.
    """
    model = shared.model(body.model)
    info = shared.info(model)
    shared.check_counts(1, len(body.vocabulary))
    image = await _image(body, shared)
    options = NamingOptions((body.mode,), vocabulary=tuple(body.vocabulary), method=body.method)
    answer = await shared.run(model, NamingJob(image.job, (RegionPrompt("alpha"),), 0, options))
    name = answer.regions[0].names[0]
    if name.skipped:
        raise RequestRefused(422, "invalid_image", f"the image has no region to name: {name.skipped}")
    tokens = len(name.token_probs)
    usage = {
        "prompt_tokens": info.prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": info.prompt_tokens + tokens,
    }
    more = {"osm": {**answer_record(name), "ignored": _ignored(body)}}
    common = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model.name}
    if body.stream:
        with_usage = usage if body.stream_options is not None and body.stream_options.include_usage else None
        return StreamingResponse(_chunks(common, name.text, with_usage, more), media_type="text/event-stream")
    message = {"role": "assistant", "content": name.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**common, "object": "chat.completion", "choices": [choice], "usage": usage, **more}


@router.get("/v1/models")
async def models(shared: Shared, token: Annotated[str | None, Header()] = None) -> dict[str, Any]:
    """List the models, as OpenAI does; or as X-AnyLabeling does, whose client sends the header `Token`."""
    if token is not None:
        return {"success": True, "data": {name: xanylabeling_info(shared, name) for name in shared.models}}
    return {"object": "list", "data": [_model_facts(shared, name) for name in shared.models]}


@router.get("/v1/models/{model_id}")
async def model_facts(model_id: str, shared: Shared) -> dict[str, Any]:
    """Describe a model, as OpenAI does."""
    return _model_facts(shared, shared.model(model_id).name)


@router.get("/v1/models/{model_id}/info")
async def model_info(model_id: str, shared: Shared) -> dict[str, Any]:
    """Describe a model, as X-AnyLabeling does."""
    return {"success": True, "data": xanylabeling_info(shared, shared.model(model_id).name)}


def xanylabeling_info(shared: Services, name: str) -> dict[str, Any]:
    """Return what X-AnyLabeling needs to know about a model: its title, and the widgets that its user sees."""
    widgets = [
        {"name": "button_run", "value": None},
        {"name": "button_add_point", "value": None},
        {"name": "button_remove_point", "value": None},
        {"name": "button_add_rect", "value": None},
        {"name": "button_clear", "value": None},
        {"name": "button_finish_object", "value": None},
        {"name": "edit_text", "value": None},
        {"name": "input_conf", "value": 0.0},
        {"name": "edit_conf", "value": 0.0},
        {"name": "toggle_preserve_existing_annotations", "value": False},
    ]
    modes = list(shared.info(shared.model(name)).modes)
    title = f"OmniScient Model: {name}"
    return {"model_id": name, "display_name": title, "batch_processing_mode": "default", "widgets": widgets} | {
        "params": {"mode": "any", "modes": modes}
    }


def _model_facts(shared: Services, name: str) -> dict[str, Any]:
    info = shared.info(shared.models[name])
    facts = {"modes": list(info.modes), "segmenter": info.segmenter, "calibrated": info.calibrated}
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "osm", **facts}


async def _image(body: ChatBody, shared: Services) -> RequestImage:
    """Return the only image of the messages."""
    parts = [
        (f"messages[{m}].content[{k}].image_url", part)
        for m, message in enumerate(body.messages)
        if not isinstance(message.content, str)
        for k, part in enumerate(message.content or ())
        if part.type == "image_url"
    ]
    if len(parts) != 1:
        sentence = f"messages has {len(parts)} parts of the type image_url; expected exactly one, an RGBA image"
        raise RequestRefused(422, "invalid_request", sentence)
    where, part = parts[0]
    if part.image_url is None:
        raise RequestRefused(422, "invalid_request", f"{where} is missing")
    url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
    image = await shared.images.read(url, where)
    assert isinstance(image.job.source, bytes)
    return await shared.images.checked(image.job.source, where, alpha=True)


def _ignored(body: ChatBody) -> list[str]:
    """Return the given fields that have no effect."""
    found = sorted(body.model_extra or {})
    texts = any(
        isinstance(message.content, str) or any(part.type != "image_url" for part in message.content or ())
        for message in body.messages
    )
    return found + (["text"] if texts else [])


async def _chunks(
    common: dict[str, Any], text: str, usage: dict[str, int] | None, more: dict[str, Any]
) -> AsyncIterator[str]:
    """Yield the events of a streamed answer: the role, the words of the name, the end, and the usage if requested."""
    words = text.split(" ")
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word if k == 0 else f" {word}"} for k, word in enumerate(words)]
    without = {"usage": None} if usage is not None else {}
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        yield _event(common, [choice], without)
    yield _event(common, [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}], without | more)
    if usage is not None:
        yield _event(common, [], {"usage": usage})
    yield "data: [DONE]\n\n"


def _event(common: dict[str, Any], choices: list[dict[str, Any]], more: dict[str, Any]) -> str:
    document = {**common, "object": "chat.completion.chunk", "choices": choices, **more}
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
