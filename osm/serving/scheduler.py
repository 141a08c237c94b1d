"""Collects the jobs of several requests into batches for a worker process, and restarts the process if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from osm.errors import OsmError
from osm.serving.jobs import EngineStats, JobResult, ModelInfo, NamingJob, counted
from osm.serving.worker import WorkerDied
from osm.terminal import message_logger

logger = message_logger(__name__)

_MAX_RESTARTS = 5
"""Maximum number of consecutive failed restarts."""
_LONGEST_PAUSE = 30.0  # in seconds, between two restarts
_REFUSED_SECONDS = 30  # Retry-After if the model is not running


class QueueFull(Exception):
    """Raised if too many requests are waiting.

    Attributes:
        retry_after: the estimated number of seconds until there is room.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Worker(Protocol):
    """What runs the batches. `osm.serving.worker.WorkerProcess` is one."""

    async def loaded(self) -> ModelInfo:
        """Wait until the model is loaded."""

    async def run(self, jobs: Sequence[NamingJob]) -> tuple[list[JobResult], EngineStats]:
        """Run jobs, and return one result per job."""

    def kill(self) -> None:
        """End the worker at once."""

    async def close(self) -> None:
        """End the worker."""


@dataclass(frozen=True)
class BatchLimits:
    """How jobs are collected into batches.

    Attributes:
        max_queue: maximum number of requests that wait. Others are refused.
        max_masks: maximum number of regions per batch. A job with more regions is a batch of its own.
        max_jobs: maximum number of jobs per batch, which also bounds the number of its images.
        wait_seconds: how long an idle worker waits for more jobs after the first one.
        timeout_seconds: how long a request may take, including the time in the queue.
    """

    max_queue: int = 128
    max_masks: int = 256
    max_jobs: int = 32
    wait_seconds: float = 0.005
    timeout_seconds: float = 120.0


@dataclass(frozen=True)
class BatchReport:
    """What the metrics are told about a finished batch: its jobs, regions and duration, and the engine's counts."""

    jobs: int
    masks: int
    seconds: float
    stats: EngineStats


@dataclass(eq=False)
class _Waiting:
    job: NamingJob
    answer: asyncio.Future[JobResult]
    since: float = field(default_factory=time.monotonic)


class ModelQueue:
    """The queue of one model, and the worker that serves it.

    Args:
        name: the name of the model in messages.
        new_worker: starts a worker. It is called again if the worker dies.
        limits: how jobs are collected.
        on_batch: is called after each batch.
    """

    def __init__(
        self,
        name: str,
        new_worker: Callable[[], Worker],
        limits: BatchLimits | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.name, self.limits = name, limits or BatchLimits()
        self._new_worker, self._on_batch = new_worker, on_batch
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._worker: Worker | None = None
        self._task: asyncio.Task[None] | None = None
        self._seconds_per_job = 0.0  # a running mean, for Retry-After
        self.info: ModelInfo | None = None
        self.ready = False
        self.restarts = 0

    @property
    def failed(self) -> bool:
        """Whether the worker could not be restarted, so that only a restart of the server helps."""
        return self._task is not None and self._task.done()

    @property
    def length(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    async def start(self) -> ModelInfo:
        """Load the model, then serve jobs until `close`.

        Raises:
            OsmError: the model cannot be loaded, or the worker died while loading it.
        """
        self._worker = self._new_worker()
        try:
            self.info = await self._worker.loaded()
        except WorkerDied as error:
            raise OsmError(f"model {self.name}: {error} while it was loading the model") from None
        self.ready = True
        self._task = asyncio.create_task(self._serve())
        return self.info

    async def submit(self, job: NamingJob) -> JobResult:
        """Run a job together with those of other requests, and return its result.

        Raises:
            QueueFull: too many requests are waiting, or the worker cannot be restarted.
            WorkerDied: the worker died while it was running the job.
            TimeoutError: the job did not finish in time. It is removed from the queue.
        """
        if self._task is None or self._task.done():
            raise QueueFull(f"model {self.name} is not running", _REFUSED_SECONDS)
        if len(self._waiting) >= self.limits.max_queue:
            raise QueueFull(f"{len(self._waiting)} requests are waiting already", self._retry_after())
        waiting = _Waiting(job, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            async with asyncio.timeout(self.limits.timeout_seconds):
                return await waiting.answer
        finally:
            waiting.answer.cancel()
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiting)

    async def close(self) -> None:
        """End the worker. Jobs that still wait raise QueueFull."""
        self.ready = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        _refuse(self._waiting, "the server is shutting down")
        if self._worker is not None:
            await self._worker.close()

    # -- implementation ------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            batch = await self._next_batch()
            if not batch:
                continue
            try:
                await self._run(batch)
            except Exception as error:  # the worker died, or cannot be spoken to any more
                logger.error(f"model {self.name}: {error}; {len(batch)} requests failed; restarting the worker")
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(WorkerDied(f"model {self.name}: {error}"))
                if not await self._restarted():
                    return

    async def _next_batch(self) -> list[_Waiting]:
        """Wait for jobs, and take as many as fit in a batch, in the order of their arrival."""
        if not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
            await self._wait_for_more()
        batch: list[_Waiting] = []
        masks = 0
        while self._waiting and len(batch) < self.limits.max_jobs:
            count = self._waiting[0].job.count
            if batch and (masks + count > self.limits.max_masks or self._takes_long(len(batch) + 1)):
                break
            waiting = self._waiting.popleft()
            if not waiting.answer.done():  # it may have timed out
                batch.append(waiting)
                masks += count
        return batch

    async def _wait_for_more(self) -> None:
        """Wait a little, so that requests that arrive at almost the same time share a batch."""
        limits = self.limits
        deadline = time.monotonic() + limits.wait_seconds
        while len(self._waiting) < limits.max_jobs and self._masks_waiting() < limits.max_masks:
            left = deadline - time.monotonic()
            if left <= 0 or limits.max_jobs == 1:
                return
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    def _takes_long(self, jobs: int) -> bool:
        """Return whether a batch of so many jobs would probably take a large part of the timeout."""
        return jobs * self._seconds_per_job > self.limits.timeout_seconds / 4

    def _masks_waiting(self) -> int:
        return counted([waiting.job for waiting in self._waiting])

    async def _run(self, batch: list[_Waiting]) -> None:
        assert self._worker is not None
        started = time.monotonic()
        jobs = [waiting.job for waiting in batch]
        # All clients of a batch have given up after the timeout, so a worker that takes longer serves nobody.
        watchdog = asyncio.get_running_loop().call_later(self.limits.timeout_seconds, self._worker.kill)
        try:
            results, stats = await self._worker.run(jobs)
        except asyncio.CancelledError:  # the server ends before the batch does
            _refuse(batch, "the server is shutting down")
            raise
        finally:
            watchdog.cancel()
        seconds = time.monotonic() - started
        mean = seconds / len(batch)
        self._seconds_per_job = mean if not self._seconds_per_job else 0.9 * self._seconds_per_job + 0.1 * mean
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(result)
        if self._on_batch is not None:
            self._on_batch(BatchReport(len(batch), counted(jobs), seconds, stats))

    async def _restarted(self) -> bool:
        """Start the worker again, several times if necessary. Return whether it runs."""
        self.ready = False
        for attempt in range(_MAX_RESTARTS):
            if attempt:
                await asyncio.sleep(min(2.0**attempt, _LONGEST_PAUSE))
            if self._worker is not None:
                await self._worker.close()
            self.restarts += 1
            try:
                self._worker = self._new_worker()
                self.info = await self._worker.loaded()
            except Exception as error:  # also if no process can be started
                logger.error(f"model {self.name}: {error}")
                continue
            self.ready = True
            logger.info(f"model {self.name} is running again")
            return True
        logger.error(f"model {self.name}: gave up after {_MAX_RESTARTS} failed restarts")
        _refuse(self._waiting, f"model {self.name} is not running")
        return False

    def _retry_after(self) -> int:
        return min(60, max(1, math.ceil(self._seconds_per_job * len(self._waiting))))


def _refuse(requests: Iterable[_Waiting], reason: str) -> None:
    for waiting in requests:
        if not waiting.answer.done():
            waiting.answer.set_exception(QueueFull(reason, _REFUSED_SECONDS))
