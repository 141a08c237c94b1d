"""Decoding against slow and obvious references: every sequence of a tiny LLM, enumerated."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny import tiny_llm
from torch import Tensor, nn

from osm.models.llm_forward import LlmInputs
from osm.recognition.decode import Decoder
from osm.recognition.vocabulary import Trie

ROWS, LENGTH, NEW = 5, 7, 3
STOPS = (2, 0)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    torch.manual_seed(0)
    llm = tiny_llm(tmp_path_factory.mktemp("llm"))
    with torch.no_grad():
        llm.lm_head.weight.mul_(8)  # one that is sure of some words, so that names differ
    return llm.eval()


@pytest.fixture(scope="module")
def embeds(llm: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    width = llm.get_input_embeddings().embedding_dim
    return torch.randn(ROWS, LENGTH, width, generator=generator)


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
    trie = Trie([[5, 2], [6, 7, 2]])
    assert static.greedy(given(embeds[:rows]), trie) == Decoder(llm, STOPS, 6).greedy(given(embeds[:rows]), trie)


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
    assert len(found) == ROWS


def test_rows_that_end_early_leave_the_others_as_they_are(llm: nn.Module, embeds: Tensor) -> None:
    """Stops are chosen so that the rows end at different steps."""
    free = Decoder(llm, (), 6).greedy(given(embeds))
    stops = tuple({name.ids[place] for place, name in enumerate(free[:3], 1)})
    together = Decoder(llm, stops, 6).greedy(given(embeds))
    assert len({len(name.ids) for name in together}) > 1
    for row, name in enumerate(together):
        alone = Decoder(llm, stops, 6).greedy(given(embeds[row : row + 1]))[0]
        assert alone.ids == name.ids and alone.token_probs == pytest.approx(name.token_probs, rel=1e-4)


NAMES = [(10, 11, 2), (10, 12, 2), (10, 2), (13, 2), (14, 15, 2), (14, 15, 16, 2)]


def test_a_list_is_scored_exactly(llm: nn.Module, embeds: Tensor) -> None:
    decoder = Decoder(llm, STOPS, 6)
    found = decoder.score(given(embeds), NAMES)
    for row, prefix in enumerate(embeds):
        expected = [math.log(likelihood(llm, prefix, name)) for name in NAMES]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(decoder.score(given(embeds), NAMES, at_once=2), found, atol=1e-5, rtol=1e-5)


def in_trie(llm: nn.Module, prefix: Tensor, name: tuple[int, ...]) -> float:
    """The probability of a name where at each step only what the list allows is."""
    prob = 1.0
    for i, token in enumerate(name):
        allowed = {other[i] for other in NAMES if len(other) > i and other[:i] == name[:i]}
        chances = probabilities(llm, prefix, name[:i])
        prob *= float(chances[token] / sum(chances[a] for a in allowed))
    return prob


def test_only_names_of_the_list_come_out_and_their_probabilities_sum_to_1(llm: nn.Module, embeds: Tensor) -> None:
    decoder, trie = Decoder(llm, STOPS, 6), Trie(NAMES)
    everything = decoder.best(given(embeds), len(NAMES), trie)
    greedy = decoder.greedy(given(embeds), trie)
    for prefix, names, first in zip(embeds, everything, greedy, strict=True):
        assert sorted((*name.ids, 2) for name in names) == sorted(NAMES)
        assert sum(name.sequence_prob for name in names) == pytest.approx(1, abs=1e-4)
        for name in names:
            assert name.sequence_prob == pytest.approx(in_trie(llm, prefix, (*name.ids, 2)), rel=1e-3)
        probs = [name.sequence_prob for name in names]
        assert probs == sorted(probs, reverse=True)
        assert (*first.ids, 2) in NAMES and first.ended
        assert first.sequence_prob == pytest.approx(in_trie(llm, prefix, (*first.ids, 2)), rel=1e-3)


def test_the_llm_does_not_read_the_rest_of_the_only_name_that_is_left(llm: nn.Module, embeds: Tensor) -> None:
    reads: list[int] = []
    handle = llm.register_forward_hook(lambda *_: reads.append(1))
    try:
        for names, passes in (([(5, 6, 7, 2), (8, 9, 2), (10, 2)], 1), ([(5, 6, 7, 2), (5, 8, 9, 2)], 2)):
            decoder, trie = Decoder(llm, STOPS, 6), Trie(names)
            found, agreed = decoder.greedy(given(embeds), trie), decoder.agreed(given(embeds[:1]), trie)
            assert len(reads) == 2 * passes
            reads.clear()
            assert all((*name.ids, 2) in names and name.ended for name in found)
            assert all(len(name.token_probs) == len(name.ids) + 1 for name in found)
            assert agreed.ids == found[0].ids and agreed.token_probs == pytest.approx(found[0].token_probs, rel=1e-4)
    finally:
        handle.remove()


def test_a_name_of_a_list_is_never_cut(llm: nn.Module, embeds: Tensor) -> None:
    long = [(5, 6, 7, 8, 2), (5, 6, 7, 9, 2)]
    decoder, trie = Decoder(llm, STOPS, 2), Trie(long)
    for first, names in zip(decoder.greedy(given(embeds), trie), decoder.best(given(embeds), 2, trie), strict=True):
        assert (*first.ids, 2) in long and first.ended
        assert sorted((*name.ids, 2) for name in names) == long and all(name.ended for name in names)
        assert sum(name.sequence_prob for name in names) == pytest.approx(1, abs=1e-4)
    assert all(len(name.ids) <= 2 for name in decoder.greedy(given(embeds)))  # said freely, it is


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
