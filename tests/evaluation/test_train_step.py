"""`benchmarks/train_step.py`: its document in both of its modes, and its count of FLOPs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from processes import PATIENCE_S
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from osm.config import from_dict
from osm.errors import OsmError
from osm.models.bridges import BRIDGES
from osm.models.model_config import BridgeConfig
from osm.training.task import TrainTask

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# What a machine with nothing but torch and transformers lacks. None in sys.modules makes an import of it fail.
LACKING = ("timm", "pycocotools", "pybase64", "wandb", "matplotlib", "gguf", "accelerate")
LACKING += ("peft", "bitsandbytes", "torchao", "open_clip")
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({LACKING}))
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SMALL = ["--device", "cpu", "--masks", "1,2", "--batch_size", "2", "--rounds", "1"]
PARTS = {"copy", "pixels", "tower", "masks", "bridge", "llm", "backward", "optimizer", "other"}
COUNTED = {"tower", "bridge", "llm", "backward", "total"}


@pytest.fixture(scope="module")
def train_step() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import train_step  # type: ignore[import-not-found]

        yield train_step


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The published model's config, but for 4 windows instead of 25."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump({"model": {"base_model_name": "none/of-it", "input_size": 448}}))
    return str(path)


def document_of(*arguments: str, runner: tuple[str, ...] = ()) -> dict[str, Any]:
    command = [sys.executable, *runner, str(BENCHMARKS / "train_step.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_case(case: dict[str, Any], masks: int) -> None:
    assert (case["masks_per_image"], case["names_per_step"]) == (masks, 2 * masks)
    assert case["names_per_second"] > 0 and case["warm_up_seconds"] > 0
    lowest, highest = case["step_seconds_seen"]
    assert 0 < lowest <= case["step_seconds"] <= highest
    assert set(case["part_seconds"]) == set(case["shares"]) == PARTS
    assert sum(case["shares"].values()) == pytest.approx(1, abs=0.01)
    assert all(case["shares"][name] > 0 for name in PARTS)
    assert case["peak_memory_gib"] is None and 0 < case["loss"] < 100
    tflop = case["floor"]["tflop"]
    assert set(tflop) == COUNTED and min(tflop.values()) > 0
    assert tflop["total"] == pytest.approx(sum(tflop.values()) / 2, rel=1e-3)


def test_a_config_with_weights() -> None:
    document = document_of("--config", "osm_nano", *SMALL)
    told = ("benchmark", "config", "weights", "device", "precision", "threads", "images_per_step", "peak_tflops")
    assert [document[name] for name in told] == ["train_step", "osm_nano", "pretrained", "cpu", "fp32", 1, 2, None]
    assert all(document["parameters"][name] > 0 for name in ("tower", "llm", "trained"))
    assert len(document["cases"]) == 2
    for case, masks in zip(document["cases"], (1, 2), strict=True):
        check_case(case, masks)
        assert (case["compile"], case["checkpointing"], case["mfu"]) == ("off", "off", None)


@pytest.mark.parametrize("checkpointing", ["on", pytest.param("off,on", marks=pytest.mark.long)])
def test_random_weights_on_a_machine_with_little_installed(config: str, checkpointing: str) -> None:
    arguments = ["--config", config, "--random_weights", "--tiny", "--peak_tflops", "0.5", *SMALL]
    arguments += ["--masks", "2", "--compile_backend", "eager", "--checkpointing", checkpointing]
    document = document_of(*arguments, runner=("-c", WITHOUT))
    assert (document["weights"], document["tiny"], document["precision"]) == ("random", True, "amp_bf16")
    found = [(case["compile"], case["checkpointing"]) for case in document["cases"]]
    assert found == [(switch, other) for switch in ("off", "on") for other in checkpointing.split(",")]
    for case in document["cases"]:
        check_case(case, 2)
        assert case["compiled"] == (["tower", "llm"] if case["compile"] == "on" else [])
        floor = case["floor"]
        assert floor["seconds"]["total"] == pytest.approx(floor["tflop"]["total"] / 0.5, rel=1e-3)
        assert floor["names_per_second"] == pytest.approx(case["names_per_step"] / floor["seconds"]["total"], rel=1e-2)
        assert case["mfu"] == pytest.approx(floor["seconds"]["total"] / case["step_seconds"], rel=1e-2)


def test_flops_of_the_published_size(train_step: ModuleType) -> None:
    """One image costs the tower 13 TFLOP; a mask costs what little the rest is."""
    models = train_step.models
    config = models.published_base("osm")
    model = models.random_model(config, False, torch.device("meta"), torch.float32)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.tower, model.bridge, model.llm)]
    assert [round(size / 1e9, 2) for size in sizes] == [0.99, 0.19, 6.74]
    task = TrainTask(model.train(), models.random_processor(config))
    one, four = (
        {
            name: flops / 1e12
            for name, flops in train_step.step_flops(
                task, models.make_batches(task.processor, 1, masks, 1, "all")[0]
            ).items()
        }
        for masks in (1, 4)
    )
    assert one["tower"] == four["tower"] == pytest.approx(13.02, abs=0.01)
    assert 14 < sum(one.values()) < 16
    # Two FLOPs a weight and token: 33 of the bridge's and about 14 of the text; backward goes through the inputs alone.
    assert 2 * 6.6e9 * 43e-12 < one["llm"] < 2 * 6.7e9 * 52e-12
    assert one["llm"] < one["backward"] < 2 * one["llm"]
    assert 3.5 < four["llm"] / one["llm"] < 6
    assert one["bridge"] < four["bridge"] < 4 * one["bridge"]  # an image's keys and values are made once


@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_the_count_on_the_meta_device_is_that_of_a_real_step(train_step: ModuleType, config: str, variant: str) -> None:
    models = train_step.models
    bridge = from_dict(BridgeConfig, {"kind": variant}, "test")
    sizes = replace(models.published_base(config), bridge=bridge, mask_to_grid="area")
    real, meta = (
        models.random_model(sizes, True, torch.device(name), torch.float32).train() for name in ("cpu", "meta")
    )
    processor = models.random_processor(sizes)
    batch = models.make_batches(processor, 2, 3, 1, "answer")[0]
    counted = train_step.step_flops(TrainTask(meta, processor), batch)
    step = train_step.TrainStep(TrainTask(real, processor), "fp32", torch.device("cpu"))
    # Not fused: the counter does not know each of the fused kernels, and one may compute some of it twice.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        meter = train_step.Meter(counter.get_total_flops, train_step.PARTS)
        with train_step.watched(step.task, meter):
            step(batch, meter.part)
        assert counted == meter.take()


@pytest.fixture
def small(train_step: ModuleType, config: str) -> Any:
    """A benchmark of one case with 1 mask and one with 2, in this process."""
    arguments = ["--config", config, "--random_weights", "--tiny", *SMALL, "--compile_backend", "eager"]
    return lambda *more: train_step.Benchmark(train_step.parse([*arguments, *more]))


def test_a_case_without_enough_memory_is_reported(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = small("--compile", "off")
    whole = benchmark.step.task.forward

    def forward(batch: Any) -> Any:
        if len(batch) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it.")
        return whole(batch)

    monkeypatch.setattr(benchmark.step.task, "forward", forward)
    failed, done = benchmark.cases()
    assert failed["error"] == "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "step_seconds" not in failed and failed["floor"]["tflop"]["total"] > 0
    check_case(done, 2)


def test_where_the_llm_cannot_be_compiled_the_tower_is(
    small: Any, train_step: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = small("--compile", "on", "--masks", "2")
    of_the_llm = {id(module) for module in benchmark.step.task.model.llm.modules()}
    real = train_step.changed_layers

    def changed_layers(changed: list[Any], change: Any) -> Any:
        if id(changed[0]) in of_the_llm:
            raise RuntimeError("no such backend for this")
        return real(changed, change)

    monkeypatch.setattr(train_step, "changed_layers", changed_layers)
    (case,) = benchmark.cases()
    check_case(case, 2)
    assert case["compiled"] == ["tower"]
    assert case["failed_to_compile"] == {"tower+llm": "RuntimeError: no such backend for this"}


def test_a_compiler_that_is_not_there_is_reported(small: Any) -> None:
    (case,) = small("--compile", "on", "--masks", "1", "--compile_backend", "nonesuch").cases()
    assert "nonesuch" in case["error"] and set(case["failed_to_compile"]) == {"tower+llm", "tower"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masks", "1,x"], "--masks '1,x' must be numbers from 1 on"),
        (["--masks", "0"], "--masks '0' must be numbers from 1 on"),
        (["--rounds", "0"], "--rounds 0 must be 1 or more"),
        (["--batch_size", "0"], "--batch_size 0 must be 1 or more"),
        (["--peak_tflops", "0"], "--peak_tflops 0.0 must be over 0"),
        (["--precision", "fp8"], "--precision 'fp8' is not one of fp32, amp_bf16, bf16"),
        (["--compile", "maybe"], "--compile 'maybe' must be off, on, or off,on"),
        (["--checkpointing", ""], "--checkpointing '' must be off, on, or off,on"),
        (["--tiny"], "--tiny shrinks the published size: it needs --random_weights"),
    ],
)
def test_flags_that_are_not_right(train_step: ModuleType, arguments: list[str], message: str) -> None:
    with pytest.raises(OsmError) as raised:
        train_step.parse(arguments)
    assert str(raised.value).startswith(message)


def test_random_weights_are_an_instructblips() -> None:
    command = [sys.executable, str(BENCHMARKS / "train_step.py"), "--config", "osm_nano", "--random_weights"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: --config osm_nano is not built around an InstructBLIP")
