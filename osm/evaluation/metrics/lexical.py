"""WordNet relations between a predicted name and a class's names, and the Wu-Palmer similarity (WUPS).

A name is a noun of one or more words. A plural is treated as its singular. If a multi-word name such as "striped
kettle" is not in WordNet, it counts as a hyponym of its longest trailing phrase that is in WordNet ("kettle"). A
parenthesized note, as in "bow (weapon)", is removed from the name. The intended senses of names are unknown, so a
relation between two names holds if it holds between any of their senses. As a result, a spurious relation between two
names is more likely than a missed relation.
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
    "synonym": "in the same synset as one of the class's names",
    "hyponym": "a kind of the class: more specific",
    "hypernym": "the class is a kind of the predicted name: more general",
    "part": "a part, member or substance of the class",
    "whole": "the class is a part, member or substance of the predicted name",
    "wrong": "none of the other relations",
    "unknown": "undefined, because WordNet lacks the predicted name or all names of the class",
}
"""The WordNet relations and their meanings, from the closest to the most distant. Only the first that holds counts."""
WUPS_THRESHOLD = 0.9
_NOTE = re.compile(r"\([^()]*\)")


@dataclass(frozen=True)
class WordNetEntry:
    """The senses that WordNet has for a name.

    Attributes:
        senses: the senses of the name, or of the longest ending of the name that WordNet contains.
        below: True if the senses belong to an ending of the name. The name is then a hyponym of these senses.
    """

    senses: frozenset[int]
    below: bool = False


@dataclass(frozen=True)
class Judgement:
    """The WordNet relation and similarity between a predicted name and the names of a class.

    Attributes:
        relation: one of `RELATIONS`.
        similarity: the Wu-Palmer similarity, 0 to 1.
        by_head: True if WordNet contains only the last words of the prediction or of a name of the class.
    """

    relation: str
    similarity: float
    by_head: bool


class Lexicon:
    """Compares predicted names with class names using WordNet.

    Results are cached per (prediction, class) pair.
    """

    def __init__(self, wordnet: WordNet) -> None:
        self.wordnet = wordnet
        self.entry = cache(self._entry)
        self.judge = cache(self._judge)

    def _entry(self, name: str) -> WordNetEntry:
        words = _NOTE.sub(" ", normalize(name)).split()
        # A name can be a million words long, so trailing phrases longer than the longest WordNet entry are skipped.
        for start in range(max(0, len(words) - self.wordnet.longest), len(words)):
            if senses := self.wordnet.senses(" ".join(words[start:])):
                return WordNetEntry(senses, below=start > 0)
        return WordNetEntry(frozenset())

    def _judge(self, prediction: str, names: tuple[str, ...]) -> Judgement:
        """Return the closest WordNet relation between a prediction and any of the class's names."""
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

    def path_similarity(self, prediction: str, names: Iterable[str]) -> float:
        """Return the largest WordNet path similarity (0 to 1) between a prediction and any of the names.

        The path similarity of two senses is 1 / (1 + n), where n is the number of steps between them on the shortest
        path through a common hypernym. It is 1 for equal names, and 0 for a name that is not in WordNet.
        """
        names = tuple(names)
        if is_correct(prediction, names):
            return 1.0
        said, best = self.entry(prediction), 0.0
        for meant in map(self.entry, names):
            for a in said.senses:
                above_a = self.wordnet.above(a)
                for b in meant.senses:
                    above_b = self.wordnet.above(b)
                    steps = [above_a[one] + above_b[one] for one in above_a.keys() & above_b.keys()]
                    if steps:
                        best = max(best, 1 / (1 + min(steps) + said.below + meant.below))
        return best

    def _same_lemma(self, prediction: str, names: Iterable[str]) -> bool:
        """Return whether the prediction and a class name share a WordNet entry, as "men" and "man" do.

        The plural rules of the published evaluation do not cover irregular plurals such as "men".
        """
        lemmas = self.wordnet.lemmas(normalize(prediction))
        return any(lemmas & self.wordnet.lemmas(name) for name in names)

    def _relation(self, said: WordNetEntry, meant: WordNetEntry) -> str:
        if not said.below and not meant.below and said.senses & meant.senses:
            return "synonym"
        # A name that is not in WordNet counts as more specific than its longest trailing phrase that is in WordNet.
        # A name without its own WordNet entry is never treated as a hypernym of another name.
        if not meant.below and any(not meant.senses.isdisjoint(self.wordnet.above(one)) for one in said.senses):
            return "hyponym"
        if not said.below and any(not said.senses.isdisjoint(self.wordnet.above(one)) for one in meant.senses):
            return "hypernym"
        if any(said.senses & self.wordnet.parts(one) for one in meant.senses):
            return "part"
        if any(meant.senses & self.wordnet.parts(one) for one in said.senses):
            return "whole"
        return "wrong"

    def _similarity(self, said: WordNetEntry, meant: WordNetEntry) -> float:
        return max(self._wu_palmer(a, b, said.below + meant.below) for a in said.senses for b in meant.senses)

    def _wu_palmer(self, a: int, b: int, more: int) -> float:
        """Return the Wu-Palmer similarity between two senses, which is the maximum over their common hypernyms.

        For a common hypernym at depth d, the similarity is 2 d / (2 d + m + n), where m and n are the numbers of steps
        from the two senses up to the hypernym.

        Args:
            a, b: the senses.
            more: the number of additional steps, because a name may be one step below its sense (`WordNetEntry.below`).
        """
        above_a, above_b = self.wordnet.above(a), self.wordnet.above(b)
        depths = {common: 2 * self.wordnet.depth(common) for common in above_a.keys() & above_b.keys()}
        return max((d / (d + above_a[one] + above_b[one] + more) for one, d in depths.items()), default=0.0)


def wups(similarity: float, threshold: float = WUPS_THRESHOLD) -> float:
    """Return the WUPS score (Malinowski and Fritz 2014): a similarity below the threshold is divided by 10."""
    return similarity if similarity >= threshold else 0.1 * similarity
