"""Assignment of predicted names to the classes of a dataset.

A predicted name is first compared with the class names, and then with their plural and singular forms, as defined by
the published accuracy metric. Optionally, a name without a match is assigned to the class whose name has the most
similar sentence embedding. A name that matches several classes is assigned to the class with the lowest id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from osm.datasets.labels import LabelClass, LabelSet
from osm.evaluation.metrics import accepted_forms, normalize

EXACT, NEAREST, WITHOUT = "exact", "nearest", "without_class"
_AT_ONCE = 1024  # number of predicted names whose cosines to all class names are in memory together


class Encoder(Protocol):
    """The subset of the `osm.recognition.similarity.SentenceEncoder` interface that `ClassNames` uses."""

    def nearest(self, texts: Sequence[str], names: Sequence[str], count: int = 1) -> list[list[tuple[int, float]]]: ...


@dataclass(frozen=True)
class Match:
    """The class id of a predicted name, or None, and the kind of match: `exact`, `nearest` or `without_class`."""

    category_id: int | None
    how: str


class ClassNames:
    """Assigns predicted names to the classes of a dataset.

    Args:
        labels: the classes of the dataset.
        ignored: ids of classes that are not scored. Their names are matched exactly, never by meaning.
        encoder: finds the class for names without an exact match. If None, such names get no class.

    Attributes:
        shared: name -> ids of the classes, for names that belong to two or more classes (plural and singular forms are
            not included).
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
        """Return the class match of each predicted name.

        The returned dict is keyed by the original, unmodified names.
        """
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
    """Return a mapping from each name to the id of the first class that has the name."""
    owners: dict[str, int] = {}
    for label in classes:
        for name in label.names:
            owners.setdefault(name, label.id)
    return owners
