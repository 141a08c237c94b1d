"""Paths built from names that stand in other people's files."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from osm.errors import OsmError
from osm.storage.locations import is_path


def check_local(path: str, where: str) -> None:
    """Raises OsmError for a URL or a command, where nothing but a local file can be meant."""
    if not is_path(path):
        raise OsmError(
            f"{where} {path[:200]!r}: expected the path of a local file; URLs and commands like `pipe:` are refused "
            "(./ before it, for a file that is called so)"
        )


def safe_join(root: Path, name: str) -> Path:
    """Joins a file name from a json to the folder it belongs in; it may name a subfolder, but nothing outside.

    Raises:
        OsmError: the name is empty, absolute or climbs out with `..`.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise OsmError(f"file name {name!r} is not a file name; expected a path below {root}")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or relative == PurePosixPath("."):
        raise OsmError(f"file name {name!r} leads out of its folder; expected a path below {root}")
    return root / relative
