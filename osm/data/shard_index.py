"""Random access to the samples of a shard through an index, so that a process reads only the samples it needs.

`000000000.index.json`, next to `000000000.tar`, contains one entry per sample, in order: the sample's key, the offset
of its first byte, and its size in bytes. The entry for an unreadable sample also states why the sample cannot be read.
The converters write the index. If a shard's index is missing or belongs to a different shard, a new index is built once
from the shard's tar headers.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from osm.data.shards import (
    MAX_MEMBER_BYTES,
    SUFFIX,
    RawSample,
    SampleSpan,
    check_regular_shard,
    iter_spans,
    read_span,
    stop_run_on_io_error,
)
from osm.data.tar import BLOCK, TarReader
from osm.documents import parse_json
from osm.errors import OsmError, RunStopped, SampleError
from osm.storage import remote
from osm.storage.cache import FileCache, canonical, default_folder, open_whole
from osm.storage.locations import is_remote, name_of, public, sibling
from osm.storage.remote import Stat

FORMAT = 1
MAX_BYTES = 256 << 20  # size limit of an index file, which is enough for about 2 million samples
_THREADS = 8
_REASON = re.compile(r"[a-z_]{1,40}")
_MAX_MESSAGE_CHARACTERS = 500
_OPEN, _OPEN_CACHED = 16, 4
"""The number of shards that a reader keeps open, without and with a cache. The limit with a cache is lower, because a
file that the cache has removed still occupies disk space while it is open."""


@dataclass
class ShardIndex:
    """The index of a shard with n samples, which takes up a few bytes of memory per sample.

    Attributes:
        shard: location of the shard.
        stat: size and version of the shard at the time when the index was built.
        start, stop: byte range of each sample, int64 (n).
        keys: CRC-32 of the key of each sample, uint32 (n).
        held_out: `held_out_hash` of the key of each sample, uint64 (n).
        faults: sample number -> (reason, message), for the samples that cannot be read.
        global_header_starts: for each global pax header, the number of the first sample that it applies to, and its
            fields.
        source: path or URL of the index file; empty if it was not stored.
        same_version: whether the version in the index equals the current version of the shard.
    """

    shard: str
    stat: Stat
    start: np.ndarray
    stop: np.ndarray
    keys: np.ndarray
    held_out: np.ndarray
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    global_header_starts: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    source: str = ""
    same_version: bool = False

    def __len__(self) -> int:
        return len(self.start)

    def error(self, number: int) -> SampleError | None:
        """Return the error that makes a sample unreadable, or None if the sample can be read."""
        fault = self.faults.get(number)
        return None if fault is None else SampleError(fault[0], f"{public(self.shard)}: {fault[1]}")

    def global_headers(self, number: int) -> dict[str, str]:
        """Return the global pax header fields that apply to a sample."""
        return next((fields for first, fields in reversed(self.global_header_starts) if first <= number), {})

    def held_out_numbers(self, share: float) -> np.ndarray:
        """Return the positions of the held-out samples as an int64 array. Unreadable samples are never held out."""
        held = self.held_out < np.uint64(held_out_threshold(share))
        held[list(self.faults)] = False
        return np.flatnonzero(held)

    def training_numbers(self, share: float) -> np.ndarray:
        """Return the positions of the training samples as an int64 array. Unreadable samples are included."""
        if not share:
            return np.arange(len(self))
        kept = self.held_out >= np.uint64(held_out_threshold(share))
        kept[list(self.faults)] = True
        return np.flatnonzero(kept)


def held_out_hash(key: str) -> int:
    """Hash a sample's key to an integer from 0 to 2^64 - 1, which determines whether the sample is used in training."""
    return int.from_bytes(hashlib.sha256(f"held out: {key}".encode()).digest()[:8], "big")


def held_out_threshold(share: float) -> int:
    """Return the hash threshold: samples with a `held_out_hash` below it are held out from training."""
    return min(math.ceil(share * 2**64), 2**64 - 1)


def is_held_out(key: str, share: float) -> bool:
    """Return whether a sample is held out from training, which depends only on its key and on `share`."""
    return held_out_hash(key) < held_out_threshold(share)


def key_crc(key: str) -> int:
    """Return the CRC-32 of a key."""
    return zlib.crc32(key.encode())


def index_name(shard: str) -> str:
    """Return the file name of a shard's index, such as `000000000.index.json` for `000000000.tar`."""
    name = name_of(shard)
    return f"{name.removesuffix('.tar')}{SUFFIX}" if name.endswith(".tar") else f"{name}.file{SUFFIX}"


def index_document(shard: str, stream: BinaryIO, version: str = "") -> dict[str, Any]:
    """Read the tar headers of an open shard and return its index as a JSON document.

    Args:
        version: version of the shard (such as an ETag), which is recorded in the index.
    """
    tar = TarReader(stream)
    samples: list[list[Any]] = []
    global_headers: list[list[Any]] = []
    name = public(shard)
    try:
        for found in iter_spans(name, tar):
            if isinstance(found, SampleSpan):
                if found.global_headers != (global_headers[-1][1] if global_headers else {}):
                    global_headers.append([len(samples), found.global_headers])
                stop = min(found.stop, tar.length)  # the padding after the last member may be missing
                samples.append([found.key, found.start, stop - found.start])
            else:
                samples.append(_fault_entry(found, name))
    except (tarfile.TarError, ValueError) as error:
        samples.append(_fault_entry(SampleError("broken_tar", f"{name}: {error}"), name))
    more = {"global_headers": global_headers} if global_headers else {}
    return {"osm_index": FORMAT, "bytes": tar.length, "version": version, **more, "samples": samples}


def _fault_entry(error: SampleError, name: str) -> list[Any]:
    return ["", 0, 0, error.reason, str(error).removeprefix(f"{name}: ")]


def index_text(document: dict[str, Any]) -> str:
    """Serialize an index as JSON with one line per sample, so that the file is human-readable."""
    head = {key: value for key, value in document.items() if key != "samples"}
    lines = ",\n".join(json.dumps(sample) for sample in document["samples"])
    return json.dumps(head)[:-1] + f', "samples": [\n{lines}\n]}}\n'


def parse_index(shard: str, data: bytes, stat: Stat, source: str = "") -> ShardIndex | None:
    """Parse an index file.

    Return None if the bytes are not a valid index or if the index belongs to a different shard.

    Args:
        stat: current size and version of the shard.
        source: path or URL of the index file.
    """
    try:
        document = parse_json(data)
        if document["osm_index"] != FORMAT or document["bytes"] != stat.size:
            return None
        version = str(document["version"])
        if not stat.agrees(Stat(stat.size, version)):
            return None
        rows = document["samples"]
        if len(rows) > stat.size // BLOCK + 2:
            return None
        faults = {
            place: (str(row[3]), str(row[4])[:_MAX_MESSAGE_CHARACTERS])
            for place, row in enumerate(rows)
            if len(row) > 3
        }
        start = np.array([row[1] for row in rows], np.int64)
        stop = start + np.array([row[2] for row in rows], np.int64)
        keys = [row[0] for row in rows]
        global_headers = [(int(first), dict(fields)) for first, fields in document.get("global_headers", ())]
        texts = [text for _, fields in global_headers for pair in fields.items() for text in pair]
        readable = np.ones(len(rows), bool)
        readable[list(faults)] = False
        first, last = start[readable], stop[readable]
        in_order = (first >= 0).all() and (last > first).all() and (last <= stat.size).all()
        if not in_order or not (first[1:] >= last[:-1]).all() or not all(isinstance(text, str) for text in texts):
            return None
        if not all(_REASON.fullmatch(reason) for reason, _ in faults.values()):
            return None
        crcs = np.array([key_crc(key) for key in keys], np.uint32)
        hashes = np.array([held_out_hash(key) for key in keys], np.uint64)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
        return None
    return ShardIndex(
        shard,
        stat,
        start,
        stop,
        crcs,
        hashes,
        faults,
        global_headers,
        source,
        bool(version) and version == stat.version,
    )


def end_matches(index: ShardIndex, stream: BinaryIO, offset: int) -> bool:
    """Return whether the end of a shard matches its index.

    Only the shard's last readable sample and the bytes after it are compared with the index. This comparison detects
    whether a shard was replaced by a different shard of the same size.

    Args:
        stream: the content of the shard from byte `offset` on. `offset` is at most the start of the last readable
            sample.
    """
    number = last_readable(index)
    if number < 0:
        return True
    tar = TarReader(stream, int(index.start[number]) - offset, None, index.global_headers(number))
    found: list[SampleSpan | SampleError] = []
    try:
        found += iter_spans(public(index.shard), tar)
    except (tarfile.TarError, ValueError) as error:
        found.append(SampleError("broken_tar", str(error)))
    wanted = [index.faults[place][0] for place in range(number + 1, len(index))]
    first, others = (found[0] if found else None), found[1:]
    return (
        isinstance(first, SampleSpan)
        and key_crc(first.key) == int(index.keys[number])
        and min(first.stop, tar.length) + offset == int(index.stop[number])
        and [error.reason if isinstance(error, SampleError) else "" for error in others] == wanted
    )


def last_readable(index: ShardIndex) -> int:
    """Return the position of the last readable sample in a shard, or -1 if no sample is readable."""
    return next((number for number in reversed(range(len(index))) if number not in index.faults), -1)


def discard_index(index: ShardIndex) -> str:
    """Delete a local index that does not match its shard, and return advice for the error message."""
    if is_remote(index.source):
        return f"first delete {public(index.source)}, which is the index of another shard"
    with suppress(OSError):
        Path(index.source).unlink()
    return "its index will be rebuilt"


_Share = tuple[dict[str, ShardIndex], Exception | None]


class Indexes:
    """The indexes of all shards of a run. A shard's index is read, or built if missing, on first use.

    If a shard's size or version changes after its index was read or built, an error is raised.

    Args:
        keep: whether a missing index is stored once it has been built: next to the shard or, if that folder is not
            writable, in the user's cache folder.
        cache: cache of remote shards. If a remote shard has no index, the whole shard is read to build the index.
    """

    def __init__(self, keep: bool = True, cache: FileCache | None = None) -> None:
        self.keep, self.cache = keep, cache
        self._known: dict[str, ShardIndex] = {}

    def __getitem__(self, shard: str) -> ShardIndex:
        if shard not in self._known:
            self._known[shard] = self._find(shard)
        return self._known[shard]

    def prepare(
        self,
        shards: Sequence[str],
        rank: int = 0,
        size: int = 1,
        exchange: Callable[[_Share], list[_Share]] | None = None,
    ) -> None:
        """Read or build the indexes of all shards, dividing the shards among the ranks.

        Args:
            rank, size: rank of this process and number of processes.
            exchange: an all-gather that returns the indexes and errors of all ranks; None for a single process.

        Raises:
            RunStopped: a shard cannot be read. If one rank fails, all ranks raise its error.
        """
        mine = [shard for shard in dict.fromkeys(shards) if shard not in self._known][rank::size]
        share: _Share = ({}, None)
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                share = dict(zip(mine, pool.map(self._find, mine), strict=True)), None
        except Exception as error:  # gathered before it is raised, so that no rank hangs in the collective call
            share = {}, error
        for found, fault in [share] if exchange is None else exchange(share):
            if fault is not None:
                raise fault
            self._known.update(found)

    def _find(self, shard: str) -> ShardIndex:
        check_regular_shard(shard)
        with stop_run_on_io_error(shard):
            return self._find_remote(shard) if is_remote(shard) else self._find_local(shard)

    def _find_local(self, shard: str) -> ShardIndex:
        about = os.stat(shard)
        stat = Stat(about.st_size)
        paths = (Path(sibling(shard, index_name(shard))), _cache_path(os.path.abspath(shard)))
        with open(shard, "rb") as stream:
            for path in paths:
                with suppress(OSError):
                    made = path.stat()
                    if path.is_file() and made.st_size <= MAX_BYTES and made.st_mtime_ns >= about.st_mtime_ns:
                        index = parse_index(shard, path.read_bytes(), stat, str(path))
                        if index is not None and end_matches(index, stream, 0):
                            return index
            document = index_document(shard, stream)
        return self._store_index(shard, document, stat, paths)

    def _find_remote(self, shard: str) -> ShardIndex:
        stat = remote.stat(shard)
        beside, aside = sibling(shard, index_name(shard)), _cache_path(canonical(shard))
        # Errors while reading the index are ignored, because some object stores deny access to a missing index.
        # A shard's signed URL is not valid for the shard's index.
        with suppress(FileNotFoundError, OsmError):
            index = parse_index(shard, remote.read_whole(beside, MAX_BYTES), stat, beside)
            if index is not None and _remote_end_matches(index):
                return index
        with suppress(OSError):
            if aside.stat().st_size <= MAX_BYTES:
                index = parse_index(shard, aside.read_bytes(), stat, str(aside))
                if index is not None and _remote_end_matches(index):
                    return index
        with open_whole(shard, stat) if self.cache is None else self.cache.open(shard, stat) as stream:
            document = index_document(shard, stream, stat.version)
        return self._store_index(shard, document, stat, (aside,))

    def _store_index(self, shard: str, document: dict[str, Any], stat: Stat, paths: Sequence[Path]) -> ShardIndex:
        data, source = index_text(document).encode(), ""
        for path in paths if self.keep else ():
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                if path.exists() and not _is_ours(path):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(data)
                os.replace(temporary, path)
                source = str(path)
                break
            except OSError:  # the folder is not writable: try the next one; the next run rebuilds an unstored index
                with suppress(OSError):
                    temporary.unlink()
        index = parse_index(shard, data, stat, source)
        if index is None:
            raise RunStopped(
                f"shard {public(shard)}: the shard changed while its index was being built; start the run again"
            )
        return index


def _is_ours(path: Path) -> bool:
    """Return whether an existing file is a shard index and may therefore be overwritten."""
    with path.open("rb") as file:
        return file.read(16).startswith(b'{"osm_index"')


def _remote_end_matches(index: ShardIndex) -> bool:
    """Return the result of `end_matches` for a remote shard, using one range request.

    The index is accepted without a request if it records the shard's current version, or if the byte range to request
    is too large. The index is also accepted if the server does not support range requests.
    """
    if index.same_version:
        return True
    number = last_readable(index)
    start = int(index.start[number]) if number >= 0 else index.stat.size
    if index.stat.size - start > MAX_MEMBER_BYTES:
        return True
    try:
        data = remote.read_range(index.shard, start, index.stat.size, index.stat)
    except remote.NoRanges:
        return True
    return end_matches(index, io.BytesIO(data), start)


def _cache_path(location: str) -> Path:
    """Return the path in the user's cache folder where an index is stored if the shard's folder is not writable."""
    return default_folder() / "indexes" / f"{hashlib.sha256(os.fsencode(location)).hexdigest()[:32]}.json"


class ShardReader:
    """Reads samples from indexed shards in any order. Threads must not share a reader.

    A local shard is read in place. A remote shard is read from its cached copy, or with range requests if there is no
    cache. If the server does not support range requests, the whole shard is downloaded to a temporary file.

    Args:
        cache: cache of remote shards; None disables caching.
    """

    def __init__(self, cache: FileCache | None = None) -> None:
        self.cache = cache
        self._open: OrderedDict[str, tuple[BinaryIO | None, ExitStack]] = OrderedDict()

    def read(self, index: ShardIndex, number: int) -> RawSample | SampleError:
        """Read sample `number` of a shard, or return the sample's error if the index marks it as unreadable.

        Raises:
            RunStopped: the shard no longer exists, cannot be read, or has changed since its index was built.
        """
        fault = index.error(number)
        if fault is not None:
            return fault
        start, stop = int(index.start[number]), int(index.stop[number])
        try:
            return self._read(index, number, start, stop)
        except remote.NoRanges:
            self._fetch_whole(index)
            return self._read(index, number, start, stop)
        except (tarfile.TarError, ValueError) as error:
            if isinstance(error, OsmError):
                raise
            raise self._shard_changed(index) from None

    def _read(self, index: ShardIndex, number: int, start: int, stop: int) -> RawSample:
        name = public(index.shard)
        with stop_run_on_io_error(index.shard):
            stream = self._stream(index)
            if stream is None and stop - start > MAX_MEMBER_BYTES:  # large unused members lie between its members
                raise remote.NoRanges(name)
            if stream is None:
                data = remote.read_range(index.shard, start, stop, index.stat)
                tar = TarReader(io.BytesIO(data), 0, len(data), index.global_headers(number))
            else:
                tar = TarReader(stream, start, stop, index.global_headers(number))
            return self._read_only_sample(index, number, name, tar)

    def close(self) -> None:
        """Close all open shards and remove their temporary files."""
        while self._open:
            self._open.popitem()[1][1].close()

    def _read_only_sample(self, index: ShardIndex, number: int, name: str, tar: TarReader) -> RawSample:
        found = list(iter_spans(name, tar))
        if len(found) != 1 or not isinstance(found[0], SampleSpan) or key_crc(found[0].key) != int(index.keys[number]):
            raise self._shard_changed(index)
        return read_span(name, tar, found[0])

    def _shard_changed(self, index: ShardIndex) -> RunStopped:
        advice = discard_index(index)
        return RunStopped(
            f"shard {public(index.shard)}: the shard was changed while it was in use; start the run again ({advice})"
        )

    def _stream(self, index: ShardIndex) -> BinaryIO | None:
        """Return the open file of a shard, or None if the shard is read with range requests."""
        shard = index.shard
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard][0]
        stack = ExitStack()
        stream: BinaryIO | None = None
        if not is_remote(shard):
            check_regular_shard(shard)
            stream = stack.enter_context(open(shard, "rb"))  # noqa: SIM115 - closed with the stack
            if stream.seek(0, io.SEEK_END) != index.stat.size:
                stack.close()
                raise self._shard_changed(index)
        elif self.cache is not None:
            stream = stack.enter_context(self.cache.open(shard, index.stat))
        else:
            remote.check_still(shard, index.stat)
        self._keep(shard, stream, stack)
        return stream

    def _fetch_whole(self, index: ShardIndex) -> None:
        stack = ExitStack()
        stream = stack.enter_context(open_whole(index.shard, index.stat))
        self._open.pop(index.shard)[1].close()
        self._keep(index.shard, stream, stack)

    def _keep(self, shard: str, stream: BinaryIO | None, stack: ExitStack) -> None:
        self._open[shard] = stream, stack
        while len(self._open) > (_OPEN if self.cache is None else _OPEN_CACHED):
            self._open.popitem(last=False)[1][1].close()
