"""From the name that a mask was given to a class of the set.

First by the name itself, then by its plural and singular forms (those that count as right in the published accuracy),
then, if wanted, by meaning: the class that has the name with the most similar sentence embedding. A name, or form, that
two classes have is that of the class with the lower id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from osm.datasets.labels import LabelClass, LabelSet
from osm.evaluation.metrics import accepted_forms, normalize

EXACT, NEAREST, WITHOUT = "exact", "nearest", "without_class"
_AT_ONCE = 1024  # names whose cosines to all of the set's are in memory together


class Encoder(Protocol):
    """What is needed of a `SentenceEncoder`."""

    def nearest(self, texts: Sequence[str], names: Sequence[str], count: int = 1) -> list[list[tuple[int, float]]]: ...


@dataclass(frozen=True)
class Match:
    """A name's class (None: it has none), and how it was found: `exact`, `nearest` or `without_class`."""

    category_id: int | None
    how: str


class ClassNames:
    """The names of a set's classes.

    Args:
        labels: the set's.
        ignored: ids of classes that are not asked about. A name of theirs is found exactly, never by meaning.
        encoder: for what has no class otherwise; None = such names stay without one.

    Attributes:
        shared: names that two classes or more have, forms left aside, with the ids of these classes.
    """

    def __init__(self, labels: LabelSet, ignored: Collection[int] = (), encoder: Encoder | None = None) -> None:
        classes = [labels.classes[i] for i in sorted(labels.classes)]
        self._names: dict[str, int] = {}
        self._forms: dict[str, int] = {}
        self.shared: dict[str, list[int]] = {}
        for label in classes:
            for name in label.names:
                if self._names.setdefault(name, label.id) != label.id:
                    self.shared.setdefault(name, [self._names[name]]).append(label.id)
            for form in accepted_forms(label.names):
                self._forms.setdefault(form, label.id)
        self._encoder = encoder
        self._candidates = _owners(label for label in classes if label.id not in ignored)

    def match(self, texts: Iterable[str]) -> dict[str, Match]:
        """The class of each text, as it is written."""
        found: dict[str, Match] = {}
        left: dict[str, list[str]] = {}
        for text in dict.fromkeys(texts):
            name = normalize(text)
            category_id = self._names.get(name, self._forms.get(name))
            if category_id is not None:
                found[text] = Match(category_id, EXACT)
            elif name and self._encoder is not None and self._candidates:
                left.setdefault(name, []).append(text)
            else:
                found[text] = Match(None, WITHOUT)
        for name, category_id in self._nearest(list(left)).items():
            found.update(dict.fromkeys(left[name], Match(category_id, NEAREST)))
        return found

    def _nearest(self, names: list[str]) -> dict[str, int]:
        known, found = list(self._candidates), {}
        for start in range(0, len(names), _AT_ONCE):
            part = names[start : start + _AT_ONCE]
            assert self._encoder is not None
            for name, best in zip(part, self._encoder.nearest(part, known), strict=True):
                found[name] = self._candidates[known[best[0][0]]]
        return found


def _owners(classes: Iterable[LabelClass]) -> dict[str, int]:
    """Names with the first class that has each."""
    owners: dict[str, int] = {}
    for label in classes:
        for name in label.names:
            owners.setdefault(name, label.id)
    return owners
