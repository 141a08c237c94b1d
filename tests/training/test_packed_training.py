"""Training with packed layers gives the losses of plain layers, can be resumed, and runs in two processes.

The LLM reads the model's own prompt first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import free_port
from tiny_run import Workshop, finish, losses, start

from osm.models.packed_conv import PackedConv, is_packing_possible
from osm.models.packed_linear import PackedLinear, is_packing_right
from osm.training.tracking import read_log
from osm.training.train_cli import main
from osm.training.trainer import Trainer

SETTINGS = ("bridge.direct_zoom=64", "prompt='Name:'", "prompt_first=true", "bridge.direct_first=true")
FLAGS = (
    *("--config", "osm_nano"),
    *(part for setting in SETTINGS for part in ("--set", f"model.{setting}")),
    *("--masks_per_image", "2"),
    *("--lr_scheduler", "constant"),
)
SETS: dict[str, Any] = {"sets": {"pan": (2, 8)}}


def test_packed_layers_train_as_plain_ones_and_resume(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    speed_up = Trainer._speed_up

    def counted(self: Trainer, model: Any) -> None:
        speed_up(self, model)
        counts.extend(sum(isinstance(one, kind) for one in model.modules()) for kind in (PackedConv, PackedLinear))

    monkeypatch.setattr(Trainer, "_speed_up", counted)
    two = ("--num_epochs", "2")
    packed = workshop.train(tmp_path / "packed", *FLAGS, *two, **SETS)
    assert (counts[0] > 10) == is_packing_possible() and (counts[1] > 10) == is_packing_right()
    workshop.train(tmp_path / "parts", *FLAGS, **SETS)
    assert losses(workshop.train(tmp_path / "parts", *FLAGS, *two, **SETS)) == losses(packed)
    monkeypatch.setattr(Trainer, "_speed_up", lambda self, model: None)
    plain = workshop.train(tmp_path / "plain", *FLAGS, *two, **SETS)
    assert len(plain) == len(packed) == 8
    for step, (first, second) in enumerate(zip(plain, packed, strict=True)):
        # Differences of rounding grow from step to step.
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-2 if step else 1e-5)
    assert packed[0]["grad_norm"] > 0
    assert packed[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)


def test_the_prompt_cannot_be_supervised_if_it_comes_first(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(workshop.arguments(tmp_path / "run", *FLAGS, "--supervise", "all", **SETS)) == 2
    assert "training.sample.supervise 'all' cannot be combined with model.prompt_first" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_with_packed_layers_are_one_that_emulates_them(workshop: Workshop, tmp_path: Path) -> None:
    launcher = "-m torch.distributed.run --nnodes=1 --nproc_per_node=2 --master_addr=127.0.0.1"
    process = start(
        workshop.arguments(tmp_path / "two", *FLAGS, **SETS), (*launcher.split(), f"--master_port={free_port()}")
    )
    one = workshop.train(tmp_path / "one", *FLAGS, "--emulate_world_size", "2", **SETS)
    finish(process)
    two = read_log(tmp_path / "two")
    assert len(one) == len(two) == 2
    for first, second in zip(one, two, strict=True):
        assert first["names"] == second["names"]
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-4)
