"""The routes of the REST interface: /v1/name, /v1/segment, /v1/images, /v1/export and the page's samples."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from osm.documents import parse_json
from osm.errors import OsmError
from osm.io.segmentation import rle_box
from osm.serving.bounded_route import BoundedRoute, FormRoute
from osm.serving.downloads import DOWNLOADS, label_download
from osm.serving.guard import RequestRefused
from osm.serving.http_images import RequestImage, display_jpeg
from osm.serving.http_schemas import (
    ExportBody,
    ImageFacts,
    NameBody,
    NameResponse,
    RegionInput,
    RegionsBody,
    SegmentBody,
)
from osm.serving.jobs import JobAnswer, NamingJob, RegionPrompt, answer_record
from osm.serving.scheduler import ModelQueue
from osm.serving.services import Services

router = APIRouter(route_class=BoundedRoute, tags=["names"])
_MULTIPART = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary", "description": "the image file"},
                "request": {"type": "string", "description": "the JSON body without `image`"},
                "mask": {
                    "type": "array",
                    "items": {"type": "string", "format": "binary"},
                    "description": "mask images, which precede `regions`",
                },
            },
        }
    }
}


def services(request: Request) -> Services:
    """Return the services of the application that answers a request."""
    found: Services = request.app.state.services
    return found


Shared = Annotated[Services, Depends(services)]


# Two functions serve /v1/name: a form is an upload, and any other body is JSON. The schema describes both together.
async def name_upload(
    shared: Shared,
    image: Annotated[UploadFile, File()],
    request: Annotated[str, Form(max_length=1 << 22)] = "{}",
    mask: Annotated[list[UploadFile] | None, File()] = None,
) -> dict[str, Any]:
    """Name regions of an image that is uploaded as a form. The masks in files precede those of `request`."""
    body = _parsed(NameBody, request)
    if body.image is not None:
        raise RequestRefused(422, "invalid_request", "request.image cannot be combined with the uploaded file")
    files = mask or []
    _check_counts(shared, body, len(body.regions) + len(files))
    if files and body.everything:
        raise RequestRefused(422, "invalid_request", "everything cannot be combined with mask")
    prompts = [RegionPrompt("png", await file.read()) for file in files]
    checked = await shared.images.checked(await image.read(), "image")
    model = shared.model(body.model)
    return await _named(shared, model, body, checked, (*prompts, *_prompts(shared, body.regions)))


router.add_api_route(
    "/v1/name",
    name_upload,
    methods=["POST"],
    response_model=NameResponse,
    response_model_exclude_unset=True,
    route_class_override=FormRoute,
    include_in_schema=False,
)


@router.post(
    "/v1/name",
    response_model=NameResponse,
    response_model_exclude_unset=True,
    openapi_extra={"requestBody": {"content": _MULTIPART}},
)
async def name(body: NameBody, shared: Shared) -> dict[str, Any]:
    """Name regions of an image, or all its segments."""
    model = shared.model(body.model)
    _check_counts(shared, body, len(body.regions))
    return await _named(shared, model, body, await shared.image(body.image), _prompts(shared, body.regions))


@router.post("/v1/segment", response_model=NameResponse, response_model_exclude_unset=True)
async def segment(body: SegmentBody, shared: Shared) -> dict[str, Any]:
    """Return the masks of points and boxes, or of all segments, without naming them."""
    model = shared.model(body.model)
    shared.check_counts(len(body.regions))
    image = await shared.image(body.image)
    job = NamingJob(image.job, _prompts(shared, body.regions), _everything(shared, body), None, masks=True)
    return _document(model.name, image, await shared.run(model, job), body.everything)


@router.post("/v1/images", response_model=ImageFacts)
async def upload(shared: Shared, image: Annotated[UploadFile, File()]) -> ImageFacts:
    """Keep an image in memory, so that later requests can refer to it by its `id`."""
    found = await shared.images.checked(await image.read(), "image")
    shared.images.stored.put(found)
    return _facts(found)


@router.get("/v1/images/{image_id}", response_class=Response)
async def shown_image(image_id: str, shared: Shared) -> Response:
    """Return an uploaded image as a JPEG to show: upright, and with at most 1,600 pixels per side."""
    stored = shared.images.stored.get(image_id)
    try:
        async with shared.decoding:
            data = await asyncio.to_thread(display_jpeg, stored.job.source)
    except OsmError as error:
        raise RequestRefused(422, "invalid_image", f"image {error}") from None
    return Response(data, media_type="image/jpeg")


@router.post("/v1/export", response_class=Response)
async def export(body: ExportBody, shared: Shared) -> Response:
    """Return named regions as a file in the format of an annotation tool."""
    if body.format not in DOWNLOADS:
        raise RequestRefused(
            422, "invalid_request", f"format {body.format[:40]!r} is not one of {', '.join(DOWNLOADS)}"
        )
    shared.check_counts(len(body.regions))
    shared.check_runs(region.segmentation.counts for region in body.regions)
    if body.width * body.height > shared.images.limits.pixels:
        raise RequestRefused(413, "image_too_large", f"width x height is {body.width} x {body.height} pixels")
    try:
        file_name, data = await asyncio.to_thread(label_download, body)
    except OsmError as error:
        raise RequestRefused(422, "invalid_request", str(error)) from None
    kind = "application/zip" if file_name.endswith(".zip") else "application/octet-stream"
    disposition = f"attachment; filename*=UTF-8''{quote(file_name)}"
    return Response(data, media_type=kind, headers={"content-disposition": disposition})


@router.get("/v1/formats")
async def formats() -> dict[str, str]:
    """Return the formats of /v1/export with their titles."""
    return dict(DOWNLOADS)


@router.get("/v1/samples")
async def samples(shared: Shared) -> list[dict[str, str]]:
    """Return the page's sample images: for each, its id and its title."""
    return shared.samples.listing() if shared.samples is not None else []


@router.get("/v1/samples/{sample}", response_class=Response)
async def sample_image(sample: str, shared: Shared, thumbnail: bool = False) -> Response:
    """Return a sample image as a JPEG."""
    if shared.samples is None or sample not in shared.samples:
        raise RequestRefused(404, "not_found", f"there is no sample image {sample[:80]!r}")
    data = await asyncio.to_thread(shared.samples.jpeg, sample, thumbnail)
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


async def _named(
    shared: Services, model: ModelQueue, body: NameBody, image: RequestImage, prompts: tuple[RegionPrompt, ...]
) -> dict[str, Any]:
    if not prompts and not body.everything:
        raise RequestRefused(422, "invalid_request", "regions is empty: give regions, or everything: true")
    job = NamingJob(image.job, prompts, _everything(shared, body), body.options(), body.masks)
    return _document(model.name, image, await shared.run(model, job), body.everything)


def _check_counts(shared: Services, body: NameBody, regions: int) -> None:
    names = sum(1 if isinstance(entry, str) else len(entry.names) for entry in body.vocabulary)
    shared.check_counts(regions, names)


def _prompts(shared: Services, regions: Sequence[RegionInput]) -> tuple[RegionPrompt, ...]:
    shared.check_runs(region.rle.counts for region in regions if region.rle is not None)
    return tuple(
        region.prompt(shared.images.decoded(region.png, f"regions[{k}].png") if region.png is not None else None)
        for k, region in enumerate(regions)
    )


def _everything(shared: Services, body: RegionsBody) -> int:
    return min(body.max_segments, shared.limits.regions) if body.everything else 0


def _parsed(kind: type[NameBody], text: str) -> NameBody:
    """Parse a JSON text in a form as a request body."""
    try:
        return kind.model_validate(parse_json(text))
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("request", *one["loc"])} for one in error.errors()]) from None
    except ValueError as error:
        raise RequestRefused(422, "invalid_json", f"request is not JSON ({str(error)[:200]})") from None


def _facts(image: RequestImage) -> ImageFacts:
    return ImageFacts(id=image.id, width=image.size[0], height=image.size[1])


def _document(model: str, image: RequestImage, answer: JobAnswer, everything: bool) -> dict[str, Any]:
    regions = []
    for region in answer.regions:
        found: dict[str, Any] = {}
        if region.names:
            found["answers"] = [answer_record(one) for one in region.names]
        if region.rle is not None:
            found |= {"segmentation": dict(region.rle), "area": region.area, "bbox": rle_box(region.rle)}
        if region.score is not None:
            found["score"] = region.score
        regions.append(found)
    facts = ImageFacts(id=image.id, width=answer.size[0], height=answer.size[1])
    document: dict[str, Any] = {"model": model, "image": facts, "regions": regions}
    return document | ({"skipped_segments": answer.skipped_segments} if everything else {})
