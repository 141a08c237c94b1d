"""The check of `scripts/judged.py agreement`, with scikit-learn and scipy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score, confusion_matrix, roc_auc_score

from verify.checks import Checks
from verify.lexicon import Lexicon
from verify.names import Sentences, clean, is_name, word_iou

GRADES = {"wrong": 0, "acceptable": 1, "right": 2}
_PRINTED = 0.005 + 1e-9  # two decimals
_NEAR = ("exact", "synonym", "hyponym", "hypernym")


def check_verdicts(checks: Checks, path: Path, printed: str, lexicon: Lexicon, sentences: Sentences) -> None:
    """Check the two tables that the script prints for a list of verdicts."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    grades = np.array([GRADES[entry["verdict"]] for entry in entries])
    flags, scores = _metrics(entries, lexicon, sentences)
    rows = [cells for cells in map(_cells, printed.splitlines()) if cells]
    for name, values in flags.items():
        row = next((cells for key, *cells in rows if key == name and len(cells) == 4), None)
        (right_wrong, wrong_right), (missed, hits) = confusion_matrix(grades > 0, values, labels=[False, True])
        own = [100 * (right_wrong + hits) / len(values), missed, wrong_right, cohen_kappa_score(grades > 0, values)]
        for cell, value, half in zip(row or [None] * 4, own, (0.5 + 1e-9, 0, 0, _PRINTED), strict=True):
            checks.same("verdicts: agreement, kappa", f"{path}: {name}", cell, float(value), half)
    for name, values in scores.items():
        row = next((cells for key, *cells in rows if key == name and len(cells) == 2), None)
        own = [roc_auc_score(grades > 0, values), kendalltau(values, grades, variant="b").statistic]
        for cell, value in zip(row or [None] * 2, own, strict=True):
            checks.same("verdicts: AUROC, Kendall's tau-b", f"{path}: {name}", cell, float(value), _PRINTED)


def _cells(line: str) -> list[Any]:
    if not line.startswith("| "):
        return []
    name, *others = [cell.strip() for cell in line.strip("| ").split(" | ")]
    found = [re.fullmatch(r"(-?[\d.]+)( %)?", cell) for cell in others]
    return [name, *(float(one[1]) for one in found if one)] if all(found) else []


def _metrics(
    entries: list[dict[str, Any]], lexicon: Lexicon, sentences: Sentences
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    pairs = [(clean(entry["prediction"]), tuple(entry["names"])) for entry in entries]
    acc = np.array([is_name(*pair) for pair in pairs])
    relations = np.array([lexicon.relation(*pair) for pair in pairs])
    # Cosines of equal names are 1 up to float32's rounding, and have to be ties.
    similarity = np.array([max(sentences.similarity(said, name) for name in names) for said, names in pairs]).round(6)
    flags = {
        "Acc": acc,
        "WordNet: exact or synonym": np.isin(relations, _NEAR[:2]),
        "WordNet: those, or a hyponym or hypernym": np.isin(relations, _NEAR),
        "Semantic Similarity of 0.6 or more": similarity >= 0.6,
    }
    scores = {
        "Acc": acc.astype(float),
        "Semantic Similarity": similarity,
        "Semantic IoU": np.array([max(word_iou(said, name) for name in names) for said, names in pairs]),
        "WUPS at 0.0": np.array([lexicon.wups(*pair) for pair in pairs]),
        "the model's own probability": np.array([entry["prob"] for entry in entries]),
    }
    return flags, scores
