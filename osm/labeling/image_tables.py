"""Parquet tables with one row for each image, which also holds its masks. Reading them needs pyarrow.

| column | content |
|---|---|
| `image` or `url` | the bytes of an image file, `{bytes, path}` as Hugging Face's `datasets` has it, or a path or URL |
| `file_name` or `key` | the name of the image; without it, the path or URL, or the table's name and the row's number |
| `masks` or `annotations` | a list of COCO RLEs or annotations, as structs, or as text that is JSON |
| `width`, `height` | the size to which the masks refer (optional) |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from osm.documents import parse_json
from osm.errors import OsmError, SampleError, shown

MAX_GROUP_BYTES = 4 << 30  # the maximum size of the cells of a row group that are read at once
_IMAGES, _NAMES, _MASKS = ("image", "url"), ("file_name", "key"), ("masks", "annotations")


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
        name: the name of the image.
        place: (row group, row in the group).
        location: the path or URL of the image, or None if the row has the bytes of the image.
        size: the (width, height) to which the masks refer, or None.
        masks: the masks as they are stored, or None if the row has none.
    """

    name: str
    place: tuple[int, int]
    location: str | None
    size: tuple[int, int] | None
    masks: Any = None


def rows_of_table(path: Path, masks: bool = True) -> Iterator[TableRow]:
    """Yield the rows of a table, without the bytes of the images.

    Args:
        masks: whether the masks are read.

    Raises:
        OsmError: the file is not a Parquet table, has no column with images, or needs too much memory.
    """
    file = _opened(path)
    schema = file.schema_arrow
    image = _column(schema, _IMAGES)
    if image is None:
        raise OsmError(f"{path}: has no column {' or '.join(_IMAGES)}, but {', '.join(schema.names[:20])}")
    name, held = _column(schema, _NAMES), _column(schema, _MASKS) if masks else None
    kind = schema.field(image).type
    nested = {field.name for field in kind} if hasattr(kind, "num_fields") and str(kind).startswith("struct") else set()
    named = "string" in str(kind) and not nested  # a path or URL
    if not named and not nested and "binary" not in str(kind):
        raise OsmError(f"{path}: the column {image} has the type {kind}; expected bytes, a path, or {{bytes, path}}")
    wanted = [one for one in (name, held, "width", "height") if one is not None and one in schema.names]
    wanted += [image] if named else [f"{image}.path"] if "path" in nested else []
    number = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        cells = _group(path, file, group, wanted).to_pylist() if wanted else [{}] * count
        for k, row in enumerate(cells):
            inner = row.get(image)
            place = inner.get("path") if isinstance(inner, Mapping) else inner
            stated = row.get(name) if name is not None else place if not named else None
            own = str(stated) if stated else str(place) if named and place else f"{path.stem}/{number:06d}"
            size = row.get("width"), row.get("height")
            found = (int(size[0]), int(size[1])) if size[0] and size[1] else None
            location = place if named or (nested and "bytes" not in nested) else None
            yield TableRow(own, (group, k), location, found, row.get(held) if held is not None else None)
            number += 1


def masks_of(row: Any, where: str) -> list[Any]:
    """Return the masks of a row as COCO annotations.

    Raises:
        SampleError: they are not a list, or not JSON.
    """
    found = _parsed(row, where)
    if found is None:
        return []
    if not isinstance(found, list):
        raise SampleError("annotation_malformed", f"{where}: {shown(found)} is not a list of masks")
    masks = [_parsed(one, where) for one in found]
    return [{"segmentation": one} if isinstance(one, Mapping) and "counts" in one else one for one in masks]


def _parsed(cell: Any, where: str) -> Any:
    if not isinstance(cell, str | bytes):
        return cell
    try:
        return parse_json(cell)
    except ValueError as error:
        raise SampleError("annotation_malformed", f"{where}: {shown(cell)} is not valid json ({error})") from None


def image_cell(path: Path, group: int, row: int) -> bytes:
    """Return the bytes of an image in a table. The last row group stays in memory for the next images.

    Raises:
        SampleError: the row has no bytes.
    """
    status = path.stat()
    column = _image_column(path, group, status.st_mtime_ns, status.st_size)
    cell = column[row].as_py() if row < len(column) else None
    found = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if not found:
        raise SampleError("image_unreadable", f"{path}: row {row} of row group {group} has no image")
    return bytes(found)


@lru_cache(maxsize=1)
def _image_column(path: Path, group: int, time_ns: int, size: int) -> Any:
    file = _opened(path)
    image = _column(file.schema_arrow, _IMAGES)
    assert image is not None
    return _group(path, file, group, [image]).column(image)


def _opened(path: Path) -> Any:
    if find_spec("pyarrow") is None:
        raise OsmError(f"{path}: reading Parquet tables needs the package pyarrow: pip install pyarrow")
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    try:
        return parquet.ParquetFile(path)
    except FileNotFoundError:
        raise OsmError(f"{path}: no such file") from None
    except (arrow.ArrowException, OSError) as error:
        raise OsmError(f"{path}: not a Parquet table ({str(error).splitlines()[0]})") from None


def _column(schema: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _group(path: Path, file: Any, group: int, columns: list[str]) -> Any:
    """Return some columns of a row group, if they are not too large."""
    import pyarrow as arrow

    about = file.metadata.row_group(group)
    chunks = [about.column(k) for k in range(about.num_columns)]
    size = sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns)
    )
    if size > MAX_GROUP_BYTES:
        raise OsmError(
            f"{path}: row group {group} has {size} bytes, which exceeds the limit of {MAX_GROUP_BYTES} bytes; write "
            "the table with smaller row groups"
        )
    try:
        return file.read_row_group(group, columns=columns)
    except (arrow.ArrowException, OSError) as error:
        raise OsmError(f"{path}: row group {group} cannot be read ({str(error).splitlines()[0]})") from None
