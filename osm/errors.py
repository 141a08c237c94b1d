"""The errors that a user's input can cause, and their exit codes."""

from __future__ import annotations

import errno
import reprlib
from typing import Any

from osm.terminal import printable


class OsmError(ValueError):
    """A user's mistake. The message names the file, flag or field, its value, and what would be right.

    The message is made `printable` because it may contain names from untrusted files.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class SampleError(OsmError):
    """A bad sample, which is skipped. `reason` is the short key under which the skip is counted and reported."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        """Return what pickle needs to rebuild the error in another process.

        By default, pickle would pass the message alone to `__init__`, which takes two arguments.
        """
        return type(self), (self.reason, str(self))


class RunStopped(OsmError):
    """A run that had to stop although its flags were right: its data, its disk or its server failed, or its losses
    became non-finite."""


def exit_code(error: OsmError) -> int:
    """Return the exit code of a command that ends with this error: 3 for `RunStopped`, 2 for any other mistake."""
    return 3 if isinstance(error, RunStopped) else 2


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def write_failed(error: OSError, where: str, expected: str) -> OsmError:
    """Return the error for a file that could not be written.

    It is `RunStopped` if the disk is full or broken, and otherwise an `OsmError` about the path.

    Args:
        where: the beginning of the message.
        expected: the end of the message, which describes a path that would be right.
    """
    reason = error.strerror or str(error)
    if error.errno in _DISK:
        return RunStopped(f"{where}: {reason}; the same command resumes once there is room again")
    return OsmError(f"{where}: {reason}; expected {expected}")


# The reasons for which sampling skips a sample although its data are correct: no mask of the sample is large enough in
# any crop that was tried, the mask is a part that belongs to no single object, or the name is longer than the model's
# text. Every other reason is a fault in the data. docs/datasets.md explains all reasons.
BY_RULE = frozenset({"no_segment", "not_one_object", "answer_too_long"})

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """Return a value from a user's file as text for a message. Long and deeply nested values are shortened."""
    try:
        return _short.repr(value)
    except ValueError:  # The integer has more digits than Python converts to text.
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
