"""How a predicted name is related to a class's names in WordNet, and how near: WUPS.

Names are nouns of one or several words; plurals count as their singulars. A name of several words that WordNet lacks
("striped kettle") is taken as a kind of the longest end of it that WordNet has ("kettle"): below it, and equal to no
other. A note in brackets is left out ("bow (weapon)"). A relation holds if any sense of the one name has it to any
sense of the other: which one is meant is not known, so relations are found rather too often than too seldom.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from osm.evaluation.metrics.published import is_correct, normalize
from osm.evaluation.metrics.wordnet import WordNet

RELATIONS = {
    "exact": "one of the class's names, singular or plural",
    "synonym": "in one synset with one of them",
    "hyponym": "a kind of it: more specific than the class",
    "hypernym": "the class is a kind of it: more general",
    "part": "a part, member or substance of it",
    "whole": "the class is a part, member or substance of it",
    "wrong": "none of these",
    "unknown": "not to be judged: WordNet lacks the name, or the class's",
}
"""From the nearest to the farthest; the first that holds is counted."""
WUPS_THRESHOLD = 0.9
_NOTE = re.compile(r"\([^()]*\)")


@dataclass(frozen=True)
class Entry:
    """A name in WordNet: its senses, or (`below`) those of the end of it that WordNet has."""

    senses: frozenset[int]
    below: bool = False


@dataclass(frozen=True)
class Judgement:
    """`relation`: one of `RELATIONS`; `similarity`: Wu and Palmer's, 0 to 1; `by_head`: a name was not found whole."""

    relation: str
    similarity: float
    by_head: bool


class Lexicon:
    """Judges names by a WordNet; each pair of a prediction and a class is judged once."""

    def __init__(self, wordnet: WordNet) -> None:
        self.wordnet = wordnet
        self.entry = cache(self._entry)
        self.judge = cache(self._judge)

    def _entry(self, name: str) -> Entry:
        words = _NOTE.sub(" ", normalize(name)).split()
        # No longer ends than there are entries: a name from a file may have a million words.
        for start in range(max(0, len(words) - self.wordnet.longest), len(words)):
            if senses := self.wordnet.senses(" ".join(words[start:])):
                return Entry(senses, below=start > 0)
        return Entry(frozenset())

    def _judge(self, prediction: str, names: tuple[str, ...]) -> Judgement:
        """How a prediction is related to a class with these names: the nearest relation to any of them."""
        said, meant = self.entry(prediction), [self.entry(name) for name in names]
        by_head = said.below or any(entry.below for entry in meant)
        if is_correct(prediction, names) or self._same_lemma(prediction, names):
            return Judgement("exact", 1.0, by_head=False)
        if not normalize(prediction):
            return Judgement("wrong", 0.0, by_head=False)
        meant = [entry for entry in meant if entry.senses]
        if not said.senses or not meant:
            return Judgement("unknown", 0.0, by_head=False)
        order = list(RELATIONS)
        relation = min((self._relation(said, entry) for entry in meant), key=order.index)
        return Judgement(relation, max(self._similarity(said, entry) for entry in meant), by_head)

    def _same_lemma(self, prediction: str, names: Iterable[str]) -> bool:
        """Whether both are forms of one entry ("men", "man"), which the published plurals miss."""
        lemmas = self.wordnet.lemmas(normalize(prediction))
        return any(lemmas & self.wordnet.lemmas(name) for name in names)

    def _relation(self, said: Entry, meant: Entry) -> str:
        if not said.below and not meant.below and said.senses & meant.senses:
            return "synonym"
        # What is below its entry is more specific than it, and nothing is below what is itself no entry.
        if not meant.below and any(not meant.senses.isdisjoint(self.wordnet.above(one)) for one in said.senses):
            return "hyponym"
        if not said.below and any(not said.senses.isdisjoint(self.wordnet.above(one)) for one in meant.senses):
            return "hypernym"
        if any(said.senses & self.wordnet.parts(one) for one in meant.senses):
            return "part"
        if any(meant.senses & self.wordnet.parts(one) for one in said.senses):
            return "whole"
        return "wrong"

    def _similarity(self, said: Entry, meant: Entry) -> float:
        return max(self._wu_palmer(a, b, said.below + meant.below) for a in said.senses for b in meant.senses)

    def _wu_palmer(self, a: int, b: int, more: int) -> float:
        """2 d / (2 d + steps from a and b up to the sense above both that makes it largest); d: that sense's depth.

        `more`: steps from names down below a and b.
        """
        above_a, above_b = self.wordnet.above(a), self.wordnet.above(b)
        depths = {common: 2 * self.wordnet.depth(common) for common in above_a.keys() & above_b.keys()}
        return max((d / (d + above_a[one] + above_b[one] + more) for one, d in depths.items()), default=0.0)


def wups(similarity: float, threshold: float = WUPS_THRESHOLD) -> float:
    """WUPS of one name (Malinowski and Fritz 2014): similarities below the threshold count a tenth."""
    return similarity if similarity >= threshold else 0.1 * similarity
