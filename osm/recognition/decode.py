"""Decodes names with an LLM, by greedy or beam search. For the names of a list, see `osm.recognition.list_search`.

All rows in an LLM batch have prefixes of the same length, so no padding is needed. A row is removed from the batch once
its name is complete.

Shapes: R rows, V entries in the LLM's vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from osm.models.llm import generate
from osm.models.llm_forward import LlmInputs, llm_support, read_prefix, read_tokens


@dataclass(frozen=True)
class Decoded:
    """One decoded name.

    Attributes:
        ids: the token ids of the name, without the end token.
        token_probs: the probabilities of these ids, followed by that of the end token if the name ended.
        ended: True if an end token was decoded, False if the maximum number of tokens was reached.
    """

    ids: tuple[int, ...]
    token_probs: tuple[float, ...]
    ended: bool

    @property
    def prob(self) -> float:
        """The product of the name's token probabilities, excluding the end token, as in the published code.

        For an empty name, the result is the probability of the end token.
        """
        probs = self.token_probs[: len(self.ids)] or self.token_probs
        return math.prod(probs)

    @property
    def sequence_prob(self) -> float:
        """The probability of the name, including the end token. Alternative names are ranked by `sequence_prob`."""
        return math.prod(self.token_probs)


class Decoder:
    """Decodes names with a frozen causal LM.

    Args:
        llm: the LLM.
        stops: token ids that end a name.
        max_new_tokens: maximum number of tokens.
        compiled: whether greedy decoding uses transformers' static cache, whose decoding steps are compiled on
            GPUs (CUDA graphs). Rows whose name has ended then stay in the batch.
    """

    def __init__(self, llm: nn.Module, stops: Sequence[int], max_new_tokens: int, compiled: bool = False) -> None:
        self.llm, self.stops, self.max_new_tokens = llm, frozenset(stops), max_new_tokens
        support = llm_support(llm)
        self.compiled = compiled and support.cache and support.generate

    @torch.no_grad()
    def greedy(self, inputs: LlmInputs) -> list[Decoded]:
        """Decode the most likely token at each step until an end token or the maximum number of tokens is reached.

        Args:
            inputs: rows of equal length, without padding.
        """
        if self.compiled:
            return self._greedy_static(inputs)
        rows = len(inputs)
        ids: list[list[int]] = [[] for _ in range(rows)]
        probs: list[list[float]] = [[] for _ in range(rows)]
        ended = [False] * rows
        live, (logits_RV, state) = list(range(rows)), read_prefix(self.llm, inputs)
        for step in range(self.max_new_tokens):
            best = logits_RV.softmax(-1).max(-1)
            kept = []
            for place, (row, token, prob) in enumerate(
                zip(live, best.indices.tolist(), best.values.tolist(), strict=True)
            ):
                probs[row].append(prob)
                if token in self.stops:
                    ended[row] = True
                    continue
                ids[row].append(token)
                kept.append(place)
            if not kept or step == self.max_new_tokens - 1:
                break
            if len(kept) < len(live):
                kept = _with_few_moves(kept)
                state = state.keep(kept)
                live = [live[place] for place in kept]
            logits_RV, state = read_tokens(self.llm, [[ids[row][-1]] for row in live], state)
        return [Decoded(tuple(i), tuple(p), e) for i, p, e in zip(ids, probs, ended, strict=True)]

    @torch.no_grad()
    def agreed(self, inputs: LlmInputs) -> Decoded:
        """Decode a single name from all rows, which show the same thing.

        The log-probabilities of the next token are averaged over the rows at each step. With a single row, the result
        is that of `greedy`.

        Args:
            inputs: see `greedy`.
        """
        ids: list[int] = []
        probs: list[float] = []
        logits_RV, state = read_prefix(self.llm, inputs)
        for step in range(self.max_new_tokens):
            best = logits_RV.log_softmax(-1).mean(0).softmax(-1).max(-1)
            probs.append(best.values.item())
            token = int(best.indices)
            if token in self.stops:
                return Decoded(tuple(ids), tuple(probs), True)
            ids.append(token)
            if step < self.max_new_tokens - 1:
                logits_RV, state = read_tokens(self.llm, [[token]] * len(inputs), state)
        return Decoded(tuple(ids), tuple(probs), False)

    def _greedy_static(self, inputs: LlmInputs) -> list[Decoded]:
        rows = len(inputs)
        # Copies of the first row pad the batch to a power of two, which limits the number of batch sizes to compile.
        places = [*range(rows), *[0] * (2 ** math.ceil(math.log2(rows)) - rows)]
        out = generate(
            self.llm,
            inputs.select(torch.tensor(places, device=inputs.embeds_RTW.device)),
            max_new_tokens=self.max_new_tokens,
            cache_implementation="static",
            return_dict_in_generate=True,
            output_logits=True,
            eos_token_id=sorted(self.stops),
        )
        probs = torch.stack([logits[:rows].float().softmax(-1).amax(-1) for logits in out.logits], 1).tolist()
        found = []
        for ids, of_ids in zip(out.sequences[:rows].tolist(), probs, strict=True):
            end = next((place for place, token in enumerate(ids) if token in self.stops), len(ids))
            found.append(Decoded(tuple(ids[:end]), tuple(of_ids[: end + 1]), end < len(ids)))
        return found

    @torch.no_grad()
    def best(self, inputs: LlmInputs, count: int) -> list[list[Decoded]]:
        """Return each row's `count` most likely names, most likely first, using a beam search of width `count`.

        The beam search for a row stops once no unfinished beam can become more likely than the finished names.
        """
        logits_RV, state = read_prefix(self.llm, inputs)
        live = [_Beam(row, 0.0, (), ()) for row in range(len(inputs))]
        done: list[list[_Beam]] = [[] for _ in live]
        for step in range(self.max_new_tokens):
            log_probs_RV = logits_RV.log_softmax(-1)
            top = log_probs_RV.topk(min(count + len(self.stops), log_probs_RV.shape[-1]), -1)
            opened: dict[int, list[tuple[int, _Beam]]] = {}
            for place, beam in enumerate(live):
                for log_prob, token in zip(top.values[place].tolist(), top.indices[place].tolist(), strict=True):
                    if token in self.stops:
                        done[beam.row].append(beam.grown(log_prob, None))
                    else:
                        opened.setdefault(beam.row, []).append((place, beam.grown(log_prob, token)))
            kept = []
            for row, grown in opened.items():
                grown = sorted(grown, key=lambda item: -item[1].score)[:count]
                done[row] = _likeliest(done[row], count)
                if len(done[row]) < count or done[row][-1].score < grown[0][1].score:
                    kept += grown
            last = step == self.max_new_tokens - 1
            if last:
                for _, beam in kept:  # the maximum number of tokens is reached: keep the truncated name
                    done[beam.row].append(beam)
            if last or not kept:
                break
            state = state.keep([place for place, _ in kept])
            live = [beam for _, beam in kept]
            logits_RV, state = read_tokens(self.llm, [[beam.ids[-1]] for beam in live], state)
        return [[beam.decoded() for beam in _likeliest(found, count)] for found in done]


def _with_few_moves(kept: list[int]) -> list[int]:
    """Order the rows that stay in a batch so that as few as possible change their place."""
    count = len(kept)
    ordered, late = list(range(count)), [row for row in kept if row >= count]
    for hole, row in zip(sorted(set(ordered).difference(kept)), late, strict=True):
        ordered[hole] = row
    return ordered


@dataclass(frozen=True)
class _Beam:
    row: int
    score: float
    ids: tuple[int, ...]
    probs: tuple[float, ...]
    ended: bool = False

    def grown(self, log_prob: float, token: int | None) -> _Beam:
        """Return a new beam: this beam extended by `token` or, if `token` is None, marked as finished."""
        ids = self.ids if token is None else (*self.ids, token)
        return _Beam(self.row, self.score + log_prob, ids, (*self.probs, math.exp(log_prob)), token is None)

    def decoded(self) -> Decoded:
        return Decoded(self.ids, self.probs, self.ended)


def _likeliest(beams: Sequence[_Beam], count: int) -> list[_Beam]:
    """Return the `count` best beams with distinct names, sorted by score, with finished beams before truncated ones."""
    best: dict[tuple[int, ...], _Beam] = {}
    for beam in sorted(beams, key=lambda beam: (not beam.ended, -beam.score)):
        best.setdefault(beam.ids, beam)
    return list(best.values())[:count]
