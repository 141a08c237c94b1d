"""LoRA and 8- or 4-bit LLMs, with both bridges."""

from __future__ import annotations

import builtins
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families_llms import FAMILIES, tiny_llm_of
from test_flamingo import batch, logits
from tiny import tiny_instructblip, tiny_llm, tiny_model_section
from transformers import LlamaConfig, LlamaForCausalLM

import osm
from osm.config import from_dict
from osm.data.processor import Processor
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.bridges import BRIDGES
from osm.models.factory import build, load_folder
from osm.models.llm import load_llm
from osm.models.lora import add_lora, blank, lora_parameters, without_lora
from osm.models.model_config import LlmConfig, LoraConfig, ModelConfig, load_model_config
from osm.models.osm import OmniScientModel
from osm.models.quantize import check_device, check_works
from osm.models.weights import fingerprint, fingerprint_tensors

LORA = {"rank": 3, "alpha": 6.0, "dropout": 0.5}


def make(folder: Path, variant: str = "flamingo", **changes: Any) -> tuple[OmniScientModel, Processor]:
    section = tiny_model_section(folder, variant=variant)
    section["llm"] |= changes.pop("llm", {})
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump({"model": {**section, **changes}}))
    torch.manual_seed(0)
    return build(load_model_config(str(path)))


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_lora_starts_as_no_change_and_is_trained_beside_the_bridge(variant: str, tmp_path: Path) -> None:
    plain, _ = make(tmp_path, variant)
    model, processor = make(tmp_path, variant, lora=LORA)
    inputs = batch(processor)
    torch.testing.assert_close(logits(model, inputs), logits(plain, inputs))
    # The frozen LLM is the same one, whatever stands within it.
    assert checkpoint.frozen_hashes(model) == checkpoint.frozen_hashes(plain)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {f"llm.{name}" for name in lora_parameters(model.llm)}
    assert len(own) == 2 * 2 * 7 and own < trained and not any("lm_head" in name for name in own)

    frozen = {name: p.clone() for name, p in model.llm.named_parameters() if f"llm.{name}" not in own}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    moved: set[str] = set()
    for _ in range(2):
        model.train()
        assert all(m.training for n, m in model.llm.named_modules() if n.endswith("lora_dropout"))
        assert not model.llm.training and not model.llm.model.layers[0].training
        model(**inputs).backward()
        moved |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert own <= moved and not any(m.training for m in model.modules())
    assert all(torch.equal(dict(model.llm.named_parameters())[name], value) for name, value in frozen.items())
    model.hold_frozen(torch.bfloat16)
    assert {p.dtype for p in lora_parameters(model.llm).values()} == {torch.float32}
    assert model.llm.model.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_its_files_hold_lora_and_the_bridge_alone(variant: str, tmp_path: Path) -> None:
    model, processor = make(tmp_path, variant, lora=LORA)
    with torch.no_grad():
        for parameter in [*lora_parameters(model.llm).values(), *model.bridge.parameters()]:
            parameter.normal_(std=0.2)
    inputs = batch(processor)
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_folder(tmp_path / "saved")[0], inputs), expected)
    held = checkpoint.read_folder(tmp_path / "saved")[1]
    assert sum(name.startswith("lora.") for name in held) == 28 and not any(name.startswith("llm.") for name in held)

    # A bridge that was trained without is a start; a model without LoRA does not take one with it.
    plain, _ = make(tmp_path, variant)
    plain.save_pretrained(tmp_path / "plain")
    again, _ = make(tmp_path, variant, lora=LORA)
    checkpoint.start_from(again, tmp_path / "plain")
    torch.testing.assert_close(logits(again, inputs), logits(plain, inputs))
    with pytest.raises(OsmError, match=r"unexpected: lora\.model\.layers\.0\.mlp"):
        checkpoint.start_from(plain, tmp_path / "saved")


def test_only_the_named_matrices_are_changed(tmp_path: Path) -> None:
    model, _ = make(tmp_path, lora={"rank": 2, "targets": ["q_proj", "v_proj"]})
    assert {name.split(".")[4] for name in lora_parameters(model.llm)} == {"q_proj", "v_proj"}
    for wrong in ("nothing", "embed_tokens", "q_pro"):
        with pytest.raises(
            OsmError,
            match=rf"model.lora.targets: '{wrong}' is not a linear layer of this LLM; its linear layers are down_proj",
        ):
            make(tmp_path, lora={"rank": 2, "targets": ["q_proj", wrong]})


def test_an_llm_with_lora_within_is_not_taken_for_a_plain_one() -> None:
    base = tiny_instructblip()
    config = ModelConfig(base_model_name="b", lora=LoraConfig(rank=2))
    OmniScientModel.from_instructblip(base, 56, 28, 28, config=config)
    for again in (config, ModelConfig(base_model_name="b")):
        with pytest.raises(OsmError, match="already contains the LoRA layers of another model; load the LLM again"):
            OmniScientModel.from_instructblip(base, 56, 28, 28, config=again)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"flamingo": {"gate_gain": 3.0}}, "model.bridge.gate_gain was 1.0, and is 3.0"),
        ({"flamingo": {"gated_heads": 4}}, "model.bridge.gated_heads was 2, and is 4"),
        ({"lora": {"alpha": 2.0}}, "model.lora.alpha was 6.0, and is 2.0"),
    ],
)
def test_settings_that_no_shape_tells_are_compared(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    """Weights under another gain, or with other heads, are another model, and fit all the same."""
    make(tmp_path, lora=LORA)[0].save_pretrained(tmp_path / "saved")
    sizes = tiny_model_section(tmp_path, variant="flamingo")["flamingo"]
    lora = {**LORA, "dropout": 0.0, **change.get("lora", {})}  # dropout is no part of what they mean
    model, _ = make(tmp_path, lora=lora, flamingo={**sizes, **change.get("flamingo", {})})
    with pytest.raises(OsmError, match=f"so its weights are not compatible: {named}$"):
        checkpoint.start_from(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"lora": {"rank": -1}}, "model.lora.rank -1 is not between 0 and 4096"),
        ({"lora": {"rank": 2, "alpha": 0}}, "model.lora.alpha 0.0 must be greater than 0"),
        ({"lora": {"rank": 2, "dropout": 1}}, "model.lora.dropout 1.0 is not between 0 and 1"),
        ({"lora": {"dropout": 0.1}}, "model.lora.rank is 0, so the other settings of model.lora have no effect"),
        (
            {"llm": {"quantization": "int2"}},
            "model.llm.quantization 'int2' must be empty or one of bnb_int8, bnb_nf4, torchao_int8",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(OsmError, match=message):
        from_dict(ModelConfig, {"base_model_name": "b", **section}, "test")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    def hide(package: str) -> None:
        real = builtins.__import__

        def refuse(name: str, *args: Any, **options: Any) -> Any:
            if name.split(".")[0] == package:
                raise ImportError(name)
            return real(name, *args, **options)

        monkeypatch.setattr(builtins, "__import__", refuse)
        find = osm.models.quantize.importlib.util.find_spec
        spec = "osm.models.quantize.importlib.util.find_spec"
        monkeypatch.setattr(spec, lambda name, *args: None if name == package else find(name, *args))

    return hide


def test_without_the_packages_it_says_which(tmp_path: Path, without: Any) -> None:
    llm = tiny_llm(tmp_path / "other")
    without("peft")
    with pytest.raises(OsmError, match=r"pip install peft"):
        add_lora(llm, LoraConfig(2))
    without("bitsandbytes")
    with pytest.raises(OsmError, match=r"the package bitsandbytes: pip install bitsandbytes"):
        make(tmp_path, llm={"quantization": "bnb_nf4"})


@pytest.mark.parametrize("variant", BRIDGES.builtin)
@pytest.mark.parametrize("how", ["bnb_int8", "torchao_int8"])
def test_an_llm_in_8_bits_is_near_the_one_in_32(how: str, variant: str, tmp_path: Path) -> None:
    plain, processor = make(tmp_path, variant)
    model, _ = make(tmp_path, variant, llm={"quantization": how}, lora={"rank": 2})
    model.bridge.load_state_dict(plain.bridge.state_dict())
    inputs = batch(processor)
    expected = logits(plain, inputs)
    found = logits(model, inputs)
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    model.hold_frozen(torch.bfloat16)  # its packed weights stay as they are
    model.train()
    model(**inputs).backward()
    assert all(p.grad is not None for name, p in lora_parameters(model.llm).items() if "lora_B" in name)
    # Its files: a bridge that was trained around another LLM cannot be told from this one's.
    plain.save_pretrained(tmp_path / "plain")
    document, _ = checkpoint.read_folder(tmp_path / "plain")
    with pytest.warns(UserWarning, match=f"because of model.llm.quantization '{how}', the LLM is not checked"):
        checkpoint.check_frozen(model, document, "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.check_frozen(model, checkpoint.config_document(model), "own")


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_an_llm_in_4_bits_has_gradients_on_every_cpu(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes packs layers in eval mode for a kernel that has no gradient."""
    import bitsandbytes.nn.modules as modules

    family = replace(FAMILIES["qwen2"], changes={"hidden_size": 64, "intermediate_size": 128})  # its k_proj has a bias
    tiny_llm_of(family, tmp_path / "llm")
    found = []
    for packs in (False, True):
        monkeypatch.setattr(modules, "has_avx512bf16", lambda packs=packs: packs)
        model, processor = make(tmp_path, variant, llm={"quantization": "bnb_nf4"}, lora={"rank": 2})
        inputs = batch(processor)
        with model.bridge.opened():
            model(**inputs).backward()
        layers = [m for m in model.llm.modules() if isinstance(m, modules.Linear4bit)]
        assert layers and not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in layers)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert (
        all(torch.equal(found[1][name], value) for name, value in found[0].items())
        and found[0].keys() == found[1].keys()
    )
    assert all(value.any() for name, value in found[0].items() if "lora_B" in name)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_fused_experts_are_not_passed_over_in_silence(family: str, tmp_path: Path) -> None:
    """Neither library packs them, and LoRA does not know them all."""
    wide = {"hidden_size": 64, "intermediate_size": 128}
    chosen = FAMILIES[family]
    tiny_llm_of(replace(chosen, changes={**chosen.changes, **wide}), tmp_path / "llm")
    for how in ("bnb_int8", "bnb_nf4", "torchao_int8"):
        with pytest.raises(
            OsmError, match=r"(89|94)% of the values in its layers stay in float32 .*, most in 0.mlp.expe"
        ):
            load_llm(LlmConfig(str(tmp_path / "llm"), quantization=how))
    llm, _, _ = load_llm(LlmConfig(str(tmp_path / "llm")))
    before = fingerprint(llm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        add_lora(llm, LoraConfig(rank=2))
    told = [str(w.message) for w in caught if str(w.message).startswith("model.lora: ")]
    experts = [name for name in lora_parameters(llm) if ".experts." in name]
    assert bool(experts) == (family == "mixtral") == (not told)
    if told:
        assert (
            "of the values in the LLM's layers are in no linear layer that LoRA changes, most in 0.mlp.expert"
            in told[0]
        )
    assert fingerprint_tensors(without_lora(llm.state_dict())) == before  # it is the same LLM still
    shapes = {f"lora.{name}": value for name, value in lora_parameters(llm).items()}
    assert blank(shapes, 2, "a file").keys() == shapes.keys()


def test_what_no_kernel_takes_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for another device, and one that shows only when it is run."""
    if not torch.cuda.is_available():
        with pytest.raises(OsmError, match=r"'torchao_int4' does not work .* \(cpu\): .*; bnb_nf4 also works on a CPU"):
            make(tmp_path, llm={"quantization": "torchao_int4"})
    import bitsandbytes

    def no_kernel(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", no_kernel)
    with pytest.raises(OsmError, match="'bnb_nf4' does not work with this LLM on this machine"):
        make(tmp_path, llm={"quantization": "bnb_nf4"})


def test_an_llm_that_would_stay_as_it_is_is_refused(tmp_path: Path) -> None:
    """Packages pass over the matrices that they do not take, and say nothing."""
    with pytest.raises(
        OsmError,
        match=r"100% of the values in its layers stay in float32 \(fused experts, or layer sizes that are not",
    ):
        check_works(tiny_llm(tmp_path / "plain"), "torchao_int8")


def test_a_large_head_may_stay_as_it_is(tmp_path: Path) -> None:
    """Of small LLMs the word embeddings, which are the head as well, are most of the weights."""
    tiny_llm(tmp_path / "llm")
    config = LlamaConfig(**{**LlamaConfig.from_pretrained(tmp_path / "llm").to_dict(), "tie_word_embeddings": True})
    config.vocab_size, config.hidden_size, config.intermediate_size = 6000, 64, 64
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    llm, _, _ = load_llm(LlmConfig(str(tmp_path / "llm"), quantization="bnb_int8"))
    with pytest.raises(OsmError, match="--device cuda: .* 'bnb_int8', the LLM was quantized on cpu"):
        check_device(llm, "bnb_int8", torch.device("cuda"))
    check_device(llm, "", torch.device("cuda"))
