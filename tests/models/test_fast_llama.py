"""A fast Llama gives what transformers' layers give."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from osm.models import fast_llama as fast_module
from osm.models import llm as llms
from osm.models.fast_llama import KeyValues, fast_llama, make_fast
from osm.models.llm_forward import LlmInputs, read_prefix, read_tokens
from osm.models.lora import LoraConfig, add_lora
from osm.models.packed_linear import PackedLinear, is_packing_right, pack_linears

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
}
ROPE = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE["original_max_position_embeddings"] = 16
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "all heads have keys": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 64},
    "scaled positions": {"rope_parameters": ROPE},
    "qwen2": {},
}
pytestmark = pytest.mark.skipif(not is_packing_right(), reason="this PyTorch has no packed product")


def make(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    given = {"tie_word_embeddings": False, **SIZES, **KINDS[kind]}
    llm = Qwen2ForCausalLM(Qwen2Config(**given)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**given))
    for name, parameter in llm.named_parameters():
        if "norm" in name or "bias" in name:  # ones or zeros at first
            parameter.data += 0.3 * torch.randn_like(parameter)
        elif "proj" in name:
            parameter.data *= 8  # so that no layer is negligible
    return llm.eval().requires_grad_(False)


def fast(plain: Any) -> Any:
    llm = copy.deepcopy(plain)
    pack_linears(llm)
    assert make_fast(llm) and fast_llama(llm) is not None
    return llm


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits_with_the_cache(kind: str) -> None:
    """A prefix, single tokens beyond the cache's room, several tokens at once, and other rows."""
    plain = make(kind)
    llm, embeds, words = fast(plain), torch.randn(5, 7, 128), plain.get_input_embeddings()
    ids = torch.randint(101, (5, 30))

    def expected(rows: list[int], tokens: int, kept: int = 1) -> Tensor:
        whole = torch.cat([embeds, words(ids[:, :tokens])], 1)[rows]
        return plain(inputs_embeds=whole, use_cache=False).logits[:, -kept:]

    logits, state = read_prefix(llm, LlmInputs(embeds, torch.ones(5, 7)))
    close(logits, expected([0, 1, 2, 3, 4], 0)[:, 0])
    for step in range(20):
        logits, state = read_tokens(llm, ids[:, step : step + 1].tolist(), state)
        close(logits, expected([0, 1, 2, 3, 4], step + 1)[:, 0])
    other = state.copied([4, 4, 0])
    found, _ = read_tokens(llm, ids[[4, 4, 0], 20:23].tolist(), other, every_position=True)
    close(found, expected([4, 4, 0], 23, 3))
    state = state.keep([0, 2, 3])  # the copy has not changed the original
    found, state = read_tokens(llm, ids[[0, 2, 3], 20:24].tolist(), state)
    close(found, expected([0, 2, 3], 24)[:, 0])
    found, _ = read_tokens(llm, ids[[0, 2, 3], 24:25].tolist(), state)
    close(found, expected([0, 2, 3], 25)[:, 0])


@torch.inference_mode()
def test_a_long_prefix() -> None:
    plain = make()
    embeds = torch.randn(2, fast_module._SHORT + 9, 128)
    logits, state = read_prefix(fast(plain), LlmInputs(embeds, torch.ones(2, embeds.shape[1])))
    close(logits, plain(inputs_embeds=embeds, use_cache=False).logits[:, -1])
    assert state.length == embeds.shape[1]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_and_gradients(kind: str, padding: str, smoothing: float) -> None:
    plain = make(kind)
    llm = fast(plain)
    embeds, mask = torch.randn(4, 9, 128, requires_grad=True), torch.ones(4, 9, dtype=torch.long)
    labels = torch.randint(101, (4, 9))
    labels[:, :3] = labels[1, 5] = labels[3] = -100
    for row in range(4 if padding != "none" else 0):
        place = slice(9 - row, None) if padding == "right" else slice(0, row)
        mask[row, place], labels[row, place] = 0, -100

    def results(one: Any) -> tuple[Tensor, ...]:
        losses, counts, right = llms.token_losses(one, LlmInputs(embeds, mask), labels, True, smoothing)
        (gradient,) = torch.autograd.grad((losses * torch.arange(1.0, 5)).sum(), embeds)
        return losses.detach(), gradient, counts, right

    found, expected = results(llm), results(plain)
    close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-3 * float(expected[1].abs().max()), rtol=0)
    assert torch.equal(found[2], expected[2]) and torch.equal(found[3], expected[3])
    assert right_answers(llm, embeds, mask).all()


def right_answers(llm: Any, embeds: Tensor, mask: Tensor) -> Tensor:
    """Return whether each row counts as right if its labels are the most likely next tokens."""
    likeliest = llm(inputs_embeds=embeds, attention_mask=mask, position_ids=llms.positions(mask)).logits.argmax(-1)
    labels = likeliest.roll(1, 1).masked_fill(mask == 0, -100)
    labels[torch.arange(len(labels)), mask.argmax(1)] = -100  # nothing predicts a row's first token
    return llms.token_losses(llm, LlmInputs(embeds, mask), labels, scored=True)[2]


def test_a_batch_with_nothing_supervised() -> None:
    embeds = torch.randn(2, 5, 128, requires_grad=True)
    losses, counts = llms.token_losses(fast(make()), LlmInputs(embeds, torch.ones(2, 5)), torch.full((2, 5), -100))
    losses.sum().backward()
    assert not losses.any() and not counts.any() and embeds.grad is not None and not embeds.grad.any()


@torch.no_grad()
def test_autocast_uses_the_layers_of_transformers() -> None:
    llm, embeds = fast(make()), torch.randn(2, 5, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_llama(llm, embeds) is None
    assert fast_llama(llm, embeds) is not None and fast_llama(llm, embeds.double()) is None


def test_an_llm_that_computes_something_else_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(llm: Any) -> bool:
        return not make_fast(llm) and fast_llama(llm) is None

    assert refused(make())  # its layers are not packed
    changed = make()
    pack_linears(changed)
    changed.model.layers[1].self_attn.scaling = 0.5
    assert refused(changed)
    hooked = make()
    pack_linears(hooked)
    hooked.model.layers[0].register_forward_hook(lambda *_: None)
    assert refused(hooked)
    adapted = make()
    add_lora(adapted, LoraConfig(rank=2))
    pack_linears(adapted)
    assert refused(adapted)
    wide = make()
    pack_linears(wide)
    monkeypatch.setattr(fast_module, "_WIDEST", 64)
    assert refused(wide)


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 4, 2], [4, 3], [2, 0], [1, 1, 3, 0, 4, 2, 2], [3], []])
def test_rows_of_a_cache(rows: list[int]) -> None:
    cache = KeyValues(torch.randn(2, 2, 5, 3, 8, 4), length=6)
    before, place = cache.values.clone(), cache.values.data_ptr()
    copied = cache.selected(torch.tensor(rows, dtype=torch.long))
    assert torch.equal(cache.values, before)
    cache.reorder_cache(torch.tensor(rows, dtype=torch.long))
    few_moves = rows in ([0, 1, 2], [0, 4, 2], [4, 3], [3])
    assert not rows or (cache.values.data_ptr() == place) == few_moves
    for one in (cache, copied):
        assert torch.equal(one.values, before[:, :, rows]) and one.length == 6
        keys = torch.randn(len(rows), 3, 5, 4)  # more than there is room for
        found, _ = one.add(1, keys, keys)
        assert torch.equal(found, torch.cat([before[1, 0, rows][:, :, :6], keys], 2))


def test_a_weight_that_is_loaded_later_counts() -> None:
    llm, embeds = fast(make()), torch.randn(2, 5, 128)
    other = {name: value + 0.1 * torch.randn_like(value) for name, value in make().state_dict().items()}
    llm.load_state_dict(other)
    assert fast_llama(llm, embeds) is None
    plain = make()
    plain.load_state_dict(other)
    with torch.no_grad():
        logits, _ = read_prefix(llm, LlmInputs(embeds, torch.ones(2, 5)))
        close(logits, plain(inputs_embeds=embeds, use_cache=False).logits[:, -1])


def test_a_prefix_can_be_differentiated() -> None:
    plain, embeds = make(), torch.randn(2, 5, 128, requires_grad=True)
    found, expected = (
        torch.autograd.grad(read_prefix(llm, LlmInputs(embeds, torch.ones(2, 5)))[0].sum(), embeds)[0]
        for llm in (fast(plain), plain)
    )
    close(found, expected)


def test_an_llm_is_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        llm = fast(make())
        gone = weakref.ref(llm.model)
        del llm
        assert gone() is None
    finally:
        gc.enable()


def test_a_missing_operator_leaves_the_llm_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make()
    pack_linears(llm)

    def missing(*_: Any) -> Any:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(PackedLinear, "plus", missing)
    assert not make_fast(llm) and fast_llama(llm) is None


@torch.inference_mode()
def test_rows_that_begin_alike_share_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adjacent rows, up to the first difference. The logits and the cache are those of separate rows."""
    plain = make()
    llm, embeds = fast(plain), torch.randn(6, 8, 128)
    embeds[1:, :2] = embeds[0, :2]  # a prompt
    embeds[1, :5] = embeds[0, :5]
    embeds[3, 6:] = embeds[2, 6:]  # alike only after a difference
    embeds[5] = embeds[4]
    read = tokens_of_first_layer(llm, monkeypatch)
    logits, state = read_prefix(llm, LlmInputs(embeds, torch.ones(6, 8)))
    close(logits, plain(inputs_embeds=embeds, use_cache=False).logits[:, -1])
    assert read == [rounded_up(2 + 3 + 2 * 3 + 3 * 6)]
    ids = torch.randint(101, (6, 1))
    whole = torch.cat([embeds, plain.get_input_embeddings()(ids)], 1)
    found, _ = read_tokens(llm, ids.tolist(), state)
    close(found, plain(inputs_embeds=whole, use_cache=False).logits[:, -1])


def rounded_up(tokens: int) -> int:
    return -(-tokens // fast_module._MULTIPLE) * fast_module._MULTIPLE


def tokens_of_first_layer(llm: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of tokens of each run of the LLM."""
    read: list[int] = []
    first: Any = fast_llama(llm).layers[0].qkv  # type: ignore[union-attr]
    forward = PackedLinear.forward

    def counted(self: PackedLinear, x: Tensor) -> Tensor:
        if self is first:
            read.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(PackedLinear, "forward", counted)
    return read


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_rows_that_begin_alike(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only constant positions are shared. Rows that are equal nevertheless have their own gradients."""
    plain = make()
    llm, words, ids = fast(plain), torch.randn(4, 9, 128), torch.randint(101, (4, 9))
    words[1:, :3] = words[0, :3]
    words[1] = words[0]
    labels, mask = ids.clone(), torch.ones(4, 9, dtype=torch.long)
    labels[:, :5] = -100
    if padded:
        mask[0, 7:], labels[0, 7:], mask[3, 8:], labels[3, 8:] = 0, -100, 0, -100
    embeds = words.requires_grad_()
    read = tokens_of_first_layer(llm, monkeypatch)

    def results(one: Any) -> tuple[Tensor, Tensor]:
        losses = llms.token_losses(one, LlmInputs(embeds, mask, constant=3), labels)[0]
        (gradient,) = torch.autograd.grad((losses * torch.arange(1.0, 5)).sum(), embeds)
        return losses.detach(), gradient[:, 3:]

    found, expected = results(llm), results(plain)
    close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-3 * float(expected[1].abs().max()), rtol=0)
    assert read == [rounded_up(int(mask.sum()) - 3 * 3)]
