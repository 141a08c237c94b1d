"""Names out of the LLM, for many rows at once: greedy, the best few, out of a list alone, or the likelihood of a list.

All rows have prefixes of one length, so nothing is padded. Rows that have ended leave the batch.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from osm.models.llm import generate
from osm.models.llm_forward import DecodingState, LlmInputs, llm_support, read_prefix, read_tokens
from osm.recognition.vocabulary import Trie


@dataclass(frozen=True)
class Decoded:
    """One decoded name.

    Attributes:
        ids: of the name, without its end token.
        token_probs: of these ids, and of the end token in the last place where the name ended.
        ended: an end token came, rather than the limit of tokens.
    """

    ids: tuple[int, ...]
    token_probs: tuple[float, ...]
    ended: bool

    @property
    def prob(self) -> float:
        """As published: of the name's tokens, the end token's excluded; of an empty name, that of its end token."""
        probs = self.token_probs[: len(self.ids)] or self.token_probs
        return math.prod(probs)

    @property
    def sequence_prob(self) -> float:
        """Of the name and of its end: what alternatives are ranked by."""
        return math.prod(self.token_probs)


class Decoder:
    """Decodes with a frozen causal LM.

    Args:
        stops: ids that end a name. max_new_tokens: of a name that is said freely; one of a trie is never cut.
        compiled: free greedy names come from transformers' static cache, whose decoding steps it compiles (CUDA graphs)
            where it can, on GPUs; rows that have ended stay in the batch.
    """

    def __init__(self, llm: nn.Module, stops: Sequence[int], max_new_tokens: int, compiled: bool = False) -> None:
        self.llm, self.stops, self.max_new_tokens = llm, frozenset(stops), max_new_tokens
        support = llm_support(llm)
        self.compiled = compiled and support.cache and support.generate

    def steps(self, trie: Trie | None) -> int:
        """Tokens of the longest name that may come out, its end included."""
        return self.max_new_tokens if trie is None else trie.depth  # half a name would be none of the list

    @torch.no_grad()
    def greedy(self, inputs: LlmInputs, trie: Trie | None = None) -> list[Decoded]:
        """The likeliest token of each step, until one ends the name.

        Args:
            inputs: rows of one length, without padding. trie: only what it allows; probabilities are then those among
                what is allowed.
        """
        if self.compiled and trie is None:
            return self._greedy_static(inputs)
        rows = len(inputs)
        ids: list[list[int]] = [[] for _ in range(rows)]
        probs: list[list[float]] = [[] for _ in range(rows)]
        ended = [False] * rows
        live, (logits, state) = list(range(rows)), read_prefix(self.llm, inputs)
        steps = self.steps(trie)
        for step in range(steps):
            found = _allowed(logits, trie, [ids[row] for row in live]).softmax(-1)
            best = found.max(-1)
            kept = []
            for place, (row, token, prob) in enumerate(
                zip(live, best.indices.tolist(), best.values.tolist(), strict=True)
            ):
                probs[row].append(prob)
                if token in self.stops:
                    ended[row] = True
                else:
                    ids[row].append(token)
                    kept.append(place)
            if not kept or step == steps - 1:
                break
            if len(kept) < len(live):
                state = state.keep(kept)
                live = [live[place] for place in kept]
            logits, state = read_tokens(self.llm, [[ids[row][-1]] for row in live], state)
        return [Decoded(tuple(i), tuple(p), e) for i, p, e in zip(ids, probs, ended, strict=True)]

    def _greedy_static(self, inputs: LlmInputs) -> list[Decoded]:
        rows = len(inputs)
        # Few shapes, so that little is compiled: the batch is filled up to a power of two with copies of a row.
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
    def best(self, inputs: LlmInputs, count: int, trie: Trie | None = None) -> list[list[Decoded]]:
        """The `count` likeliest names of each row, by beam search of that width, the likeliest first.

        What has ended is set aside; a row's search stops once nothing that is still open can be likelier.
        """
        logits, state = read_prefix(self.llm, inputs)
        live = [_Beam(row, 0.0, (), ()) for row in range(len(inputs))]
        done: list[list[_Beam]] = [[] for _ in live]
        steps = self.steps(trie)
        for step in range(steps):
            log_probs = _allowed(logits, trie, [list(beam.ids) for beam in live]).log_softmax(-1)
            top = log_probs.topk(min(count + len(self.stops), log_probs.shape[-1]), -1)
            opened: dict[int, list[tuple[int, _Beam]]] = {}
            for place, beam in enumerate(live):
                for log_prob, token in zip(top.values[place].tolist(), top.indices[place].tolist(), strict=True):
                    if log_prob == -math.inf:
                        continue
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
            last = step == steps - 1
            if last:
                for _, beam in kept:  # cut by the limit of tokens: better than no name
                    done[beam.row].append(beam)
            if last or not kept:
                break
            state = state.keep([place for place, _ in kept])
            live = [beam for _, beam in kept]
            logits, state = read_tokens(self.llm, [[beam.ids[-1]] for beam in live], state)
        return [[beam.decoded() for beam in _likeliest(found, count)] for found in done]

    @torch.no_grad()
    def score(self, inputs: LlmInputs, candidates: Sequence[Sequence[int]], at_once: int = 256) -> Tensor:
        """Log-likelihood of every candidate, its end token included; each prefix is read once.

        Args:
            inputs: as for `greedy`. candidates: token ids, each with its end token in the last place. at_once: pairs of
                a row and a candidate in one forward.

        Returns:
            float64 (R, candidates).
        """
        logits, state = read_prefix(self.llm, inputs)
        first = logits.log_softmax(-1)
        found = torch.empty(len(inputs), len(candidates), dtype=torch.float64)
        # By length: hardly any padding in a forward.
        order = sorted(range(len(candidates)), key=lambda i: len(candidates[i]))
        pairs = [(row, i) for i in order for row in range(len(inputs))]
        for start in range(0, len(pairs), at_once):
            rows, chosen = (list(part) for part in zip(*pairs[start : start + at_once], strict=True))
            scores = self._score([candidates[i] for i in chosen], rows, first, state)
            found[rows, chosen] = scores.cpu()
        return found

    def _score(self, candidates: list[Sequence[int]], rows: list[int], first: Tensor, state: DecodingState) -> Tensor:
        length = max(len(candidate) for candidate in candidates)
        ids = torch.tensor([[*c, *[0] * (length - len(c))] for c in candidates], device=first.device)
        real = torch.tensor([[i < len(c) for i in range(length)] for c in candidates], device=first.device)
        scores = first[rows, ids[:, 0]].double()
        if length > 1:
            logits, _ = read_tokens(self.llm, ids[:, :-1].tolist(), state.copied(rows), every_position=True)
            later = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            scores = scores + (later * real[:, 1:]).sum(1).double()
        return scores


def _allowed(logits: Tensor, trie: Trie | None, ids: list[list[int]]) -> Tensor:
    if trie is None:
        return logits
    mask = torch.full_like(logits, -math.inf)
    for row, sofar in enumerate(ids):
        mask[row, list(trie.after(sofar))] = 0
    return logits + mask


@dataclass(frozen=True)
class _Beam:
    row: int
    score: float
    ids: tuple[int, ...]
    probs: tuple[float, ...]
    ended: bool = False

    def grown(self, log_prob: float, token: int | None) -> _Beam:
        """By a token, or by an end (None)."""
        ids = self.ids if token is None else (*self.ids, token)
        return _Beam(self.row, self.score + log_prob, ids, (*self.probs, math.exp(log_prob)), token is None)

    def decoded(self) -> Decoded:
        return Decoded(self.ids, self.probs, self.ended)


def _likeliest(beams: Sequence[_Beam], count: int) -> list[_Beam]:
    """Whole names before cut ones; of names that differ in their end token alone, the likeliest."""
    best: dict[tuple[int, ...], _Beam] = {}
    for beam in sorted(beams, key=lambda beam: (not beam.ended, -beam.score)):
        best.setdefault(beam.ids, beam)
    return list(best.values())[:count]
