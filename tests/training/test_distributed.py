"""Which device a process takes."""

from __future__ import annotations

import pytest
import torch

from osm.errors import OsmError
from osm.training import distributed


class Gpus:
    """Stands in for torch.cuda on a machine with so many GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.calls: list[str] = []
        monkeypatch.setattr(distributed, "pick_device", torch.device)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.calls.append(str(device)))
        monkeypatch.setattr(torch.cuda, "init", lambda: self.calls.append("init"))


@pytest.mark.parametrize(
    ("device", "keep", "calls"),
    [
        ("cuda", False, ["cuda:1", "init"]),
        ("cuda:0", False, ["cuda:0", "init"]),  # two processes on one GPU
        ("cuda", True, ["init"]),
    ],
)
def test_a_device_mesh_finds_the_device_chosen(
    monkeypatch: pytest.MonkeyPatch, device: str, keep: bool, calls: list[str]
) -> None:
    """Uninitialized, a mesh would set the device to LOCAL_RANK: one that may not be there."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    gpus = Gpus(monkeypatch, 2)
    distributed.start(device, "", "env://", keep, 1)
    assert gpus.calls == calls


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    Gpus(monkeypatch, 1)
    with pytest.raises(OsmError, match="--nproc_per_node 1"):
        distributed.start("cuda", "", "env://", False, 1)
