"""The LLM's cache under each of its names, and decoding without one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import randomise, tiny_llama_config
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from osm.errors import OsmError
from osm.models.llm_forward import (
    LlmInputs,
    LlmSupport,
    cache_argument,
    read_prefix,
    read_tokens,
    select_rows,
    set_llm_support,
)


class Renamed(nn.Module):
    """A Llama whose cache has another name in `forward` and in its output."""

    def __init__(self, llm: nn.Module) -> None:
        super().__init__()
        self.llm = llm
        self.calls: list[int] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def run(self, name: str, cache: Any, **given: Any) -> Any:
        self.calls.append((given["input_ids"] if "input_ids" in given else given["inputs_embeds"]).shape[1])
        out = self.llm(cache=cache, **given)
        return SimpleNamespace(logits=out.logits, **{name: out.cache})


class Old(Renamed):
    def forward(self, past_key_values: Any = None, **given: Any) -> Any:
        return self.run("past_key_values", past_key_values, **given)


class StateSpace(Renamed):
    def forward(self, cache_params: Any = None, **given: Any) -> Any:
        return self.run("cache_params", cache_params, **given)


class Swallows(Renamed):
    """Takes a cache under no name, and any argument."""

    def forward(self, **given: Any) -> Any:
        return self.run("nothing", None, **given)


@pytest.fixture(scope="module")
def llama() -> Iterator[nn.Module]:
    llm = LlamaForCausalLM(tiny_llama_config(97)).eval()
    randomise(llm, 0)
    yield llm


def given(llm: nn.Module) -> tuple[LlmInputs, Tensor, Tensor]:
    """A prefix of 4 positions, the 3 tokens after it, and the logits (3, 7, V) without any cache."""
    ids = torch.randint(97, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeds = llm.get_input_embeddings()(ids[:, :4])
        return LlmInputs(embeds, torch.ones(3, 4).long()), ids[:, 4:], llm(input_ids=ids, use_cache=False).logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name", "lengths"),
    [
        (None, "cache", None),
        (Old, "past_key_values", [4, 1, 1, 2]),
        (StateSpace, "cache_params", [4, 1, 1, 2]),
        (Swallows, None, [4, 5, 6, 6]),
    ],
)
def test_what_came_before_is_not_forgotten(
    kind: type[Renamed] | None, name: str | None, lengths: list[int] | None, llama: nn.Module
) -> None:
    inputs, ids, expected = given(llama)
    llm = llama if kind is None else kind(llama)
    assert cache_argument(llm) == name
    logits, state = read_prefix(llm, inputs)
    torch.testing.assert_close(logits, expected[:, 3], atol=1e-5, rtol=1e-4)
    copied = state.copied([2, 0, 2, 1])
    logits, copied = read_tokens(llm, ids[[2, 0, 2, 1], :1].tolist(), copied)
    torch.testing.assert_close(logits, expected[[2, 0, 2, 1], 4], atol=1e-5, rtol=1e-4)
    copied = copied.keep([3, 0])
    logits, _ = read_tokens(llm, ids[[1, 2], 1:2].tolist(), copied)
    torch.testing.assert_close(logits, expected[[1, 2], 5], atol=1e-5, rtol=1e-4)
    logits, state = read_tokens(llm, ids[:, :2].tolist(), state, every_position=True)
    torch.testing.assert_close(logits, expected[:, 4:6], atol=1e-5, rtol=1e-4)
    if isinstance(llm, Renamed):
        assert llm.calls == lengths


@torch.no_grad()
def test_a_cache_is_left_out_or_read_one_by_one(llama: nn.Module) -> None:
    inputs, ids, expected = given(llama)
    llm = Old(llama)
    for support, lengths in ((LlmSupport(cache=False), [4, 7]), (LlmSupport(chunks=False), [4, 1, 1, 1])):
        set_llm_support(llm, support)
        llm.calls.clear()
        _, state = read_prefix(llm, inputs)
        logits, state = read_tokens(llm, ids.tolist(), state, every_position=True)
        torch.testing.assert_close(logits, expected[:, 4:], atol=1e-5, rtol=1e-4)
        assert llm.calls == lengths and state.length == 7


def test_a_cache_that_cannot_select_rows_says_so() -> None:
    with pytest.raises(
        OsmError, match=r"the LLM's cache \(SimpleNamespace\) does not support row selection; set model.llm.self_check"
    ):
        select_rows(SimpleNamespace(layers=[]), torch.tensor([0]))
