"""Iterate over the members of an untrusted tar file.

Python's `tarfile` module trusts the headers: it reads extended headers of any claimed size into memory, follows header
chains recursively, and keeps a record of every member. TarReader limits the size of headers and the length of header
chains, and uses constant memory.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED_BYTES = 1 << 20  # limit for one extended header, which holds attributes and a path of a few kilobytes
MAX_NAME = 4096
TRUNCATED = "it is truncated or has no end mark"
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Tar members of these types (links, devices, folders and FIFOs) have no data, even if the header claims a size.
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE),
)
_SPARSE = "GNU.sparse."
_MORE_IN_HEADER, _MORE_IN_BLOCK = 482, 504  # offsets of the flag that says that the map of a sparse file continues


@dataclass(frozen=True)
class Member:
    """One member of a tar file. All offsets are in bytes.

    Attributes:
        name: its path in the archive.
        start: offset of its data. The file may be too short to contain the data.
        size: size of its data in bytes.
        is_regular: false for links, folders, devices and sparse files. The stored bytes of a sparse file differ from
            its content.
        header: offset of its first header.
        end: offset of the next member's first header.
    """

    name: str
    start: int
    size: int
    is_regular: bool
    header: int
    end: int


class TarReader:
    """Iterates over the members of an open tar file in constant memory.

    Args:
        start, stop: byte range to read. If `stop` is None, members are read up to the end mark of the archive.
        global_headers: fields of the global pax headers before `start`.

    Attributes:
        length: size of the file in bytes.
        global_headers: fields of the global pax headers that were read so far or passed to the constructor.
        fault: after the iteration, the reason why the end of the archive is invalid. Empty if the end is valid.
    """

    def __init__(
        self, stream: BinaryIO, start: int = 0, stop: int | None = None, global_headers: Mapping[str, str] | None = None
    ) -> None:
        self._stream, self._start, self._stop = stream, start, stop
        self.length = stream.seek(0, os.SEEK_END)
        self.global_headers = dict(global_headers or {})
        self.fault = ""

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
        except tarfile.TarError as error:
            self.fault = str(error)

    def read(self, member: Member) -> bytes:
        """Return the data of a member.

        Raises:
            tarfile.ReadError: the file ends before the member does.
        """
        return self._bytes(member.start, member.size)

    def _bytes(self, start: int, size: int) -> bytes:
        # The claimed size is checked first, because `read` would allocate that much memory even for a truncated file.
        if start + size <= self.length:
            self._stream.seek(start)
            data = self._stream.read(size)
            if len(data) == size:
                return data
        raise tarfile.ReadError(TRUNCATED)

    def _members(self) -> Iterator[Member]:
        at = header = self._start
        fields: dict[str, str] | None = None  # fields of the extended headers of the next member
        while self._stop is None or at < self._stop:
            block = self._bytes(at, BLOCK)
            if not any(block):
                if fields is not None:
                    raise tarfile.ReadError("it ends after an extended header")
                return
            # Names that are not valid UTF-8 are escaped to ASCII, because keys are hashed and printed.
            info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
            at += BLOCK
            if info.type in _EXTENDED:
                found = self._read_extended_header(info, at)
                at += _padded_size(info.size)
                if info.type == tarfile.XGLTYPE:
                    self.global_headers |= found
                else:
                    fields = (fields or {}) | found
                continue
            fields = self.global_headers | (fields or {})
            size = _size(fields.get("size"), info.size)
            if info.type == tarfile.GNUTYPE_SPARSE:
                more = block[_MORE_IN_HEADER]
                while more:
                    more = self._bytes(at, BLOCK)[_MORE_IN_BLOCK]
                    at += BLOCK
            name = fields.get("path", info.name)
            if len(name) > MAX_NAME:
                raise tarfile.ReadError(f"a name of {len(name)} characters")
            end = at + (0 if info.type in _WITHOUT_DATA else _padded_size(size))
            yield Member(name, at, size, info.type in _REGULAR and _SPARSE not in fields, header, end)
            at = header = end
            fields = None

    def _read_extended_header(self, info: tarfile.TarInfo, at: int) -> dict[str, str]:
        """Return the fields that this reader uses from an extended tar header. All other fields are dropped."""
        if not 0 <= info.size <= MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f"an extended header of {info.size} bytes")
        data = self._bytes(at, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": _text(data.partition(b"\0")[0])}
        return {} if info.type == tarfile.GNUTYPE_LONGLINK else _parse_pax_records(data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _padded_size(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _size(given: str | None, in_header: int) -> int:
    """Return the size of a member in bytes.

    The size in an extended header overrides the octal size in the plain header, which is limited to 8 GiB.
    """
    if given is not None and not (given.isascii() and given.isdigit() and len(given) < 20):
        raise tarfile.ReadError(f"a member of size {given[:40]!r}")
    size = in_header if given is None else int(given)
    if size < 0:  # the base-256 encoding allows negative sizes, which would cause an endless loop
        raise tarfile.ReadError(f"a member of size {size}")
    return size


def _parse_pax_records(data: bytes) -> dict[str, str]:
    """Parse pax records of the form "LENGTH NAME=VALUE\\n", where LENGTH is the length of the whole record.

    Unused fields are dropped.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:  # the header may be padded with zeros
        digits = data[at : at + 10].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        name, equals, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if not equals or at + length > len(data) or data[at + length - 1 : at + length] != b"\n":
            raise tarfile.ReadError("a malformed extended header")
        if name == b"GNU.sparse.name":
            found |= {"path": _text(value), _SPARSE: ""}
        elif name.startswith(_SPARSE.encode()):
            found[_SPARSE] = ""
        elif name in (b"size", b"path"):
            found[name.decode()] = _text(value)
        at += length
    return found
