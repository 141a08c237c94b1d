"""One process, DDP, FSDP full and hybrid: the same losses on the same samples. What saves memory changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PATIENCE_S, free_port
from tiny_run import Workshop, finish, launcher, start

from osm.models.bridges import BRIDGES
from osm.models.bridges.gated import repeated_blocks
from osm.models.weights import fingerprint
from osm.training.task import TrainTask
from osm.training.tracking import read_log

# Two sets with texts of different lengths, accumulation 3, five steps.
SETS = {"pan": (1, 60), "inst": (2, 120)}
MORE = ("--gradient_accumulation_steps", "3", "--emulate_world_size", "4")


def agree(first: list[dict[str, Any]], second: list[dict[str, Any]], steps: int = 5) -> None:
    assert len(first) == len(second) == steps
    for one, other in zip(first, second, strict=True):
        assert one["names"] == other["names"] and {k for k in one if "loss" in k} == {k for k in other if "loss" in k}
        for name, value in one.items():
            if name.startswith(("loss", "grad")):
                assert other[name] == pytest.approx(value, abs=1e-5, rel=1e-5), (one["step"], name)


# One of the bridges with zoom windows, for which the tower runs a second time, and one with known names.
FLAGS_OF = {
    "maskqformer": (),
    "flamingo": ("--set", "model.bridge.direct_tokens=2", "--set", "model.bridge.direct_zoom=28"),
    "pooled": ("--known_names", "--supervise", "answer"),
}
LAYOUTS = {
    "ddp": (),
    "full": ("--fsdp", "--gradient_checkpointing"),
    "hybrid": ("--fsdp", "--fsdp_sharding_strategy", "hybrid", "--fsdp_shard_size", "2"),
}
# In CI, the other bridges run in one layout only.
LAYOUTS_OF = {
    "maskqformer": tuple(LAYOUTS),
    "flamingo": tuple(LAYOUTS) if os.environ.get("OSM_LONG_TESTS") else ("full",),
    "pooled": tuple(LAYOUTS) if os.environ.get("OSM_LONG_TESTS") else ("full",),
}
# Several runs in the same processes, because processes take long to start. Each run has a rendezvous of its own.
ONE_AFTER_ANOTHER = """
import json, sys
from osm.training.train_cli import main

for arguments in json.load(open(sys.argv[1])):
    assert main(arguments) == 0
"""


@pytest.fixture(scope="module")
def layouts(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs each bridge in its layouts, in folders `BRIDGE_LAYOUT`. What the runs print is in the file `said`."""
    folder = tmp_path_factory.mktemp("layouts")
    runs = []
    for variant in BRIDGES.builtin:
        for name in LAYOUTS_OF[variant]:
            run = folder / f"{variant}_{name}"
            url = f"file://{run}.rendezvous" if runs else f"tcp://127.0.0.1:{free_port()}"
            more = (*MORE, *FLAGS_OF[variant], *LAYOUTS[name], "--dist-url", url)
            runs.append(workshop.arguments(run, *more, sets=SETS, variant=variant))
    (folder / "runs.json").write_text(json.dumps(runs))
    script = folder / "one_after_another.py"
    script.write_text(ONE_AFTER_ANOTHER)
    (folder / "said").write_text(finish(start([str(folder / "runs.json")], launcher(4), script), 2 * PATIENCE_S))
    return folder


@pytest.mark.slow
@pytest.mark.layouts
@pytest.mark.parametrize("variant", BRIDGES.builtin)
def test_every_layout_trains_alike(workshop: Workshop, layouts: Path, tmp_path: Path, variant: str) -> None:
    """With dropout, too: what is dropped depends on the sample stream, not on the process."""
    one = workshop.train(tmp_path / "one", *MORE, *FLAGS_OF[variant], sets=SETS, variant=variant)
    said = (layouts / "said").read_text()
    assert said.count("4 process(es) on cpu") == said.count("epoch 0 step 1:") == sum(map(len, LAYOUTS_OF.values()))
    for name in LAYOUTS_OF[variant]:
        run = layouts / f"{variant}_{name}"
        agree(one, read_log(run))
        ends = [torch.load(folder / "checkpoint_0.pt", weights_only=True) for folder in (tmp_path / "one", run)]
        for key, value in ends[0]["model_state_dict"].items():
            if not key.endswith("key.bias"):  # softmax ignores it: Adam makes steps of its gradient's rounding
                torch.testing.assert_close(ends[1]["model_state_dict"][key], value, atol=1e-4, rtol=1e-3, msg=key)
        assert ends[0]["config"] == ends[1]["config"]  # with the hashes of the frozen parts, taken before the shards
        for place, own in ends[0]["optimizer_state_dict"]["state"].items():
            for key, value in own.items():
                assert ends[1]["optimizer_state_dict"]["state"][place][key].shape == value.shape


@pytest.mark.slow
def test_shards_hold_a_part_of_everything(workshop: Workshop, tmp_path: Path) -> None:
    """Under FSDP no process keeps all of the frozen blocks, the trained parameters or the optimizer's state."""
    script = tmp_path / "shares.py"
    script.write_text(SHARES)
    arguments = workshop.arguments(tmp_path / "run", "--fsdp", sets={"pan": (2, 8)})
    said = finish(start(arguments, launcher(2), script=script))
    lines = [line for line in said.splitlines() if line.startswith("share")]
    assert len(lines) == 2
    for line in lines:
        trained, optimizer, frozen = (float(value) for value in line.split()[1:])
        assert 0.4 < trained < 0.6 and 0.4 < optimizer < 0.6 and frozen < 0.75


SHARES = """
import sys, torch
from torch.distributed.tensor import DTensor
from osm.training import distributed
from osm.training.run_config import parse
from osm.training.trainer import Trainer
from osm.training.parallel import exchanged_by_gloo, full_tensor, full_tensor_through_cpu

def local(t):
    return t.to_local().numel() if isinstance(t, DTensor) else t.numel()

def share(tensors):
    return sum(local(t) for t in tensors) / sum(t.numel() for t in tensors)

def main():
    run = parse(sys.argv[1:])
    world = distributed.start("cpu", "", "env://", False, 1)
    trainer = Trainer(run, world)
    trainer.train()
    trainer.task.reshard()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
    state = [v for own in trainer.optimizer.state.values() for k, v in own.items() if k != "step"]
    line = f"share {share(trained)} {share(state)} {share(frozen)}\\n"
    sys.stdout.write(line)  # as a whole: both processes write to one pipe
    sys.stdout.flush()
    # As on GPUs whose gradients gloo exchanges.
    shards = [t for t in (*trained, *state, *frozen) if isinstance(t, DTensor)]
    assert shards and all(exchanged_by_gloo(t.device_mesh) for t in shards)
    assert all(torch.equal(full_tensor_through_cpu(t), full_tensor(t)) for t in shards)
    return world

main().close()  # all shards are freed before the interpreter ends
"""


def test_gradient_checkpointing_changes_nothing_but_memory(workshop: Workshop, tmp_path: Path) -> None:
    plain = workshop.train(tmp_path / "plain", sets={"pan": (2, 6)})
    saved = workshop.train(tmp_path / "saved", "--gradient_checkpointing", sets={"pan": (2, 6)})
    agree(plain, saved, 3)


def test_gradient_checkpointing_recomputes(workshop: Workshop, tmp_path: Path) -> None:
    """Fewer activations are kept for the backward: counted, not believed."""
    kept = {}
    for flags in ((), ("--gradient_checkpointing",)):
        trainer = workshop.trainer(tmp_path / "run", *flags, sets={"pan": (2, 6)}, dropout=0.0)
        batch = next(iter(trainer.loaders["pan"].epoch(0)))[0]
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.task(batch)
        kept[flags] = total
    assert kept[("--gradient_checkpointing",)] < 0.5 * kept[()]


def test_gradients_are_exchanged_once_a_step(workshop: Workshop, tmp_path: Path) -> None:
    """With accumulation 3 and two streams a process, one of six backwards exchanges them."""
    script = tmp_path / "count.py"
    script.write_text(EXCHANGES)
    for flags in ((), ("--fsdp",)):
        run = tmp_path / f"run{len(flags)}"
        more = ("--gradient_accumulation_steps", "3", "--emulate_world_size", "4", *flags)
        said = finish(start(workshop.arguments(run, *more, sets={"pan": (1, 12)}), launcher(2), script=script))
        assert said.count("exchanges 1 of 6") == 2, said


EXCHANGES = """
import sys
from osm.training import step
from osm.training.train_cli import main

seen = []
exchanges_gradients = step.exchanges_gradients

def counted(module, exchange):
    seen.append(exchange)
    return exchanges_gradients(module, exchange)

step.exchanges_gradients = counted
assert main(sys.argv[1:]) == 0
print("exchanges", sum(seen), "of", len(seen), flush=True)
"""


def test_one_process_has_nothing_to_share_out(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.train(tmp_path / "run", "--fsdp", sets={"pan": (2, 4)})
    assert "whole: --fsdp has only one process" in capsys.readouterr().out


def test_blocks_are_found(workshop: Workshop, tmp_path: Path) -> None:
    trainer = workshop.trainer(tmp_path / "run")
    llm = repeated_blocks(trainer.model.llm)
    assert [type(block).__name__ for block in llm] == ["LlamaDecoderLayer"] * len(llm) and len(llm) > 1
    assert repeated_blocks(torch.nn.Linear(2, 2)) == []
    assert isinstance(trainer.task, TrainTask) and fingerprint(trainer.model.llm)
