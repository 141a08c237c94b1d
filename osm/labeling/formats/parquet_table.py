"""A Parquet table with one row for each named object, with the columns of the CSV table."""

from __future__ import annotations

import itertools
from pathlib import Path

from osm.files import replacing
from osm.labeling.formats.csv_labels import COLUMNS, table_rows
from osm.labeling.formats.label_format import Holds, LabeledImages, LabelFormat

_AT_ONCE = 10_000  # rows in memory
_TEXT = ("image", "id", "label", "name", "rle")
_REAL = ("prob", "x", "y", "box_width", "box_height")


class ParquetTable(LabelFormat):
    """A Parquet table, written in groups of rows."""

    name, title = "parquet", "Parquet table"
    output = "labels.parquet"
    holds = Holds(parents=True)
    reads = False
    needs = "pyarrow"

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        import pyarrow as arrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]

        kinds = {
            **dict.fromkeys(COLUMNS, arrow.int64()),
            **dict.fromkeys(_TEXT, arrow.string()),
            **dict.fromkeys(_REAL, arrow.float64()),
        }
        schema = arrow.schema(list(kinds.items()))
        rows = table_rows(labels)
        with replacing(out / "labels.parquet") as file, parquet.ParquetWriter(file, schema) as writer:
            while part := list(itertools.islice(rows, _AT_ONCE)):
                columns = {name: list(values) for name, values in zip(COLUMNS, zip(*part, strict=True), strict=True)}
                columns["id"] = [None if value is None else str(value) for value in columns["id"]]
                writer.write_table(arrow.table(columns, schema=schema))
