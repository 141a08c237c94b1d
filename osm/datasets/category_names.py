"""How datasets spell the names of their classes, and the readable spelling.

The readable spelling is the training target. The dataset's own spelling stays an accepted answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from osm.datasets.labels import LabelSet

CATEGORY_NAMES = ("plain", "alternatives", "object:part")
"""`plain`: as they are said; `alternatives`: `cabinet/shelf` is either word, and the first is trained; `object:part`:
`trash_can:rim` is the rim of a trash can, `_` stands for a space, and `car_(automobile)` is a car."""
_ASIDE = re.compile(r"\s*\([^()]*\)")


def spoken(names: Sequence[str], spelling: str) -> list[str]:
    """The names of a class in lower case, the one to train first, each once."""
    lower = [" ".join(name.lower().split()) for name in names]
    said: list[str] = []
    for name in lower:
        if spelling == "alternatives":
            said += [part.strip() for part in name.split("/")]
        elif spelling == "object:part":
            said += _with_parts(name)
    return [name for name in dict.fromkeys([*said, *lower]) if name]


def spoken_labels(labels: LabelSet, spelling: str) -> LabelSet:
    """A label set whose names are spelt in one of `CATEGORY_NAMES`."""
    classes = {i: replace(one, names=tuple(spoken(one.names, spelling))) for i, one in labels.classes.items()}
    return LabelSet(labels.source, classes)


def spoken_categories(rows: Sequence[dict[str, Any]], spelling: str) -> list[dict[str, Any]]:
    """The `categories` of a json, as `categories.json` has them."""
    if spelling == "plain":
        return list(rows)
    found = []
    for row in rows:
        target, *others = spoken([row["name"], *(row.get("synonyms") or [])], spelling)
        found.append({**row, "name": target, "synonyms": others})
    return found


def _with_parts(name: str) -> list[str]:
    plain = " ".join(name.replace("_", " ").split())
    short = " ".join(_ASIDE.sub(" ", plain).replace(" :", ":").split())
    whole, colon, part = short.partition(":")
    if not colon or not whole or not part.strip():
        return [short, plain]
    whole, part = whole.strip(), part.strip()
    return [f"{whole} {part}", part, f"{part} of {whole}", f"{whole}:{part}", plain]


__all__ = ["CATEGORY_NAMES", "spoken", "spoken_categories", "spoken_labels"]
