"""Read the rows of an untrusted CSV file. Each line is one row, so an invalid line does not affect the others."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from osm.errors import OsmError, shown
from osm.files import check_regular_file

_MAX_LINE = 1 << 20  # The maximum length of a line in bytes. The longest lines in Open Images list thousands of clicks.
_MAX_LINES = 20_000_000


def csv_rows(path: Path, what: str, digest: Any = None) -> Iterator[tuple[int, list[str] | None]]:
    """Yield (line number, fields) for each non-blank line of a CSV file. Line numbers start at 1.

    `fields` is None if the line is not valid UTF-8 or not a valid CSV row.

    Args:
        path: the path of the CSV file.
        what: the beginning of error messages.
        digest: a hashlib hash object, which is updated with the file's bytes.

    Raises:
        OsmError: the file cannot be read, or has more than `_MAX_LINES` lines.
    """
    check_regular_file(path, what)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, digest), 1):
                if number > _MAX_LINES:
                    raise OsmError(f"{what} {path}: the file has over {_MAX_LINES} lines")
                fields = _fields(line, "utf-8-sig" if number == 1 else "utf-8")
                if fields != []:
                    yield number, fields
    except OSError as error:
        raise OsmError(f"{what} {path}: {error.strerror}") from None


def csv_records(
    path: Path, what: str, columns: Sequence[str], digest: Any = None
) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Yield (line number, {column: field}) for each row of a CSV file whose first line names the columns.

    The dict is None if the line is not a valid CSV row.

    Args:
        path: the path of the CSV file.
        what: the beginning of error messages.
        columns: the names of the required columns.
        digest: a hashlib hash object, which is updated with the file's bytes.

    Raises:
        OsmError: the file cannot be read or has too many lines, or a required column is missing or repeated.
    """
    names: list[str] | None = None
    for number, fields in csv_rows(path, what, digest):
        if names is None:
            names = [name.strip() for name in fields or ()]
            if any(names.count(name) != 1 for name in columns):
                raise OsmError(
                    f"{what} {path}: the first line must name each of the columns {', '.join(columns)} once; found "
                    f"{shown(names)}"
                )
        elif fields is not None and len(fields) == len(names):
            yield number, dict(zip(names, fields, strict=True))
        else:
            yield number, None
    if names is None:
        raise OsmError(f"{what} {path}: the file is empty; expected the columns {', '.join(columns)}")


def _lines(file: IO[bytes], digest: Any) -> Iterator[bytes]:
    """Yield every line of a file.

    A line that is too long is truncated and made invalid by appending a byte that is not valid UTF-8.
    """
    while line := file.readline(_MAX_LINE):
        if digest is not None:
            digest.update(line)
        part = line
        while len(part) == _MAX_LINE and not part.endswith(b"\n"):
            part = file.readline(_MAX_LINE)
            if digest is not None:
                digest.update(part)
            line = line[:100] + b"\xff"
        yield line


def _fields(line: bytes, encoding: str) -> list[str] | None:
    try:
        return next(csv.reader([line.decode(encoding).rstrip("\r\n")], strict=True), [])
    except (csv.Error, ValueError):
        return None


__all__ = ["csv_records", "csv_rows"]
