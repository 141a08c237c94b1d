"""The size and version of a remote file, and the errors raised if a download does not match them."""

from __future__ import annotations

from dataclasses import dataclass

from osm.errors import RunStopped
from osm.storage.locations import public


@dataclass(frozen=True)
class Stat:
    """A remote file's size in bytes and its version, which is an ETag, a hash or a date.

    The version is empty if the server does not report one.
    """

    size: int
    version: str = ""

    def agrees(self, other: Stat) -> bool:
        """Return whether both `Stat`s may describe the same file. An unknown version matches any version."""
        versions = self.version and other.version
        return self.size == other.size and (not versions or self.version == other.version)


class NoRanges(Exception):
    """Raised if a server does not support range requests and sends only whole files."""


class WrongLength(Exception):
    """Raised if a server sends more or fewer bytes than it announced."""


def check_unchanged(url: str, expected: Stat, now: Stat) -> None:
    """Raise RunStopped if the size or version of a file has changed since the run began."""
    if expected.agrees(now):
        return
    sizes = f"{expected.size} bytes, now {now.size}" if expected.size != now.size else "different ETag or date"
    raise RunStopped(
        f"{public(url)}: the file was changed while it was in use ({sizes}); restore the original file or start a new "
        "run"
    )
