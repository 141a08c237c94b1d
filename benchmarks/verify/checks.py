"""The comparison of two values, and the list of all comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

EXACT = 1e-12  # rounding of sums and quotients of float64 values
ROUNDED = 1.5e-9  # the JSON file has nine decimals
EMBEDDED = 2e-6  # float32 embeddings of two implementations; 1e-7 is usual


@dataclass(frozen=True)
class Difference:
    """Two values that should agree.

    Attributes:
        metric: the name of the metric.
        where: the prediction file, the dataset and the mode.
        project: the value of the project.
        judge: the recomputed value.
        note: the tolerance, or the reason of the difference.
        masks: the masks on which the values differ, if known.
    """

    metric: str
    where: str
    project: Any
    judge: Any
    note: str = ""
    masks: tuple[str, ...] = ()

    def __str__(self) -> str:
        masks = f"; masks: {', '.join(self.masks)}" if self.masks else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.metric}: {self.where}: project {self.project!r}, recomputed {self.judge!r}{note}{masks}"


@dataclass
class Tally:
    """The comparisons of one metric: their number and the largest difference."""

    compared: int = 0
    largest: float = 0.0
    differences: list[Difference] = field(default_factory=list)


class Checks:
    """All comparisons of a run, by metric."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}

    def same(self, metric: str, where: str, project: Any, judge: Any, tolerance: float = 0.0) -> bool:
        """Compare two values. Numbers may differ by the tolerance; everything else has to be equal."""
        tally = self.tallies.setdefault(metric, Tally())
        tally.compared += 1
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (project, judge))
        if numbers:
            gap = abs(project - judge)
            if gap <= tolerance:
                tally.largest = max(tally.largest, gap)
                return True
        elif type(project) is type(judge) and project == judge:
            return True
        tally.differences.append(Difference(metric, where, project, judge, f"tolerance {tolerance:g}"))
        return False

    def holds(self, metric: str, where: str, condition: bool, project: Any, judge: Any, note: str) -> bool:
        """Record whether a condition holds."""
        tally = self.tallies.setdefault(metric, Tally())
        tally.compared += 1
        if not condition:
            tally.differences.append(Difference(metric, where, project, judge, note))
        return condition

    @property
    def differences(self) -> list[Difference]:
        """All differences, in the order of the metrics."""
        return [one for tally in self.tallies.values() for one in tally.differences]

    def lines(self) -> Iterator[str]:
        """Yield one line per metric: the number of comparisons and the largest difference."""
        width = max((len(name) for name in self.tallies), default=0)
        for name, tally in self.tallies.items():
            wrong = f", {len(tally.differences)} DIFFERENT" if tally.differences else ""
            yield f"{name:{width}}  {tally.compared:8d} compared, largest difference {tally.largest:.1e}{wrong}"
