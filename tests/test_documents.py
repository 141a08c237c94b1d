"""json and YAML that nobody has checked: bounded in depth, digits and aliases, and parsed in one place."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from osm.config import load_yaml
from osm.datasets.table import DatasetTable
from osm.documents import MAX_NESTING, parse_json, parse_yaml
from osm.errors import OsmError
from osm.files import read_json, read_yaml
from osm.synthetic.collages import read_table

ROOT = Path(__file__).resolve().parents[1]
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
HOSTILE_YAML = {
    "aliases": (BOMB + "datasets: {mine: {form: *a9}}\n", r"aliases \(\*a0\) are not supported"),
    "nested": ("[" * 5000, "nested more than 100 deep"),
    "block lists": ("".join("  " * n + "-\n" for n in range(300)), "nested more than 100 deep"),
    "digits": (f"datasets: {'9' * 5000}", "a number or date of 5000 characters"),
    "sexagesimal": (f"datasets: 1{':01' * 5000}", "a number or date of 15001 characters"),
    "hex": (f"datasets: 0x{'f' * 5000}", "a number or date of 5002 characters"),
    "tagged": (f"datasets: !!int '{'9' * 5000}'", "a number or date of 5000 characters"),
    "date": ("datasets: 2001-99-99", "month must be in 1..12"),
    "timestamp": ("datasets: !!timestamp x", "not valid YAML"),
    "object": ("datasets: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "binary": (b"datasets: \xff\xfe", "line 1: the byte 0xff is not valid UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
@pytest.mark.parametrize("reader", ["config", "dataset table", "--table"])
def test_hostile_yaml(tmp_path: Path, name: str, reader: str) -> None:
    text, message = HOSTILE_YAML[name]
    path = tmp_path / "one.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    readers: dict[str, Any] = {
        "config": lambda: load_yaml(str(path)),
        "dataset table": lambda: DatasetTable().with_yaml(path),
        "--table": lambda: read_table(path, tmp_path),
    }
    with pytest.raises(OsmError, match=f"^{reader} {path}: .*{message}") as failure:
        readers[reader]()
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 600


def test_what_is_within_the_bounds_is_read() -> None:
    deep = "[" * MAX_NESTING + "]" * MAX_NESTING
    assert parse_yaml(deep) == parse_json(deep)
    assert parse_yaml("a: 1e-4\nb: [0x1f, 2001-02-03, 'x', yes]\nc: &here {d: 1}")["c"] == {"d": 1}
    assert len(parse_yaml(f"a: {'x' * 5000}")["a"]) == 5000
    in_text = '["' + "[" * 5000 + '"]'
    assert parse_json(in_text) == ["[" * 5000]
    for depth in (MAX_NESTING + 1, 500, 5000, 200_000):
        for opened, closed in ("[]", ('{"a":', "}")):
            with pytest.raises(ValueError, match="nested (more than 100|too) deep"):
                parse_json((opened * depth + "1" + closed * depth).encode())
    with pytest.raises(ValueError):
        parse_json("9" * 5000)


def test_large_yaml_and_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(OsmError, match=r"config .*large.yaml: the file exceeds the maximum size of 16777216 bytes"):
        read_yaml(path, "config")
    os.mkfifo(tmp_path / "fifo")
    for read in (read_yaml, read_json):
        for name, kind in (("fifo", "a FIFO"), (".", "a folder")):
            with pytest.raises(OsmError, match=f"is not a regular file, but {kind}"):
                read(tmp_path / name, "config")
        with pytest.raises(OsmError, match="config .*none: No such file or directory"):
            read(tmp_path / "none", "config")


def test_a_field_of_a_set_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "sets.yaml"
    path.write_text("datasets: {mine: {form: [semantic], labels: coco}}")
    with pytest.raises(OsmError, match=r"set 'mine': form \['semantic'\] is not a text"):
        DatasetTable().with_yaml(path)
    path.write_text("datasets: {mine: {form: semantic, labels: coco, 5: x}}")
    with pytest.raises(OsmError, match="unknown field 5"):
        DatasetTable().with_yaml(path)


def test_one_place_parses_yaml_and_json_files() -> None:
    """Elsewhere YAML is only written, and json is parsed by hand where the text is the program's own."""
    tables = {"osm/prepare/originals/semantic_releases.py", "osm/forms/pascal_part.py"}  # of the package
    folders = ("osm", "scripts", "train", "test")
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if name == "osm/documents.py":
            continue
        assert not re.search(r"yaml\.(\w*load|parse|compose|scan|\w*Loader)\b", text), name
        if name.startswith("osm/") and name not in tables:
            assert not re.search(r"\bjson\.loads?\((?!json\.dumps)", text), name
