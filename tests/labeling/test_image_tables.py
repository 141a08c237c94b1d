"""Parquet tables with images and masks are labeled like the files that they were made from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from osm.errors import OsmError
from osm.io.segmentation import encode_rle
from osm.labeling import image_tables
from osm.labeling.formats.label_format import LabelShape
from osm.labeling.label_tasks import find_tasks

SIZE = (40, 30)


def photo(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (number, 2 * number, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def mask(number: int) -> np.ndarray:
    found = np.zeros(SIZE[::-1], bool)
    found[number : number + 5, 3:20] = True
    return found


def rle(number: int) -> dict[str, Any]:
    return {key: value for key, value in encode_rle(mask(number)).items()}


def write(path: Path, columns: dict[str, list[Any]], rows_in_group: int = 2) -> str:
    parquet.write_table(arrow.table(columns), path, row_group_size=rows_in_group)
    return str(path)


def labeled(table: str) -> dict[str, tuple[tuple[int, int, int], list[np.ndarray]]]:
    """The color of each image, and its masks."""
    found = find_tasks(table)
    assert found.reader is not None
    out = {}
    for task in found.tasks:
        assert task.source is not None
        image = task.image.photo(task.source.size)
        shapes = list(found.reader.shapes(task.source, image.size))
        out[task.file_name] = image.getpixel((0, 0)), [one.mask for one in shapes if isinstance(one, LabelShape)]
    return out  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["bytes", "struct", "path", "json"])
def test_images_and_masks_of_a_table(tmp_path: Path, kind: str) -> None:
    count = 5
    columns: dict[str, list[Any]] = {"file_name": [f"{k}.png" for k in range(count)]}
    columns["masks"] = [[rle(k), rle(k + 1)] for k in range(count)]
    columns["image"] = [photo(k) for k in range(count)]
    if kind == "struct":  # as Hugging Face's datasets write it
        columns["image"] = [{"bytes": photo(k), "path": columns["file_name"].pop(0)} for k in range(count)]
        del columns["file_name"]
    elif kind == "path":
        (tmp_path / "sub").mkdir()
        for k in range(count):
            (tmp_path / "sub" / f"{k}.png").write_bytes(photo(k))
        columns["image"] = [f"sub/{k}.png" for k in range(count)]
    elif kind == "json":
        rows = [[{"segmentation": rle(k), "id": 7}, {"segmentation": rle(k + 1)}] for k in range(count)]
        columns = {"image": columns["image"], "key": columns["file_name"], "annotations": list(map(json.dumps, rows))}
    found = labeled(write(tmp_path / "a.parquet", columns))
    assert list(found) == [f"{k}.png" for k in range(count)]
    for k, (color, masks) in enumerate(found.values()):
        assert color == (k, 2 * k, 9)
        assert len(masks) == 2 and all(np.array_equal(one, mask(k + j)) for j, one in enumerate(masks))


def test_images_without_masks_are_for_a_segmenter(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"image": [photo(1), photo(2), photo(3)]})
    found = find_tasks(f"{tmp_path}/{{a,b}}.parquet", auto=True)
    assert [task.file_name for task in found.tasks] == [f"{name}/{k:06d}" for name in "ab" for k in range(3)]
    assert found.tasks[2].image.photo(None).getpixel((0, 0)) == (3, 6, 9)


def test_what_is_wrong_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OsmError, match="has no column image or url, but picture"):
        find_tasks(write(tmp_path / "a.parquet", {"picture": [photo(0)]}))
    with pytest.raises(OsmError, match="the column image has the type int64"):
        find_tasks(write(tmp_path / "a.parquet", {"image": [3]}))
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(OsmError, match="not a Parquet table"):
        find_tasks(str(tmp_path / "b.parquet"))
    places = ["../secret.png", "/etc/hostname", "pipe:ls"]
    found = find_tasks(write(tmp_path / "a.parquet", {"image": places, "masks": [[rle(0)]] * 3}))
    for task in found.tasks:  # an image of its own that fails, not the table
        with pytest.raises(OsmError, match="is not in the folder of the table"):
            task.image.source()
    names = {"image": [photo(0)] * 4, "file_name": ["../../a.png", "/b.png", "c.png", "c.png"]}
    inside = [task.file_name for task in find_tasks(write(tmp_path / "a.parquet", names), auto=True).tasks]
    assert inside == ["a/000000", "a/000001", "c.png", "a/000003"]
    sizes = {"image": [photo(0)] * 2, "width": [float("nan"), 40.0], "height": [30.0, float("inf")]}
    assert [task.source.size for task in find_tasks(write(tmp_path / "a.parquet", sizes)).tasks if task.source] == [
        None
    ] * 2
    with pytest.raises(OsmError, match=r"the column image has the type list<"):
        find_tasks(write(tmp_path / "a.parquet", {"image": [["a.png"]]}))
    with pytest.raises(OsmError, match=r"the column image has the type struct<"):
        find_tasks(write(tmp_path / "a.parquet", {"image": [{"bytes": 5_000_000_000}]}))
    table = write(tmp_path / "a.parquet", {"image": [photo(0), None], "masks": ['[{"segmentation": 3}', None]})
    found = find_tasks(table)
    assert found.reader is not None and found.tasks[0].source is not None
    [error] = found.reader.shapes(found.tasks[0].source, SIZE)
    assert "is not valid json" in str(error)
    with pytest.raises(OsmError, match="row 1 of row group 0 has no image"):
        found.tasks[1].image.source()
    # Parquet stores a repeated text once, so a small file can hold a large table.
    bomb = write(tmp_path / "c.parquet", {"image": [photo(0)] * 1000, "key": ["x" * 10_000] * 1000}, rows_in_group=1000)
    monkeypatch.setattr(image_tables, "MAX_GROUP_BYTES", 1_000_000)
    with pytest.raises(OsmError, match="the cells of row group 0 exceed the limit of 1000000 bytes"):
        find_tasks(bomb, auto=True)
    monkeypatch.setattr(image_tables, "MAX_GROUP_BYTES", 10)
    with pytest.raises(OsmError, match="exceeds the limit of 10 bytes; write the table with smaller row groups"):
        find_tasks(table)
