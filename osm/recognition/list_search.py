"""Finds the most likely names of a list, or computes the likelihood of every name.

The likelihood of a name is the LLM's probability of all its tokens, including the end token. The probability of the
first tokens of a name is an upper bound of its likelihood. The search is a branch and bound: it follows the most likely
beginnings and stops when no other name of the list can be more likely. It therefore finds the same names as the
computation of all likelihoods, but the LLM reads only a few of the names.

Shapes: R rows, K candidates, P (row, text) pairs, T token positions, V entries in the LLM's vocabulary.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from osm.models.llm_forward import DecodingState, LlmInputs, read_prefix, read_tokens
from osm.recognition.vocabulary import Trie

_FEW = 8  # an LLM reads this many rows in about the same time as one row
_SMALL = math.log(
    0.1
)  # an unread beginning is small if it has less than this share of the likelihood of the names found


@dataclass(frozen=True)
class LikelyName:
    """A name of a list.

    Attributes:
        ids: the token ids of the name, without the end token.
        log_probs: the log-probabilities of these ids, followed by that of the end token.
        log_likelihood: their sum.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_likelihood: float

    @property
    def token_probs(self) -> tuple[float, ...]:
        """The probabilities of the ids and of the end token."""
        return tuple(math.exp(one) for one in self.log_probs)


@dataclass(frozen=True)
class LikeliestNames:
    """The result of a search.

    Attributes:
        names: the names whose likelihoods were computed, most likely first. They are at least as many as were wanted.
        log_others: the logarithm of an upper bound of the summed likelihoods of all other names of the list.
    """

    names: list[LikelyName]
    log_others: float


class ListDecoder:
    """Compares the names of a list by their likelihoods for a frozen causal LM."""

    def __init__(self, llm: nn.Module) -> None:
        self.llm = llm

    @torch.no_grad()
    def likeliest(
        self,
        inputs: LlmInputs,
        trie: Trie,
        count: int = 1,
        classes: Mapping[tuple[int, ...], int] | None = None,
        at_once: int = 256,
        together: bool = False,
    ) -> list[LikeliestNames]:
        """Find the `count` most likely names of a list. These are the names with the highest `score`.

        Args:
            inputs: rows of equal length, without padding.
            trie: the names of the list.
            count: number of names per row.
            classes: for the token ids of each name (without the end token), its class. The likelihood of a class is the
                sum over its names. The `count` most likely classes are then found instead of names. None: every name
                is a class of its own.
            at_once: number of (row, beginning of a name) pairs per forward pass.
            together: whether all rows show the same object. They then share one result, and the log-probabilities of
                each token are averaged over the rows.

        Returns:
            one result per row, or a single one if `together` is set.
        """
        first_RV, state = self._read_prefix(inputs)
        groups = [list(range(len(inputs)))] if together else [[row] for row in range(len(inputs))]
        searches = [_Search(trie, count, classes, first_RV[rows].mean(0)) for rows in groups]
        pairs = max(1, at_once // len(groups[0]))
        most = count
        while active := [(rows, search) for rows, search in zip(groups, searches, strict=True) if search.unfinished]:
            few = max(most, _FEW // len(active))
            taken = [(rows, search, one) for rows, search in active for one in search.taken(few)]
            for start in range(0, len(taken), pairs):
                some = taken[start : start + pairs]
                texts = [search.unread(one) for rows, search, one in some for _ in rows]
                later_PTV = self._read(texts, [row for rows, _, _ in some for row in rows], state)
                for (rows, search, one), later_rTV in zip(some, later_PTV.split(len(groups[0])), strict=True):
                    search.grow(one, later_rTV.mean(0) if len(rows) > 1 else later_rTV[0])
            most *= 2  # if many names are about equally likely, the number of passes grows slowly with the list
        return [search.result() for search in searches]

    @torch.no_grad()
    def score(self, inputs: LlmInputs, candidates: Sequence[Sequence[int]], at_once: int = 256) -> Tensor:
        """Compute the log-likelihood of each candidate name, including the end token.

        The LLM processes each row's prefix only once.

        Args:
            inputs: rows of equal length, without padding.
            candidates: token ids of each candidate, with the end token last.
            at_once: number of (row, candidate) pairs per forward pass.

        Returns:
            log-likelihoods, float64 (R, K).
        """
        first_RV, state = self._read_prefix(inputs)
        found_RK = torch.empty(len(inputs), len(candidates), dtype=torch.float64)
        # Candidate names are sorted by token count to minimize padding.
        pairs = sorted(
            ((row, i) for row in range(len(inputs)) for i in range(len(candidates))),
            key=lambda pair: len(candidates[pair[1]]),
        )
        for start in range(0, len(pairs), at_once):
            rows, some = (list(part) for part in zip(*pairs[start : start + at_once], strict=True))
            found_RK[rows, some] = self._score([candidates[i] for i in some], rows, first_RV, state).cpu()
        return found_RK

    def _score(
        self, candidates: list[Sequence[int]], rows: list[int], first_RV: Tensor, state: DecodingState
    ) -> Tensor:
        length = max(len(candidate) for candidate in candidates)
        ids_PT = torch.tensor([[*c, *[0] * (length - len(c))] for c in candidates], device=first_RV.device)
        real_PT = torch.tensor([[i < len(c) for i in range(length)] for c in candidates], device=first_RV.device)
        scores_P = first_RV[rows, ids_PT[:, 0]].double()
        if length > 1:
            later_PTV = self._read([candidate[:-1] for candidate in candidates], rows, state)
            later_PT = later_PTV.gather(2, ids_PT[:, 1:, None])[..., 0]
            scores_P = scores_P + (later_PT * real_PT[:, 1:]).sum(1).double()
        return scores_P

    def _read_prefix(self, inputs: LlmInputs) -> tuple[Tensor, DecodingState]:
        """Return the log-probabilities (R, V) of the first token, and the state after the prefixes."""
        logits_RV, state = read_prefix(self.llm, inputs)
        return logits_RV.log_softmax(-1), state

    def _read(self, texts: Sequence[Sequence[int]], rows: list[int], state: DecodingState) -> Tensor:
        """Return the log-probabilities (P, T, V) after each token of texts that follow the prefixes of the given rows.

        The results after the end of a shorter text have no meaning.
        """
        length = max(map(len, texts))
        padded = [[*text, *[0] * (length - len(text))] for text in texts]
        logits_PTV, _ = read_tokens(self.llm, padded, state.copied(rows), every_position=True)
        return logits_PTV.log_softmax(-1)


@dataclass(frozen=True)
class _Beginning:
    """All names of a list that begin with the given token ids, whose log-probabilities are known."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass
class _Continuations:
    """The token ids that may follow a beginning, most likely first. The first `used` of them have been followed."""

    beginning: _Beginning
    tokens: list[int]
    log_probs: list[float]
    used: int = 0

    @property
    def bound(self) -> float:
        """The log-likelihood up to the next token. It bounds the log-likelihood of every remaining name from above."""
        return math.fsum((*self.beginning.log_probs, self.log_probs[self.used]))

    def others(self) -> list[float]:
        """Return the log-likelihoods up to the next token for all tokens that are left."""
        so_far = math.fsum(self.beginning.log_probs)
        return [so_far + one for one in self.log_probs[self.used :]]

    def follow(self) -> _Beginning:
        """Extend the beginning by its most likely unused token, and mark this token as used."""
        token, log_prob = self.tokens[self.used], self.log_probs[self.used]
        self.used += 1
        return _Beginning((*self.beginning.ids, token), (*self.beginning.log_probs, log_prob))


class _Search:
    """The search for the `count` most likely names or classes of a list in one row, or in several rows together."""

    def __init__(self, trie: Trie, count: int, classes: Mapping[tuple[int, ...], int] | None, first_V: Tensor) -> None:
        self.trie, self.count, self.classes = trie, count, classes
        self.found: list[LikelyName] = []  # most likely first
        self.log_found = -math.inf  # the logarithm of their summed likelihoods
        self.open: list[tuple[float, tuple[int, ...], _Continuations]] = []  # a heap; the ids decide between equals
        ids, following = trie.common(())
        if ids:
            self._push(_Continuations(_Beginning((), ()), [ids[0]], [first_V[ids[0]].item()]))
        else:
            self._open(_Beginning((), ()), following, first_V)

    @property
    def unfinished(self) -> bool:
        """Whether the result may change, or the likelihood of all other names may be large."""
        return bool(self.open) and (self._must_read_on() or (self.classes is not None and self._classes_unfinished()))

    def _must_read_on(self) -> bool:
        """Whether the most likely beginning may contain one of the `count` most likely names, or is not small."""
        if len(self.found) < self.count:
            return True
        bound = -self.open[0][0]
        return bound > self.found[self.count - 1].log_likelihood or bound > self.log_found + _SMALL

    def _classes_unfinished(self) -> bool:
        """Whether a class may be more likely than the `count` best ones. Any class may have all names that are left."""
        assert self.classes is not None
        sums: dict[int, float] = {}
        for name in self.found:
            number = self.classes[name.ids]
            sums[number] = sums.get(number, 0.0) + math.exp(name.log_likelihood)
        ordered = sorted(sums.values(), reverse=True)
        if len(ordered) < self.count:
            return True
        following = ordered[self.count] if len(ordered) > self.count else 0.0
        return following + math.exp(self._log_others()) > ordered[self.count - 1]

    def taken(self, most: int) -> list[_Beginning]:
        """Return up to `most` beginnings that the LLM has to read next, the most likely ones."""
        found: list[_Beginning] = []
        while self.open and len(found) < most and (self.classes is not None or self._must_read_on()):
            _, _, continuations = heapq.heappop(self.open)
            one = continuations.follow()
            self._push(continuations)
            if self.trie.common(one.ids) == (one.ids, []):  # a complete name
                self._add(one)
            else:
                found.append(one)
        return found

    def unread(self, one: _Beginning) -> tuple[int, ...]:
        """Return the ids to read before the names with this beginning differ, or the only such name can be scored."""
        ids, following = self.trie.common(one.ids)
        return ids if following else ids[:-1]

    def grow(self, one: _Beginning, later_TV: Tensor) -> None:
        """Replace a beginning by its only name, or by its continuations.

        Args:
            one: a beginning from `taken`.
            later_TV: the log-probabilities after each token of `unread(one)`.
        """
        ids, following = self.trie.common(one.ids)
        more = range(len(one.ids), len(ids))
        log_probs = (*one.log_probs, *later_TV[[place - 1 for place in more], [ids[place] for place in more]].tolist())
        if following:
            self._open(_Beginning(ids, log_probs), following, later_TV[len(ids) - 1])
        else:
            self._add(_Beginning(ids, log_probs))

    def result(self) -> LikeliestNames:
        return LikeliestNames(self.found, self._log_others())

    def _log_others(self) -> float:
        return _log_sum([one for _, _, continuations in self.open for one in continuations.others()])

    def _open(self, beginning: _Beginning, following: list[int], next_V: Tensor) -> None:
        ordered = next_V[following].sort(descending=True, stable=True)
        tokens = [following[place] for place in ordered.indices.tolist()]
        self._push(_Continuations(beginning, tokens, ordered.values.tolist()))

    def _push(self, continuations: _Continuations) -> None:
        if continuations.used < len(continuations.tokens):
            heapq.heappush(self.open, (-continuations.bound, continuations.beginning.ids, continuations))

    def _add(self, name: _Beginning) -> None:
        likely = LikelyName(name.ids[:-1], name.log_probs, math.fsum(name.log_probs))
        bisect.insort(self.found, likely, key=lambda one: -one.log_likelihood)
        self.log_found = _log_sum([self.log_found, likely.log_likelihood])


def _log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of the exponentials of some values."""
    largest = max(values, default=-math.inf)
    if largest == -math.inf:
        return -math.inf
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
