"""The counters that `/metrics` shows in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from osm.serving.scheduler import BatchReport

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        more: Any = {"registry": self.registry}
        self.requests = Counter("osm_requests", "requests by route and status", ["route", "status"], **more)
        self.seconds = Histogram("osm_request_seconds", "time of requests", ["route"], buckets=_SECONDS, **more)
        self.refusals = Counter(
            "osm_refusals", "refused or failed requests by error code, without schema errors", ["code"], **more
        )
        self.regions = Counter("osm_regions", "regions in finished batches", ["model"], **more)
        self.batch_requests = Histogram("osm_batch_requests", "requests per batch", ["model"], buckets=_SIZES, **more)
        self.batch_seconds = Histogram("osm_batch_seconds", "time of batches", ["model"], buckets=_SECONDS, **more)
        self.cache_hits = Gauge("osm_image_cache_hits", "images that were encoded already", ["model"], **more)
        self.cache_misses = Gauge("osm_image_cache_misses", "images that had to be encoded", ["model"], **more)
        self.cache_bytes = Gauge("osm_image_cache_bytes", "memory of the encoded images", ["model"], **more)
        self.queue = Gauge("osm_queue_length", "requests that wait", ["model"], **more)
        self.restarts = Gauge("osm_worker_restarts", "restarts of the worker process", ["model"], **more)

    def on_batch(self, model: str) -> Callable[[BatchReport], None]:
        """Return a callback that counts the batches of a model."""

        def count(report: BatchReport) -> None:
            self.regions.labels(model).inc(report.masks)
            self.batch_requests.labels(model).observe(report.jobs)
            self.batch_seconds.labels(model).observe(report.seconds)
            self.cache_hits.labels(model).set(report.stats.hits)
            self.cache_misses.labels(model).set(report.stats.misses)
            self.cache_bytes.labels(model).set(report.stats.cached_bytes)

        return count

    def text(self) -> bytes:
        """Return the metrics as text."""
        return generate_latest(self.registry)
