"""A counter (CPU seconds, FLOPs) divided among the named parts of a program."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

REST = "other"


class Meter:
    """Attributes the increase of a counter to the part that runs. A part inside another part counts only as itself.

    Args:
        read: returns the counter's value.
        parts: the names of the parts. What runs outside all parts is attributed to "other".
    """

    def __init__(self, read: Callable[[], float], parts: Sequence[str]) -> None:
        self.read, self.parts = read, parts
        self._gained: dict[str, float] = defaultdict(float)
        self._running, self._since = [REST], read()

    def _switch(self) -> None:
        now = self.read()
        self._gained[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Attribute the increase within the context to the part `name`."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls `function` as the part `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def take(self) -> dict[str, float]:
        """Return the increase in each part since the last call."""
        self._switch()
        taken = {name: self._gained[name] for name in self.parts}
        self._gained.clear()
        return taken
