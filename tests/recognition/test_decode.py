"""Decoding against slow and obvious references: every sequence of a tiny LLM, enumerated."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from osm.models.llm_forward import LlmInputs
from osm.recognition.decode import Decoder

NEW = 3
STOPS = (2, 0)


@torch.no_grad()
def given(embeds: Tensor) -> LlmInputs:
    return LlmInputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.long))


def probabilities(llm: nn.Module, prefix: Tensor, ids: tuple[int, ...]) -> Tensor:
    """(V,) of the token after a prefix and some ids, without any cache."""
    words = llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long)) if ids else prefix[:0]
    return llm(inputs_embeds=torch.cat([prefix, words])[None]).logits[0, -1].float().softmax(-1)


def likelihood(llm: nn.Module, prefix: Tensor, ids: tuple[int, ...]) -> float:
    return math.prod(float(probabilities(llm, prefix, ids[:i])[token]) for i, token in enumerate(ids))


@pytest.mark.parametrize("rows", [1, 3, 4, 5])
def test_a_static_cache_says_the_same(llm: nn.Module, embeds: Tensor, rows: int) -> None:
    dynamic = Decoder(llm, STOPS, 6).greedy(given(embeds[:rows]))
    static = Decoder(llm, STOPS, 6, compiled=True)
    for _ in range(2):  # nothing of the first time is left
        found = static.greedy(given(embeds[:rows]))
        assert [(name.ids, name.ended) for name in found] == [(name.ids, name.ended) for name in dynamic]
        for one, other in zip(found, dynamic, strict=True):
            assert one.token_probs == pytest.approx(other.token_probs, rel=1e-4)


def test_greedy_is_the_argmax_of_every_step(llm: nn.Module, embeds: Tensor) -> None:
    found = Decoder(llm, STOPS, 6).greedy(given(embeds))
    lengths = set()
    for prefix, name in zip(embeds, found, strict=True):
        ids: list[int] = []
        probs = []
        for _ in range(6):
            chances = probabilities(llm, prefix, tuple(ids))
            token = int(chances.argmax())
            probs.append(float(chances[token]))
            if token in STOPS:
                break
            ids.append(token)
        assert name.ids == tuple(ids) and name.ended == (len(probs) > len(ids))
        assert name.token_probs == pytest.approx(probs, rel=1e-4)
        assert name.prob == pytest.approx(math.prod(probs[: len(ids)] or probs), rel=1e-3)
        lengths.add(len(ids))
    assert len(found) == len(embeds)


def test_rows_that_end_early_leave_the_others_as_they_are(llm: nn.Module, embeds: Tensor) -> None:
    """Stops are chosen so that the rows end at different steps."""
    free = Decoder(llm, (), 6).greedy(given(embeds))
    stops = tuple({name.ids[place] for place, name in enumerate(free[:3], 1)})
    together = Decoder(llm, stops, 6).greedy(given(embeds))
    assert len({len(name.ids) for name in together}) > 1
    for row, name in enumerate(together):
        alone = Decoder(llm, stops, 6).greedy(given(embeds[row : row + 1]))[0]
        assert alone.ids == name.ids and alone.token_probs == pytest.approx(name.token_probs, rel=1e-4)


def test_the_best_names_are_the_likeliest_of_all(llm: nn.Module, embeds: Tensor) -> None:
    """A search as wide as the vocabulary forgets nothing: it is the enumeration of all names of up to two tokens."""
    small = SmallVocabulary(llm, 12)
    wide = Decoder(small, (2, 0), NEW).best(given(embeds[:2]), 150)
    for prefix, names in zip(embeds[:2], wide, strict=True):
        words = [token for token in range(12) if token not in (2, 0)]
        sequences = [(*ids, stop) for n in range(NEW) for ids in itertools.product(words, repeat=n) for stop in (2, 0)]
        best: dict[tuple[int, ...], float] = {}
        for sequence in sequences:
            value = likelihood(small, prefix, sequence)
            best[sequence[:-1]] = max(best.get(sequence[:-1], 0.0), value)
        expected = sorted(best.values(), reverse=True)[:10]
        assert [name.sequence_prob for name in names[:10]] == pytest.approx(expected, rel=1e-3)


class SmallVocabulary(nn.Module):
    """An LLM that can say its first few tokens alone."""

    def __init__(self, llm: nn.Module, size: int) -> None:
        super().__init__()
        self.llm, self.size = llm, size

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def forward(self, **inputs: object) -> object:
        out = self.llm(**inputs)
        out.logits = out.logits[..., : self.size]
        return out
