"""Reading WebDataset shards: tar files whose members of one key are one sample.

Members are read as bytes and decoded by `osm.forms`; nothing is unpickled, no command is run.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from osm.data.paths import check_local
from osm.data.tar import Member, TarReader
from osm.errors import OsmError, RunStopped, SampleError
from osm.files import check_regular_file
from osm.terminal import echo

MAX_MEMBER_BYTES = 256 << 20  # of a member, and of all that are read of a sample
MAX_SHARDS = 1_000_000
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
        OsmError: an empty pattern, a malformed brace, over a million shards, or anything but the path of a file
            (`pipe:` and other commands, URLs).
    """
    shards: list[str] = []
    for part in pattern.split("::"):
        if not part:
            raise OsmError(f"shards {pattern[:200]!r}: expected paths of .tar files, a part of it is empty")
        pieces = _BRACES.split(part)
        choices = [[piece] if i % 2 == 0 else _expand_brace(piece, pattern) for i, piece in enumerate(pieces)]
        if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
            raise OsmError(f"shards {pattern[:200]!r}: braces do not match")
        if len(shards) + math.prod(map(len, choices)) > MAX_SHARDS:
            raise OsmError(f"shards {pattern[:200]!r}: that is over a million shards")
        for choice in product(*choices):
            shards.append("".join(choice))
            check_local(shards[-1], "shards")
    return shards


def _expand_brace(content: str, pattern: str) -> list[str]:
    found = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", content)
    if not found:
        if "," not in content:
            what = f"'{{{content[:200]}}}' is neither a range {{000..106}} nor a list {{a,b}}"
            raise OsmError(f"shards {pattern[:200]!r}: {what}")
        return content.split(",")
    first, last = found.groups()
    if int(last) < int(first) or int(last) - int(first) >= MAX_SHARDS:
        raise OsmError(f"shards {pattern[:200]!r}: the range {{{content}}} is empty or over a million shards")
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
            echo(f"warning: {message}; going on without them", file=sys.stderr)
    return there


def read_shard(path: str) -> Iterator[RawSample | SampleError]:
    """The samples of a shard in order; what cannot be read comes as an error in its place, and the rest goes on.

    The errors' reasons: `broken_tar` (where the shard ends for us), and for a sample that is left out
    `member_too_large`, `member_not_a_file` and `member_twice`.

    Raises:
        RunStopped: the shard is gone, or the disk does not give its bytes.
    """
    gone = "it was there when the run began: put it back, and the same command goes on"
    try:
        check_regular_file(path, "shard")
    except OsmError as error:
        raise RunStopped(f"{error}; {gone}") from None
    try:
        with open(path, "rb") as stream:
            yield from _samples(path, TarReader(stream))
    except OSError as error:
        # No fault of its content: others would read other samples after it, and a run could not be repeated.
        raise RunStopped(f"shard {path}: {error.strerror or error}; {gone}") from None
    except (tarfile.TarError, ValueError) as error:
        # The sample in progress may lack members: it is dropped with the rest of the shard.
        yield SampleError("broken_tar", f"{path}: {error}")


def _samples(path: str, tar: TarReader) -> Iterator[RawSample | SampleError]:
    current: RawSample | None = None
    left_out = None  # the key of the sample whose further members are passed over
    for member in tar:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if extension not in MEMBERS:
            continue
        key = f"{folder}/{stem}" if folder else stem
        if current is not None and key != current.key:
            yield current
            current = None
        if key == left_out:
            continue
        if current is None:
            current, left_out = RawSample(path, key), None
        fault = _fault(member, extension, current)
        if fault is not None:
            yield fault
            current, left_out = None, key
            continue
        current.members[extension] = tar.read(member)
    if current is not None:
        yield current
    if tar.fault:
        yield SampleError("broken_tar", f"{path}: {tar.fault}")


def _fault(member: Member, extension: str, sample: RawSample) -> SampleError | None:
    """Why a sample with such a member is left out."""
    where = f"{sample.shard}: {member.name!r}"
    if not member.plain:
        return SampleError("member_not_a_file", f"{where} is a link, a folder, a device or a sparse file")
    if extension in sample.members:
        return SampleError("member_twice", f"{where} is there twice; which one belongs to the sample is not known")
    if member.size + sum(map(len, sample.members.values())) > MAX_MEMBER_BYTES:
        return SampleError("member_too_large", f"{where} has {member.size} bytes, too many for a member or its sample")
    return None
