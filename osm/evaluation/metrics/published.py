"""The published rules of Acc and NIV, for pairs of strings.

*Acc* is the share of masks whose predicted name is a name of their class, or a plural or singular form of such a name.
*NIV* (not in vocabulary) is the share of masks whose predicted name is no name of any class of the set. For NIV, plural
forms of a name are not names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from osm.datasets.labels import LabelSet


def plural_forms(name: str) -> set[str]:
    """Return the accepted plurals: + s, + es, y -> ies, f -> ves, fe -> ves.

    As published, the rules are applied to every name, so some plurals are not English.
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
    """Return the accepted singulars: without s, without es, ies -> y, ves -> f and fe."""
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
    """Return all predictions that are right for a class with these names. The empty prediction is never right."""
    return _accepted(tuple(names))


@lru_cache(maxsize=20_000)  # more than the number of classes of the largest set, because this runs for every mask
def _accepted(names: tuple[str, ...]) -> frozenset[str]:
    accepted: set[str] = set()
    for name in names:
        accepted |= {name} | plural_forms(name) | singular_forms(name)
    # A class named "s" would otherwise accept the empty prediction.
    return frozenset(accepted - {""})


def normalize(prediction: str) -> str:
    """Return a prediction in lower case and without surrounding whitespace, as it is compared with names."""
    return prediction.lower().strip()


def is_correct(prediction: str, names: Iterable[str]) -> bool:
    """Return whether the prediction is right for a class with these names."""
    return normalize(prediction) in accepted_forms(names)


def head_is_correct(prediction: str, names: Iterable[str]) -> bool:
    """Return whether the prediction's last word is the last word of a name ("kettle" of "striped kettle").

    Plural and singular forms are accepted.
    """
    words = normalize(prediction).split()
    return bool(words) and words[-1] in accepted_forms(name.split()[-1] for name in names if name.split())


def modifiers_are_correct(prediction: str, names: Iterable[str]) -> bool:
    """Return whether the words before the prediction's last word equal those of a name ("striped" of "striped kettle").

    A one-word prediction is right only if it is an accepted name, for example a one-word synonym.
    """
    names = tuple(names)
    modifiers = normalize(prediction).split()[:-1]
    if not modifiers:
        return is_correct(prediction, names)
    return any(modifiers == name.split()[:-1] for name in names)


def in_vocabulary(prediction: str, labels: LabelSet) -> bool:
    """Return whether the prediction is a name of any class of the set.

    Synonyms are names. Plural forms are not accepted.
    """
    return normalize(prediction) in labels.vocabulary


def majority_class(counts: Mapping[int, int]) -> tuple[int, float] | None:
    """Return the most frequent category id and its share of the masks, or None without masks.

    The share is the accuracy of a model that always predicts this class. Of equally frequent ids, the smallest is
    returned.

    Args:
        counts: for each category id, the number of counted masks.
    """
    total = sum(counts.values())
    if not total:
        return None
    best = min(counts, key=lambda category_id: (-counts[category_id], category_id))
    return best, counts[best] / total
