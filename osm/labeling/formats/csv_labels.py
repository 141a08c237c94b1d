"""A CSV table with one row for each named object."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osm.files import write_atomically
from osm.labeling.formats.label_format import Holds, LabeledImages, LabelFormat

COLUMNS = (
    "image",
    "width",
    "height",
    "number",
    "parent",
    "id",
    "label",
    "name",
    "prob",
    "unsure",
    "category_id",
    "x",
    "y",
    "box_width",
    "box_height",
    "area",
    "rle",
)


Row = tuple[Any, ...]


class CsvLabels(LabelFormat):
    """A CSV table, whose column `rle` holds the counts of a compressed COCO RLE."""

    name, title = "csv", "CSV table"
    output = "labels.csv"
    holds = Holds(parents=True)
    reads = False

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        lines = (_line(tuple("" if value is None else value for value in row)) for row in table_rows(labels))
        write_atomically(out / "labels.csv", itertools.chain([_line(COLUMNS)], lines))


def table_rows(labels: LabeledImages) -> Iterator[Row]:
    """Yield the values of `COLUMNS` for each object. Values that an object does not have are None."""
    number = 0
    for image in labels.images:
        first = number
        for shape in image.shapes:
            parent = None if shape.parent is None else first + shape.parent
            facts = (shape.id, shape.label, shape.name, shape.prob, int(shape.unsure))
            place = (labels.categories[shape.name], *shape.bounds, shape.area, shape.rle["counts"])
            yield (image.file_name, *image.size, number, parent, *facts, *place)
            number += 1


def _line(values: Row) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
