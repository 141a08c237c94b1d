"""The rows of a part: one for each mask of its images, named or not, and how they become the records of images again.

An image that could not be labeled has a row for each of its masks with the reason in `failed`. An image without masks
has a single row, in which `mask` is null, so that every image of the input is in the labels.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self

from osm.errors import OsmError
from osm.labeling.formats.label_format import LabeledImage, LabelShape
from osm.labeling.label_journal import Record, failed_image, image_of, image_record, unread_reasons

COLUMNS = {
    "image": "string",
    "path": "string",
    "member_start": "int64",
    "member_size": "int64",
    "image_number": "int64",
    "width": "int32",
    "height": "int32",
    "mask": "int32",
    "source_row": "int32",
    "id": "int64",
    "id_text": "string",
    "label": "string",
    "name": "string",
    "prob": "double",
    "class_id": "int64",
    "unsure": "bool",
    "skipped": "string",
    "failed": "string",
    "is_box": "bool",
    "x": "double",
    "y": "double",
    "box_width": "double",
    "box_height": "double",
    "area": "int64",
    "rle": "string",
}
"""The columns of a part and their Arrow types; docs/scaling.md describes them."""


def part_bytes(records: Iterable[Record]) -> bytes:
    """Return the Parquet file of some images. The same records give the same bytes."""
    import pyarrow as arrow  # type: ignore[import-untyped]
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]

    schema = arrow.schema([(name, arrow.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    rows = [{name: _legal(value) for name, value in row.items()} for record in records for row in rows_of(record)]
    buffer = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _legal(value: Any) -> Any:
    """Replace the lone surrogates in a text, which stand for undecodable bytes of file names."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


def part_records(data: bytes, where: str) -> list[Record]:
    """Return the records of the images of a part. `part_bytes` is the inverse.

    Raises:
        OsmError: the file is damaged, or was not written by this program.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise OsmError(
            f"{where}: not a Parquet file ({str(error).splitlines()[0]}); remove it, and run the same command again"
        ) from None
    if rows and set(rows[0]) != COLUMNS.keys():
        raise OsmError(f"{where}: its columns are not those of a part; choose another output folder")
    return [_record(list(group)) for _, group in groupby(rows, key=lambda row: row["image_number"])]


def rows_of(record: Record) -> Iterator[dict[str, Any]]:
    """Yield the row of each mask of an image."""
    image = image_of(record)
    start, size = image.member or (None, None)
    place = {
        "image": image.file_name,
        "path": image.path,
        "member_start": start,
        "member_size": size,
        "image_number": image.number,
        "width": image.size[0],
        "height": image.size[1],
        "failed": record["failed"],
    }
    nothing = {"mask": None, "label": "", "name": "", "prob": 0.0, "unsure": False, "skipped": "", "is_box": False}
    if record["failed"]:
        for number in range(record["stated_masks"]) or [None]:
            yield {**nothing, **place, "mask": number, "source_row": number}
        return
    for number, shape in enumerate(image.shapes):
        yield {**place, "mask": number, **_cells(shape)}
    unread = record["unread"]
    for number, (row, reason) in enumerate(unread, len(image.shapes)):
        yield {**nothing, **place, "mask": number, "source_row": row, "skipped": reason}
    if not image.shapes and not unread:
        yield {**nothing, **place}


def _cells(shape: LabelShape) -> dict[str, Any]:
    x, y, width, height = map(float, shape.bounds)
    return {
        "source_row": shape.row,
        "id": shape.id if isinstance(shape.id, int) and shape.id in _INT64 else None,
        "id_text": None if shape.id is None or (isinstance(shape.id, int) and shape.id in _INT64) else str(shape.id),
        "label": shape.label,
        "name": shape.name,
        "prob": shape.prob,
        "class_id": shape.class_id,
        "unsure": shape.unsure,
        "skipped": shape.skipped,
        "is_box": shape.box is not None,
        "x": x,
        "y": y,
        "box_width": width,
        "box_height": height,
        "area": shape.area,
        "rle": shape.rle["counts"],
    }


_INT64 = range(-(1 << 63), 1 << 63)


def _record(rows: list[dict[str, Any]]) -> Record:
    first = rows[0]
    size = first["width"], first["height"]
    place = first["image_number"], first["image"], first["path"]
    member = None if first["member_start"] is None else (first["member_start"], first["member_size"])
    masks = [row for row in rows if row["mask"] is not None]
    shapes = () if first["failed"] else tuple(_shape(row, size) for row in masks if row["rle"] is not None)
    record = image_record(LabeledImage(*place, size, shapes, member), (), first["failed"], len(masks))
    if not first["failed"]:
        record["unread"] = [[row["source_row"], row["skipped"]] for row in masks if row["rle"] is None]
    return record


def _shape(row: dict[str, Any], size: tuple[int, int]) -> LabelShape:
    box = (row["x"], row["y"], row["box_width"], row["box_height"]) if row["is_box"] else None
    return LabelShape(
        {"size": [size[1], size[0]], "counts": row["rle"]},
        box=box,
        id=row["id"] if row["id_text"] is None else row["id_text"],
        label=row["label"],
        name=row["name"],
        prob=row["prob"],
        class_id=row["class_id"],
        unsure=row["unsure"],
        skipped=row["skipped"],
        row=row["source_row"],
    )


@dataclass
class PartCounts:
    """What the rows of some parts hold.

    Attributes:
        parts: number of parts.
        images: number of labeled images.
        rows: number of rows.
        named: number of masks with a name.
        unsure: number of names that are probably wrong, according to the calibrated model.
        left_out: number of masks without a name in labeled images, by reason.
        failed: number of images that could not be labeled.
        failures: the reasons for the first of them, by their paths.
        numbers: number of positions that the images have in the input, with those of samples without an image.
    """

    parts: int = 0
    images: int = 0
    rows: int = 0
    named: int = 0
    unsure: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    numbers: int = 0

    MAX_FAILURES = 20

    def add_record(self, record: Record) -> None:
        """Count the masks of an image."""
        self.rows += max(1, record["stated_masks"] if record["failed"] else _count(record))
        if record["failed"]:
            self.failed += 1
            if len(self.failures) < self.MAX_FAILURES:
                self.failures[failed_image(record)] = record["failed"]
            return
        self.images += 1
        shapes = image_of(record).shapes
        self.named += sum(not shape.skipped for shape in shapes)
        self.unsure += sum(shape.unsure for shape in shapes)
        self.left_out.update(shape.skipped for shape in shapes if shape.skipped)
        self.left_out.update(unread_reasons(record))

    def add(self, other: PartCounts) -> None:
        """Add the counts of other parts."""
        for name in ("parts", "images", "rows", "named", "unsure", "failed", "numbers"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.left_out.update(other.left_out)
        room = self.MAX_FAILURES - len(self.failures)
        self.failures.update(list(other.failures.items())[: max(0, room)])

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {**vars(self), "left_out": dict(self.left_out), "failures": dict(self.failures)}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return the counts from JSON values."""
        return cls(**{**values, "left_out": Counter(values["left_out"]), "failures": dict(values["failures"])})


def _count(record: Record) -> int:
    return len(record["shapes"]) + len(unread_reasons(record))
