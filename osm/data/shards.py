"""Reading WebDataset shards: tar files whose members of one key are one sample.

Members are read as bytes and decoded by `osm.forms`; nothing is unpickled, no command is run.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from osm.data.tar import Member, TarReader
from osm.errors import OsmError, RunStopped, SampleError
from osm.files import check_regular_file
from osm.storage.cache import FileCache, open_whole
from osm.storage.locations import is_remote, public

MAX_MEMBER_BYTES = 256 << 20  # of a member, and of all that are read of a sample
SUFFIX = ".index.json"
"""What the name of a shard's index ends with."""
MEMBERS = ("jpg", "jpeg", "image.png", "png", "part.png", "whole.png", "tif", "json")
RESUME_HINT = "it was there when the run began: put it back, and the same command goes on"


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


@dataclass
class SampleSpan:
    """Where a sample lies in its shard: from the first byte of its first header to before `stop`.

    Attributes:
        global_headers: what global headers say of its members.
    """

    key: str
    start: int
    stop: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    global_headers: dict[str, str] = field(default_factory=dict)


def read_shard(location: str, cache: FileCache | None = None) -> Iterator[RawSample | SampleError]:
    """The samples of a shard in order; what cannot be read comes as an error in its place, and the rest goes on.

    A remote shard is fetched whole first, to the cache, or else to a temporary file.

    The errors' reasons: `broken_tar` (where the shard ends for us), and for a sample that is left out
    `member_too_large`, `member_not_a_file` and `member_twice`.

    Raises:
        RunStopped: the shard is gone, or the disk or the server does not give its bytes.
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
        # The sample in progress may lack members: it is dropped with the rest of the shard.
        yield SampleError("broken_tar", f"{name}: {error}")


def _opened(location: str, cache: FileCache | None) -> AbstractContextManager[BinaryIO]:
    if not is_remote(location):
        return open(location, "rb")
    return open_whole(location) if cache is None else cache.open(location)


@contextmanager
def stop_run_on_io_error(location: str) -> Iterator[None]:
    """A shard that is gone, or whose bytes the disk does not give, ends the run.

    That is no fault of its content: without it other samples would follow, and the run could not be repeated.
    """
    try:
        yield
    except FileNotFoundError:
        raise RunStopped(f"shard {public(location)}: there is no such file; {GONE}") from None
    except OSError as error:
        raise RunStopped(f"shard {public(location)}: {error.strerror or error}; {GONE}") from None


def check_regular_shard(location: str) -> None:
    """Raises RunStopped where a local shard is a folder, FIFO or device now."""
    if is_remote(location):
        return
    try:
        check_regular_file(location, "shard")
    except OsmError as error:
        raise RunStopped(f"{error}; {GONE}") from None


def read_span(name: str, tar: TarReader, span: SampleSpan) -> RawSample:
    """Returns a sample with the bytes of its members."""
    return RawSample(name, span.key, {extension: tar.read(member) for extension, member in span.members.items()})


def iter_spans(name: str, tar: TarReader) -> Iterator[SampleSpan | SampleError]:
    """The samples of an open shard by its headers alone; see `read_shard`.

    Raises:
        tarfile.TarError: the file ends within a member that belongs to a sample; that sample is not to be had.
    """
    current: SampleSpan | None = None
    left_out = None  # the key of the sample whose further members are passed over
    for member in tar:
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        if extension not in MEMBERS:
            continue
        key = f"{folder}/{stem}" if folder else stem
        if current is not None and key != current.key:
            yield current
            current = None
        if key == left_out:
            continue
        if current is None:
            current, left_out = SampleSpan(key, member.header, global_headers=dict(tar.global_headers)), None
        fault = _member_fault(name, member, extension, current)
        if fault is not None:
            yield fault
            current, left_out = None, key
            continue
        if member.start + member.size > tar.length:
            raise tarfile.ReadError("it ends, or cannot be read on, without an end mark")
        current.members[extension], current.stop = member, member.end
    if current is not None:
        yield current
    if tar.fault:
        yield SampleError("broken_tar", f"{name}: {tar.fault}")


def _member_fault(name: str, member: Member, extension: str, sample: SampleSpan) -> SampleError | None:
    """Why a sample with such a member is left out."""
    where = f"{name}: {member.name!r}"
    if not member.is_regular:
        return SampleError("member_not_a_file", f"{where} is a link, a folder, a device or a sparse file")
    if extension in sample.members:
        return SampleError("member_twice", f"{where} is there twice; which one belongs to the sample is not known")
    if member.size + sum(other.size for other in sample.members.values()) > MAX_MEMBER_BYTES:
        return SampleError("member_too_large", f"{where} has {member.size} bytes, too many for a member or its sample")
    return None
