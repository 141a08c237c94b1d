"""The exceptions for errors that a user can correct, and the function that runs a command and handles its errors."""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Callable
from typing import Any

from osm.quiet import quiet_command
from osm.terminal import message_logger, printable

logger = message_logger(__name__)

INTERRUPTED = 130


class OsmError(ValueError):
    """A user's mistake. The error message names the invalid file, flag or field, its value, and a valid value.

    Control characters in the error message are escaped, because the message may contain names from untrusted files.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class SampleError(OsmError):
    """Raised for a sample that cannot be used and is skipped. Skipped samples are counted by `reason`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        """Return the arguments with which pickle rebuilds the error in a different process.

        By default, pickle would pass only the message to `__init__`, which requires a reason and a message.
        """
        return type(self), (self.reason, str(self))


class RunStopped(OsmError):
    """Raised to stop a run because data, a disk or a server failed, or because losses were not finite.

    A mistake in the flags of a run raises `OsmError` instead.
    """


def exit_code(error: OsmError) -> int:
    """Return the exit code of a command that ends with `error`: 3 for `RunStopped`, and 2 for any other `OsmError`."""
    return 3 if isinstance(error, RunStopped) else 2


@quiet_command
def run_command(
    command: Callable[..., int | None],
    *arguments: Any,
    interrupted: str = "interrupted: the same command resumes where it stopped",
) -> int:
    """Call `command(*arguments)` and return the exit code of the process.

    If the command raises an `OsmError`, the error is logged and the exit code is `exit_code(error)`. After Ctrl-C, the
    message `interrupted` is logged and the exit code is 130. The command reports success by returning None or 0.
    """
    try:
        return command(*arguments) or 0
    except OsmError as error:
        logger.error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        logger.info(interrupted)
        return INTERRUPTED


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def write_failed(error: OSError, where: str, expected: str) -> OsmError:
    """Return the error to raise for a file that could not be written.

    The returned error is a `RunStopped` if the disk is full or broken, and otherwise an `OsmError` that names the path.

    Args:
        where: the beginning of the message.
        expected: the end of the message, which describes a path that would be valid.
    """
    reason = error.strerror or str(error)
    if error.errno in _DISK:
        return RunStopped(f"{where}: {reason}; the same command resumes once there is room again")
    return OsmError(f"{where}: {reason}; expected {expected}")


# BY_RULE lists the three reasons for skipping a sample whose data is correct; all other reasons mean faulty data.
# The reason no_segment means that no mask of the sample is large enough in any of the crops that were tried.
# The reason not_one_object means that the mask is an object part that does not belong to exactly one object.
# The reason answer_too_long means that the object's name is longer than the model's maximum text length.
# The file docs/datasets.md explains all reasons for skipping a sample.
BY_RULE = frozenset({"no_segment", "not_one_object", "answer_too_long"})

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """Return a value from a user's file as text for an error message, shortened if it is long or deeply nested."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
