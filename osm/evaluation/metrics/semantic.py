"""Semantic IoU and Semantic Similarity: how close a predicted name and a class name are in words and in meaning.

Source: Conti et al., Vocabulary-free Image Classification, NeurIPS 2023.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from osm.evaluation.metrics.published import normalize

if TYPE_CHECKING:
    from osm.recognition.similarity import SentenceEncoder

_WORD = re.compile(r"[^\W_]+")


def words(name: str) -> frozenset[str]:
    """Return the lowercased words of a name. A word is a run of letters and digits."""
    return frozenset(_WORD.findall(name.lower()))


def semantic_iou(prediction: str, name: str) -> float:
    """Return the Jaccard index (0 to 1) between the word sets of two names.

    The singular and plural forms of a noun count as different words. If neither name contains a word, the Jaccard index
    is 0.
    """
    said, meant = words(prediction), words(name)
    return len(said & meant) / len(said | meant) if said | meant else 0.0


def best_semantic_iou(prediction: str, names: Iterable[str]) -> float:
    """Return the largest Semantic IoU between a prediction and any of the class's names."""
    return max(semantic_iou(prediction, name) for name in names)


def semantic_similarities(encoder: SentenceEncoder, pairs: Sequence[tuple[str, tuple[str, ...]]]) -> np.ndarray:
    """Compute the cosine similarity (-1 to 1) between the sentence embeddings of predictions and class names.

    Args:
        encoder: computes the embeddings of texts.
        pairs: pairs of a prediction and its class's names, with the target name first. Predictions are lower-cased.

    Returns:
        float (pairs, 2): the cosine with the target name, and the largest cosine with any of the class's names. Both
        values are 0 for an empty prediction.
    """
    found = np.zeros((len(pairs), 2))
    meant = [names for _, names in pairs]
    said = [normalize(prediction) for prediction, _ in pairs]
    texts = list(dict.fromkeys(text for one, names in zip(said, meant, strict=True) for text in (one, *names)))
    places = {text: place for place, text in enumerate(texts)}
    vectors = encoder.encode(texts).numpy() if texts else np.zeros((0, 0))
    for row, (prediction, names) in enumerate(zip(said, meant, strict=True)):
        if prediction:
            cosines = vectors[[places[name] for name in names]] @ vectors[places[prediction]]
            found[row] = cosines[0], cosines.max()
    return found
