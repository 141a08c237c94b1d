"""Expand shard patterns (ranges, lists, globs and files that list patterns) for local and remote shards."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from osm.data.shards import SUFFIX
from osm.errors import OsmError
from osm.files import read_text
from osm.storage import remote
from osm.storage.cache import localize
from osm.storage.locations import check_location, is_remote, public, public_text
from osm.terminal import message_logger

logger = message_logger(__name__)

MAX_SHARDS = 1_000_000
MAX_MISSING = 10  # up to this number of missing shards is tolerated, even in a short range
_BRACES = re.compile(r"\{([^{}]*)\}")
_GLOB = re.compile(r"[*?[]")
_JOINED = re.compile(r"::(?![^\[\]/]*\])")  # excludes the `::` inside an IPv6 address in brackets
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_THREADS = 16


def expand_shards(pattern: str) -> list[str]:
    """Expand a pattern to shard locations.

    A pattern may contain ranges `{000..106}` and lists `{a,b}`. `@FILE` stands for the patterns listed in a file, one
    per line. Several patterns are joined by `::`. Globs are not expanded, and the function does not check whether the
    shards exist.

    Raises:
        OsmError: a pattern is empty, has malformed braces, expands to more than a million shards, or is a command such
            as `pipe:`.
    """
    shards: list[str] = []
    for part in _split_patterns(pattern):
        if not part:
            raise OsmError(
                f"shards {_for_message(pattern)!r}: expected a list of .tar locations, but one entry is empty"
            )
        pieces = _BRACES.split(part)
        choices = [[piece] if i % 2 == 0 else _expand_brace(piece, pattern) for i, piece in enumerate(pieces)]
        if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
            raise OsmError(f"shards {_for_message(pattern)!r}: braces do not match")
        if len(shards) + math.prod(map(len, choices)) > MAX_SHARDS:
            raise OsmError(f"shards {_for_message(pattern)!r}: the pattern expands to more than a million shards")
        shards += [check_location("".join(choice), "shards") for choice in product(*choices)]
    return shards


def _for_message(pattern: str) -> str:
    return public_text(pattern)[:200]


def _split_patterns(pattern: str) -> Iterator[str]:
    """Split a shard pattern at `::` and replace each `@FILE` with the patterns in the file.

    The file cannot name another `@FILE`.
    """
    for part in _JOINED.split(pattern):
        if not part.startswith("@"):
            yield part
            continue
        location = check_location(part[1:], "shards @")
        lines = [line.strip() for line in read_text(localize(location, "shards @"), "shards @").splitlines()]
        found = [piece for line in lines if line and not line.startswith("#") for piece in _JOINED.split(line)]
        if not found:
            raise OsmError(
                f"shards {_for_message(part)!r}: the file lists no shards; expected one location or pattern per line"
            )
        for piece in found:
            if piece.startswith("@"):
                raise OsmError(f"shards {_for_message(part)!r}: the line {_for_message(piece)!r} names another list")
            yield _relative_to_list(location, piece)


def _relative_to_list(location: str, piece: str) -> str:
    """Resolve a relative pattern against the folder of the list file that contains it.

    A list file with relative patterns can therefore be moved together with the shards it lists.
    """
    if _ADDRESS.match(piece) or Path(piece).is_absolute():
        return piece
    check_location(piece, "shards")
    if is_remote(location):
        return f"{location.partition('?')[0].rpartition('/')[0]}/{piece}"
    folder = str(Path(location).parent)
    return str(Path(glob.escape(folder) if _GLOB.search(piece) else folder) / piece)


def _expand_brace(content: str, pattern: str) -> list[str]:
    found = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", content)
    if not found:
        if "," not in content:
            problem = f"'{{{_for_message(content)}}}' is neither a range {{000..106}} nor a list {{a,b}}"
            raise OsmError(f"shards {_for_message(pattern)!r}: {problem}")
        return content.split(",")
    first, last = found.groups()
    if int(last) < int(first) or int(last) - int(first) >= MAX_SHARDS:
        raise OsmError(
            f"shards {_for_message(pattern)!r}: the range {{{content}}} is empty or contains more than a million shards"
        )
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]


def existing_shards(pattern: str, flag: str, report: bool = True) -> list[str]:
    """Expand a shard pattern and return the shards that exist. Missing shards are reported on standard error.

    A few missing shards are tolerated, because a published shard range may include a few shards that do not exist.

    Args:
        flag: name of the flag, for messages.
        report: whether to report missing shards.

    Raises:
        OsmError: no shard exists, more than `MAX_MISSING` shards and more than half of all shards are missing, or a
            glob matches nothing.
        RunStopped: a server does not respond.
    """
    named = [shard for part in expand_shards(pattern) for shard in _expand_glob(part, flag)]
    if len(named) > MAX_SHARDS:
        raise OsmError(f"{flag} {_for_message(pattern)!r}: the pattern expands to more than a million shards")
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(named, pool.map(_exists, named), strict=True))
    existing = [shard for shard in named if found[shard]]
    missing = [shard for shard in named if not found[shard]]
    if not existing:
        raise OsmError(
            f"{flag} {_for_message(pattern)!r}: none of the {len(named)} shards exist "
            f"(first missing shard: {public(named[0])})"
        )
    if missing:
        message = f"{flag}: {len(missing)} of {len(named)} shards do not exist (first: {public(missing[0])})"
        if len(missing) > max(MAX_MISSING, len(named) // 2):
            raise OsmError(f"{message}. More than half of the shards are missing; correct the range")
        if report:
            logger.warning(f"{message}; they are skipped")
    return existing


def _exists(shard: str) -> bool:
    return remote.exists(shard) if is_remote(shard) else Path(shard).is_file()


def _expand_glob(shard: str, flag: str) -> list[str]:
    """Return a sorted list of the shards that match a glob. A location that is not a glob is returned unchanged."""
    if is_remote(shard):
        if not re.search(r"[*[]", shard.partition("?")[0]):  # in a URL, a question mark starts the query
            return [shard]
        # Brackets in a URL may be part of the object's key rather than a glob.
        found = [shard] if "*" not in shard and remote.exists(shard) else remote.glob(shard)
    else:
        if not _GLOB.search(shard) or Path(shard).exists():
            return [shard]
        found = sorted(glob.glob(shard))
    found = [name for name in found if not name.endswith(SUFFIX)]
    if not found:
        raise OsmError(f"{flag} {public(shard)}: no shard matches this pattern")
    return found
