"""Faults of the data while a run goes on: samples that are broken, and loaders that die."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from osm.data.batch import Batch
from osm.errors import BY_RULE, RunStopped
from osm.forms.base import ANNOTATION

_ENOUGH = 100  # samples of a set, before a share of them means something


class SampleFaults:
    """What this process left out of its sets.

    Args:
        limit: the share of a set's samples that may be broken.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.skipped: Counter[str] = Counter()
        self._broken: dict[str, Counter[str]] = {}
        self._seen: Counter[str] = Counter()

    def add(self, name: str, batch: Batch) -> None:
        """Counts a batch of one set. Raises RunStopped where too much of the set is broken."""
        self.skipped.update(batch.skipped)
        samples = {reason: count for reason, count in batch.skipped.items() if not reason.startswith(ANNOTATION)}
        broken = self._broken.setdefault(name, Counter())
        broken.update({reason: count for reason, count in samples.items() if reason not in BY_RULE})
        self._seen[name] += len(batch.keys) + sum(samples.values())
        share = broken.total() / max(1, self._seen[name])
        if broken and self._seen[name] >= _ENOUGH and share > self.limit:
            raise RunStopped(
                f"--{name}_shards: {share:.1%} of {self._seen[name]} samples are broken {dict(broken)}, more than "
                f"--max_bad_samples {self.limit}; mend the shards, or allow more"
            )


@contextlib.contextmanager
def data_faults() -> Iterator[None]:
    """Turns the death of a loader's worker into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunStopped(
            f"a process that loads data died ({str(error).splitlines()[0]}): out of memory, or killed. "
            "The same command goes on from the newest checkpoint; fewer --workers need less memory"
        ) from None
