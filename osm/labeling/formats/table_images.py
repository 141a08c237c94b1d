"""Parquet tables with one row for each image, which also holds its masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from osm.labeling.formats.coco_labels import coco_shape
from osm.labeling.formats.label_format import Holds, LabelFormat, LabelShape, MaskSource, Size
from osm.labeling.image_tables import masks_of, rows_of_table
from osm.labeling.stored_images import is_table, stored_row


class ImageTables(LabelFormat):
    """Parquet tables with images and masks, as `osm.labeling.image_tables` describes them."""

    name, title = "image_tables", "Parquet tables of images"
    holds = Holds(scores=False)
    writes = False

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.is_file() and is_table(path.name)

    @classmethod
    def sources(cls, path: Path) -> Iterator[MaskSource]:
        for row in rows_of_table(path):
            where = f"{path}: image {row.name}, mask"
            yield MaskSource(row.name, where, size=row.size, data=row.masks, stored=stored_row(str(path), row))

    @classmethod
    def count(cls, source: MaskSource) -> int:
        return len(masks_of(source.data, source.where))

    @classmethod
    def loaded(cls, source: MaskSource, size: Size) -> MaskSource:
        return replace(source, rows=tuple(masks_of(source.data, source.where)))

    @classmethod
    def read_shapes(cls, row: Any, source: MaskSource, size: Size, where: str) -> list[LabelShape]:
        label = row.get("label") if isinstance(row, dict) else None
        return [coco_shape(row, size, where, label if isinstance(label, str) else "")]
