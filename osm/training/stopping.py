"""Handles events that end a training run early: stop signals, too many broken samples, and dead data-loader workers."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from osm.data.batch import Batch
from osm.errors import BY_RULE, OsmError, RunStopped
from osm.forms.base import ANNOTATION
from osm.terminal import message_logger

logger = message_logger(__name__)

EXIT_STOPPED = 75  # EX_TEMPFAIL: a signal stopped the run, and running the same command again resumes it
EXIT_FAILED = 3  # the run stopped because of a problem that it detected
_MIN_SAMPLES = 100  # the share of broken samples is checked once a dataset has this many samples


class Stopped(OsmError):
    """Raised to end a run after a stop signal, once a checkpoint has been written."""


class StopSignals:
    """A context manager that records the first SIGTERM or SIGINT instead of letting it terminate the process.

    After a signal, the run finishes the current step, writes a checkpoint and ends. A second SIGINT terminates the
    process immediately.

    Attributes:
        received: the number of the signal that this process received; 0 if this process received none.
        agreed: whether all ranks know that some rank received a signal.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python allows signal handlers to be set only in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number
        logger.info(f"{signal.Signals(number).name}: stopping at the end of this step")


class SampleFaults:
    """Counts the samples skipped by this process, and ends the run if too many samples of a dataset are broken.

    Args:
        limit: the maximum allowed fraction of broken samples in a dataset.

    Attributes:
        skipped: number of skipped samples by reason, over all datasets.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.skipped: Counter[str] = Counter()
        self._broken: dict[str, Counter[str]] = {}
        self._samples: Counter[str] = Counter()

    def add(self, name: str, batch: Batch) -> None:
        """Count the used and skipped samples in a batch from one dataset.

        Raises:
            RunStopped: the fraction of broken samples in the dataset exceeds the limit.
        """
        self.skipped.update(batch.skipped)
        samples = {reason: count for reason, count in batch.skipped.items() if not reason.startswith(ANNOTATION)}
        broken = self._broken.setdefault(name, Counter())
        broken.update({reason: count for reason, count in samples.items() if reason not in BY_RULE})
        self._samples[name] += len(batch.keys) + sum(samples.values())
        share = broken.total() / max(1, self._samples[name])
        if broken and self._samples[name] >= _MIN_SAMPLES and share > self.limit:
            raise RunStopped(
                f"--{name}_shards: {share:.1%} of {self._samples[name]} samples are broken ({dict(broken)}), which "
                f"exceeds --max_bad_samples {self.limit}; repair the shards, or raise the limit"
            )


@contextlib.contextmanager
def report_dead_workers() -> Iterator[None]:
    """Convert torch's error about a dead data-loader worker into a RunStopped that explains the problem.

    Torch raises this error in a signal handler, so that it can occur anywhere in the main process.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _dead_worker(str(error).splitlines()[0]) from None


@contextlib.contextmanager
def report_closed_workers(workers: int) -> Iterator[None]:
    """Convert connection errors, which occur while a batch is received, into a RunStopped that explains the problem.

    If a data-loader worker dies while it sends a batch, its connection closes before torch notices the dead worker.

    Args:
        workers: the number of data-loader workers. With 0, errors are not converted.
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        if not workers:
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _dead_worker(f"its connection was closed: {said}") from None


def _dead_worker(reason: str) -> RunStopped:
    return RunStopped(
        f"a data-loader worker died ({reason}): it was killed or ran out of memory. "
        "Run the same command to resume from the newest checkpoint; use fewer --workers if memory is short"
    )
