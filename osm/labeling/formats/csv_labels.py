"""A CSV table with one row for each named object."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from osm.files import write_atomically
from osm.labeling.formats.label_format import LabeledImages, LabelFormat

COLUMNS = (
    "image",
    "width",
    "height",
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


class CsvLabels(LabelFormat):
    """A CSV table, whose column `rle` holds the counts of a compressed COCO RLE."""

    name, title = "csv", "CSV table"
    reads = False

    @classmethod
    def write(cls, labels: LabeledImages, out: Path) -> None:
        write_atomically(out / "labels.csv", cls._lines(labels))

    @classmethod
    def _lines(cls, labels: LabeledImages) -> Iterator[str]:
        yield _line(COLUMNS)
        for image in labels.images:
            for shape in image.shapes:
                number = "" if shape.id is None else shape.id
                facts = (number, shape.label, shape.name, shape.prob, int(shape.unsure))
                place = (labels.categories[shape.name], *shape.bounds, shape.area, shape.rle["counts"])
                yield _line((image.file_name, *image.size, *facts, *place))


def _line(values: tuple[object, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
