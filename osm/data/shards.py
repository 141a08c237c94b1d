"""Read WebDataset shards: tar files in which consecutive members with the same key form a sample.

Tar members are read as bytes, which `osm.forms` decodes later. Reading a shard never unpickles data and never runs a
command.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from osm.data.tar import TRUNCATED, Member, TarReader
from osm.errors import OsmError, RunStopped, SampleError
from osm.files import check_regular_file
from osm.storage.cache import FileCache, open_whole
from osm.storage.locations import is_remote, public

MAX_MEMBER_BYTES = 256 << 20  # limit for a member, and for all members of a sample together
SUFFIX = ".index.json"
"""Ending of the file name of a shard's index."""
MEMBERS = ("jpg", "jpeg", "image.png", "png", "part.png", "whole.png", "tif", "json")
RESUME_HINT = "the shard existed when the run began; put it back and run the same command to resume"


@dataclass
class RawSample:
    """An undecoded sample from a shard; `members` maps the extension of each tar member to the member's bytes."""

    shard: str
    key: str
    members: dict[str, bytes] = field(default_factory=dict)

    @property
    def cache_key(self) -> str:
        """Return the sample's key with a hash of its members, so that changed samples never match old cache entries."""
        digest = hashlib.sha256()
        for extension, data in sorted(self.members.items()):
            digest.update(f"{extension} {len(data)} ".encode() + data)
        return f"{self.key}@{digest.hexdigest()[:16]}"


@dataclass
class SampleSpan:
    """The byte range of a sample in its shard.

    Attributes:
        key: key of the sample.
        start: byte offset of the sample's first tar header.
        stop: offset of the first byte after the sample.
        members: extension -> tar member.
        global_headers: fields of all global pax headers before the sample, which apply to the sample's members.
    """

    key: str
    start: int
    stop: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    global_headers: dict[str, str] = field(default_factory=dict)


def read_shard(location: str, cache: FileCache | None = None) -> Iterator[RawSample | SampleError]:
    """Yield the samples of a shard in order. A SampleError is yielded in place of an unreadable sample.

    A remote shard is first downloaded in full, either to the cache or, if there is no cache, to a temporary file. The
    reason for a SampleError is `broken_tar`, `member_too_large`, `member_not_a_file` or `member_twice`. If the reason
    is `broken_tar`, the rest of the shard is skipped; otherwise, only one sample is skipped.

    Raises:
        RunStopped: the shard does not exist, or reading it from the disk or the server fails.
    """
    check_regular_shard(location)
    name = public(location)
    try:
        with stop_run_on_io_error(location), _opened(location, cache) as stream:
            tar = TarReader(stream)
            for found in iter_spans(name, tar):
                yield found if isinstance(found, SampleError) else read_span(name, tar, found)
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, OsmError):
            raise
        # The sample at the position where a tar file is broken may lack members, so it is dropped too.
        yield SampleError("broken_tar", f"{name}: {error}")


def _opened(location: str, cache: FileCache | None) -> AbstractContextManager[BinaryIO]:
    if not is_remote(location):
        return open(location, "rb")
    return open_whole(location) if cache is None else cache.open(location)


@contextmanager
def stop_run_on_io_error(location: str) -> Iterator[None]:
    """Context manager that converts an OSError (such as a missing shard or a failing disk) to RunStopped.

    An unreadable shard stops the run. If an unreadable shard were skipped like a damaged sample, the sample order would
    depend on the failure, and the run would not be reproducible.
    """
    try:
        yield
    except FileNotFoundError:
        raise RunStopped(f"shard {public(location)}: there is no such file; {RESUME_HINT}") from None
    except OSError as error:
        raise RunStopped(f"shard {public(location)}: {error.strerror or error}; {RESUME_HINT}") from None


def check_regular_shard(location: str) -> None:
    """Raise RunStopped if a local shard is a folder, a FIFO, a device or a socket instead of a regular file."""
    if is_remote(location):
        return
    try:
        check_regular_file(location, "shard")
    except OsmError as error:
        raise RunStopped(f"{error}; {RESUME_HINT}") from None


def read_span(name: str, tar: TarReader, span: SampleSpan) -> RawSample:
    """Read the tar members of a sample and return the undecoded sample."""
    return RawSample(name, span.key, {extension: tar.read(member) for extension, member in span.members.items()})


def iter_spans(name: str, tar: TarReader) -> Iterator[SampleSpan | SampleError]:
    """Yield the byte range of each sample in an open shard. Only the tar headers are read.

    A SampleError is yielded in place of an unreadable sample; see `read_shard` for the possible reasons.

    Args:
        name: name of the shard for messages.

    Raises:
        tarfile.TarError: the file ends within a member, so the sample of this member cannot be read.
    """
    current: SampleSpan | None = None
    skipped_key = None  # further members of this sample are ignored
    for member in tar:
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        if extension not in MEMBERS:
            continue
        key = f"{folder}/{stem}" if folder else stem
        if current is not None and key != current.key:
            yield current
            current = None
        if key == skipped_key:
            continue
        if current is None:
            current, skipped_key = SampleSpan(key, member.header, global_headers=dict(tar.global_headers)), None
        fault = _member_fault(name, member, extension, current)
        if fault is not None:
            yield fault
            current, skipped_key = None, key
            continue
        if member.start + member.size > tar.length:
            raise tarfile.ReadError(TRUNCATED)
        current.members[extension], current.stop = member, member.end
    if current is not None:
        yield current
    if tar.fault:
        yield SampleError("broken_tar", f"{name}: {tar.fault}")


def _member_fault(name: str, member: Member, extension: str, sample: SampleSpan) -> SampleError | None:
    """Return an error if a tar member is invalid and its sample must be skipped, or None if the member is valid."""
    where = f"{name}: {member.name!r}"
    if not member.is_regular:
        return SampleError("member_not_a_file", f"{where} is a link, a folder, a device or a sparse file")
    if extension in sample.members:
        return SampleError("member_twice", f"{where} occurs twice, so the sample is ambiguous")
    if member.size + sum(other.size for other in sample.members.values()) > MAX_MEMBER_BYTES:
        return SampleError(
            "member_too_large",
            f"{where} has {member.size} bytes; a sample may have at most {MAX_MEMBER_BYTES} bytes",
        )
    return None
