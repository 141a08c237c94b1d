"""Which shards a pattern names: ranges, lists, globs, files of patterns; local or remote."""

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
MAX_MISSING = 10  # shards that a range may name too many, however short it is
_BRACES = re.compile(r"\{([^{}]*)\}")
_GLOB = re.compile(r"[*?[]")
_JOINED = re.compile(r"::(?![^\[\]/]*\])")  # not within the brackets of an IPv6 address
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_THREADS = 16


def expand_shards(pattern: str) -> list[str]:
    """Expands `{000..106}` ranges, `{a,b}` lists and `@FILE` (a pattern a line); several patterns are joined by `::`.

    Existence is not checked, and globs stay as they are.

    Raises:
        OsmError: an empty pattern, a malformed brace, over a million shards, or a command (`pipe:` and others).
    """
    shards: list[str] = []
    for part in _parts(pattern):
        if not part:
            raise OsmError(f"shards {_shown(pattern)!r}: expected locations of .tar files, a part of it is empty")
        pieces = _BRACES.split(part)
        choices = [[piece] if i % 2 == 0 else _expand_brace(piece, pattern) for i, piece in enumerate(pieces)]
        if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
            raise OsmError(f"shards {_shown(pattern)!r}: braces do not match")
        if len(shards) + math.prod(map(len, choices)) > MAX_SHARDS:
            raise OsmError(f"shards {_shown(pattern)!r}: that is over a million shards")
        shards += [check_location("".join(choice), "shards") for choice in product(*choices)]
    return shards


def _shown(pattern: str) -> str:
    return public_text(pattern)[:200]


def _parts(pattern: str) -> Iterator[str]:
    """The patterns that `::` joins; those of a file, which has no files of its own, in its place."""
    for part in _JOINED.split(pattern):
        if not part.startswith("@"):
            yield part
            continue
        location = check_location(part[1:], "shards @")
        lines = [line.strip() for line in read_text(localize(location, "shards @"), "shards @").splitlines()]
        found = [piece for line in lines if line and not line.startswith("#") for piece in _JOINED.split(line)]
        if not found:
            raise OsmError(f"shards {_shown(part)!r}: the file names none; expected a location or pattern a line")
        for piece in found:
            if piece.startswith("@"):
                raise OsmError(f"shards {_shown(part)!r}: the line {_shown(piece)!r} names another list")
            yield _beside(location, piece)


def _beside(location: str, piece: str) -> str:
    """A pattern of a list; a relative one is meant from the list's folder, as in most tools: both move together."""
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
            what = f"'{{{_shown(content)}}}' is neither a range {{000..106}} nor a list {{a,b}}"
            raise OsmError(f"shards {_shown(pattern)!r}: {what}")
        return content.split(",")
    first, last = found.groups()
    if int(last) < int(first) or int(last) - int(first) >= MAX_SHARDS:
        raise OsmError(f"shards {_shown(pattern)!r}: the range {{{content}}} is empty or over a million shards")
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]


def existing_shards(pattern: str, flag: str, report: bool = True) -> list[str]:
    """The shards of a pattern that are there; missing ones are reported, as published ranges may name a few too many.

    Raises:
        OsmError: none is there, or more than `MAX_MISSING` and at the same time more than half are missing; a glob
            fits nothing.
        RunStopped: a server does not answer.
    """
    named = [shard for part in expand_shards(pattern) for shard in _globbed(part, flag)]
    if len(named) > MAX_SHARDS:
        raise OsmError(f"{flag} {_shown(pattern)!r}: that is over a million shards")
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(named, pool.map(_is_there, named), strict=True))
    there = [shard for shard in named if found[shard]]
    missing = [shard for shard in named if not found[shard]]
    shown = _shown(pattern)
    if not there:
        raise OsmError(f"{flag} {shown!r}: none of its {len(named)} shards exists (first: {public(named[0])})")
    if missing:
        message = f"{flag}: {len(missing)} of {len(named)} shards do not exist (first: {public(missing[0])})"
        if len(missing) > max(MAX_MISSING, len(named) // 2):
            raise OsmError(f"{message}: more than half; correct the range")
        if report:
            logger.warning(f"{message}; going on without them")
    return there


def _is_there(shard: str) -> bool:
    return remote.exists(shard) if is_remote(shard) else Path(shard).is_file()


def _globbed(shard: str, flag: str) -> list[str]:
    """What a glob fits, in order; anything else is itself."""
    if is_remote(shard):
        if not re.search(r"[*[]", shard.partition("?")[0]):  # in a URL, a question mark begins the query
            return [shard]
        # A key may have brackets of its own.
        found = [shard] if "*" not in shard and remote.exists(shard) else remote.glob(shard)
    else:
        if not _GLOB.search(shard) or Path(shard).exists():
            return [shard]
        found = sorted(glob.glob(shard))
    found = [name for name in found if not name.endswith(SUFFIX)]
    if not found:
        raise OsmError(f"{flag} {public(shard)}: no shard fits this pattern")
    return found
