"""The route class of all JSON interfaces: JSON bodies are bounded in depth and in the number of their values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from osm.documents import parse_json
from osm.serving.guard import RequestRefused

_MAX_FILES, _MAX_FIELDS = 1000, 16  # of a form
_MAX_TEXT = 4 << 20  # bytes of a text in a form


class BoundedRequest(Request):
    """A request whose JSON body may neither be nested deeply nor have too many values, and whose form is bounded."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            most = self.app.state.services.limits.numbers
            values = body.count(b",")
            if values > most:
                sentence = f"the JSON body has {values} values or more, but the maximum is {most}"
                raise RequestRefused(413, "request_too_large", sentence)
            try:
                self._json = await asyncio.to_thread(parse_json, body)
            except ValueError as error:
                raise RequestRefused(
                    400, "invalid_json", f"the request body is not JSON ({str(error)[:200]})"
                ) from None
        return self._json

    def form(self, **_: Any) -> Any:
        return super().form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_TEXT)


class BoundedRoute(APIRoute):
    """A route whose handler receives a `BoundedRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            bounded = BoundedRequest(request.scope, request.receive)
            if request.method == "POST" and "json" in request.headers.get("content-type", ""):
                await bounded.json()  # FastAPI would hide the reason why the body cannot be parsed
            return await handler(bounded)

        return handle


class FormRoute(BoundedRoute):
    """A route that only takes forms, so that another route with the same path can take JSON."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        kinds = [value for key, value in scope.get("headers", []) if key == b"content-type"]
        if not (kinds and kinds[0].lower().startswith(b"multipart/form-data")):
            return Match.NONE, {}
        return super().matches(scope)
