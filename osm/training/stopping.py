"""Everything that ends a run before its last epoch: signals, too many broken samples, and data workers that died."""

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

EXIT_STOPPED = 75  # EX_TEMPFAIL: a signal ended the run, and the same command resumes it
EXIT_FAILED = 3  # the run ended itself
_MIN_SAMPLES = 100  # samples of a set that must be counted before the share of broken ones is compared with the limit


class Stopped(OsmError):
    """A signal ended the run after its checkpoint was written."""


class StopSignals:
    """A context in which the first SIGTERM or SIGINT is recorded instead of ending the process.

    The run then ends after the current step, with a checkpoint. A second SIGINT ends the process at once.

    Attributes:
        received: the number of the signal that this process received; 0 if it received none.
        agreed: whether all ranks know that a rank received a signal.
    """

    def __init__(self) -> None:
        self.received: int = 0
        self.agreed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python sets signal handlers in the main thread only.
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
    """Counts the samples that this process skipped, and ends the run if too many samples of a set are broken.

    Args:
        limit: the largest share of a set's samples that may be broken.

    Attributes:
        skipped: number of skipped samples by reason, over all sets.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.skipped: Counter[str] = Counter()
        self._broken: dict[str, Counter[str]] = {}
        self._samples: Counter[str] = Counter()

    def add(self, name: str, batch: Batch) -> None:
        """Count a batch of one set.

        Raises:
            RunStopped: the share of broken samples in the set is above the limit.
        """
        self.skipped.update(batch.skipped)
        samples = {reason: count for reason, count in batch.skipped.items() if not reason.startswith(ANNOTATION)}
        broken = self._broken.setdefault(name, Counter())
        broken.update({reason: count for reason, count in samples.items() if reason not in BY_RULE})
        self._samples[name] += len(batch.keys) + sum(samples.values())
        share = broken.total() / max(1, self._samples[name])
        if broken and self._samples[name] >= _MIN_SAMPLES and share > self.limit:
            raise RunStopped(
                f"--{name}_shards: {share:.1%} of {self._samples[name]} samples are broken {dict(broken)}, more than "
                f"--max_bad_samples {self.limit}; repair the shards, or allow more"
            )


@contextlib.contextmanager
def report_dead_workers() -> Iterator[None]:
    """Raise RunStopped, with an explanation, instead of torch's error for a data worker that died."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunStopped(
            f"a process that loads data died ({str(error).splitlines()[0]}): out of memory, or killed. "
            "Run the same command to resume from the newest checkpoint; fewer --workers need less memory"
        ) from None
