"""WordNet relations and Wu and Palmer's similarity, with NLTK's reader of WordNet's files."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import nltk
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from verify.names import clean, is_name

RELATIONS = ("exact", "synonym", "hyponym", "hypernym", "part", "whole", "wrong", "unknown")
_NOTE = re.compile(r"\s*\([^()]*\)")
_PLACES = ("/usr/share/wordnet", "/usr/local/share/wordnet")
# The rules of morphy(7WN). NLTK's own list also has ves -> f, which WordNet's list lacks.
_RULES = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_LEXNAMES = 45  # NLTK reads their names, which are not needed here, from a file that Debian's package lacks


def wordnet_folder() -> Path | None:
    """Return the folder of WordNet's noun files, or None."""
    for place in (os.environ.get("WNSEARCHDIR"), *_PLACES):
        if place and (Path(place) / "data.noun").is_file():
            return Path(place)
    return None


class _Reader(WordNetCorpusReader):  # type: ignore[misc]
    """NLTK's reader, without the mapping between releases of WordNet."""

    def map_wn(self, version: str = "wordnet") -> None:
        """Return no mapping."""


class Lexicon:
    """The nouns of WordNet."""

    def __init__(self, folder: Path) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        root = Path(self._temporary.name)
        for name in ("data.noun", "index.noun", "noun.exc"):
            shutil.copy(folder / name, root / name)  # NLTK refuses links that lead out of its folders
        for part in ("verb", "adj", "adv"):  # nouns are read only, but NLTK opens the files of every part of speech
            for name in (f"data.{part}", f"index.{part}", f"{part}.exc"):
                (root / name).touch()
        (root / "lexnames").write_text("".join(f"{n:02d}\tname{n}\t1\n" for n in range(_LEXNAMES)))
        nltk.data.path.append(str(root))
        with warnings.catch_warnings(action="ignore"):  # no other languages
            self._wordnet: Any = _Reader(str(root), None)
        self.relation = lru_cache(maxsize=None)(self._relation)
        self.wups = lru_cache(maxsize=None)(self._wups)
        self.look_up = lru_cache(maxsize=None)(self._look_up)
        self._above = lru_cache(maxsize=None)(self._find_above)

    def entries(self, name: str) -> frozenset[str]:
        """Return the nouns that match a name: the name, its singular forms, and other spellings with hyphens."""
        plain = "_".join(name.lower().split())
        spellings = {plain, plain.replace("-", "_"), plain.replace("_", "-"), plain.replace("-", "").replace("_", "")}
        found = {form for spelling in spellings for form in self._singulars(spelling)}
        return frozenset(form for form in found if "n" in self._wordnet._lemma_pos_offset_map.get(form, ()))

    def _singulars(self, word: str) -> list[str]:
        """Return a word and its singular forms by WordNet's exceptions or rules (morphy(7WN))."""
        if exceptions := self._wordnet._exception_map["n"].get(word):
            return [word, *exceptions]
        if word.endswith("ss") or len(word) <= 2:
            return [word]
        stem, full = (word.removesuffix("ful"), "ful") if word.endswith("ful") else (word, "")
        return [word, *(stem.removesuffix(end) + new + full for end, new in _RULES if stem.endswith(end))]

    def senses(self, name: str) -> frozenset[Any]:
        """Return the noun synsets of a name and of its singular forms."""
        index = self._wordnet._lemma_pos_offset_map
        offsets = {offset for entry in self.entries(name) for offset in index[entry]["n"]}
        return frozenset(self._wordnet.synset_from_pos_and_offset("n", offset) for offset in offsets)

    def _look_up(self, name: str) -> tuple[frozenset[Any], bool]:
        """Return the synsets of a name or of its longest known ending, and whether it is an ending."""
        words = _NOTE.sub(" ", clean(name)).split()
        for start in range(len(words)):
            if found := self.senses(" ".join(words[start:])):
                return found, start > 0
        return frozenset(), False

    def _find_above(self, sense: Any) -> dict[Any, int]:
        """Return every hypernym of a synset (and itself) with the smallest number of steps."""
        steps, level = {sense: 0}, [sense]
        while level:
            level = [up for one in level for up in (*one.hypernyms(), *one.instance_hypernyms()) if up not in steps]
            distance = 1 + max(steps.values())
            steps.update((up, distance) for up in level)
        return steps

    def _relation(self, prediction: str, names: tuple[str, ...]) -> str:
        said = clean(prediction)
        own = self.entries(said)
        if is_name(said, names) or any(own & self.entries(name) for name in names):
            return "exact"
        if not said:
            return "wrong"
        one, by_ending = self.look_up(said)
        found = set()
        comparable = False
        for name in names:
            other, other_ending = self.look_up(name)
            if one and other:
                comparable = True
                found |= set(self._relations(one, by_ending, other, other_ending))
        if not comparable:
            return "unknown"
        return next((relation for relation in RELATIONS if relation in found), "wrong")

    def _relations(self, one: Any, by_ending: bool, other: Any, other_ending: bool) -> list[str]:
        """Return the relations between the senses of two names; a name known by its ending is a kind of it."""
        found = []
        for a in one:
            for b in other:
                if a == b and not by_ending and not other_ending:
                    found.append("synonym")
                if not other_ending and b in self._above(a) and (a != b or by_ending):
                    found.append("hyponym")
                if not by_ending and a in self._above(b) and (a != b or other_ending):
                    found.append("hypernym")
                if self._is_part(a, b):
                    found.append("part")
                if self._is_part(b, a):
                    found.append("whole")
        return found

    def _is_part(self, part: Any, whole: Any) -> bool:
        """Return whether a synset is a part, member or substance of another one or of one of its hypernyms."""
        return any(
            part in (*up.part_meronyms(), *up.member_meronyms(), *up.substance_meronyms()) for up in self._above(whole)
        )

    def by_ending(self, prediction: str, names: tuple[str, ...]) -> bool:
        """Return whether the comparison uses only the ending of the prediction or of a name of the class."""
        if not clean(prediction) or self.relation(prediction, names) in ("exact", "unknown"):
            return False
        return any(self.look_up(name)[1] for name in (clean(prediction), *names))

    def _wups(self, prediction: str, names: tuple[str, ...]) -> float:
        relation = self.relation(prediction, names)
        if relation in ("exact", "unknown") or not prediction:
            return float(relation == "exact")
        one, by_ending = self.look_up(clean(prediction))
        best = 0.0
        for name in names:
            other, other_ending = self.look_up(name)
            for a in one:
                for b in other:
                    best = max(best, self._wu_palmer(a, b, int(by_ending), int(other_ending)))
        return best

    def _wu_palmer(self, a: Any, b: Any, more_a: int, more_b: int) -> float:
        best = 0.0
        one, other = self._above(a), self._above(b)
        for common in one.keys() & other.keys():
            depth = common.max_depth() + 1
            best = max(best, 2 * depth / (2 * depth + one[common] + more_a + other[common] + more_b))
        return best

    def lemmas(self) -> list[str]:
        """Return every noun of WordNet."""
        return sorted(lemma.replace("_", " ") for lemma, of in self._wordnet._lemma_pos_offset_map.items() if "n" in of)
