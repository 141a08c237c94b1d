"""The members of a tar file that nobody has checked.

Not `tarfile`'s own walk, which trusts what headers claim: it reads extended headers into memory however large they say
they are, goes from one to the next by recursion, and keeps a record of every member.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED_BYTES = 1 << 20  # of one extended header: a path of a few thousand bytes, and attributes
MAX_NAME = 4096
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# What has no data after its header, whatever size that names.
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE),
)
_SPARSE = "GNU.sparse."
_MORE_IN_HEADER, _MORE_IN_BLOCK = 482, 504  # where a sparse file's map says that it goes on


@dataclass(frozen=True)
class Member:
    """One member: `size` bytes at `start`, if the file is as long as that.

    Attributes:
        plain: false for links, folders, devices, and sparse files (whose bytes are not those of the file).
        header: where its first header begins. end: where what follows it begins.
    """

    name: str
    start: int
    size: int
    is_regular: bool
    header: int
    end: int


class TarReader:
    """Goes through the members of an open tar file, in constant memory.

    Args:
        start, stop: only what lies between; `stop` None = to the archive's end mark.
        global_headers: what global headers before `start` said of the members after them.

    Attributes:
        length: bytes of the file.
        global_headers: the same, by now.
        fault: after the last member, why the archive does not end there as it should; empty where it does.
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
        """A member's bytes.

        Raises:
            tarfile.ReadError: the file ends before.
        """
        return self._bytes(member.start, member.size)

    def _bytes(self, start: int, size: int) -> bytes:
        # Looked at first: memory for what a header claims would be taken before it is known not to be there.
        if start + size <= self.length:
            self._stream.seek(start)
            data = self._stream.read(size)
            if len(data) == size:
                return data
        raise tarfile.ReadError("it ends, or cannot be read on, without an end mark")

    def _members(self) -> Iterator[Member]:
        at = header = self._start
        fields: dict[str, str] | None = None  # what extended headers say of the next member
        while self._stop is None or at < self._stop:
            block = self._bytes(at, BLOCK)
            if not any(block):
                if fields is not None:
                    raise tarfile.ReadError("it ends after an extended header")
                return
            # A name that is no UTF-8 is spelt in ASCII: keys are hashed and printed.
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
        """What an extended header says that is used here."""
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
    """A member's size: an extended header's before its own, which holds no more than 8 GiB in octal."""
    if given is not None and not (given.isascii() and given.isdigit() and len(given) < 20):
        raise tarfile.ReadError(f"a member of size {given[:40]!r}")
    size = in_header if given is None else int(given)
    if size < 0:  # in base 256 a header can say so; going back by it would never end
        raise tarfile.ReadError(f"a member of size {size}")
    return size


def _parse_pax_records(data: bytes) -> dict[str, str]:
    """What is used here of an extended header: records "LENGTH NAME=VALUE\\n", LENGTH that of the whole record."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data) and data[at]:  # zeros may fill it up
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
