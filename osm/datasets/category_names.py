"""Converts class names from a dataset's own spelling to readable names.

The readable class name is the training target. During evaluation, a predicted name in the dataset's own spelling is
also accepted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from osm.datasets.labels import LabelSet

CATEGORY_NAMES = ("plain", "alternatives", "object:part")
"""How a dataset spells class names.

- `plain`: the names are readable and are not converted.
- `alternatives`: `cabinet/shelf` means cabinet or shelf. The first alternative is the training target.
- `object:part`: `trash_can:rim` means the rim of a trash can. `_` is replaced by a space, and parenthesized notes are
  removed, so `car_(automobile)` becomes `car`.
"""
_ASIDE = re.compile(r"\s*\([^()]*\)")


def spoken(names: Sequence[str], spelling: str) -> list[str]:
    """Return the distinct readable names of a class, lowercased. The first name is the training target.

    Args:
        names: the names in the dataset's spelling.
        spelling: one of `CATEGORY_NAMES`.
    """
    lower = [" ".join(name.lower().split()) for name in names]
    said: list[str] = []
    for name in lower:
        if spelling == "alternatives":
            said += [part.strip() for part in name.split("/")]
        elif spelling == "object:part":
            said += _with_parts(name)
    return [name for name in dict.fromkeys([*said, *lower]) if name]


def spoken_labels(labels: LabelSet, spelling: str) -> LabelSet:
    """Return a copy of a label set with readable class names.

    Args:
        labels: the label set in the dataset's spelling.
        spelling: one of `CATEGORY_NAMES`.
    """
    classes = {i: replace(one, names=tuple(spoken(one.names, spelling))) for i, one in labels.classes.items()}
    return LabelSet(labels.source, classes)


def spoken_categories(rows: Sequence[dict[str, Any]], spelling: str) -> list[dict[str, Any]]:
    """Return a copy of a list of categories with readable class names, as stored in `categories.json`."""
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
