"""Reader for the nouns in a WordNet database: the senses of names, and the hypernyms and meronyms of senses.

The reader uses only the noun files that every release and package of WordNet includes (`index.noun`, `data.noun` and
`noun.exc`). The file formats are described in wndb(5WN) and the morphology in morphy(7WN). NLTK's reader is not used
for two reasons: it refuses folders outside its own search path, and it needs files that Debian's package lacks.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from osm.errors import OsmError
from osm.files import check_regular_file

HOW_TO_INSTALL = (
    "install WordNet's files (Debian, Ubuntu: apt-get install wordnet-base; or nltk's corpus `wordnet` in its data "
    "folder), or set WNSEARCHDIR to the folder that holds index.noun"
)
_INDEX, _DATA, _EXCEPTIONS = "index.noun", "data.noun", "noun.exc"
# Rules for removing noun endings, in the same order as in morphy(7WN).
_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_HYPERNYMS = (b"@", b"@i")
_MERONYMS = (b"%m", b"%s", b"%p")  # members, substances, parts


class WordNet:
    """A WordNet database.

    Attributes:
        longest: the number of words in the longest entry.
        version: the release, for example "3.0".

    Args:
        read: returns the bytes of a file, given the file name.
        source: the folder or archive that contains the files, for messages and results.

    Raises:
        OsmError: A file is missing, or is not in WordNet's format.
    """

    def __init__(self, read: Callable[[str], bytes], source: str) -> None:
        self.source = source
        try:
            self._data = read(_DATA)
            self._index = dict(_index_lines(read(_INDEX)))
            self._exceptions = dict(_exception_lines(read(_EXCEPTIONS)))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise OsmError(f"WordNet {source}: {error}; expected {_INDEX}, {_DATA} and {_EXCEPTIONS}") from None
        except (ValueError, IndexError):
            raise OsmError(f"WordNet database {source}: {_INDEX} or {_EXCEPTIONS} is not in WordNet's format") from None
        self.longest = max((1 + entry.count("_") for entry in self._index), default=0)
        version = re.search(rb"WordNet (\d[\d.]*) Copyright", self._data[:4096])
        self.version = version[1].decode().rstrip(".") if version else "of unknown version"
        self._pointers: dict[int, tuple[tuple[int, ...], frozenset[int]]] = {}
        self._above: dict[int, dict[int, int]] = {}
        self._depths: dict[int, int] = {}

    def lemmas(self, name: str) -> set[str]:
        """Return the WordNet entries that match a name: the name itself and its singular forms.

        Spellings with spaces, with hyphens and without a separator are equivalent.
        """
        written = "_".join(name.lower().split())
        spellings = {written, written.replace("-", "_"), written.replace("_", "-")}
        spellings.add(re.sub("[-_]", "", written))
        return {form for spelling in spellings for form in self._forms(spelling) if form in self._index}

    def senses(self, name: str) -> frozenset[int]:
        """Return the noun senses of a name, as byte offsets in `data.noun`. Return an empty set for an unknown name."""
        return frozenset(sense for lemma in self.lemmas(name) for sense in self._index[lemma])

    def above(self, sense: int) -> dict[int, int]:
        """Return the sense itself (0 steps) and all hypernyms, each with its minimum number of steps from the sense."""
        if sense not in self._above:
            steps, level = {sense: 0}, [sense]
            while level:
                level = [up for one in level for up in self._links(one)[0]]
                level = [up for up in dict.fromkeys(level) if up not in steps]
                steps.update(dict.fromkeys(level, max(steps.values()) + 1))
            self._above[sense] = steps
        return self._above[sense]

    def parts(self, sense: int) -> frozenset[int]:
        """Return the meronyms (parts, members and substances) of a sense and of its hypernyms."""
        return frozenset().union(*(self._links(one)[1] for one in self.above(sense)))

    def depth(self, sense: int) -> int:
        """Return the number of senses on the longest path from the root to a sense, including both ends."""
        if sense not in self._depths:
            self._depths[sense] = 1 + max((self.depth(up) for up in self._links(sense)[0]), default=0)
        return self._depths[sense]

    def _forms(self, word: str) -> list[str]:
        if word in self._exceptions:
            return [*self._exceptions[word], word]
        rules = () if word.endswith("ss") or len(word) <= 2 else _ENDINGS
        stem, full = (word[:-3], "ful") if word.endswith("ful") else (word, "")
        return [word, *(stem.removesuffix(old) + new + full for old, new in rules if stem.endswith(old))]

    def _links(self, sense: int) -> tuple[tuple[int, ...], frozenset[int]]:
        """Return the direct hypernyms and meronyms of a sense."""
        if sense not in self._pointers:
            line = self._data[sense : self._data.find(b"\n", sense)].split(b" ")
            try:
                if int(line[0]) != sense:
                    raise ValueError(sense)
                start = 4 + 2 * int(line[3], 16)  # the pointers follow the words and their lexical ids
                found = [line[start + 1 + 4 * k : start + 5 + 4 * k] for k in range(int(line[start]))]
                nouns = [(symbol, int(target)) for symbol, target, kind, _ in found if kind == b"n"]
            except (ValueError, IndexError):
                raise OsmError(
                    f"WordNet database {self.source}: {_DATA} is not in WordNet's format at byte {sense}"
                ) from None
            up = tuple(target for symbol, target in nouns if symbol in _HYPERNYMS)
            self._pointers[sense] = up, frozenset(target for symbol, target in nouns if symbol in _MERONYMS)
        return self._pointers[sense]


def _index_lines(data: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for line in data.decode("utf-8").splitlines():
        if line and not line.startswith(" "):  # lines of the license start with a space
            fields = line.split()
            yield fields[0], tuple(map(int, fields[-int(fields[2]) :]))


def _exception_lines(data: bytes) -> Iterator[tuple[str, list[str]]]:
    for line in data.decode("utf-8").splitlines():
        word, *singulars = line.split()
        yield word, singulars


def find_wordnet() -> WordNet:
    """Return the first WordNet database found in $WNSEARCHDIR, Debian's package folder or NLTK's data folders.

    No database is downloaded.

    Raises:
        OsmError: No database was found. The message says what to install.
    """
    chosen = os.environ.get("WNSEARCHDIR")
    if chosen:
        return _in_folder(Path(chosen))
    for folder in _places():
        if (folder / _INDEX).is_file():
            return _in_folder(folder)
        archive = folder.with_suffix(".zip")  # NLTK downloads zip archives
        if archive.is_file():
            return _in_zip(archive)
    raise OsmError(f"no WordNet found; {HOW_TO_INSTALL}")


def _in_folder(folder: Path) -> WordNet:
    def read(name: str) -> bytes:
        check_regular_file(folder / name, "WordNet file")
        return (folder / name).read_bytes()

    return WordNet(read, str(folder))


def _in_zip(path: Path) -> WordNet:
    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{path.stem}/{name}")

    return WordNet(read, str(path))


def _places() -> list[Path]:
    named = [Path(folder) for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    own = [Path.home() / "nltk_data", Path(sys.prefix) / "nltk_data", Path(sys.prefix) / "share" / "nltk_data"]
    shared = [Path(f"/usr/{place}/nltk_data") for place in ("share", "local/share", "lib", "local/lib")]
    return [Path("/usr/share/wordnet"), *(folder / "corpora" / "wordnet" for folder in [*named, *own, *shared])]
