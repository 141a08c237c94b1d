"""Where the samples of a shard lie, so that a process reads those alone that it needs.

`000000000.index.json` beside `000000000.tar` holds, for every sample in order, its key, its first byte and its bytes,
and for one that cannot be read the reason. The converters write it; where it is missing or of another shard, it is made
from the headers once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from osm.data.shards import GONE, Span, check_there, walk
from osm.data.tar import TarReader
from osm.documents import parse_json
from osm.errors import RunStopped, SampleError
from osm.storage import remote
from osm.storage.cache import default_folder, open_whole
from osm.storage.locations import is_remote, name_of, public, sibling
from osm.storage.remote import Stat

FORMAT = 1
SUFFIX = ".index.json"
MAX_BYTES = 256 << 20  # of an index: some 2 million samples
_THREADS = 8


@dataclass
class ShardIndex:
    """The samples of one shard, n in all; a few bytes each.

    Attributes:
        shard: its location. stat: size and version of the shard that it was made of.
        start, stop: int64 (n), the bytes of a sample. keys: uint32 (n), CRC-32 of its key.
        held_out: uint64 (n), its place in the order by which samples are held out; faults: what cannot be read, by
            place, as (reason, message). of_all: from which place on which global headers hold.
    """

    shard: str
    stat: Stat
    start: np.ndarray
    stop: np.ndarray
    keys: np.ndarray
    held_out: np.ndarray
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    of_all: list[tuple[int, dict[str, str]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.start)

    def error(self, number: int) -> SampleError | None:
        """Why a sample cannot be read, or None."""
        fault = self.faults.get(number)
        return None if fault is None else SampleError(fault[0], f"{public(self.shard)}: {fault[1]}")

    def global_headers(self, number: int) -> dict[str, str]:
        """What global headers say of a sample's members."""
        return next((fields for first, fields in reversed(self.of_all) if first <= number), {})

    def trained_on(self, share: float) -> np.ndarray:
        """The places of the samples that are not held out; what cannot be read never is."""
        if not share:
            return np.arange(len(self))
        kept = self.held_out >= np.uint64(held_out_below(share))
        kept[list(self.faults)] = True
        return np.flatnonzero(kept)


def held_out_place(key: str) -> int:
    """A key's place, 0 to 2^64 - 1, in the order by which samples are held out."""
    return int.from_bytes(hashlib.sha256(f"held out: {key}".encode()).digest()[:8], "big")


def held_out_below(share: float) -> int:
    """The first place that is trained on."""
    return min(math.ceil(share * 2**64), 2**64 - 1)


def crc_of(key: str) -> int:
    return zlib.crc32(key.encode())


def index_name(shard: str) -> str:
    """The name of a shard's index: `000000000.tar` -> `000000000.index.json`."""
    return name_of(shard).removesuffix(".tar") + SUFFIX


def index_document(shard: str, stream: BinaryIO, version: str = "") -> dict[str, Any]:
    """The document of an open shard's index, from its headers."""
    tar = TarReader(stream)
    samples: list[list[Any]] = []
    of_all: list[list[Any]] = []
    name = public(shard)
    try:
        for found in walk(name, tar):
            if isinstance(found, Span):
                if found.of_all != (of_all[-1][1] if of_all else {}):
                    of_all.append([len(samples), found.of_all])
                stop = min(found.stop, tar.length)  # the padding after the last member may be missing
                samples.append([found.key, found.start, stop - found.start])
            else:
                samples.append(_fault_entry(found, name))
    except (tarfile.TarError, ValueError) as error:
        samples.append(_fault_entry(SampleError("broken_tar", f"{name}: {error}"), name))
    more = {"global_headers": of_all} if of_all else {}
    return {"osm_index": FORMAT, "bytes": tar.length, "version": version, **more, "samples": samples}


def _fault_entry(error: SampleError, name: str) -> list[Any]:
    return ["", 0, 0, error.reason, str(error).removeprefix(f"{name}: ")]


def index_text(document: dict[str, Any]) -> str:
    """A line a sample: an index can be looked at."""
    head = {key: value for key, value in document.items() if key != "samples"}
    lines = ",\n".join(json.dumps(sample) for sample in document["samples"])
    return json.dumps(head)[:-1] + f', "samples": [\n{lines}\n]}}\n'


def parse_index(shard: str, data: bytes, stat: Stat) -> ShardIndex | None:
    """The index of a shard, or None where the bytes are none, or of another shard."""
    try:
        document = parse_json(data)
        if document["osm_index"] != FORMAT or document["bytes"] != stat.size:
            return None
        if not stat.agrees(Stat(stat.size, str(document["version"]))):
            return None
        rows = document["samples"]
        faults = {place: (str(row[3]), str(row[4])) for place, row in enumerate(rows) if len(row) > 3}
        start = np.array([row[1] for row in rows], np.int64)
        stop = start + np.array([row[2] for row in rows], np.int64)
        keys = [row[0] for row in rows]
        of_all = [(int(first), dict(fields)) for first, fields in document.get("global_headers", ())]
        readable = np.ones(len(rows), bool)
        readable[list(faults)] = False
        whole = (start >= 0) & (stop > start) & (stop <= stat.size)
        if not whole[readable].all():
            return None
        crcs = np.array([crc_of(key) for key in keys], np.uint32)
        places = np.array([held_out_place(key) for key in keys], np.uint64)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
        return None
    return ShardIndex(shard, stat, start, stop, crcs, places, faults, of_all)


class Indexes:
    """The indexes of a run's shards; each is read, or made, when it is first asked for.

    What is known of a shard then holds for the run: another size or version later is an error.

    Args:
        keep: whether an index that was missing is written, beside the shard or else into the user's cache folder.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
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
        exchange: Callable[[dict[str, ShardIndex]], list[dict[str, ShardIndex]]] | None = None,
    ) -> None:
        """Finds the indexes of all shards; each of `size` processes does its share, and `exchange` gathers them."""
        mine = [shard for shard in dict.fromkeys(shards) if shard not in self._known][rank::size]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(mine, pool.map(self._find, mine), strict=True))
        for part in [found] if exchange is None else exchange(found):
            self._known.update(part)

    def _find(self, shard: str) -> ShardIndex:
        check_there(shard)
        try:
            return self._find_remote(shard) if is_remote(shard) else self._find_local(shard)
        except FileNotFoundError:
            raise RunStopped(f"shard {public(shard)}: there is no such file; {GONE}") from None
        except OSError as error:
            raise RunStopped(f"shard {shard}: {error.strerror or error}; {GONE}") from None

    def _find_local(self, shard: str) -> ShardIndex:
        about = os.stat(shard)
        stat = Stat(about.st_size)
        beside = Path(sibling(shard, index_name(shard)))
        aside = _aside(os.path.abspath(shard))
        for path in (beside, aside):
            with suppress(OSError):
                made = path.stat()
                if path.is_file() and made.st_size <= MAX_BYTES and made.st_mtime_ns >= about.st_mtime_ns:
                    index = parse_index(shard, path.read_bytes(), stat)
                    if index is not None:
                        return index
        with open(shard, "rb") as stream:
            document = index_document(shard, stream)
        return self._made(shard, document, stat, (beside, aside))

    def _find_remote(self, shard: str) -> ShardIndex:
        stat = remote.stat(shard)
        aside = _aside(public(shard))
        with suppress(FileNotFoundError):
            data = remote.read_whole(sibling(shard, index_name(shard)), MAX_BYTES)
            index = parse_index(shard, data, stat)
            if index is not None:
                return index
        with suppress(OSError):
            if aside.stat().st_size <= MAX_BYTES:
                index = parse_index(shard, aside.read_bytes(), stat)
                if index is not None:
                    return index
        with open_whole(shard) as stream:
            document = index_document(shard, stream, stat.version)
        return self._made(shard, document, stat, (aside,))

    def _made(self, shard: str, document: dict[str, Any], stat: Stat, places: Sequence[Path]) -> ShardIndex:
        data = index_text(document).encode()
        for path in places if self.keep else ():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
                temporary.write_bytes(data)
                os.replace(temporary, path)
                break
            except OSError:  # a folder of somebody else's: the next place, or made anew next time
                continue
        index = parse_index(shard, data, stat)
        if index is None:
            raise RunStopped(f"shard {public(shard)}: it was changed while its index was made; start the run again")
        return index


def _aside(location: str) -> Path:
    """Where the index lies of a shard whose folder cannot be written."""
    return default_folder() / "indexes" / f"{hashlib.sha256(location.encode()).hexdigest()[:32]}.json"
