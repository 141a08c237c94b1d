"""One sample's bytes out of a shard, wherever it lies, by its index."""

from __future__ import annotations

import io
import tarfile
from collections import OrderedDict
from contextlib import ExitStack
from typing import BinaryIO

from osm.data.shard_index import ShardIndex, crc_of, discard
from osm.data.shards import MAX_MEMBER_BYTES, RawSample, Span, check_there, read_span, shard_stays, walk
from osm.data.tar import TarReader
from osm.errors import OsmError, RunStopped, SampleError
from osm.storage import remote
from osm.storage.cache import FileCache, open_whole
from osm.storage.locations import is_remote, public

_OPEN, _OPEN_CACHED = 16, 4
"""Shards that a reader has open at once; what the cache removes stays on the disk while it is open."""


class ShardReader:
    """Reads samples of indexed shards, in any order; not to be used by two threads at once.

    A local shard is read in place. A remote one is read from the cache's copy, or without a cache by ranges; where the
    server has none, it is fetched whole to a temporary file.

    Args:
        cache: of remote shards; None = none.
    """

    def __init__(self, cache: FileCache | None = None) -> None:
        self.cache = cache
        self._open: OrderedDict[str, tuple[BinaryIO | None, ExitStack]] = OrderedDict()

    def read(self, index: ShardIndex, number: int) -> RawSample | SampleError:
        """A sample by its place in the shard, or the error that stands there.

        Raises:
            RunStopped: the shard is gone, cannot be read, or is another one than the index was made of.
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
            raise self._changed(index) from None

    def _read(self, index: ShardIndex, number: int, start: int, stop: int) -> RawSample:
        name = public(index.shard)
        with shard_stays(index.shard):
            stream = self._stream(index)
            if stream is None and stop - start > MAX_MEMBER_BYTES:  # much that is not ours lies between its members
                raise remote.NoRanges(name)
            if stream is None:
                data = remote.read_range(index.shard, start, stop, index.stat)
                tar = TarReader(io.BytesIO(data), 0, len(data), index.global_headers(number))
            else:
                tar = TarReader(stream, start, stop, index.global_headers(number))
            return self._only(index, number, name, tar)

    def close(self) -> None:
        """Closes all shards, and removes temporary files."""
        while self._open:
            self._open.popitem()[1][1].close()

    def _only(self, index: ShardIndex, number: int, name: str, tar: TarReader) -> RawSample:
        found = list(walk(name, tar))
        if len(found) != 1 or not isinstance(found[0], Span) or crc_of(found[0].key) != int(index.keys[number]):
            raise self._changed(index)
        return read_span(name, tar, found[0])

    def _changed(self, index: ShardIndex) -> RunStopped:
        told = discard(index)
        return RunStopped(
            f"shard {public(index.shard)}: it was changed while it was in use; start the run again ({told})"
        )

    def _stream(self, index: ShardIndex) -> BinaryIO | None:
        """The open shard, or None where it is read by ranges."""
        shard = index.shard
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard][0]
        stack = ExitStack()
        stream: BinaryIO | None = None
        if not is_remote(shard):
            check_there(shard)
            stream = stack.enter_context(open(shard, "rb"))  # noqa: SIM115 - closed with the stack
            if stream.seek(0, io.SEEK_END) != index.stat.size:
                stack.close()
                raise self._changed(index)
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
