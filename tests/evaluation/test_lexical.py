"""Relations and WUPS, on a small WordNet with places worked out by hand, and on the real one where it is installed."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest
from small_wordnet import write_wordnet

from osm.errors import OsmError
from osm.evaluation.metrics import wordnet
from osm.evaluation.metrics.lexical import RELATIONS, Lexicon, wups
from osm.evaluation.metrics.wordnet import WordNet, find_wordnet


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "dict"))
    return write_wordnet(tmp_path / "dict")


@pytest.fixture
def lexicon(folder: Path) -> Lexicon:
    return Lexicon(find_wordnet())


@pytest.mark.parametrize(
    ("prediction", "names", "relation"),
    [
        ("dog", ("dog",), "exact"),
        ("Dogs", ("dog",), "exact"),
        ("men", ("man",), "exact"),  # no published plural, but one of WordNet's exceptions
        ("man", ("men",), "exact"),
        ("zebras", ("zebra",), "exact"),  # WordNet lacks it
        ("sofa", ("couch",), "synonym"),
        ("sofas", ("couch",), "synonym"),
        ("domestic dog", ("dog",), "synonym"),
        ("domestic-dogs", ("dog",), "synonym"),
        ("coach", ("bus",), "synonym"),  # in one of its two senses
        ("coach", ("man", "person"), "hyponym"),  # in the other one
        ("poodle", ("animal",), "hyponym"),
        ("animal", ("poodle",), "hypernym"),
        ("beasts", ("poodle",), "hypernym"),
        ("wheel", ("car",), "part"),  # a car has what vehicles have
        ("car", ("wheel",), "whole"),
        ("leg", ("couch", "seat"), "part"),
        ("cat", ("dog",), "wrong"),
        ("", ("dog",), "wrong"),
        ("zebra", ("dog",), "unknown"),
        ("dog", ("zebra",), "unknown"),
        ("dog", ("zebra", "animal"), "hyponym"),  # the class's other name is known
        ("traffic lights", ("traffic light",), "exact"),
        ("traffic light", ("light",), "hyponym"),
        ("light", ("traffic light",), "hypernym"),
        # By the end that WordNet has: below it.
        ("red car", ("car",), "hyponym"),
        ("car", ("red car",), "hypernym"),
        ("automobile", ("red car",), "hypernym"),
        ("blue car", ("red car",), "wrong"),
        ("red car", ("vehicle",), "hyponym"),
        ("vehicle", ("red car",), "hypernym"),
        ("wheel", ("red car",), "part"),
        ("small traffic light", ("traffic light",), "hyponym"),
        ("dog", ("dog (animal)",), "synonym"),
    ],
)
def test_relation(lexicon: Lexicon, prediction: str, names: tuple[str, ...], relation: str) -> None:
    assert relation in RELATIONS
    assert lexicon.judge(prediction, names).relation == relation


@pytest.mark.parametrize(
    ("prediction", "names", "similarity"),
    [
        ("dog", ("dog",), 1.0),
        ("sofa", ("couch",), 1.0),
        ("cat", ("dog",), 2 * 2 / (3 + 3)),  # both at depth 3, animal at 2
        ("poodle", ("cat",), 2 * 2 / (4 + 3)),
        ("dog", ("animal",), 2 * 2 / (3 + 2)),
        ("car", ("dog",), 2 * 1 / (3 + 3)),
        ("coach", ("man",), 2 * 2 / (3 + 3)),  # the trainer is nearer than the bus
        ("cat", ("car", "dog"), 2 * 2 / (3 + 3)),
        ("minitrolley", ("trolley",), 2 * 4 / (5 + 4)),  # the longer way counts for depth
        ("red car", ("car",), 2 * 3 / (4 + 3)),
        ("red car", ("blue car",), 2 * 3 / (4 + 4)),
        ("zebra", ("dog",), 0.0),
        ("", ("dog",), 0.0),
    ],
)
def test_similarity(lexicon: Lexicon, prediction: str, names: tuple[str, ...], similarity: float) -> None:
    assert lexicon.judge(prediction, names).similarity == pytest.approx(similarity)


def test_wups_counts_little_below_its_threshold() -> None:
    assert wups(0.95) == 0.95
    assert wups(0.9) == 0.9
    assert wups(0.8) == pytest.approx(0.08)


def test_names_without_end_take_no_time(lexicon: Lexicon) -> None:
    begun = time.monotonic()
    assert lexicon.judge("(" * 500_000, ("dog",)).relation == "unknown"
    assert lexicon.judge("very " * 500_000 + "domestic dog", ("dog",)).relation == "hyponym"
    assert lexicon.judge("very " * 500_000, ("dog",)).relation == "unknown"
    assert time.monotonic() - begun < 20


def test_names_found_by_their_head_are_told(lexicon: Lexicon) -> None:
    assert lexicon.judge("red car", ("vehicle",)).by_head
    assert lexicon.judge("car", ("red dog",)).by_head
    assert not lexicon.judge("car", ("vehicle",)).by_head
    assert not lexicon.judge("red zebra", ("red zebra",)).by_head


def test_places(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_wordnet().version == "3.0"
    monkeypatch.delenv("WNSEARCHDIR")
    # As nltk keeps it: a folder, or the zip that it downloads.
    place = tmp_path / "nltk_data" / "corpora" / "wordnet"
    monkeypatch.setattr(wordnet, "_places", lambda: [tmp_path / "absent", place])
    with pytest.raises(OsmError, match=r"no WordNet found; install .* wordnet-base"):
        find_wordnet()
    place.parent.mkdir(parents=True)
    with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"wordnet/{path.name}")
    assert find_wordnet().source == str(place.with_suffix(".zip"))
    assert Lexicon(find_wordnet()).judge("wheel", ("car",)).relation == "part"
    folder.rename(place)
    assert find_wordnet().source == str(place)


def test_nltk_s_folders_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLTK_DATA", "/one:/two")
    places = [path.as_posix() for path in wordnet._places()]
    assert places[:3] == ["/usr/share/wordnet", "/one/corpora/wordnet", "/two/corpora/wordnet"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("noun.exc", None, "No such file"),
        ("index.noun", "dog n\n", "index.noun or noun.exc is not in WordNet's format"),
        ("data.noun", "nothing of the kind", "data.noun is not in WordNet's format at byte"),
    ],
)
def test_damaged_files(folder: Path, name: str, text: str | None, message: str) -> None:
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(OsmError, match=message):
        Lexicon(find_wordnet()).judge("cat", ("dog",))


@pytest.fixture(scope="module")
def real() -> Lexicon:
    try:
        return Lexicon(find_wordnet())
    except OsmError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("prediction", "name", "relation"),
    [
        ("animal", "dog", "hypernym"),
        ("poodles", "dog", "hyponym"),
        ("wheel", "car", "part"),
        ("car", "wheel", "whole"),
        ("sofa", "couch", "synonym"),
        ("coach", "bus", "synonym"),
        ("women", "woman", "exact"),
        ("children", "child", "exact"),
        ("t-shirts", "tee shirt", "synonym"),
        ("traffic lights", "traffic light", "exact"),
        ("cat", "dog", "wrong"),
        ("pavement", "sidewalk", "synonym"),
        ("glass", "glasses", "exact"),
        ("blurglewump", "dog", "unknown"),
    ],
)
def test_known_pairs_of_the_real_one(real: Lexicon, prediction: str, name: str, relation: str) -> None:
    assert real.judge(prediction, (name,)).relation == relation


def test_the_real_one_s_figures(real: Lexicon) -> None:
    assert isinstance(real.wordnet, WordNet) and real.wordnet.version.startswith("3.")
    # As NLTK's wup_similarity of the nearest senses has it.
    assert real.judge("cat", ("dog",)).similarity == pytest.approx(0.857142857)
