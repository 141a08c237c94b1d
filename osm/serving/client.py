"""A small client for `osm serve`, which needs neither torch nor the server's packages.

>>> client = OsmClient("http://127.0.0.1:8000")
>>> client.name("street.jpg", boxes=[[10, 20, 200, 100]], top_k=3)[0][0].text
"""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osm.documents import parse_json
from osm.errors import OsmError
from osm.io.segmentation import encode_rle
from osm.recognition.answers import Alternative, Recognition

_RETRIED = (429, 503)
_LONGEST_WAIT = 30.0  # in seconds, between two tries


class ServerError(OsmError):
    """Raised if the server refuses a request or fails.

    Attributes:
        status: the HTTP status; 0 if the server cannot be reached.
        code: the server's word for the error.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class FoundSegment:
    """A segment that the server found, and its names.

    Attributes:
        names: one recognition per mode.
        rle: the mask as a compressed COCO RLE.
        score: the segmenter's confidence.
    """

    names: tuple[Recognition, ...]
    rle: Mapping[str, Any]
    score: float


class OsmClient:
    """Calls a server that was started with `osm serve`.

    Args:
        url: the address of the server.
        api_key: the server's API key, if it needs one.
        model: the name of the model; only needed if the server has several.
        timeout: how many seconds a request may take.
        retries: how often a request is sent again if the server is overloaded.
    """

    def __init__(
        self, url: str, api_key: str = "", model: str | None = None, timeout: float = 120.0, retries: int = 5
    ) -> None:
        self.url, self.api_key, self.model = url.rstrip("/"), api_key, model
        self.timeout, self.retries = timeout, retries

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models, with their modes."""
        found: list[dict[str, Any]] = self._send("/v1/models", None)["data"]
        return found

    def name(
        self,
        image: Image.Image | np.ndarray | bytes | str | Path,
        masks: Iterable[Any] = (),
        *,
        boxes: Iterable[Sequence[float]] = (),
        points: Iterable[Sequence[float]] = (),
        segment: bool = False,
        modes: Sequence[str] = ("any",),
        top_k: int = 1,
        vocabulary: Iterable[str] | None = None,
        method: str = "constrained",
        **options: float,
    ) -> list[list[Recognition]]:
        """Name regions of an image.

        Args:
            image: a PIL image, a uint8 array, the bytes of a file, or the path of a file.
            masks: bool arrays (H, W), COCO RLEs, or lists of polygons [x, y, x, y, ...].
            boxes: boxes (x, y, width, height) in pixels.
            points: points (x, y) in pixels.
            segment: whether the server's segmenter makes the masks of boxes and points.
            modes, top_k, vocabulary, method: see `Recognizer.name`.
            options: `length_power`, `prior_weight` and `none_below`.

        Returns:
            one recognition per mode, for each region: masks first, then boxes, then points.

        Raises:
            ServerError: the server refuses the request, fails, or cannot be reached.
        """
        regions = [_region(mask) for mask in masks]
        regions += [{"box": _floats(box), "segment": segment} for box in boxes]
        regions += [{"point": _floats(point), "segment": segment} for point in points]
        body = {"regions": regions, **self._options(image, modes, top_k, vocabulary, method), **options}
        return [_names(region) for region in self._send("/v1/name", body)["regions"]]

    def everything(
        self,
        image: Image.Image | np.ndarray | bytes | str | Path,
        *,
        max_segments: int = 40,
        modes: Sequence[str] = ("any",),
        vocabulary: Iterable[str] | None = None,
        method: str = "constrained",
    ) -> list[FoundSegment]:
        """Name all segments that the server's segmenter finds in an image, the largest first.

        Raises:
            ServerError: the server refuses the request, fails, or cannot be reached.
        """
        more = {"everything": True, "max_segments": max_segments, "masks": True}
        body = {**more, **self._options(image, modes, 1, vocabulary, method)}
        return [
            FoundSegment(tuple(_names(region)), region["segmentation"], region["score"])
            for region in self._send("/v1/name", body)["regions"]
        ]

    def _options(
        self, image: Any, modes: Sequence[str], top_k: int, vocabulary: Iterable[str] | None, method: str
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"image": base64.b64encode(_bytes(image)).decode(), "modes": list(modes), "top_k": top_k}
        if self.model is not None:
            body["model"] = self.model
        if vocabulary is not None:
            body |= {"vocabulary": list(vocabulary), "method": method}
        return body

    def _send(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        for left in range(self.retries, -1, -1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return parse_json(response.read())
            except urllib.error.HTTPError as error:
                if error.code not in _RETRIED or not left:
                    raise _server_error(error) from None
                time.sleep(min(_LONGEST_WAIT, float(error.headers.get("Retry-After") or 1)))
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise ServerError(0, "unreachable", f"{self.url} cannot be reached ({error})") from None
        raise AssertionError("unreachable")


def _server_error(error: urllib.error.HTTPError) -> ServerError:
    try:
        facts = parse_json(error.read())["error"]
        return ServerError(error.code, facts["code"], facts["message"])
    except (ValueError, KeyError, TypeError):
        return ServerError(error.code, "unknown", f"the server answered with HTTP status {error.code}")


def _bytes(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise OsmError(f"image {image}: cannot be read ({error.strerror})") from None
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if not isinstance(picture, Image.Image):
        raise OsmError(f"image is a {type(image).__name__}; expected a PIL image, an array, bytes or a path")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _region(mask: Any) -> dict[str, Any]:
    if isinstance(mask, Mapping):
        counts = mask["counts"]
        return {"rle": {"size": list(mask["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}}
    if isinstance(mask, np.ndarray):
        return {"rle": encode_rle(mask > 0)}
    return {"polygons": [_floats(polygon) for polygon in mask]}


def _floats(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values]


def _names(region: Mapping[str, Any]) -> list[Recognition]:
    return [_recognition(answer) for answer in region["answers"]]


def _recognition(answer: Mapping[str, Any]) -> Recognition:
    return Recognition(
        answer["mode"],
        answer.get("name", ""),
        answer.get("prob", 0.0),
        top=tuple(Alternative(one["name"], one.get("prob"), one.get("cosine")) for one in answer.get("top", ())),
        said=answer.get("said", ""),
        skipped=answer.get("skipped", ""),
        calibrated_prob=answer.get("calibrated_prob"),
        unsure=answer.get("unsure", False),
        class_id=answer.get("class_id"),
    )
