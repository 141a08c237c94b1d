"""The errors that a user's input can cause."""

from __future__ import annotations


class OsmError(ValueError):
    """A user's mistake: the message names the file, flag or field, its value, and what would be right."""


# Reasons of a `SampleError` that are no fault of the data: by the rules of sampling, such a sample is left out.
BY_RULE = frozenset({"no_segment", "not_one_object", "answer_too_long"})


class SampleError(OsmError):
    """One bad sample. `reason` is the short key under which the skip is counted and reported."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RunStopped(OsmError):
    """A run that could not go on, through no flag's fault: its data or disk failed, or its losses did."""
