"""What the routes share: the models by name, the images of requests, and how jobs are run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from osm.errors import did_you_mean
from osm.serving.guard import RequestRefused
from osm.serving.http_images import RequestImage, RequestImages
from osm.serving.http_schemas import ImageInput
from osm.serving.jobs import INTERNAL, JobAnswer, JobFailure, ModelInfo, NamingJob
from osm.serving.metrics import ServerMetrics
from osm.serving.page_samples import PageSamples
from osm.serving.scheduler import ModelQueue, QueueFull
from osm.serving.worker import WorkerDied
from osm.terminal import message_logger

logger = message_logger(__name__)


def original_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a vocabulary, as the recognizer returns it (in lower case), to the name as it was given."""
    return {" ".join(name.lower().split()): name for name in names}


@dataclass(frozen=True)
class ListLimits:
    """Limits of the lists in a request: its regions, its vocabulary, and all values of its JSON body."""

    regions: int = 256
    vocabulary: int = 5000
    numbers: int = 2_000_000


@dataclass
class Services:
    """What the routes of a server use.

    Attributes:
        models: the models by name; the first one is the default.
        images: reads the images of requests.
        limits: limits of lists.
        metrics: the counters of `/metrics`.
        samples: the sample images of the page. None: there is no page.
        draining: whether the server is shutting down.
        decoding: limits how many images the web server's process decodes at the same time, in order to show them.
    """

    models: Mapping[str, ModelQueue]
    images: RequestImages
    limits: ListLimits = field(default_factory=ListLimits)
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    samples: PageSamples | None = None
    draining: bool = False
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @property
    def ready(self) -> bool:
        """Whether all models can answer, and the server is not shutting down."""
        return not self.draining and all(model.ready for model in self.models.values())

    @property
    def failed(self) -> bool:
        """Whether a model cannot be restarted."""
        return any(model.failed for model in self.models.values())

    def model(self, name: str | None) -> ModelQueue:
        """Return a model by name, or the default one.

        Raises:
            RequestRefused: there is no such model.
        """
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            meant = did_you_mean(name, self.models)
            raise RequestRefused(404, "model_not_found", f"model {name[:80]!r} is not one of: {known}{meant}")
        return self.models[name]

    def info(self, model: ModelQueue) -> ModelInfo:
        """Return what is known about a model that is loaded."""
        if model.info is None:
            raise RequestRefused(503, "not_ready", f"model {model.name} is not loaded yet", 5)
        return model.info

    async def image(self, value: str | ImageInput | None) -> RequestImage:
        """Read the field `image` of a request. Raises RequestRefused if it is missing or cannot be used."""
        if value is None:
            raise RequestRefused(422, "invalid_request", "image is missing: give base64, a data URI, a URL or an id")
        if isinstance(value, str):
            return await self.images.read(value, "image")
        if value.id is not None:
            return self.images.stored.get(value.id)
        if value.url is not None:
            if not value.url.lower().startswith(("http://", "https://")):
                raise RequestRefused(422, "url_not_allowed", f"image.url {value.url[:80]!r} is not an http(s) URL")
            return await self.images.read(value.url, "image.url")
        return await self.images.checked(self.images.decoded(value.base64 or "", "image.base64"), "image.base64")

    async def run(self, model: ModelQueue, job: NamingJob) -> JobAnswer:
        """Run a job, and return its answer.

        Raises:
            RequestRefused: the job is invalid, the queue is full, the request timed out, or the worker died.
        """
        try:
            result = await model.submit(job)
        except QueueFull as full:
            raise RequestRefused(503, "overloaded", str(full), full.retry_after) from None
        except TimeoutError:
            seconds = model.limits.timeout_seconds
            raise RequestRefused(504, "timeout", f"the request took longer than {seconds:g} seconds") from None
        except WorkerDied as error:
            raise RequestRefused(500, "worker_died", f"{error}; send the request again", 1) from None
        if isinstance(result, JobFailure):
            status, code = (500, "internal_error") if result.kind == INTERNAL else (422, "invalid_request")
            raise RequestRefused(status, code, result.message)
        return result

    def check_runs(self, texts: Iterable[str | list[int]]) -> None:
        """Raise RequestRefused if the compressed RLEs of a request are too long together."""
        found = sum(len(text) for text in texts if isinstance(text, str))
        if found > self.limits.numbers:
            sentence = f"the RLEs have {found} characters together, but the maximum is {self.limits.numbers}"
            raise RequestRefused(413, "request_too_large", sentence)

    def check_counts(self, regions: int, vocabulary: int = 0) -> None:
        """Raise RequestRefused if a request has too many regions or names."""
        if regions > self.limits.regions:
            most = f"the maximum is {self.limits.regions} (--max_regions)"
            raise RequestRefused(413, "too_many_regions", f"regions has {regions} elements, but {most}")
        if vocabulary > self.limits.vocabulary:
            most = f"the maximum is {self.limits.vocabulary} (--max_vocabulary)"
            raise RequestRefused(413, "vocabulary_too_large", f"vocabulary has {vocabulary} names, but {most}")
