"""Files found by the names that tools write."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from osm.errors import OsmError
from osm.forms.locate import FileFinder

FILES = ("train/0001.jpg", "train/0002.JPG", "test/0001.jpg", "a b.png", unicodedata.normalize("NFD", "Köln.jpg"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*FILES, ".hidden/0003.jpg", "train/._0003.jpg", "notes.txt"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"")
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train/0001.jpg", "train/0001.jpg"),
        ("train\\0001.jpg", "train/0001.jpg"),
        ("./train//0001.JPG", "train/0001.jpg"),
        ("train/0002", "train/0002.JPG"),
        ("train/0002.png", "train/0002.JPG"),
        ("0002.jpg", "train/0002.JPG"),
        ("images/train/0001.jpg", "train/0001.jpg"),
        ("/data/upload/1/test/0001.jpg", "test/0001.jpg"),
        ("C:\\Users\\me\\images\\test\\0001.jpg", "test/0001.jpg"),
        ("https://example.org/x/train/0001.jpg?size=large", "train/0001.jpg"),
        ("/data/local-files/?d=set/train/0001.jpg", "train/0001.jpg"),
        ("/data/local-files/?d=0002.jpg", "train/0002.JPG"),
        ("train/0001.jpg?x=1", "train/0001.jpg"),
        ("C:a b.png", "a b.png"),
        ("images%5Ctrain%5C0001.jpg", "train/0001.jpg"),
        ("train/0001.jpg\n", "train/0001.jpg"),
        ("a%20b.png", "a b.png"),
        ("A B.PNG", "a b.png"),
        ("Köln.jpg", unicodedata.normalize("NFD", "Köln.jpg")),
    ],
)
def test_one_file_fits(folder: Path, name: str, found: str) -> None:
    finder = FileFinder(folder)
    assert finder.find(name, "here") == folder / found
    assert bool(finder.guessed) == (name != found and (folder / name).as_posix() != (folder / found).as_posix())


@pytest.mark.parametrize("name", ["0001.jpg", "0003.jpg", "notes.txt", "train/0009.jpg", "val/0001.jpg", "notes"])
def test_none_or_several_fit(folder: Path, name: str) -> None:
    finder = FileFinder(folder)
    assert finder.find(name, "here") == folder / name
    assert not finder.guessed


def test_a_file_that_a_folder_lacks_is_not_taken_from_another(folder: Path) -> None:
    (folder / "test" / "0001.jpg").unlink()
    assert FileFinder(folder).find("test/0001.jpg", "here") == folder / "test/0001.jpg", "missing"


def test_what_another_entry_names_is_not_taken(folder: Path) -> None:
    finder = FileFinder(folder, claimed=["train/0002.JPG", "0002.jpg"])
    assert finder.find("0002.jpg", "here") == folder / "0002.jpg"


def test_two_names_of_one_file_are_both_doubtful(folder: Path) -> None:
    finder = FileFinder(folder)
    names = ["x/0002.jpg", "y/0002.jpg", "a%20b.png"]
    found = finder.settle([(name, finder.find(name, "here")) for name in names])
    assert found == [folder / "x/0002.jpg", folder / "y/0002.jpg", folder / "a b.png"]
    assert [name for name, _ in finder.guessed] == ["a%20b.png"]


def test_published_sets_are_taken_by_the_word(folder: Path) -> None:
    finder = FileFinder(folder, exact=True)
    assert finder.find("a%20b.png", "here") == folder / "a%20b.png"


@pytest.mark.parametrize("name", ["../images/train/0001.jpg", "/etc/passwd", "a\0b", "", None, 7, "x/../../y.jpg"])
def test_nothing_leads_out_of_the_folder(folder: Path, name: object) -> None:
    with pytest.raises(OsmError, match="^here: file name .* expected a path inside"):
        FileFinder(folder).find(name, "here")
