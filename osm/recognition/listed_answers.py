"""Turns the likelihoods of a vocabulary's names into answers.

Shapes: R rows, K names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from osm.recognition.answers import Alternative, Recognition
from osm.recognition.list_search import LikeliestNames
from osm.recognition.vocabulary import Vocabulary


def likelihoods_of(searched: Sequence[LikeliestNames], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Return the results of searches as tensors, float64.

    Returns:
        (log-likelihoods (R, K) of the names, -inf for names that were not found; `log_others` (R, 1)).
    """
    likelihoods_RK = torch.full((len(searched), len(vocabulary.candidates)), -math.inf, dtype=torch.float64)
    for likelihoods_K, result in zip(likelihoods_RK, searched, strict=True):
        for name in result.names:
            likelihoods_K[vocabulary.index_of(name.ids)] = name.log_likelihood
    return likelihoods_RK, torch.tensor([[result.log_others] for result in searched], dtype=torch.float64)


def listed_answers(
    modes: Sequence[str],
    shares_RK: Tensor,
    searched: Sequence[LikeliestNames],
    vocabulary: Vocabulary,
    top_k: int,
) -> list[Recognition]:
    """Return the answer of each row: the class with the largest share.

    Args:
        modes: the mode of each row.
        shares_RK: the softmax of the names' scores, multiplied by the probability of the classifier.
        searched: the result of each row's search, from which the token probabilities are taken; empty if all names were
            scored.
        vocabulary: the vocabulary with these names.
        top_k: the number of classes in an answer.
    """
    found = [_best_classes(mode, shares_K, vocabulary, top_k) for mode, shares_K in zip(modes, shares_RK, strict=True)]
    return [_with_token_probs(*pair, vocabulary) for pair in zip(found, searched, strict=True)] if searched else found


def _with_token_probs(answer: Recognition, searched: LikeliestNames, vocabulary: Vocabulary) -> Recognition:
    """Add the token probabilities of the most likely spelling of the answered class."""
    for name in searched.names:
        if vocabulary.index_of(name.ids) in vocabulary.spellings[answer.text]:
            return replace(answer, token_probs=name.token_probs)
    return answer


def probability_of(answer: Recognition, likelihoods_K: Tensor, vocabulary: Vocabulary) -> float:
    """Return the LLM's probability of the answered class: the sum over its spellings, each with its end token."""
    return float(likelihoods_K[vocabulary.spellings[answer.text]].exp().sum())


def nearest_class(mode: str, near: Sequence[tuple[int, float]], vocabulary: Vocabulary, top_k: int) -> Recognition:
    """Return the class whose name is the most similar to a free name. The answer has no probability yet.

    Args:
        mode: the mode of the answer.
        near: the indices of names and their cosines, the nearest first. A class counts with its nearest spelling.
        vocabulary: the vocabulary with these names.
        top_k: the number of classes in the answer.
    """
    nearest: dict[int, float] = {}
    for place, cosine in near:
        nearest.setdefault(vocabulary.class_of[place], cosine)
    top = tuple(Alternative(vocabulary.classes[number].names[0], cosine=cosine) for number, cosine in nearest.items())[
        :top_k
    ]
    one = vocabulary.classes[next(iter(nearest))]
    return Recognition(mode, one.names[0], top=top if top_k > 1 else (), class_id=one.id)


def _best_classes(mode: str, shares_K: Tensor, vocabulary: Vocabulary, top_k: int) -> Recognition:
    """Return the class with the largest share of the names' scores. A class has the shares of all its spellings."""
    classes: dict[int, float] = {}
    places = shares_K.nonzero().flatten()
    for place, share in zip(places.tolist(), shares_K[places].tolist(), strict=True):
        number = vocabulary.class_of[place]
        classes[number] = classes.get(number, 0.0) + share
    best = sorted(classes, key=lambda number: -classes[number])[:top_k]
    named = [(vocabulary.classes[number], classes[number]) for number in best]
    top = tuple(Alternative(one.names[0], share, class_id=one.id) for one, share in named)
    one = vocabulary.classes[best[0]]
    return Recognition(mode, one.names[0], classes[best[0]], top=top if top_k > 1 else (), class_id=one.id)
