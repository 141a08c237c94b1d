"""Map a function over many items in several processes, with the results in order."""

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

_AHEAD = 4  # results a worker may be ahead of the reader: bounds the memory
T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    return min(8, os.cpu_count() or 1)


def _start_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and does not outlive it even where that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def leave() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=leave, daemon=True).start()


def in_order(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """The function's results in the order of the items.

    Raises:
        OsmError: a worker was killed, as the system does for want of memory.
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
            raise OsmError("a worker process was killed (out of memory?): run again with fewer --num_workers") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
