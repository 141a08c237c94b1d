"""Exceptions for errors that users can correct, and the function that runs a command and handles its errors."""

from __future__ import annotations

import difflib
import errno
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from osm.quiet import quiet_command
from osm.terminal import message_logger, printable

logger = message_logger(__name__)

INTERRUPTED = 130
"""The exit code of every command that Ctrl-C ends: 128 + SIGINT, as shells report it."""


class OsmError(ValueError):
    """Raised for user errors. The message names the invalid file, flag or field, its value, and a valid value.

    Control characters in the message are escaped, because the message may contain names from untrusted files.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class SampleError(OsmError):
    """Raised for an unusable sample, which is then skipped. Skipped samples are counted by `reason`.

    Attributes:
        reason: the kind of the error, by which skipped samples are counted.
        row: the position of the unusable record among those of its image, from 0, or None if it is not one record.
    """

    row: int | None = None

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        """Return the arguments that pickle uses to rebuild the error in another process.

        By default, pickle would pass only the message to `__init__`, which requires both a reason and a message.
        """
        return type(self), (self.reason, str(self))


class RunStopped(OsmError):
    """Raised to stop a run because of a data, disk or server failure, or because losses were not finite.

    Invalid flags raise `OsmError` instead.
    """


def exit_code(error: OsmError) -> int:
    """Return the exit code of a command that fails with `error`: 3 for `RunStopped`, and 2 for any other `OsmError`."""
    return 3 if isinstance(error, RunStopped) else 2


@quiet_command
def run_command(
    command: Callable[..., int | None],
    *arguments: Any,
    interrupted: str = "interrupted: the same command resumes where it stopped",
) -> int:
    """Call `command(*arguments)` and return the exit code of the process.

    If the command raises an `OsmError`, the error is logged and the exit code is `exit_code(error)`. After Ctrl-C, the
    message `interrupted` is logged and the exit code is 130. The command signals success by returning None or 0.
    """
    try:
        return command(*arguments) or 0
    except OsmError as error:
        logger.error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        logger.info(interrupted)
        return INTERRUPTED


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'OPTION'?" for the option that is most similar to a misspelled word, or an empty text."""
    found = difflib.get_close_matches(word, [str(option) for option in options], 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def not_one_of(what: str, value: object, options: Iterable[str]) -> OsmError:
    """Return the error for a value that is not one of the allowed names. `what` is the flag or field."""
    known = [str(option) for option in options]
    return OsmError(f"{what} {value!r} is not one of {', '.join(known)}{did_you_mean(str(value), known)}")


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
        return RunStopped(f"{where}: {reason}; run the same command to resume once there is free space again")
    return OsmError(f"{where}: {reason}; expected {expected}")


# BY_RULE lists the three reasons for skipping a valid sample; all other reasons indicate faulty data.
# The reason no_segment means that none of the sample's masks is large enough in any of the crops tried.
# The reason not_one_object means that an object part belongs to no object class or to several object classes.
# The reason answer_too_long means that the object's name exceeds the model's maximum text length.
# All reasons for skipping a sample are documented in docs/datasets.md.
BY_RULE = frozenset({"no_segment", "not_one_object", "answer_too_long"})

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """Format a value from a user's file for an error message, shortened if it is long or deeply nested."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
