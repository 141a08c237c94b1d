"""The web application: routes, the guard in front of them, and the page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

import osm
from osm.errors import OsmError
from osm.serving import routes_label_studio, routes_openai, routes_rest, routes_xanylabeling
from osm.serving.guard import (
    PAGE_FILES,
    Guard,
    GuardLimits,
    HostNames,
    RequestRefused,
    Scope,
    error_document,
    log_request,
)
from osm.serving.http_schemas import ErrorBody
from osm.serving.routes_label_studio import BackendProjects
from osm.serving.services import Services
from osm.terminal import message_logger, printable

logger = message_logger(__name__)

_SCRIPT = "text/javascript"
_PAGE = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": _SCRIPT,
    "masks.js": _SCRIPT,
    "server.js": _SCRIPT,
}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
_POLICY += "; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
_MAX_ERRORS = 5


@dataclass(frozen=True)
class AccessRules:
    """Who may use the server.

    Attributes:
        names: allowed host names.
        limits: the guard's limits.
        api_key: the key that requests must present; empty if none is needed.
        origins: further origins whose pages may call the server.
    """

    names: HostNames = field(default_factory=lambda: HostNames("127.0.0.1"))
    limits: GuardLimits = field(default_factory=GuardLimits)
    api_key: str = ""
    origins: Collection[str] = ()


def create_app(services: Services, access: AccessRules | None = None) -> Guard:
    """Return the ASGI application. Its models are loaded when it starts, if they are not loaded yet.

    Args:
        services: what the routes use.
        access: who may use the server. None: only this machine.
    """
    access = access or AccessRules()
    app = build_routes(services)

    def on_response(scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        services.metrics.requests.labels(route, str(status)).inc()
        services.metrics.seconds.labels(route).observe(seconds)
        log_request(scope, status, seconds)

    return Guard(
        app,
        access.names,
        access.limits,
        access.api_key,
        access.origins,
        lambda code: services.metrics.refusals.labels(code).inc(),
        on_response,
    )


def build_routes(services: Services) -> FastAPI:
    """Return the application without the guard, for tests and for the schema."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for model in services.models.values():
            if model.info is None:
                await model.start()
        yield
        for model in services.models.values():
            await model.close()

    app = FastAPI(
        title="OmniScient Model",
        version=osm.__version__,
        description="Names regions of images with open-ended recognition: no list of classes is needed.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={status: {"model": ErrorBody} for status in (400, 401, 403, 404, 413, 422, 429, 500, 503, 504)},
    )
    app.state.services, app.state.projects = services, BackendProjects()
    for module in (routes_rest, routes_openai, routes_xanylabeling, routes_label_studio):
        app.include_router(module.router)
    _add_health(app, services)
    _add_page(app, services)
    _add_errors(app)
    return app


def _add_health(app: FastAPI, services: Services) -> None:
    started = time.monotonic()

    @app.get("/health", tags=["server"])
    async def health(response: Response) -> dict[str, Any]:
        """Say whether the server works. The status is 503 if a model cannot be restarted."""
        response.status_code = 503 if services.failed else 200
        loaded = sum(model.ready for model in services.models.values())
        state = {"status": "DOWN" if services.failed else "UP", "model_class": "OmniScientModel"}
        return {**state, "models_loaded": loaded, "uptime_seconds": round(time.monotonic() - started)}

    @app.get("/ready", tags=["server"])
    async def ready(response: Response) -> dict[str, Any]:
        """Say whether all models can answer. The status is 503 if not."""
        response.status_code = 200 if services.ready else 503
        return {"ready": services.ready, "models": {name: model.ready for name, model in services.models.items()}}

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Return the counters in Prometheus's format."""
        for name, model in services.models.items():
            services.metrics.queue.labels(name).set(model.length)
            services.metrics.restarts.labels(name).set(model.restarts)
        return Response(services.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI, services: Services) -> None:
    def page_file(name: str) -> Response:
        if services.samples is None or name not in _PAGE:
            raise RequestRefused(404, "not_found", "there is no such page")
        data = (resources.files("osm.serving") / "page_files" / name).read_bytes()
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response(data, media_type=_PAGE[name], headers=headers)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return page_file("page.html")

    @app.get(PAGE_FILES + "{name}", include_in_schema=False)
    def page_part(name: str) -> Response:
        return page_file(name)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestRefused)
    async def refused(request: Request, error: RequestRefused) -> JSONResponse:
        headers = {"retry-after": str(error.retry_after)} if error.retry_after else {}
        request.app.state.services.metrics.refusals.labels(error.code).inc()
        return JSONResponse(error_document(error.code, str(error)), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(one) for one in error.errors()[:_MAX_ERRORS]]
        more = len(error.errors()) - len(faults)
        sentence = "; ".join(f"{where}: {reason}" for where, reason in faults) + (f"; and {more} more" if more else "")
        return JSONResponse(error_document("invalid_request", sentence, faults[0][0], None), 422)

    @app.exception_handler(StarletteHTTPException)
    async def failed(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        document = error_document(code, str(error.detail))
        return JSONResponse(document, error.status_code, getattr(error, "headers", None))

    @app.exception_handler(OsmError)
    async def mistaken(request: Request, error: OsmError) -> JSONResponse:
        return JSONResponse(error_document("invalid_request", str(error)), 422)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        logger.error(f"{request.method} {printable(request.url.path[:120])}: {type(error).__name__}: {error!s:.300}")
        return JSONResponse(error_document("internal_error", "the server failed on this request"), 500)


def _fault(error: Any) -> tuple[str, str]:
    """Return the field of a validation error, and what is wrong with it, with the value if it is short."""
    parts = [part for part in error["loc"] if part not in ("body",)]
    where = ""
    for part in parts:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    reason = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    if isinstance(value, (str, int, float, bool)) and len(str(value)) <= 80:
        reason += f" (got {value!r})"
    return where or "the request body", printable(reason)
