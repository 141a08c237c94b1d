"""Label files as people have them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from osm.data.labels import load_labels
from osm.errors import OsmError

LISTS: dict[str, tuple[str, Any]] = {
    "lines": ("a.txt", "Sky\r\nroad sign\r\n\r\n# no name\r\ncar\r\n"),
    "commas": ("a.txt", "Sky, road sign, car"),
    "a json list": ("a.json", json.dumps(["Sky", "road sign", "car"])),
    "a json of ids": ("a.json", json.dumps({"0": "Sky", "1": "road sign", "2": "car"})),
    "categories": (
        "a.json",
        json.dumps({"categories": [{"id": n, "name": name} for n, name in enumerate(["Sky", "road sign", "car"])]}),
    ),
    "categories of merged jsons": (
        "a.json",
        json.dumps(
            {
                "categories": [
                    {"id": "0", "name": "Sky"},
                    {"id": 1.0, "name": "road sign"},
                    {"id": 2, "name": "car"},
                    {"id": 2, "name": "car"},
                    {"id": 3, "name": ""},
                ]
            }
        ),
    ),
}
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", LISTS)
def test_every_list_is_the_same_labels(kind: str, encoding: str, tmp_path: Path) -> None:
    name, text = LISTS[kind]
    (tmp_path / name).write_bytes(ENCODINGS[encoding](text))
    labels = load_labels(tmp_path / name)
    assert {i: label.target for i, label in labels.classes.items()} == {0: "sky", 1: "road sign", 2: "car"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 is given twice"),
        ({"categories": [{"id": "one", "name": "a"}]}, "needs an integer 'id'"),
        ({"names": ["a"]}, "has no list 'categories'"),
        ([], "has no list 'categories'"),
        ([1, 2], "has no list 'categories'"),
        ({"1": 5}, "name 5 is not a text"),
    ],
)
def test_what_is_no_label_file(text: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(text))
    with pytest.raises(OsmError, match=message):
        load_labels(tmp_path / "a.json")


def test_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n# nothing\n")
    with pytest.raises(OsmError, match="no class could be named"):
        load_labels(tmp_path / "a.txt")
