"""Work on many files: several processes, results in order, a line that tells how far it is."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from osm.errors import OsmError
from osm.terminal import echo

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


class Progress:
    """A line on stderr, once a second and at the end."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.before = total, done, done
        self.began = self.shown = time.monotonic()

    def step(self) -> None:
        self.done += 1
        if time.monotonic() - self.shown >= 1:
            self.show()

    def show(self, end: str = "") -> None:
        self.shown = time.monotonic()
        rate = (self.done - self.before) / max(self.shown - self.began, 1e-6)
        left = round((self.total - self.done) / rate) if rate else 0
        text = (
            f"{self.done}/{self.total} samples, {rate:.1f}/s, ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )
        live = sys.stderr.isatty()
        echo(
            f"{text:<60}" if live else text, before="\r" * live, end=end if live else "\n", file=sys.stderr, flush=True
        )


def say(kind: str, message: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""  # of the progress line
    echo(f"{kind}: {message}", before=clear, file=sys.stderr)
