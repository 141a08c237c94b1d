"""Label files as people have them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from osm.datasets.labels import load_labels
from osm.errors import OsmError

LISTS: dict[str, tuple[str, Any]] = {
    "lines": ("a.txt", "\r\nSky\r\nroad sign\r\n# no name\r\ncar\r\n\r\n"),
    "commas": ("a.txt", "Sky, road sign, car"),
    "a json list": ("a.json", json.dumps(["Sky", "road sign", "car"])),
    "a json of ids": ("a.json", json.dumps({"0": "Sky", "1": "road sign", "2": "car"})),
    "ids and names": ("a.txt", "0: Sky\n1: road sign\n2: car\n"),
    "ids and names, by tabs": ("a.txt", "id\tname\n0\tSky\n1\troad sign\n2\tcar\n"),
    "ids and names, by commas": ("a.txt", "0,Sky\n1,road sign\n2,car"),
    "cvat's label map": ("a.txt", "# label:color_rgb:parts:actions\nSky:0,0,0::\nroad sign:128,0,0::\ncar:::\n"),
    "yaml": ("a.yaml", "path: ../x\nnc: 3\nnames:\n  0: Sky\n  1: road sign\n  2: car\n"),
    "a list of yaml": ("a.names", "- Sky\n- road sign\n- car\n"),
    "a json of names and ids": ("a.json", json.dumps({"Sky": 0, "road sign": 1, "car": 2})),
    "id2label": ("a.json", json.dumps({"id2label": {"0": "Sky", "1": "road sign", "2": "car"}})),
    "a json list of categories": (
        "a.json",
        json.dumps([{"id": 0, "name": "Sky"}, {"id": 1, "name": "road sign"}, {"id": 2, "name": "car"}]),
    ),
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
        ({"1": ["a"]}, "name .* is not a text"),
    ],
)
def test_what_is_no_label_file(text: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(text))
    with pytest.raises(OsmError, match=message):
        load_labels(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sky\n\ncar\n", "line 2 is blank, but line numbers are used as ids"),
        ("<html>\n404\n</html>", "line 1: .<html>. is not a name"),
        ("item {\n  id: 1\n}", "line 1: .item {. is not a name"),
        ("sky\tblue\ncar\tred", "line 1: .* is not a name"),
        ("sky;car", "line 1: .sky;car. is not a name"),
        ("names: 5", "the value of names, 5, is neither a list nor a mapping"),
        ("names: [a, b", "looks like YAML but is not valid"),
    ],
)
def test_what_is_no_list(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(OsmError, match=message):
        load_labels(tmp_path / "a.txt")


def test_fields_that_few_sets_have_spoil_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "name": "cat", "supercategory": float("nan"), "frequency": 153, "synonyms": "kitty"},
        {"id": 2, "name": "dog", "supercategory": ["animal"], "isthing": "0"},
        {"id": 1, "name": "cat "},
        {"id": 3, "name": " "},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"categories": rows}))
    classes = load_labels(tmp_path / "a.json").classes
    assert {i: (one.names, one.isthing) for i, one in classes.items()} == {
        1: (("cat", "kitty"), True),
        2: (("dog",), False),
    }
    assert {one.supercategory + one.frequency for one in classes.values()} == {""}


def test_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n# nothing\n")
    with pytest.raises(OsmError, match="is empty; expected at least one class"):
        load_labels(tmp_path / "a.txt")
