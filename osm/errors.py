"""The errors that a user's input can cause."""

from __future__ import annotations


class OsmError(ValueError):
    """A user's mistake: the message names the file, flag or field, its value, and what would be right."""


class SampleError(OsmError):
    """One bad sample. `reason` is the short key under which the skip is counted and reported."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
