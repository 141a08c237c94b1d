"""A process that holds one model. If the process dies, only the requests that it was working on fail.

The web server sends a list of jobs through a pipe, and receives the results of all of them. The process ends when the
pipe is closed, so that it never outlives the web server.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from osm.errors import OsmError
from osm.quiet import quiet_libraries
from osm.serving.jobs import CACHE_BYTES, INTERNAL, EngineStats, JobFailure, JobResult, ModelInfo, NamingJob
from osm.terminal import console_messages, message_logger

logger = message_logger(__name__)

_SECONDS_TO_END = 5.0


class WorkerDied(Exception):
    """Raised if a worker process ended while it was working, or did not answer in time."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process loads; see `osm.serving.engine.load_engine`."""

    checkpoint: str
    segmenter: str = "auto"
    sam_checkpoint: str | None = None
    device: str = "auto"
    config: str | None = None
    settings: tuple[str, ...] = ()
    cache_bytes: int = CACHE_BYTES
    log_json: bool = False


class WorkerProcess:
    """A worker process, as the web server sees it. It works on one list of jobs at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve_jobs, args=(settings, theirs), daemon=True, name="osm-worker")
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="osm-worker-pipe")

    @property
    def pid(self) -> int | None:
        """The id of the process."""
        return self._process.pid

    async def loaded(self) -> ModelInfo:
        """Wait until the model is loaded.

        Raises:
            OsmError: the model cannot be loaded.
            WorkerDied: the process died.
        """
        answer = await self._receive()
        if isinstance(answer, str):
            raise OsmError(answer)
        assert isinstance(answer, ModelInfo)
        return answer

    async def run(self, jobs: Sequence[NamingJob]) -> tuple[list[JobResult], EngineStats]:
        """Run jobs, and return one result per job.

        Raises:
            WorkerDied: the process died.
        """
        try:
            await self._in_thread(self._pipe.send, list(jobs))
        except (OSError, EOFError) as error:
            raise await self._died() from error
        results: tuple[list[JobResult], EngineStats] = await self._receive()
        return results

    def kill(self) -> None:
        """End the process at once. A `run` in progress raises WorkerDied."""
        self._process.kill()

    async def close(self) -> None:
        """Close the pipe, which ends the process. If the process does not end in time, it is killed."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        await asyncio.to_thread(self._process.join, _SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _receive(self) -> Any:
        try:
            return await self._in_thread(self._pipe.recv)
        except (OSError, EOFError) as error:
            raise await self._died() from error

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _died(self) -> WorkerDied:
        await asyncio.to_thread(self._process.join, _SECONDS_TO_END)
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerDied(f"the worker process {self._process.pid} died ({how})")


def serve_jobs(settings: WorkerSettings, pipe: Connection) -> None:
    """Load a model, and run jobs from a pipe until it is closed. This is the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to all processes; the web server ends this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with console_messages(settings.log_json), quiet_libraries():
        try:
            engine = _loaded_engine(settings)
        except OsmError as error:
            pipe.send(str(error))
            return
        from osm.serving.engine import is_fatal

        pipe.send(engine.info(settings.checkpoint))
        while True:
            try:
                jobs = pipe.recv()
            except (OSError, EOFError):
                return
            try:
                results = engine.run(jobs)
            except Exception as error:  # such as a lack of memory; the next jobs may succeed
                if is_fatal(error):
                    raise
                logger.error(f"{len(jobs)} jobs failed: {type(error).__name__}: {error}")
                results = [JobFailure(f"naming failed ({type(error).__name__})", INTERNAL) for _ in jobs]
            with contextlib.suppress(OSError):
                pipe.send((results, engine.stats))


def _loaded_engine(settings: WorkerSettings) -> Any:
    from osm.startup import quick_loading

    with quick_loading():
        from osm.serving.engine import load_engine

        return load_engine(
            settings.checkpoint,
            settings.segmenter,
            settings.sam_checkpoint,
            device=settings.device,
            config=settings.config,
            settings=settings.settings,
            cache_bytes=settings.cache_bytes,
        )
