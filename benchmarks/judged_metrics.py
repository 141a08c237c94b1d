"""The metrics of sampled predictions, as arrays that are compared with verdicts (`rater_agreement.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rater_files import RatedItem

from osm.evaluation.metrics import is_correct, normalize
from osm.evaluation.metrics.lexical import Lexicon
from osm.evaluation.metrics.semantic import best_semantic_iou, semantic_similarities
from osm.evaluation.metrics.wordnet import find_wordnet
from osm.recognition.similarity import SentenceEncoder


def metrics(items: Sequence[RatedItem]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Apply the metrics to each prediction.

    Returns:
        The metrics that are true or false, and the metrics that are graded, each by name, as arrays (items,). The
        probability that a model gave is NaN for the names of other models. A model that gave names without
        probabilities has no such metric.
    """
    pairs = [(item.prediction, item.names) for item in items]
    # Equal names have cosines of 1 ± 2e-7. Without rounding, these ties would be ordered by noise.
    cosines = np.round(semantic_similarities(SentenceEncoder(), pairs)[:, 1], 6)
    lexicon = Lexicon(find_wordnet())
    judged = [lexicon.judge(normalize(text), of_class) for text, of_class in pairs]
    relations = np.array([one.relation for one in judged])
    flags = {
        "Acc": np.array([is_correct(*pair) for pair in pairs]),
        "WordNet: exact or synonym": np.isin(relations, ("exact", "synonym")),
        "WordNet: those, or a hyponym or hypernym": np.isin(relations, ("exact", "synonym", "hyponym", "hypernym")),
        "Semantic Similarity of 0.6 or more": cosines >= 0.6,
    }
    scores = {
        "Acc": flags["Acc"].astype(float),
        "Semantic Similarity": cosines,
        "Semantic IoU": np.array([best_semantic_iou(*pair) for pair in pairs]),
        "WUPS at 0.0": np.array([one.similarity for one in judged]),
    }
    titles = list(dict.fromkeys(title for item in items for title in item.models))
    for title in titles:
        own = [item.models[title] for item in items if title in item.models]
        if None not in own:
            name = "the model's own probability" if len(titles) == 1 else f"the probability of {title}"
            scores[name] = np.array([item.models.get(title, math.nan) for item in items], float)
    return flags, scores


def kendall_tau(one: np.ndarray, other: np.ndarray) -> float:
    """Return Kendall's tau-b: concordant minus discordant pairs, corrected for ties; nan if one array is constant."""
    a, b = (np.sign(values[:, None] - values[None]) for values in (one, other))
    untied = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum()) / untied if untied else math.nan
