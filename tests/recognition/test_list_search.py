"""The names of a list against a slow and obvious reference: a tiny LLM reads every name alone, without a cache."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from osm.models.llm_forward import LlmInputs
from osm.recognition.list_search import LikeliestNames, LikelyName, ListDecoder
from osm.recognition.vocabulary import Trie

END = 2
NAMES = [(10, 11, 2), (10, 12, 2), (10, 2), (13, 2), (14, 15, 2), (14, 15, 16, 2)]
Name = tuple[int, ...]


@contextlib.contextmanager
def less_sure(llm: nn.Module, factor: float) -> Iterator[None]:
    """Multiplies the logits by a factor for a while."""
    kept = llm.lm_head.weight.detach().clone()
    with torch.no_grad():
        llm.lm_head.weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            llm.lm_head.weight.copy_(kept)


def given(embeds: Tensor) -> LlmInputs:
    return LlmInputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.long))


@torch.no_grad()
def token_log_probs(llm: nn.Module, prefix: Tensor, name: Name) -> list[float]:
    """Of each token of a name, from the whole text and without any cache."""
    words = llm.get_input_embeddings()(torch.tensor(name[:-1], dtype=torch.long))
    logits = llm(inputs_embeds=torch.cat([prefix, words])[None]).logits[0, len(prefix) - 1 :].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(name)[:, None])[:, 0].tolist()


def reference(llm: nn.Module, prefixes: Tensor, names: list[Name]) -> list[tuple[float, Name, list[float]]]:
    """Every name, the likeliest first, with the log-probabilities of its tokens, averaged over the prefixes."""
    found = []
    for name in names:
        each = [token_log_probs(llm, prefix, name) for prefix in prefixes]
        mean = [math.fsum(of_token) / len(prefixes) for of_token in zip(*each, strict=True)]
        found.append((math.fsum(mean), name, mean))
    return sorted(found, reverse=True)


def check(found: LikeliestNames, expected: list[tuple[float, Name, list[float]]], count: int) -> None:
    assert [(*name.ids, END) for name in found.names[:count]] == [name for _, name, _ in expected[:count]]
    known = {name: (likelihood, log_probs) for likelihood, name, log_probs in expected}
    for one in found.names:
        likelihood, log_probs = known.pop((*one.ids, END))
        assert one.log_probs == pytest.approx(log_probs, abs=1e-3)
        assert one.log_likelihood == pytest.approx(likelihood, abs=1e-3)
        assert math.prod(one.token_probs) == pytest.approx(math.exp(likelihood), rel=1e-2)
    assert [one.log_likelihood for one in found.names] == sorted((o.log_likelihood for o in found.names), reverse=True)
    # The bound is at least the summed likelihoods of the names that are left, and at most 1.
    others = math.fsum(math.exp(likelihood) for likelihood, _ in known.values())
    assert others * (1 - 1e-3) <= math.exp(found.log_others) <= 1 + 1e-3


def random_names(seed: int, count: int, tokens: int) -> list[Name]:
    """Names of 1 to 4 tokens out of a few, so that many of them begin alike."""
    draw = random.Random(seed)
    names: set[Name] = set()
    while len(names) < count:
        names.add((*(draw.randint(5, 4 + tokens) for _ in range(draw.randint(1, 4))), END))
    return sorted(names)


@pytest.mark.parametrize("at_once", [1, 7, 256])
@pytest.mark.parametrize(("seed", "listed", "tokens"), [(0, 40, 4), (1, 40, 20), (2, 3, 3), (3, 1, 3), (4, 90, 6)])
def test_the_search_finds_what_reading_every_name_finds(
    llm: nn.Module, embeds: Tensor, seed: int, listed: int, tokens: int, at_once: int
) -> None:
    names = random_names(seed, listed, tokens)
    for count in {1, min(3, listed), listed}:
        found = ListDecoder(llm).likeliest(given(embeds), Trie(names), count, at_once=at_once)
        for prefix, result in zip(embeds, found, strict=True):
            check(result, reference(llm, prefix[None], names), count)
            assert (result.log_others == -math.inf) == (len(result.names) == listed)
            total = math.fsum(math.exp(one.log_likelihood) for one in result.names)
            # Any beginning that was not read is smaller than a tenth of what was.
            assert math.exp(result.log_others) <= 0.1 * total * (listed - len(result.names)) * (1 + 1e-3)


@pytest.mark.parametrize("names", [[(5, 6, 2), (5, 6, 7, 2)], [(5, 6, 7, 2), (5, 6, 8, 2)], [(5, 2)], [(5, 6, 2)]])
def test_names_that_all_begin_alike(llm: nn.Module, embeds: Tensor, names: list[Name]) -> None:
    for prefix, result in zip(embeds, ListDecoder(llm).likeliest(given(embeds), Trie(names), 9), strict=True):
        check(result, reference(llm, prefix[None], names), len(names))


@pytest.mark.parametrize("at_once", [1, 2, 4, 256])
def test_rows_that_show_the_same_thing_agree(llm: nn.Module, embeds: Tensor, at_once: int) -> None:
    names = random_names(5, 30, 5)
    for count in (1, 4):
        decoder = ListDecoder(llm)
        [found] = decoder.likeliest(given(embeds[:3]), Trie(names), count, at_once=at_once, together=True)
        check(found, reference(llm, embeds[:3], names), count)
    [alone] = ListDecoder(llm).likeliest(given(embeds[:1]), Trie(names), 2, together=True)
    assert alone == ListDecoder(llm).likeliest(given(embeds[:1]), Trie(names), 2)[0]


def test_a_list_is_scored_exactly(llm: nn.Module, embeds: Tensor) -> None:
    decoder = ListDecoder(llm)
    found = decoder.score(given(embeds), NAMES)
    for row, prefix in enumerate(embeds):
        expected = [math.fsum(token_log_probs(llm, prefix, name)) for name in NAMES]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(decoder.score(given(embeds), NAMES, at_once=2), found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_likelihood_of_a_class_is_the_sum_over_its_names(llm: nn.Module, embeds: Tensor, count: int) -> None:
    """With several divisions of the same names into classes."""
    names = random_names(6, 40, 6)
    changed = 0
    for seed in range(4):
        draw = random.Random(seed)
        classes = {name[:-1]: draw.randrange(7) for name in names}
        with less_sure(llm, 0.01):
            found = ListDecoder(llm).likeliest(given(embeds), Trie(names), count, classes)
            expected = [reference(llm, prefix[None], names) for prefix in embeds]
        for of_row, result in zip(expected, found, strict=True):
            check(result, of_row, 0)
            assert ordered(result.names, classes)[:count] == ordered_classes(of_row, classes)[:count]
            changed += classes[of_row[0][1][:-1]] != ordered_classes(of_row, classes)[0]
    assert changed  # the class of the most likely name is not always the most likely class


def ordered_classes(names: list[tuple[float, Name, list[float]]], classes: dict[Name, int]) -> list[int]:
    sums: dict[int, float] = {}
    for likelihood, name, _ in names:
        sums[classes[name[:-1]]] = sums.get(classes[name[:-1]], 0.0) + math.exp(likelihood)
    return sorted(sums, key=lambda number: -sums[number])


def ordered(names: list[LikelyName], classes: dict[Name, int]) -> list[int]:
    return ordered_classes([(one.log_likelihood, (*one.ids, END), []) for one in names], classes)


class Reads:
    """The shapes (rows, positions) of what an LLM reads."""

    def __init__(self, llm: nn.Module) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.handle = llm.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, llm: nn.Module, args: Any, given: dict[str, Any]) -> None:
        self.shapes.append(tuple(given.get("input_ids", given.get("inputs_embeds")).shape[:2]))

    def __enter__(self) -> list[tuple[int, ...]]:
        return self.shapes

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


@pytest.mark.parametrize("at_once", [3, 16])
def test_no_more_rows_at_once_than_allowed(llm: nn.Module, embeds: Tensor, at_once: int) -> None:
    names = random_names(7, 60, 8)
    with Reads(llm) as read:
        ListDecoder(llm).likeliest(given(embeds), Trie(names), 20, at_once=at_once)
        assert max(rows for rows, _ in read[1:]) == at_once
        read.clear()
        ListDecoder(llm).likeliest(given(embeds[:3]), Trie(names), 20, at_once=at_once, together=True)
        assert max(rows for rows, _ in read[1:]) == at_once // 3 * 3


def test_many_names_that_are_about_equally_likely_take_few_passes(llm: nn.Module, embeds: Tensor) -> None:
    names = [(first, second, END) for first in range(5, 105) for second in range(105, 115)]
    with less_sure(llm, 1e-3):
        with Reads(llm) as read:
            [found] = ListDecoder(llm).likeliest(given(embeds[:1]), Trie(names), 1, at_once=10_000)
        check(found, reference(llm, embeds[:1], names), 0)
    assert len(read) < 16


def test_the_llm_reads_only_names_that_may_be_the_likeliest(llm: nn.Module, embeds: Tensor) -> None:
    """Two passes: the prefixes, and a name that is more likely than the first tokens of all others."""
    prefix, said = embeds[0], []
    for _ in range(5):  # what the LLM says itself, so that the name is likely
        words = llm.get_input_embeddings()(torch.tensor(said, dtype=torch.long))
        with torch.no_grad():
            said.append(int(llm(inputs_embeds=torch.cat([prefix, words])[None]).logits[0, -1].argmax()))
    end, firsts = said[-1], [token for token in range(5, 60) if token not in said][:20]
    listed = [tuple(said), *((token, other, end) for token in firsts for other in range(60, 70))]
    bounds = [token_log_probs(llm, prefix, (token, end))[0] for token in firsts]
    own = math.fsum(token_log_probs(llm, prefix, tuple(said)))
    assert end not in said[:-1] and own + math.log(0.1) > max(bounds)
    with Reads(llm) as read:
        [found] = ListDecoder(llm).likeliest(given(embeds[:1]), Trie(listed), 1)
    assert [name.ids for name in found.names] == [tuple(said[:-1])]
    assert read == [
        (1, embeds.shape[1]),
        (8, 4),
    ]  # as few rows take no longer than one, eight beginnings are read at once
    assert math.exp(found.log_others) <= math.fsum(map(math.exp, bounds))
    # Next to another row, only the most likely beginning is read.
    with Reads(llm) as read:
        ListDecoder(llm).likeliest(given(embeds[:1].expand(8, -1, -1)), Trie(listed), 1)
    assert read == [(8, embeds.shape[1]), (8, 4)]
