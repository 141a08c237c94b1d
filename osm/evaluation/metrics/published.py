"""Acc and NIV, as published, over pure strings.

*Acc*: the share of the masks whose name is one of their class's names, or a plural or singular form of one.
*NIV* (not in vocabulary): the share whose name is none of the whole set's names; plural forms do not count here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from osm.datasets.labels import LabelSet


def plural_forms(name: str) -> set[str]:
    """The plurals tried: + s, + es, y -> ies, f -> ves, fe -> ves (right or wrong English alike, as published)."""
    forms = {name + "s", name + "es"}
    if name.endswith("y"):
        forms.add(name[:-1] + "ies")
    if name.endswith("f"):
        forms.add(name[:-1] + "ves")
    if name.endswith("fe"):
        forms.add(name[:-2] + "ves")
    return forms


def singular_forms(name: str) -> set[str]:
    """The singulars tried: without s, without es, ies -> y, ves -> f and fe."""
    forms = set()
    if name.endswith("s"):
        forms.add(name[:-1])
    if name.endswith("es"):
        forms.add(name[:-2])
    if name.endswith("ies"):
        forms.add(name[:-3] + "y")
    if name.endswith("ves"):
        forms |= {name[:-3] + "f", name[:-3] + "fe"}
    return forms


def accepted_forms(names: Iterable[str]) -> frozenset[str]:
    """Every answer that counts as right for a class with these names; the empty one never does."""
    return _accepted(tuple(names))


@lru_cache(maxsize=20_000)  # the classes of the largest set, asked about mask by mask
def _accepted(names: tuple[str, ...]) -> frozenset[str]:
    accepted: set[str] = set()
    for name in names:
        accepted |= {name} | plural_forms(name) | singular_forms(name)
    # A class named "s" would otherwise accept the empty answer.
    return frozenset(accepted - {""})


def normalize(prediction: str) -> str:
    """A prediction as it is compared: lower case (predictions are stored stripped, but with their case)."""
    return prediction.lower().strip()


def is_correct(prediction: str, names: Iterable[str]) -> bool:
    """Whether the prediction is right for a class with these names."""
    return normalize(prediction) in accepted_forms(names)


def head_is_correct(prediction: str, names: Iterable[str]) -> bool:
    """Whether the prediction's last word is that of one of the names ("striped kettle": "kettle"), plurals allowed."""
    words = normalize(prediction).split()
    return bool(words) and words[-1] in accepted_forms(name.split()[-1] for name in names if name.split())


def modifiers_are_correct(prediction: str, names: Iterable[str]) -> bool:
    """Whether all words before the prediction's last one are those of one of the names ("striped kettle": "striped").

    A one-word prediction has none; that is right only where the whole of it is (a one-word synonym).
    """
    names = tuple(names)
    modifiers = normalize(prediction).split()[:-1]
    if not modifiers:
        return is_correct(prediction, names)
    return any(modifiers == name.split()[:-1] for name in names)


def in_vocabulary(prediction: str, labels: LabelSet) -> bool:
    """Whether the prediction is a name of any class of the set (synonyms too, plural forms not)."""
    return normalize(prediction) in labels.vocabulary


def majority_class(counts: Mapping[int, int]) -> tuple[int, float] | None:
    """What looking at nothing gives: the most frequent category id (the smallest of equals) and its share.

    Args:
        counts: how many counted masks each category id has.
    """
    total = sum(counts.values())
    if not total:
        return None
    best = min(counts, key=lambda category_id: (-counts[category_id], category_id))
    return best, counts[best] / total
