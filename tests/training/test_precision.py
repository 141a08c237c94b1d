"""What a GPU run does in half precision, as far as a CPU can show it: hashes, loss scale, rotary embeddings, copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsdp_memory
import pytest
import torch
from tiny_run import Workshop

import osm
from osm.data import batch
from osm.models.checkpoint import frozen_hashes
from osm.models.lora import lora_parameters
from osm.training.optimization import hold_frozen
from osm.training.sharded_layout import read_run_document

CPU = torch.device("cpu")


def test_a_model_that_was_trained_in_fp16_loads(workshop: Workshop, tmp_path: Path) -> None:
    """Its frozen parts are hashed before they are cast: float16 rounds otherwise than the files' float32."""
    run = tmp_path / "run"
    workshop.train(run, "--precision", "fp16", sets={"pan": (2, 6)})
    for path in (run / "final", run / "checkpoint_0.pt"):
        model, _, _ = osm.load_model(path)
        assert next(model.llm.parameters()).dtype == torch.float32
    before = frozen_hashes(osm.load_model(run / "final")[0])
    model, _, _ = osm.load_model(run / "final")
    hold_frozen(model, "fp16", CPU)
    model.frozen_hashes = {}  # computed once a model
    assert frozen_hashes(model) != before  # what the hash would have been


def test_the_loss_scale_is_in_checkpoints(workshop: Workshop, tmp_path: Path) -> None:
    """A resumed fp16 run goes on with the scale it had: the losses and gradients are those of a run never stopped."""
    flags = ("--precision", "fp16", "--checkpoint_every_steps", "2", "--keep_checkpoints", "9", "--num_epochs", "2")
    whole = workshop.train(tmp_path / "run", *flags, sets={"pan": (1, 4)})
    step = tmp_path / "run" / "checkpoints" / "step_00000006"
    kept = read_run_document(step)["progress"]["scaler"]
    # The tiny model overflows at first: had it not, the default scale would do as well.
    assert kept["scale"] < 65536.0 and kept["_growth_tracker"] >= 0
    for name, path in (("step", step), ("epoch", tmp_path / "run" / "checkpoint_0.pt")):
        found = workshop.train(tmp_path / name, *flags, "--resume_from_checkpoint", str(path), sets={"pan": (1, 4)})
        for one, other in zip(whole[-len(found) :], found, strict=True):
            assert (one["loss"], one["grad_norm"], one["skipped_steps"]) == (
                other["loss"],
                other["grad_norm"],
                other["skipped_steps"],
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_frequencies_and_loras_values_stay_exact(workshop: Workshop, tmp_path: Path, dtype: torch.dtype) -> None:
    trainer = workshop.trainer(tmp_path / "run", variant="flamingo")  # the one with LoRA
    model = trainer.model
    for parameter in lora_parameters(model.llm).values():
        torch.nn.init.normal_(parameter)
    lora = {name: value.clone() for name, value in lora_parameters(model.llm).items()}
    rotary = {name: value.clone() for name, value in model.llm.named_buffers() if name.endswith("inv_freq")}
    assert rotary and lora
    model.hold_frozen(dtype)
    buffers = dict(model.llm.named_buffers())
    for name, value in rotary.items():
        assert buffers[name].dtype == torch.float32 and torch.equal(buffers[name], value)
    for name, value in lora_parameters(model.llm).items():
        assert value.dtype == torch.float32 and torch.equal(value, lora[name])
    frozen = {p.dtype for n, p in model.llm.named_parameters() if n not in lora}
    assert frozen == {dtype}


def test_held_out_samples_are_evaluated_in_the_runs_precision(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--held_out_share", "0.4", "--eval_every_steps", "1", "--precision", "amp_bf16")
    trainer = workshop.trainer(tmp_path / "run", *flags)
    seen = []
    trainer.model.bridge.register_forward_pre_hook(
        lambda *_: seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
    )
    assert trainer.held_out is not None
    with torch.no_grad():
        trainer.held_out.evaluate(trainer.task, trainer.loss)
    assert seen and set(seen) == {(True, torch.bfloat16)}


def test_tf32_is_a_setting(workshop: Workshop, tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        workshop.train(tmp_path / "run", sets={"pan": (2, 2)})
        assert torch.get_float32_matmul_precision() == before
        workshop.train(tmp_path / "other", "--tf32", sets={"pan": (2, 2)})
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_merged_batches_stay_pinned(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for pinned memory, which needs a GPU: it counts what would be copied to one without waiting."""
    trainer = workshop.trainer(tmp_path / "run", "--emulate_world_size", "2", sets={"pan": (1, 8)})
    (parts,) = [next(trainer.loaders["pan"].epoch(0))]
    pinned: set[int] = set()
    empty = torch.empty

    def allocate(*sizes: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = empty(*sizes, **options)
        if pin_memory:
            pinned.add(made.data_ptr())
        return made

    plain = batch.merge(parts)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    monkeypatch.setattr(torch, "empty", allocate)
    merged = batch.merge(parts)
    tensors = [merged.canvas, merged.masks, merged.image_index, *vars(merged.text).values()]
    assert all(tensor.data_ptr() in pinned for tensor in tensors if tensor is not None)
    for one, other in zip(
        [plain.canvas, plain.masks, *vars(plain.text).values()],
        [merged.canvas, merged.masks, *vars(merged.text).values()],
        strict=True,
    ):
        assert one is not None and other is not None and torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
def test_fsdp_keeps_a_share_of_the_model_on_every_process(workshop: Workshop, tmp_path: Path) -> None:
    """Of two processes the one that does not read the files holds at most 0.65 of what a single process holds."""
    found = fsdp_memory.measure(workshop, tmp_path, layers=36, width=512)
    assert found["model_mib"] > 250  # the model, not the noise
    assert found["share_of_model"] <= fsdp_memory.MOST, found
