"""The rules of the published metrics Acc and NIV, applied to a predicted name and the names of a class.

*Acc* is the share of masks whose predicted name is a name of their class, or a plural or singular form of such a name.
*NIV* (not in vocabulary) is the share of masks whose predicted name is not a name of any class of the dataset. For NIV,
plural forms of class names count as out of vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from osm.datasets.labels import LabelSet


def plural_forms(name: str) -> set[str]:
    """Return the accepted plural forms of a name: + s, + es, y -> ies, f -> ves, fe -> ves.

    The plural rules apply to every name, as in the published evaluation, so some of the resulting forms are not English
    words.
    """
    forms = {name + "s", name + "es"}
    if name.endswith("y"):
        forms.add(name[:-1] + "ies")
    if name.endswith("f"):
        forms.add(name[:-1] + "ves")
    if name.endswith("fe"):
        forms.add(name[:-2] + "ves")
    return forms


def singular_forms(name: str) -> set[str]:
    """Return the accepted singular forms of a name: with s or es removed, ies -> y, ves -> f or fe."""
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
    """Return all non-empty strings that are correct predictions for a class with the given names."""
    return _accepted(tuple(names))


@lru_cache(maxsize=20_000)  # more classes than any dataset has, because the function runs once for every mask
def _accepted(names: tuple[str, ...]) -> frozenset[str]:
    accepted: set[str] = set()
    for name in names:
        accepted |= {name} | plural_forms(name) | singular_forms(name)
    # The empty string is removed, because it would be the singular form of a class named "s".
    return frozenset(accepted - {""})


def normalize(prediction: str) -> str:
    """Lowercase a prediction and strip surrounding whitespace, for comparison with class names."""
    return prediction.lower().strip()


def is_correct(prediction: str, names: Iterable[str]) -> bool:
    """Return whether the prediction is correct for a class with the given names."""
    return normalize(prediction) in accepted_forms(names)


def head_is_correct(prediction: str, names: Iterable[str]) -> bool:
    """Return whether the prediction's last word matches the last word of a class name ("kettle" in "striped kettle").

    Plural and singular forms of the last word are accepted.
    """
    words = normalize(prediction).split()
    return bool(words) and words[-1] in accepted_forms(name.split()[-1] for name in names if name.split())


def modifiers_are_correct(prediction: str, names: Iterable[str]) -> bool:
    """Return whether the prediction and a class name have the same modifiers ("striped" in "striped kettle").

    A one-word prediction has no modifiers, so it counts as correct only if it is an accepted name.
    """
    names = tuple(names)
    modifiers = normalize(prediction).split()[:-1]
    if not modifiers:
        return is_correct(prediction, names)
    return any(modifiers == name.split()[:-1] for name in names)


def in_vocabulary(prediction: str, labels: LabelSet) -> bool:
    """Return whether the prediction is a name of any class in the dataset.

    Synonyms count as names of a class, but plural forms do not.
    """
    return normalize(prediction) in labels.vocabulary


def majority_class(counts: Mapping[int, int]) -> tuple[int, float] | None:
    """Return the most frequent category id and its share of the masks, or None if there are no masks.

    The share of the most frequent category is the accuracy of a model that always predicts that category. Ties are
    broken in favor of the smallest id.

    Args:
        counts: for each category id, the number of counted masks.
    """
    total = sum(counts.values())
    if not total:
        return None
    best = min(counts, key=lambda category_id: (-counts[category_id], category_id))
    return best, counts[best] / total
