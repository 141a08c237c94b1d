"""The errors that a user's input can cause."""

from __future__ import annotations

import errno
import reprlib
from typing import Any

from osm.terminal import printable


class OsmError(ValueError):
    """A user's mistake: the message names the file, flag or field, its value, and what would be right.

    Names in it may come from anywhere: the message is made `printable`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class SampleError(OsmError):
    """One bad sample. `reason` is the short key under which the skip is counted and reported."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        """Exceptions are rebuilt from the message alone: a worker's could not be passed on."""
        return type(self), (self.reason, str(self))


class RunStopped(OsmError):
    """A run that could not go on, through no flag's fault: its data or disk failed, or its losses did."""


def exit_code(error: OsmError) -> int:
    """The exit code of a command that ends with this error: 3 for a run that could not go on, 2 for a mistake."""
    return 3 if isinstance(error, RunStopped) else 2


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def write_failed(error: OSError, where: str, expected: str) -> OsmError:
    """The error for a file that could not be written: a disk that is full or broken is no mistake in the call.

    Args:
        where: begins the message. expected: what would be right in a user's place.
    """
    reason = error.strerror or str(error)
    if error.errno in _DISK:
        return RunStopped(f"{where}: {reason}; the same command goes on once there is room again")
    return OsmError(f"{where}: {reason}; expected {expected}")


# Reasons for which sampling leaves a sample out though nothing is wrong with its data: no mask of it counts in any crop
# that was tried, a part of no single object, a name longer than the model's text. Every other reason is a fault of the
# data. What each means is in docs/datasets.md.
BY_RULE = frozenset({"no_segment", "not_one_object", "answer_too_long"})

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """A value from somebody's file as a message shows it: cut short, however long or deeply nested it is."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
