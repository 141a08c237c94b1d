"""What a build checks of an LLM: what is wrong is refused, what is right but for a shortcut is used without it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from families_llms import FAMILIES, tiny_llm_of
from tiny import tiny_llm, tiny_model_section
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from osm.config import from_dict
from osm.errors import OsmError
from osm.models import factory, self_check
from osm.models.bridges.gated import decoder_layers
from osm.models.factory import build
from osm.models.llm_forward import LlmSupport, llm_support
from osm.models.model_config import ModelConfig
from osm.models.osm import OmniScientModel


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checks"


def make(folder: Path, variant: str = "maskqformer", family: str = "", **changes: Any) -> OmniScientModel:
    if family and not (folder / "llm").is_dir():
        tiny_llm_of(FAMILIES[family], folder / "llm")
    section = tiny_model_section(folder, variant=variant)
    section["llm"] |= changes.pop("llm", {})
    torch.manual_seed(0)
    return build(from_dict(ModelConfig, {**section, **changes}, "test"))[0]


@pytest.mark.parametrize(
    ("family", "variant", "why"),
    [
        ("gemma3n_text", "maskqformer", "the LLM's logits for token ids differ from its logits for the embeddings"),
        ("gemma3n_text", "flamingo", "the LLM's logits for token ids differ from its logits for the embeddings"),
        ("gemma4_text (per-layer embeddings)", "maskqformer", "it does not run on embeddings that are no token's"),
        ("bert (encoder)", "maskqformer", "the LLM attends to later tokens"),
        ("bert (encoder)", "flamingo", "the LLM attends to later tokens"),
        ("ctrl", "maskqformer", "the LLM modifies its input embeddings in place"),
    ],
)
def test_an_llm_that_would_be_wrong_is_refused_when_it_is_built(
    family: str, variant: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(OsmError, match=rf"model.llm.name .* cannot be used with the bridge '{variant}': {why}"):
        make(tmp_path, variant, family)
    assert make(tmp_path, variant, family, llm={"self_check": False}).config.llm.self_check is False


@pytest.mark.parametrize(
    ("family", "support", "said"),
    [
        ("llama", LlmSupport(), ""),
        ("mamba", LlmSupport(chunks=False), "its cache accepts only one token at a time"),
        ("minimax", LlmSupport(cache=False, generate=False), "its cache is missing or wrong, .* correct, but slow"),
        ("rwkv", LlmSupport(cache=False, generate=False), "its cache is missing or wrong"),
        ("bamba", LlmSupport(generate=False), "transformers' generate is wrong for it"),
    ],
)
def test_a_shortcut_that_is_wrong_is_not_used(family: str, support: LlmSupport, said: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make(tmp_path, family=family)
    assert llm_support(model.llm) == support
    told = [str(w.message) for w in caught if "correct, but slow" in str(w.message)]
    assert len(told) == bool(said)
    if said:
        with pytest.warns(UserWarning, match=said):
            make(tmp_path, family=family)  # its verdict was kept, and is told again


class Blocks(nn.Linear):
    """A kernel that was made for inference: what it returns has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Halves(torch.autograd.Function):
    """A backward that is not the forward's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0.5 * gradient


@pytest.mark.parametrize("variant", ["maskqformer", "flamingo"])
def test_gradients_that_do_not_pass_are_refused(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = factory.load_llm

    def broken(*args: Any) -> Any:
        llm, *rest = load(*args)
        for layer in llm.model.layers:
            layer.self_attn.k_proj.__class__ = Blocks
        return llm, *rest

    monkeypatch.setattr(factory, "load_llm", broken)
    with pytest.raises(
        OsmError, match=r"gradients do not flow through \d of the LLM's linear layers \(the first is model.layers"
    ):
        make(tmp_path, variant)

    def halved(*args: Any) -> Any:
        llm, *rest = load(*args)
        llm.model.norm.register_forward_hook(lambda module, args, out: Halves.apply(out))
        return llm, *rest

    monkeypatch.setattr(factory, "load_llm", halved)
    with pytest.raises(OsmError, match=r"the gradient of the LLM's loss is [\d.e+-]+, but the finite difference is"):
        make(tmp_path, variant)


def test_gated_blocks_stand_before_the_layers_that_the_config_counts(tmp_path: Path) -> None:
    """Zamba2's shared blocks hold lists of adapters that have more weights than its layers."""
    model = make(tmp_path, "flamingo", "zamba2")
    layers = model.llm.model.layers
    assert decoder_layers(model.llm) == list(layers) and len(layers) == 6 == len(model.bridge.gated.blocks)
    assert all(layer._forward_pre_hooks for layer in layers)


def test_blocks_that_reach_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooked to modules that do not run, they would train without a gradient."""
    tiny_llm(tmp_path / "llm")
    unused = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    monkeypatch.setattr("osm.models.bridges.gated.decoder_layers", lambda llm: list(unused))
    with pytest.raises(OsmError, match="it has no gradient|no gradient reaches GatedBlock 0 of the bridge"):
        make(tmp_path, "flamingo")


def test_a_verdict_is_kept_for_an_llm_and_a_bridge(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path)
    kept = list(own_cache.glob("*.json"))
    assert len(kept) == 1 and json.loads(kept[0].read_text()) == {"cache": True, "chunks": True, "generate": True}
    runs: list[OmniScientModel] = []
    examine = self_check.examine
    monkeypatch.setattr(self_check, "examine", lambda model: runs.append(model) or examine(model))
    make(tmp_path)
    assert not runs

    changed = LlamaForCausalLM.from_pretrained(tmp_path / "llm")
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    changed.save_pretrained(tmp_path / "llm")
    make(tmp_path)  # another LLM of the same name
    make(tmp_path, "flamingo")
    make(tmp_path, lora={"rank": 2})
    assert len(runs) == 3 and len(list(own_cache.glob("*.json"))) == 4
    for broken in ("", "[]", '{"cache": 1, "chunks": true, "generate": true}', "{"):
        kept[0].write_text(broken)
        assert self_check._read(kept[0]) is None
    key = self_check.check_key(model)
    monkeypatch.setattr(self_check, "installed_version", lambda package: "9.9")
    assert self_check.check_key(model) != key


def test_a_cache_folder_that_cannot_be_written_costs_no_more_than_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "file"))
    assert llm_support(make(tmp_path).llm) == LlmSupport()


def test_the_check_draws_nothing_and_changes_nothing(tmp_path: Path) -> None:
    """A bridge's start follows torch's seed, checked or not."""
    checked = make(tmp_path, "flamingo")
    after = torch.rand(1)
    trusted = make(tmp_path, "flamingo", llm={"self_check": False})
    assert torch.equal(after, torch.rand(1))
    for name, value in trusted.state_dict().items():
        assert torch.equal(checked.state_dict()[name], value), name
    assert not any(p.grad is not None for p in checked.parameters())
    assert not any(block.gate.detach().any() for block in checked.bridge.gated.blocks)
