"""What is known of a remote file, and the ways in which what comes can differ from it."""

from __future__ import annotations

from dataclasses import dataclass

from osm.errors import RunStopped
from osm.storage.locations import public


@dataclass(frozen=True)
class Stat:
    """A file's bytes, and what names its content (an ETag, a hash or a date; empty where the server has none)."""

    size: int
    version: str = ""

    def agrees(self, other: Stat) -> bool:
        """Whether both can be the same content: what one of them does not know cannot differ."""
        versions = self.version and other.version
        return self.size == other.size and (not versions or self.version == other.version)


class NoRanges(Exception):
    """The server sends whole files only."""


class WrongLength(Exception):
    """Other bytes came than were announced."""


def check_unchanged(url: str, expected: Stat, now: Stat) -> None:
    """Raises RunStopped where a file is not the one that it was when the run began."""
    if expected.agrees(now):
        return
    sizes = f"{expected.size} bytes, now {now.size}" if expected.size != now.size else "another ETag or date"
    raise RunStopped(
        f"{public(url)}: the file was changed while it was in use ({sizes}); put it back, or start a new run"
    )
