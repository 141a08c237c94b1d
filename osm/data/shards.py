"""Reading WebDataset shards: tar files whose members of one key are one sample.

Members are read as bytes and decoded by `osm.data.segments`; nothing is unpickled, no command is run.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from osm.errors import OsmError, SampleError

MAX_MEMBER_BYTES = 256 << 20
MAX_MISSING = 10  # shards that a range may name too many, however short it is
MEMBERS = ("jpg", "jpeg", "image.png", "png", "part.png", "whole.png", "tif", "json")
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass
class RawSample:
    """One sample as it lies in the shard: member bytes by extension."""

    shard: str
    key: str
    members: dict[str, bytes] = field(default_factory=dict)

    @property
    def cache_key(self) -> str:
        """The key with a hash of the members: what is cached of a sample is not taken for that of a changed one."""
        digest = hashlib.sha256()
        for extension, data in sorted(self.members.items()):
            digest.update(f"{extension} {len(data)} ".encode() + data)
        return f"{self.key}@{digest.hexdigest()[:16]}"


def expand_shards(pattern: str) -> list[str]:
    """Expands `{000..106}` ranges and `{a,b}` lists; several patterns are joined by `::`. Existence is not checked.

    Raises:
        OsmError: an empty pattern, a malformed brace, or a URL (`pipe:` and other commands are refused).
    """
    shards: list[str] = []
    for part in pattern.split("::"):
        if not part or re.match(r"[a-z]+:|[a-z][a-z0-9+.-]*://", part, re.IGNORECASE):
            raise OsmError(f"shards {pattern!r}: expected paths of .tar files; URLs and `pipe:` commands are refused")
        pieces = _BRACES.split(part)
        choices = [[piece] if i % 2 == 0 else _expand_brace(piece, pattern) for i, piece in enumerate(pieces)]
        if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
            raise OsmError(f"shards {pattern!r}: braces do not match")
        shards += ["".join(choice) for choice in product(*choices)]
    return shards


def _expand_brace(content: str, pattern: str) -> list[str]:
    found = re.fullmatch(r"(\d+)\.\.(\d+)", content)
    if not found:
        if "," not in content:
            raise OsmError(f"shards {pattern!r}: '{{{content}}}' is neither a range {{000..106}} nor a list {{a,b}}")
        return content.split(",")
    first, last = found.groups()
    if int(last) < int(first) or int(last) - int(first) >= 1_000_000:
        raise OsmError(f"shards {pattern!r}: the range {{{content}}} is empty or over a million shards")
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]


def existing_shards(pattern: str, flag: str, report: bool = True) -> list[str]:
    """The shards of a pattern that are there; missing ones are reported, as published ranges may name a few too many.

    Raises:
        OsmError: none is there, or more than `MAX_MISSING` and at the same time more than half are missing.
    """
    named = expand_shards(pattern)
    there = [shard for shard in named if Path(shard).is_file()]
    missing = [shard for shard in named if not Path(shard).is_file()]
    if not there:
        raise OsmError(f"{flag} {pattern!r}: none of its {len(named)} shards exists (first: {named[0]})")
    if missing:
        message = f"{flag}: {len(missing)} of {len(named)} shards do not exist (first: {missing[0]})"
        if len(missing) > max(MAX_MISSING, len(named) // 2):
            raise OsmError(f"{message}: more than half; correct the range")
        if report:
            print(f"warning: {message}; going on without them", file=sys.stderr)
    return there


def read_shard(path: str) -> Iterator[RawSample | SampleError]:
    """The samples of a shard in order; what cannot be read comes as an error in its place, and the rest goes on."""
    current: RawSample | None = None
    too_large = None  # the key of a sample that is left out
    try:
        with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or extension not in MEMBERS:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if current is not None and key != current.key:
                    yield current
                    current = None
                if key == too_large:
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    yield SampleError("member_too_large", f"{path}: {member.name} has {member.size} bytes")
                    current, too_large = None, key
                    continue
                if current is None:
                    current = RawSample(path, key)
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if len(data) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                current.members[extension] = data
            # tarfile takes a broken or missing header for the end of the archive: a real end is marked by zeros.
            stream.seek(tar.offset)
            whole = stream.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        # The sample in progress may lack members: it is dropped with the rest of the shard.
        yield SampleError("broken_tar", f"{path}: {error}")
        return
    if current is not None:
        yield current
    if not whole:
        yield SampleError("broken_tar", f"{path}: it ends, or cannot be read on, without an end mark")
