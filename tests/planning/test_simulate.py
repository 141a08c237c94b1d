"""Simulated steps: FLOPs and parameters of the published model, and memory against real steps."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from osm.config import from_dict
from osm.models.blank import architecture, blank_llm, known_models
from osm.models.factory import base_config
from osm.models.model_config import LlmConfig, ModelConfig
from osm.planning.fake_tensors import DeviceMode, LiveBytes, to_fake
from osm.planning.simulate import StepCost, StepRequest, simulate_naming, simulate_step, window_flops

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {
    "input_size": 112,
    "sliding_window_size": 56,
    "sliding_window_stride": 56,
    "mask_to_grid": "area",
    "tower": {"kind": "timm", "name": "vit_small_patch14_reg4_dinov2", "options": {"depth": 2}},
    "bridge": {"kind": "maskqformer", "layers": 2, "width": 64, "heads": 4, "mlp_width": 128, "instruction_dim": 16},
}


LLM = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("llm")
    (folder / "config.json").write_text(json.dumps(LLM))
    return from_dict(ModelConfig, {**SMALL, "llm": {"name": str(folder)}}, "model").with_modes(["coco"])


@pytest.fixture(scope="module")
def small(config: ModelConfig) -> StepRequest:
    return StepRequest(config, images=2, masks=2, gpu=False)


@pytest.fixture(scope="module")
def published() -> StepCost:
    """The cost of a step of 8 billion parameters, for which less than 1 GiB is allocated."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = simulate_step(StepRequest(base_config("osm"), images=1, precision="amp_bfloat16"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    return found


def test_the_published_model_has_its_size(published: StepCost) -> None:
    assert published.tower_parameters == 985_952_256 and published.llm_parameters == 6_738_423_808
    assert published.bridge_parameters == pytest.approx(189e6, rel=0.01)
    assert published.flops["tower"] == pytest.approx(13.0e12, rel=0.01)
    assert published.memory.frozen == pytest.approx(
        2 * (published.tower_parameters + published.llm_parameters), rel=0.01
    )
    assert published.memory.optimizer == 2 * published.memory.trained


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616),
    ],
)
def test_known_models_have_their_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        llm = blank_llm(LlmConfig(name=name))
    assert sum(parameter.numel() for parameter in llm.parameters()) == parameters


def test_a_local_config_comes_before_the_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Qwen/Qwen3-0.6B"
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    assert architecture(name, "model.llm.name") == known_models()[name]
    monkeypatch.chdir(tmp_path)
    assert architecture(name, "model.llm.name") == {"model_type": "llama"}


def test_live_bytes_count_storages_once_and_forget_freed_ones() -> None:
    mode, live = DeviceMode(), LiveBytes()
    with mode, live:
        one = torch.empty(10, 10)
        view = one.t()[:5]
        assert live.live == 400 and view.shape == (5, 10)
        two = one + 1
        assert live.live == live.peak == 800
        del two
        assert live.live == 400 and live.peak == 800
        del one
        assert live.live == 400  # the view keeps the storage
        del view
    assert live.live == 0


def test_host_values_stay_real() -> None:
    """Control flow that depends on masks works, and a real tensor that meets a fake one counts as fake."""
    mode = DeviceMode()
    with mode:
        images = torch.empty(3, 4)
        index = torch.tensor([0, 2])
        assert index.tolist() == [0, 2] and bool((index > 1).any())
        assert type(images[index]).__name__ == "FakeTensor" and images[index].shape == (2, 4)


def test_tied_weights_stay_tied() -> None:
    with torch.device("meta"):
        llm: Any = blank_llm(LlmConfig(name="HuggingFaceTB/SmolLM2-135M-Instruct"))
    to_fake(llm, DeviceMode())
    assert llm.lm_head.weight is llm.get_input_embeddings().weight


@pytest.mark.parametrize(
    "changes", [{}, {"checkpointing": True}, {"precision": "bf16", "masks": 4}, {"cached_tokens": True}]
)
def test_memory_is_that_of_a_real_step(small: StepRequest, changes: dict[str, Any]) -> None:
    """The CPU's profiler measures the same step with random weights. `benchmarks/plan_check.py` tries larger models."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from plan_check import measure
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    asked = replace(small, **changes)
    measured, weights = measure(asked, torch.device("cpu"))
    estimated = simulate_step(asked).memory
    assert weights > 8e7
    assert estimated.total == pytest.approx(measured, rel=0.1)


def test_shards_take_a_share(small: StepRequest) -> None:
    """With FSDP, by the code of a real run: each of 4 processes holds a quarter of everything."""
    whole = simulate_step(replace(small, gpu=True)).memory
    sharded = simulate_step(replace(small, gpu=True, fsdp="full", processes=4, processes_per_node=2)).memory
    groups = simulate_step(replace(small, gpu=True, fsdp="hybrid", processes=4, processes_per_node=2)).memory
    for part, padding in (("frozen", 0.05), ("optimizer", 0.15)):  # the first axis of a parameter may not divide evenly
        assert getattr(sharded, part) == pytest.approx(getattr(whole, part) / 4, rel=padding)
        assert getattr(groups, part) == pytest.approx(getattr(whole, part) / 2, rel=padding)
    assert not torch.distributed.is_initialized()


def test_accumulated_gradients_and_buckets_are_counted(small: StepRequest) -> None:
    one = simulate_step(small).memory
    for changes in ({"accumulates": True}, {"processes": 2}):
        more = simulate_step(replace(small, **changes)).memory
        assert more.gradients == one.trained >= one.gradients and more.total >= one.total


def test_checkpointing_costs_flops(small: StepRequest) -> None:
    plain, recomputed = (simulate_step(replace(small, checkpointing=on)).flops for on in (False, True))
    assert plain["tower"] == recomputed["tower"] and plain["llm"] == recomputed["llm"]
    assert recomputed["backward"] > plain["backward"]


def test_naming_costs_the_tower_once(config: ModelConfig) -> None:
    few, many = (simulate_naming(config, 1, masks, 2, gpu=True) for masks in (1, 8))
    assert few.tower_flops == many.tower_flops > 0
    assert many.row_flops == pytest.approx(few.row_flops, rel=0.2) and many.peak > few.peak > few.weights


def test_other_windows_are_compared() -> None:
    config = base_config("osm_dinov3_80gb")
    found = window_flops(config)
    assert list(found) == [224] and 0 < found[224] < 5.34e12
    assert window_flops(base_config("osm")) == {}  # InstructBLIP's ViT has windows of 224 pixels only
