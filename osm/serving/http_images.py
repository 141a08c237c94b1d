"""The images of requests: base64, data URIs, uploads, URLs, and images that were uploaded before."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from osm.errors import SampleError
from osm.io.images import FORMATS, open_image, orientation, read_rgb
from osm.serving.guard import RequestRefused
from osm.serving.jobs import ALPHA_KEY, JobImage
from osm.serving.url_fetch import UrlFetcher, UrlRefused

_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,", re.ASCII)
_SPACES = re.compile(r"[ \t\r\n]+")
_SHOWN_SIDE = 1600
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image.

    Attributes:
        file_mb: maximum size of a file in MiB.
        megapixels: maximum number of pixels, in millions.
        stored_mb: maximum size of all images that `StoredUploads` keeps, in MiB.
    """

    file_mb: float = 20.0
    megapixels: float = 25.0
    stored_mb: float = 200.0

    @property
    def pixels(self) -> int:
        """Maximum number of pixels per image."""
        return int(self.megapixels * 1e6)

    @property
    def file_bytes(self) -> int:
        """Maximum size of a file in bytes."""
        return int(self.file_mb * 2**20)


@dataclass(frozen=True)
class RequestImage:
    """A checked image of a request, which is not decoded yet.

    Attributes:
        job: the image as a job takes it.
        size: (width, height), upright.
    """

    job: JobImage
    size: tuple[int, int]

    @property
    def id(self) -> str:
        """The hash of the file, under which later requests may refer to the image."""
        return self.job.key.removeprefix(ALPHA_KEY)


class StoredUploads:
    """Image files by their hash, in memory. The least recently used ones are dropped first.

    Args:
        max_bytes: the maximum size of all files.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._files: OrderedDict[str, RequestImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def put(self, image: RequestImage) -> None:
        """Keep an image."""
        if image.id not in self._files:
            self._files[image.id] = image
            self.bytes += _size_of(image)
        self._files.move_to_end(image.id)
        while self.bytes > self.max_bytes and len(self._files) > 1:
            self.bytes -= _size_of(self._files.popitem(last=False)[1])

    def get(self, key: str) -> RequestImage:
        """Return an image. Raises RequestRefused if it is not kept any more."""
        if key not in self._files:
            sentence = f"image.id {key[:80]!r} is not stored (any more); upload the image to /v1/images again"
            raise RequestRefused(404, "image_not_found", sentence)
        self._files.move_to_end(key)
        return self._files[key]


class RequestImages:
    """Reads the images of requests.

    Args:
        limits: limits of an image.
        fetcher: downloads images that are given by URL.
    """

    def __init__(self, limits: ImageLimits, fetcher: UrlFetcher) -> None:
        self.limits, self.fetcher = limits, fetcher
        self.stored = StoredUploads(int(limits.stored_mb * 2**20))

    async def read(self, value: str, where: str, headers: Mapping[str, str] | None = None) -> RequestImage:
        """Read an image that is given as base64, a data URI or a URL. `headers` are sent to the host of the URL."""
        if value[:8].lower().startswith(("http://", "https://")):
            try:
                data = await self.fetcher.fetch(value, headers)
            except UrlRefused as error:
                raise RequestRefused(422, "url_not_allowed", f"{where}: {error}") from None
        else:
            data = self.decoded(value, where)
        return await self.checked(data, where)

    def decoded(self, text: str, where: str) -> bytes:
        """Decode base64, with or without the head of a data URI. The size is checked before."""
        found = _DATA_URI.match(text)
        start = found.end() if found is not None else 0
        if (len(text) - start) * 3 // 4 > self.limits.file_bytes + 4:
            raise self._too_large((len(text) - start) * 3 // 4, where)
        try:
            return binascii.a2b_base64(_SPACES.sub("", text[start:]).encode("ascii"), strict_mode=True)
        except (ValueError, binascii.Error):
            sentence = f"{where}: {text[:24]!r}... is not base64 (with or without 'data:image/png;base64,' before it)"
            raise RequestRefused(422, "invalid_image", sentence) from None

    async def checked(self, data: bytes, where: str, alpha: bool = False) -> RequestImage:
        """Check the size and the header of an image file, without decoding it.

        Args:
            data: the file.
            where: the beginning of error messages.
            alpha: whether the alpha channel of the image is a mask.
        """
        return await asyncio.to_thread(self._check, data, where, alpha)

    def _check(self, data: bytes, where: str, alpha: bool) -> RequestImage:
        if len(data) > self.limits.file_bytes:
            raise self._too_large(len(data), where)
        try:
            image = open_image(data)
        except SampleError as error:
            if error.reason == "image_too_large":
                raise self._too_many_pixels("the image has too many pixels", where) from None
            raise RequestRefused(422, "invalid_image", f"{where}: not a readable {FORMATS}") from None
        width, height = image.size
        if width * height > self.limits.pixels:
            raise self._too_many_pixels(f"the image has {width} x {height} pixels", where)
        if alpha:
            if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
                sentence = f"the image must have an alpha channel, whose pixels > 0 are named; its mode is {image.mode}"
                raise RequestRefused(422, "invalid_image", f"{where}: {sentence}")
        elif orientation(image) in _TURNED:
            width, height = height, width
        key = hashlib.sha256(data).hexdigest()
        return RequestImage(JobImage(ALPHA_KEY + key if alpha else key, data), (width, height))

    def _too_large(self, size: int, where: str) -> RequestRefused:
        sentence = f"{where}: the file has {size} bytes, but the maximum is {self.limits.file_bytes} (--max_file_mb)"
        return RequestRefused(413, "image_too_large", sentence)

    def _too_many_pixels(self, found: str, where: str) -> RequestRefused:
        most = f"the maximum is {self.limits.megapixels:g} million (--max_megapixels)"
        return RequestRefused(413, "image_too_large", f"{where}: {found}; {most}")


def _size_of(image: RequestImage) -> int:
    assert isinstance(image.job.source, bytes)
    return len(image.job.source)


def display_jpeg(source: bytes | Image.Image) -> bytes:
    """Return an image as a JPEG for a page: upright, and with at most `_SHOWN_SIDE` pixels per side.

    Raises:
        SampleError: the image cannot be decoded.
    """
    image = read_rgb(source, upright=True) if isinstance(source, bytes) else source
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
