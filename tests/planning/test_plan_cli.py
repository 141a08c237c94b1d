"""`osm plan`: lines, JSON, flags that make a run fit, and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from osm.planning.gpus import GPUS, gpu_of
from osm.planning.plan_cli import main
from osm.planning.simulate import StepCost, StepMemory, StepRequest
from osm.planning.training_plan import changes
from osm.training.run_config import parse

NANO = ["osm_nano", "--gpus", "2", "--no_search"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NANO, "--batch_size_coco", "4", "--train_num_samples_coco", "800", "--hours", "1"]) == 0
    said = capsys.readouterr().out
    assert "training on 2 x A100 (80 GiB, 312 TFLOP/s, 2039 GB/s)" in said and "4 windows of 128 pixels" in said
    assert "4 images with 6 masks each, fp32, a replica in each process" in said and "\nit fits\n" in said
    assert "100 optimizer steps" in said and "would be an MFU of" in said
    assert "naming on one A100: 1 image in a batch, 10 masks each, 2 modes" in said


def test_the_assumed_mix_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(NANO) == 0
    assert "no dataset is given, so the plan is for coco: batch_size 8" in capsys.readouterr().err


def test_numbers_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch_size_coco", "4", "--train_num_samples_coco", "800", "--num_epochs", "3"]
    found = planned(capsys, *NANO, *flags, "--gradient_accumulation_steps", "4", "--workers", "3")["training"]
    assert found["micro_batches"] == 3 * 102 and found["steps"] == 3 * 26  # 100 batches, rounded up to 3 workers
    assert found["images"] == 4 and found["fits"] and not found["tried"]
    assert found["hours"] == pytest.approx(found["seconds"] * found["micro_batches"] / 3600)
    assert found["checkpoint_bytes"] == 12 * found["parameters"]["trained"]


def test_shards_on_this_machine_are_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"x" * 1234)
    flags = ["--batch_size_coco", "2", "--train_num_samples_coco", "8", "--coco_shards", str(tmp_path / "{0..1}.tar")]
    assert planned(capsys, *NANO, *flags)["training"]["shard_bytes"] == {"coco": 1234}
    flags[-1] = str(tmp_path / "far" / "{0..9}.tar")
    assert planned(capsys, *NANO, *flags, "--sample_kb", "150")["training"]["shard_bytes"] == {"coco": 1_500_000_000}


def test_a_run_that_does_not_fit_gets_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """The flags that are found are those of a run that fits."""
    flags = ["--gpu_memory", "3", "--batch_size_coco", "256", "--train_num_samples_coco", "800", "--masks", "1"]
    found = planned(capsys, "osm_nano", *flags)["training"]
    assert not found["fits"] and [tried["fits"] for tried in found["tried"]] == [False] * (len(found["tried"]) - 1) + [
        True
    ]
    assert found["tried"][0]["flags"] == "--precision amp_bf16"
    last = found["tried"][-1]
    again = planned(capsys, "osm_nano", *flags[:2], *flags[4:], *_with_size(last["flags"]), "--no_search")["training"]
    assert again["fits"] and again["memory"]["peak"] == pytest.approx(last["peak"], rel=0.01)


def _with_size(flags: str) -> list[str]:
    words = flags.split()
    return words if "--batch_size_coco" in words else [*words, "--batch_size_coco", "256"]


def test_a_plan_for_a_cpu_has_no_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["osm_nano", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("training on a CPU") and "GPU's peak" not in said and "naming" not in said


def test_a_config_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {tower: {kind: random}, llm: {name: Qwen/Qwen3-0.6B}, input_size: 56, "
        "sliding_window_size: 28, sliding_window_stride: 28}\n"
    )
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "vocab_size": 100}'
    )
    found = planned(capsys, str(file), "--no_search", "--set", f"model.llm.name={tmp_path / 'llm'}")["training"]
    assert found["parameters"]["llm"] < 100_000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["osm2"], "config 'osm2'"),
        (["osm_nano", "--gpu", "H10"], "did you mean 'H100'?"),
        (["osm_nano", "--gpus", "0"], "--gpus 0 is not between 1 and 100000"),
        (["osm_nano", "--gpu_memory", "0.5"], "--gpu_memory 0.5 is not between 1 and 10000"),
        (["osm_nano", "--mfu", "2"], "--mfu 2 must be greater than 0 and at most 1"),
        (["osm_nano", "--hours", "0"], "--hours 0 must be greater than 0"),
        (["osm_nano", "--config", "osm"], "osm_nano and --config osm name two configs"),
        (["osm_nano", "--masks", "0", "--no_search"], "--masks 0 is not between 1 and 10000"),
        (["osm_nano", "--fsdp", "--precision", "fp16"], "--fsdp cannot be combined with --precision fp16"),
        (
            ["osm_small", "--set", "model.llm.name=Qwen/Qwen3-0.6"],
            "model.llm.name 'Qwen/Qwen3-0.6': the architecture of this model is not known without its weights",
        ),
        (
            ["osm_nano", "--batch_size_coco", "2", "--train_num_samples_coco", "8", "--batch_size_lvis", "4"],
            "all datasets must have the same number of batches per epoch",
        ),
    ],
)
def test_mistakes(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert said in capsys.readouterr().err


def test_memory_and_peak_can_be_given() -> None:
    gpu = gpu_of("A100", 40, 300)
    assert (gpu.gib, gpu.tflops, gpu.gb_per_s) == (40, 300, GPUS["A100"].gb_per_s)
    assert 35 * 2**30 < gpu.usable < 40 * 2**30


def test_a_sharded_run_keeps_its_strategy() -> None:
    """No change turns hybrid sharding into full sharding, and none is tried twice."""
    flags = ["--fsdp", "--fsdp_sharding_strategy", "hybrid", "--batch_size_coco", "4", "--coco_shards", "x.tar"]
    run = parse(["--config", "osm_nano", *flags])
    asked = StepRequest(run.model, 4, fsdp="hybrid", processes=8, processes_per_node=4)
    assert asked.shards == 4 and replace(asked, fsdp="full").shards == 8 and replace(asked, processes=1).shards == 1
    cost = StepCost(StepMemory(1, 1, 1, 1, 1), dict.fromkeys(("tower", "bridge", "llm", "backward"), 1), 1, 1, 1, 1, 4)
    found = list(changes(run, asked, cost))
    assert {change.request.fsdp for change in found} == {"hybrid"}
    assert len(found) == 4 and all(found[k].request != found[j].request for k in range(4) for j in range(k))
    assert not any("--fsdp" in change.flags or "  " in change.flags for change in found)
