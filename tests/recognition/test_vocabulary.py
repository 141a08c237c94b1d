"""Lists of names from files: lines, lists with commas and json give the same names, and faults have their line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from osm.datasets.labels import LabelClass
from osm.errors import OsmError
from osm.recognition.vocabulary import Vocabulary, check_classes, check_names, read_names, read_vocabulary

NAMES = ["cup", "traffic light", "plate"]


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "names"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "cup\ntraffic light\nplate",
        "# of a kitchen\n\n cup \nTraffic  Light\nplate\ncup\n",
        "\ufeffcup\ntraffic light\nplate\n",
        "cup\r\ntraffic light\r\nplate\r\n",
        "cup\ntraffic light\nplate\n".encode("utf-16"),
    ],
)
def test_plain_lines_are_read_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | bytes
) -> None:
    assert read_names(written(tmp_path, text)) == NAMES
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("console")
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("cup, traffic light, plate", "a list with commas"),
        ("cup,\ntraffic light,\nplate,\n", "a list with commas"),
        ("# two rows\ncup, traffic light\nplate, cup\n", "a list with commas"),
        ('"cup"\n"traffic light"\n"plate"\n', "a list with commas"),
        (json.dumps(NAMES), "a json list"),
        ("\ufeff" + json.dumps(NAMES, indent=1), "a json list"),
        (json.dumps([{"id": 4, "name": name} for name in NAMES]), "a json list"),
        (json.dumps({"categories": [{"id": 4, "name": name} for name in NAMES]}), "the categories of a json"),
        (json.dumps({k: name for k, name in enumerate(NAMES)}), "a json of ids and names"),
    ],
)
def test_other_lists_are_read_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, kind: str
) -> None:
    path = written(tmp_path, text)
    assert read_names(path) == NAMES
    assert capsys.readouterr().err == f"--vocabulary {path}: read as {kind} of 3 names\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cup\nbread, sliced\n", ["cup", "bread, sliced"]),
        ('"bread, sliced", cup', ["bread, sliced", "cup"]),
        ('"bread, sliced"\n"cup"\n', ["bread, sliced", "cup"]),
        ('"a ""fine"" cup", plate', ['a "fine" cup', "plate"]),
    ],
)
def test_names_with_commas(tmp_path: Path, text: str, names: list[str]) -> None:
    assert read_names(written(tmp_path, text)) == names


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cup\n" + "x" * 300, ": line 2: 'xxx.* is no name .a text of 1 to 200 characters"),
        ("cup, " + "x" * 300, ": line 1: 'xxx"),
        (b"cup\nd\xe9j\xe0", ": line 2: the byte 0xe9 is not valid UTF-8"),
        ('"cup, plate', "^$|line 1"),
        ("[cup, plate]", "looks like JSON, but is not valid JSON"),
        ('{"categories": 3}', "an object that maps ids to names or names to ids, or an object with 'categories'"),
        ('["cup", 3]', ": entry 2: 3 is no name"),
        ('[{"id": 1}]', ": entry 1: None is no name"),
        ('{"0": " "}', ": id '0': ' ' is no name"),
        ("[" * 5000, "looks like JSON"),
        ("# nothing\n", ": vocabulary: no name in it"),
        ("[]", ": vocabulary: no name in it"),
        (",\n", ": vocabulary: no name in it"),
    ],
)
def test_faults_are_named_by_file_and_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(OsmError, match=told) as caught:
        read_names(path)
    assert str(caught.value).startswith(f"--vocabulary {path}") and len(str(caught.value).splitlines()) == 1


def test_names_may_come_from_anything_that_lists_them() -> None:
    assert check_names(name for name in ("Cup", "plate", "cup")) == ["cup", "plate"]
    with pytest.raises(OsmError, match="vocabulary is a int; expected a list of names"):
        check_names(3)  # type: ignore[arg-type]


CLASSES = [LabelClass(47, ("cup", "mug")), LabelClass(3, ("traffic light",))]


@pytest.mark.parametrize(
    "text",
    [
        "# of a kitchen\ncup, mug -> 47\nTraffic  light->3\n",
        "cup → 47\nmug → 47\ntraffic light → 3",
        json.dumps({"47": ["cup", "mug"], "3": "traffic light"}),
        json.dumps({"cup": 47, "mug": 47, "traffic light": 3}),
        json.dumps(
            {"categories": [{"id": 47, "name": "cup"}, {"id": 47, "name": "mug"}, {"id": 3, "name": "traffic light"}]}
        ),
        "47: cup\n47: mug\n3: traffic light\n",
    ],
)
def test_classes_with_spellings_and_ids(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert read_vocabulary(path) == CLASSES
    assert read_names(path) == ["cup", "mug", "traffic light"]


@pytest.mark.usefixtures("console")
def test_a_name_with_several_ids_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_vocabulary(written(tmp_path, "cup, mug -> 47\nmug, glass -> 48\n"))
    assert [one.names for one in check_classes(found)] == [("cup", "mug"), ("glass",)]
    assert (
        "1 names have several ids, of which the first is used; for example 'mug': 47, not 48" in capsys.readouterr().err
    )


def test_a_list_with_ids_in_some_lines_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsmError, match=r"line 3: 'plate' has no id, but other lines have one; write 'plate -> 7' with"):
        read_vocabulary(written(tmp_path, "# of a kitchen\ncup -> 47\nplate\n"))
    for line in ("plate -> nine", "plate ->", "plate -> 9 # big"):
        with pytest.raises(OsmError, match=f"line 2: '{line}': the id after the arrow must be a whole number"):
            read_vocabulary(written(tmp_path, f"cup -> 47\n{line}\n"))
    assert read_vocabulary(written(tmp_path, "cup\nplate\n")) == ["cup", "plate"]


def test_names_with_the_same_tokens_are_one_name(console: None, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a tokenizer that normalizes Unicode. The first of them is kept."""
    ids = {"cafe": (5, 2), "café": (5, 2), "bar": (6, 7, 2), "tea": (8, 2)}
    processor: Any = SimpleNamespace(training_row=lambda prompt, name: ([1, 1, *ids[name]], 2))
    vocabulary = Vocabulary([LabelClass(1, ("tea", "cafe")), LabelClass(2, ("café", "bar"))], processor, "")
    assert vocabulary.names == ["tea", "cafe", "bar"] and vocabulary.class_of == [0, 0, 1]
    assert vocabulary.candidates == [(8, 2), (5, 2), (6, 7, 2)] and vocabulary.index_of((5,)) == 1
    assert vocabulary.class_of_ids == {(8,): 0, (5,): 0, (6, 7): 1}
    said = capsys.readouterr().err
    assert "1 names have the same tokens as an earlier name and are left out; for example 'café' (as 'cafe')" in said
    plain = Vocabulary(["cafe", "café", "bar"], processor, "")  # the class of the second one has no name left
    assert [one.names for one in plain.classes] == [("cafe",), ("bar",)] and plain.class_of == [0, 1]
    assert plain.class_of_ids is None
