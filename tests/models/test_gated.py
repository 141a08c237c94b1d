"""Gated layers within LLMs of several kinds: closed they change nothing, open they do, and they leave no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import randomise
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from osm.errors import OsmError
from osm.models import llm as llms
from osm.models.bridges.gated import FlamingoConfig, GatedLayers, hidden_width, repeated_blocks
from osm.models.llm_forward import LlmInputs
from osm.recognition.decode import Decoder
from osm.recognition.list_search import ListDecoder
from osm.recognition.vocabulary import Trie

SMALL: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
ROPE: dict[str, Any] = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**ROPE),
    "qwen2": Qwen2Config(**ROPE),
    "qwen3": Qwen3Config(**ROPE, head_dim=8),
    "gpt2": GPT2Config(vocab_size=61, n_embd=32, n_layer=4, n_head=4),
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=48),
    # Word embeddings that are narrower than its layers, as OPT-350m has.
    "opt": OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=24, tie_word_embeddings=False),
}
SIZES = FlamingoConfig(
    width=24, heads=2, layers=1, mlp_width=32, queries=3, every=2, gated_width=16, gated_heads=2, gated_mlp_width=20
)
STOPS = (2, 5)


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="sdpa").eval().requires_grad_(False)
    randomise(llm, 0)
    return llm


def gates(llm: nn.Module, seed: int = 0, opened: float = 0.0) -> GatedLayers:
    torch.manual_seed(seed)
    found = GatedLayers(SIZES, hidden_width(llm), len(repeated_blocks(llm)) // SIZES.every).eval()
    with torch.no_grad():
        for block in found.blocks:
            block.gate.fill_(opened)
            block.mlp_gate.fill_(-opened)
    return found


def tokens(rows: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(rows, 4, SIZES.width, generator=torch.Generator().manual_seed(seed))


def ids(rows: int, length: int = 7) -> Tensor:
    return torch.randint(6, 61, (rows, length), generator=torch.Generator().manual_seed(2))


def given(llm: nn.Module, layers: GatedLayers | None, rows: int, seed: int = 1) -> LlmInputs:
    text = ids(rows)
    gated_kv = None if layers is None else layers.project(tokens(rows, seed))
    return LlmInputs(llm.get_input_embeddings()(text), torch.ones_like(text), gated_kv)


def logits(llm: nn.Module, inputs: LlmInputs) -> Tensor:
    with inputs.conditioned():
        return llm(inputs_embeds=inputs.embeds_RTW, attention_mask=inputs.mask_RT).logits


@pytest.mark.parametrize("kind", CONFIGS)
def test_closed_gates_are_the_llm_itself_bitwise_and_opened_ones_are_not(kind: str) -> None:
    llm = make(kind)
    before, names = logits(llm, given(llm, None, 3)), list(llm.state_dict())
    layers = gates(llm)
    assert len(layers.blocks) == 2
    layers.attach(llm)
    for seed in (1, 2):
        assert torch.equal(logits(llm, given(llm, layers, 3, seed)), before)
    with torch.no_grad():
        layers.blocks[1].gate.fill_(0.7)
    found = logits(llm, given(llm, layers, 3))
    assert (found - before).abs().max() > 1e-3
    assert (logits(llm, given(llm, layers, 3, seed=2)) - found).abs().max() > 1e-4  # it depends on what is shown
    assert torch.equal(logits(llm, given(llm, None, 3)), before)  # nothing shown: as if they were not there
    assert list(llm.state_dict()) == names
    with pytest.raises(OsmError, match="already attached to an LLM"):
        layers.attach(llm)
    layers.detach()
    assert torch.equal(logits(llm, given(llm, layers, 3)), before)
    assert not any(module._forward_pre_hooks for module in llm.modules())


def reference(llm: nn.Module, layers: GatedLayers, row: Tensor, visual_ND: Tensor) -> Tensor:
    """Logits of one row of a Llama: its layers one after the other, the attention of the blocks written out."""
    model = llm.model
    hidden = model.embed_tokens(row)[None]
    places = torch.arange(len(row))[None]
    rotary = model.rotary_emb(hidden, places)
    before = torch.full((1, 1, len(row), len(row)), -torch.inf).triu(1)
    for number, layer in enumerate(model.layers):
        if (number + 1) % SIZES.every == 0:
            place = number // SIZES.every
            block, (key, value) = layers.blocks[place], layers.keys_values[place](visual_ND).chunk(2, -1)
            query = block.query(block.norm(hidden[0]))
            heads = []
            for head in range(SIZES.gated_heads):
                part = slice(head * 8, head * 8 + 8)
                weights = (query[:, part] @ key[:, part].T / 8**0.5).softmax(-1)
                heads.append(weights @ value[:, part])
            hidden = hidden + torch.tanh(block.gate * SIZES.gate_gain) * block.output(torch.cat(heads, -1))
            mlp = block.mlp_out(nn.functional.gelu(block.mlp_in(block.mlp_norm(hidden))))
            hidden = hidden + torch.tanh(block.mlp_gate * SIZES.gate_gain) * mlp
        hidden = layer(hidden, attention_mask=before, position_embeddings=rotary, position_ids=places)
    return llm.lm_head(model.norm(hidden))[0]


def test_a_batch_equals_the_reference_row_by_row() -> None:
    llm = make("llama")
    layers = gates(llm, opened=0.8)
    layers.attach(llm)
    found = logits(llm, given(llm, layers, 3))
    layers.detach()
    for row, visual_ND in enumerate(tokens(3)):
        expected = reference(llm, layers, ids(3)[row], visual_ND)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "opt", "qwen3"])
def test_with_a_cache_it_says_what_it_says_without(kind: str) -> None:
    """Greedy, with rows that leave the batch; a search's beams; a list's names; transformers' own generation."""
    llm = make(kind)
    layers = gates(llm, opened=1.5)
    layers.attach(llm)
    inputs = given(llm, layers, 6)

    def probabilities(row: int, said: tuple[int, ...]) -> Tensor:
        words = llm.get_input_embeddings()(torch.tensor([said], dtype=torch.long))
        one = inputs.select(torch.tensor([row]))
        embeds = torch.cat([one.embeds_RTW, words], 1)
        with torch.no_grad():
            return logits(llm, LlmInputs(embeds, torch.ones(embeds.shape[:2]).long(), one.gated_kv))[0, -1].softmax(-1)

    decoder = Decoder(llm, STOPS, 6)
    names = decoder.greedy(inputs)
    for row, name in enumerate(names):
        said: list[int] = []
        for prob in name.token_probs:
            best = probabilities(row, tuple(said)).max(-1)
            assert prob == pytest.approx(float(best.values), rel=1e-3)
            said.append(int(best.indices))
        assert name.ids == tuple(token for token in said if token not in STOPS)
    assert len({name.ids for name in names}) > 1
    with torch.no_grad():
        plain = llms.generate(llm, inputs, max_new_tokens=6, eos_token_id=list(STOPS))
        beams = llms.generate(llm, inputs, max_new_tokens=4, num_beams=3, eos_token_id=list(STOPS))
        alone = [
            llms.generate(llm, inputs.select(torch.tensor([r])), max_new_tokens=4, num_beams=3, eos_token_id=[2, 5])
            for r in range(6)
        ]
    for row, name in enumerate(names):
        assert tuple(plain[row, : len(name.ids)].tolist()) == name.ids
        assert torch.equal(beams[row, : alone[row].shape[1]], alone[row][0])
    listed = [(7, 8, 2), (9, 2), (7, 11, 12, 2)]
    scores = ListDecoder(llm).score(inputs, listed, at_once=4)
    found = ListDecoder(llm).likeliest(inputs, Trie(listed), 3, at_once=4)
    for row in range(6):
        for place, name in enumerate(listed):
            expected = sum(float(probabilities(row, name[:i]).log()[token]) for i, token in enumerate(name))
            assert float(scores[row, place]) == pytest.approx(expected, abs=1e-3)
        ordered = sorted(range(3), key=lambda place: -float(scores[row, place]))
        assert [name.ids for name in found[row].names] == [listed[place][:-1] for place in ordered]


def test_what_is_shown_must_fit_the_rows() -> None:
    llm = make("llama")
    layers = gates(llm)
    layers.attach(llm)
    with pytest.raises(OsmError, match=r"batch has 3 rows; expected a multiple of the number of masks \(2\)"):
        logits(llm, LlmInputs(given(llm, None, 3).embeds_RTW, ids(3) > 0, layers.project(tokens(2))))
    layers.detach()
    with pytest.raises(
        OsmError, match=r"model.bridge.every 2: an LLM with 4 layers needs 2 gated blocks, but the bridge has 3"
    ):
        GatedLayers(SIZES, 32, 3).attach(llm)
