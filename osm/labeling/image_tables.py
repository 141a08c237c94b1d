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
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from osm.documents import parse_json
from osm.errors import OsmError, SampleError, shown
from osm.io.values import whole
from osm.storage.locations import is_remote

MAX_GROUP_BYTES = 2 << 30  # the maximum size of the cells of a row group that are read at once
MAX_GROUP_ROWS = 10_000_000
_BATCH = 1024  # rows
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
    nested, named = _kind(path, schema.field(image))
    wanted = [one for one in (name, held, "width", "height") if one is not None and one in schema.names]
    wanted += [image] if named else [f"{image}.path"] if "path" in nested else []
    number, taken = 0, set[str]()
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if count > MAX_GROUP_ROWS:
            raise OsmError(f"{path}: row group {group} has {count} rows, which exceeds the limit of {MAX_GROUP_ROWS}")
        cells = _cells(path, _group(path, file, group, wanted)) if wanted else [{}] * count
        for k, row in enumerate(cells):
            inner = row.get(image)
            place = inner.get("path") if isinstance(inner, Mapping) else inner
            stated = row.get(name) if name is not None else place if not named else None
            own = str(stated) if stated else str(place) if named and place else ""
            if own in taken or not _is_inside(own):
                own = f"{path.stem}/{number:06d}"
            taken.add(own)
            size = whole(row.get("width")), whole(row.get("height"))
            found = (size[0], size[1]) if size[0] and size[1] else None
            location = place if named or (nested and "bytes" not in nested) else None
            yield TableRow(own, (group, k), location, found, row.get(held) if held is not None else None)
            number += 1


def _kind(path: Path, field: Any) -> tuple[set[str], bool]:
    """Return the names of the parts of a struct of images, and whether the column has paths or URLs."""
    from pyarrow import types  # type: ignore[import-untyped]

    kind = field.type
    if types.is_struct(kind):
        found = {one.name: one.type for one in kind}
        good = {"bytes": types.is_binary, "path": types.is_string}
        large = {"bytes": types.is_large_binary, "path": types.is_large_string}
        if found.keys() & good.keys() and all(
            good[name](one) or large[name](one) for name, one in found.items() if name in good
        ):
            return set(found) & good.keys(), False
    named = types.is_string(kind) or types.is_large_string(kind)
    if named or types.is_binary(kind) or types.is_large_binary(kind):
        return set(), named
    raise OsmError(f"{path}: the column {field.name} has the type {kind}; expected bytes, a path, or {{bytes, path}}")


def _is_inside(name: str) -> bool:
    """Return whether a name stays inside the folder in which files with such names are written."""
    parts = PurePosixPath(urlsplit(name).path.lstrip("/") if is_remote(name) else name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in name


def _cells(path: Path, table: Any) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = table.to_pylist()
    except (ValueError, TypeError) as error:  # text that is not UTF-8, or columns of the same name
        raise OsmError(f"{path}: a cell cannot be read ({error})") from None
    return found


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
    if not found or not isinstance(found, bytes):
        raise SampleError("image_unreadable", f"{path}: row {row} of row group {group} has no image")
    return found


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
        batches, size = [], 0
        # A small file can hold a large table, so the size is checked while the table grows.
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=columns):
            batches.append(batch)
            size += batch.nbytes
            if size > MAX_GROUP_BYTES:
                raise OsmError(f"{path}: the cells of row group {group} exceed the limit of {MAX_GROUP_BYTES} bytes")
        schema = batches[0].schema if batches else None
        return arrow.Table.from_batches(batches, schema) if batches else file.read_row_group(group, columns=columns)
    except (arrow.ArrowException, OSError) as error:
        raise OsmError(f"{path}: row group {group} cannot be read ({str(error).splitlines()[0]})") from None
