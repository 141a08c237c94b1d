"""Apply a function to many items in parallel processes and return the results in the original order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from osm.errors import OsmError

_AHEAD = 4  # The maximum number of unread results per worker, which limits memory usage.
T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    return min(8, os.cpu_count() or 1)


def _start_worker() -> None:
    """Make a worker process ignore Ctrl-C, which its parent handles, and exit when the parent process is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def leave() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=leave, daemon=True).start()


def in_order(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Yield the function's results in the same order as the items.

    Args:
        function: a function that can be pickled.
        items: the arguments, one per call.
        workers: the number of processes. With 1, the function is called in this process.

    Raises:
        OsmError: a worker process was killed, for example by the system because there was no free memory.
    """
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ProcessPoolExecutor(min(workers, len(items)), initializer=_start_worker) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise OsmError("a worker process was killed (out of memory?); rerun with a lower --num_workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
