"""Requests are collected into batches; the queue is bounded; a worker that dies is one error to its clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from processes import wait_until
from server_threads import as_base64, drawn_picture, rle_region, served

from osm.errors import OsmError
from osm.serving.engine import Engine
from osm.serving.jobs import EngineStats, JobAnswer, JobImage, JobResult, ModelInfo, NamingJob, RegionPrompt
from osm.serving.scheduler import BatchLimits, BatchReport, ModelQueue, QueueFull
from osm.serving.worker import WorkerDied

BODY = {"image": as_base64(drawn_picture()), "regions": [rle_region()]}


def job(name: str, regions: int = 1) -> NamingJob:
    return NamingJob(JobImage(name, b""), tuple(RegionPrompt("box", (0, 0, 1, 1)) for _ in range(regions)))


class ScriptedWorker:
    """A worker whose batches are released by the test. It dies on the batches `failing`."""

    def __init__(self, failing: Sequence[int] = (), loads: bool = True) -> None:
        self.batches: list[list[str]] = []
        self.release = asyncio.Event()
        self.release.set()
        self.failing, self.loads, self.closed, self.killed = set(failing), loads, False, False

    async def loaded(self) -> ModelInfo:
        if not self.loads:
            raise WorkerDied("the worker process died (signal 9)")
        return ModelInfo("scripted", ("any",))

    async def run(self, jobs: Sequence[NamingJob]) -> tuple[list[JobResult], EngineStats]:
        self.batches.append([one.image.key for one in jobs])
        await self.release.wait()
        if len(self.batches) - 1 in self.failing or self.killed:
            raise WorkerDied("the worker process died (signal 9)")
        return [JobAnswer((1, 1)) for _ in jobs], EngineStats()

    def kill(self) -> None:
        self.killed = True
        self.release.set()

    async def close(self) -> None:
        self.closed = True


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_waits_shares_a_batch() -> None:
    async def test() -> None:
        worker, reports = ScriptedWorker(), list[BatchReport]()
        queue = ModelQueue("m", lambda: worker, BatchLimits(max_masks=6, max_jobs=3, wait_seconds=0), reports.append)
        await queue.start()
        worker.release.clear()
        tasks = [asyncio.create_task(queue.submit(job("first")))]
        await settle()
        sizes = {"a": 2, "b": 3, "c": 2, "d": 1, "e": 1, "f": 1, "huge": 9, "g": 1}
        tasks += [asyncio.create_task(queue.submit(job(name, size))) for name, size in sizes.items()]
        await settle()
        assert queue.length == len(sizes)
        worker.release.set()
        assert all(isinstance(result, JobAnswer) for result in await asyncio.gather(*tasks))
        # At most 3 jobs and 6 regions; a job that is too large for any batch has one of its own.
        assert worker.batches == [["first"], ["a", "b"], ["c", "d", "e"], ["f"], ["huge"], ["g"]]
        assert [report.masks for report in reports] == [1, 5, 4, 1, 9, 1]
        await queue.close()
        assert worker.closed

    run(test)


def test_an_idle_worker_waits_a_little() -> None:
    async def test() -> None:
        worker = ScriptedWorker()
        queue = ModelQueue("m", lambda: worker, BatchLimits(wait_seconds=0.2))
        await queue.start()
        one = asyncio.create_task(queue.submit(job("a")))
        await asyncio.sleep(0.05)
        await asyncio.gather(one, queue.submit(job("b")))
        assert worker.batches == [["a", "b"]]
        await queue.close()
        alone = ModelQueue("m", lambda: worker, BatchLimits(wait_seconds=5, max_jobs=1))
        await alone.start()
        await asyncio.wait_for(alone.submit(job("c")), 2)  # without batching, there is nothing to wait for
        await alone.close()

    run(test)


def test_the_queue_is_bounded() -> None:
    async def test() -> None:
        worker = ScriptedWorker()
        queue = ModelQueue("m", lambda: worker, BatchLimits(max_queue=2, wait_seconds=0))
        await queue.start()
        worker.release.clear()
        tasks = [asyncio.create_task(queue.submit(job(str(k)))) for k in range(1)]
        await settle()
        tasks += [asyncio.create_task(queue.submit(job(str(k)))) for k in (1, 2)]
        await settle()
        with pytest.raises(QueueFull, match="2 requests are waiting already") as full:
            await queue.submit(job("more"))
        assert full.value.retry_after >= 1
        worker.release.set()
        await asyncio.gather(*tasks)
        await queue.close()

    run(test)


def test_a_job_that_waits_too_long() -> None:
    """It is removed from the queue, and a worker that serves nobody any more is killed."""

    async def test() -> None:
        workers = [ScriptedWorker(), ScriptedWorker()]
        rest = iter(workers)
        queue = ModelQueue("m", lambda: next(rest), BatchLimits(wait_seconds=0, timeout_seconds=0.2))
        await queue.start()
        workers[0].release.clear()
        results = await asyncio.gather(queue.submit(job("a")), queue.submit(job("b")), return_exceptions=True)
        assert all(isinstance(result, (TimeoutError, WorkerDied)) for result in results)
        assert queue.length == 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            if queue.ready and queue.restarts:
                break
        assert workers[0].killed and queue.restarts == 1
        assert isinstance(await queue.submit(job("c")), JobAnswer)
        await queue.close()

    run(test)


def test_a_worker_that_dies() -> None:
    """The requests of its batch fail; those that wait are answered by the next worker."""

    async def test() -> None:
        workers = [ScriptedWorker(failing=[0]), ScriptedWorker()]
        rest = iter(workers)
        queue = ModelQueue("m", lambda: next(rest), BatchLimits(max_jobs=2, wait_seconds=0.05))
        await queue.start()
        results = await asyncio.gather(*(queue.submit(job(str(k))) for k in range(5)), return_exceptions=True)
        assert [isinstance(result, WorkerDied) for result in results] == [True, True, False, False, False]
        assert "model m: the worker process died (signal 9)" in str(results[0])
        assert queue.ready and queue.restarts == 1 and workers[0].closed
        assert [key for batch in workers[1].batches for key in batch] == ["2", "3", "4"]
        await queue.close()

    run(test)


def test_a_worker_that_cannot_be_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        workers = iter([ScriptedWorker(failing=[0]), *(ScriptedWorker(loads=False) for _ in range(9))])
        queue = ModelQueue("m", lambda: next(workers), BatchLimits(wait_seconds=0, max_jobs=1))
        await queue.start()
        results = await asyncio.gather(queue.submit(job("a")), queue.submit(job("b")), return_exceptions=True)
        assert isinstance(results[0], WorkerDied) and isinstance(results[1], QueueFull)
        assert queue.failed and not queue.ready
        with pytest.raises(QueueFull, match="model m is not running"):
            await queue.submit(job("c"))
        await queue.close()

    monkeypatch.setattr("osm.serving.scheduler._LONGEST_PAUSE", 0.0)
    run(test)


def test_any_fault_of_a_worker_is_one_error() -> None:
    """Also one that is no death: what waits is not left hanging."""

    async def test() -> None:
        class Odd(ScriptedWorker):
            async def run(self, jobs: Sequence[NamingJob]) -> tuple[list[JobResult], EngineStats]:
                raise ValueError("cannot be unpickled")

        workers = iter([Odd(), ScriptedWorker()])
        queue = ModelQueue("m", lambda: next(workers), BatchLimits(wait_seconds=0, max_jobs=1))
        await queue.start()
        results = await asyncio.gather(queue.submit(job("a")), queue.submit(job("b")), return_exceptions=True)
        assert isinstance(results[0], WorkerDied) and isinstance(results[1], JobAnswer)
        await queue.close()

    run(test)


def test_slow_jobs_share_fewer_batches() -> None:
    """A batch that would take a large part of the timeout is not made."""

    async def test() -> None:
        worker = ScriptedWorker()
        queue = ModelQueue("m", lambda: worker, BatchLimits(wait_seconds=0.01, timeout_seconds=40))
        await queue.start()
        queue._seconds_per_job = 4.0
        await asyncio.gather(*(queue.submit(job(str(k))) for k in range(5)))
        assert [len(batch) for batch in worker.batches][0] == 2
        await queue.close()

    run(test)


def test_a_model_that_does_not_load() -> None:
    async def test() -> None:
        queue = ModelQueue("m", lambda: ScriptedWorker(loads=False))
        with pytest.raises(OsmError, match="model m: the worker process died .* while it was loading the model"):
            await queue.start()
        await queue.close()

    run(test)


def test_over_http(engine: Engine) -> None:
    """A full queue is 503 with Retry-After, a death is one 500 to its clients, and the next request is answered."""
    from concurrent.futures import ThreadPoolExecutor

    with served(engine, batch=BatchLimits(max_queue=1, max_jobs=1, wait_seconds=0)) as server:
        server.worker.held.clear()
        queue = server.services.models["tiny"]
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(server.send, "/v1/name", BODY)
            wait_until(lambda: server.worker.batches)
            second = pool.submit(server.send, "/v1/name", BODY)
            wait_until(lambda: queue.length == 1)
            status, document, headers = server.send("/v1/name", BODY)
            assert status == 503 and int(headers["retry-after"]) >= 1 and document["error"]["code"] == "overloaded"
            server.worker.kill()
            status, document, _ = first.result()
            assert status == 500 and document["error"]["code"] == "worker_died"
            assert "send the request again" in document["error"]["message"]
            assert second.result()[0] == 200
        assert server.send("/v1/name", BODY)[0] == 200
        assert server.send("/metrics")[1].decode().count('osm_worker_restarts{model="tiny"} 1.0') == 1
        assert 'osm_refusals_total{code="overloaded"} 1.0' in server.send("/metrics")[1].decode()


def test_a_request_that_takes_too_long(engine: Engine) -> None:
    with served(engine, batch=BatchLimits(timeout_seconds=0.3)) as server:
        server.worker.held.clear()
        assert "took longer than 0.3 seconds" in server.message("/v1/name", BODY, 504)
        wait_until(lambda: server.services.models["tiny"].restarts == 1 and server.send("/ready")[0] == 200)
        assert server.send("/v1/name", BODY)[0] == 200
