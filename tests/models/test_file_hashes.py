"""Remembered hashes: of files that did not change, and never of files that did."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import osm
from osm.errors import OsmError
from osm.models import checkpoint
from osm.models.file_hashes import remembered_check, remembered_hash
from osm.shipped import shipped_folder

ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def never() -> str:
    pytest.fail("computed a second time")


def test_a_hash_is_computed_again_when_a_file_or_anything_else_changes(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for path in files:
        path.write_bytes(b"weights")
    assert remembered_hash(files, "tower", lambda: ONE) == ONE
    assert remembered_hash(files, "tower", never) == ONE
    assert remembered_hash(files, "llm", lambda: OTHER) == OTHER
    assert remembered_hash(files[:1], "tower", lambda: OTHER) == OTHER
    stat = files[1].stat()
    files[1].write_bytes(b"WEIGHTS")  # as long, and as old
    os.utime(files[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert remembered_hash(files, "tower", lambda: OTHER) == OTHER
    assert remembered_hash(files, "tower", never) == OTHER


def test_a_file_that_changes_meanwhile_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"weights")

    def change() -> str:
        path.write_bytes(b"other weights")
        return ONE

    assert remembered_hash([path], "tower", change) == ONE
    assert remembered_hash([path], "tower", lambda: OTHER) == OTHER


def test_frozen_weights_are_hashed_once_and_changed_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSM_WEIGHTS", str(tmp_path / "weights"))
    shutil.copytree(shipped_folder() / "osm_nano", tmp_path / "weights" / "osm_nano")
    model, _ = osm.create_model_and_transforms("osm_nano")
    model.save_pretrained(tmp_path / "model")
    osm.load_model(tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "fingerprint", lambda _: never())
        patch.setattr(checkpoint, "fingerprint_tensors", lambda _: never())
        osm.load_model(tmp_path / "model")
    path = tmp_path / "weights" / "osm_nano" / "tower" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    stat = path.stat()
    save_file({**tensors, name: tensors[name] + torch.ones_like(tensors[name])}, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(OsmError, match="the tower .* is not the one that the bridge was trained with"):
        osm.load_model(tmp_path / "model")


def test_a_check_runs_until_it_passes_and_again_when_a_file_changes(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for path in files:
        path.write_bytes(b"weights")
    runs: list[str] = []

    def fails() -> None:
        runs.append("fails")
        raise ValueError("bad weights")

    def passes() -> None:
        runs.append("passes")

    for _ in range(2):  # a failure is not remembered
        with pytest.raises(ValueError, match="bad weights"):
            remembered_check(files, "finite", fails)
    remembered_check(files, "finite", passes)
    remembered_check(files, "finite", fails)  # does not run
    remembered_check(files, "other", passes)
    assert runs == ["fails", "fails", "passes", "passes"]
    files[0].write_bytes(b"changed")
    with pytest.raises(ValueError, match="bad weights"):
        remembered_check(files, "finite", fails)
    remembered_check([], "finite", passes)
    remembered_check([], "finite", passes)  # without files, always
    assert runs[4:] == ["fails", "passes", "passes"]


def test_a_tower_is_tried_once_for_each_file_and_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from osm.models.towers import tower as towers
    from osm.models.towers.timm_tower import TimmTower, TimmTowerConfig

    tried: list[int] = []

    def counted(one: towers.Tower, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        tried.append(window)
        return one(torch.zeros(1, 3, window, window))

    monkeypatch.setattr(towers, "_try", counted)
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), path)
    config = TimmTowerConfig("test_vit", "folder", str(path))
    for window in (32, 32, 64, 32):
        tower = TimmTower.of(config, window)
        assert tower(torch.zeros(1, 3, window, window))[1].shape[1] == (window // tower.patch) ** 2
    assert tried == [32, 64]
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), path)
    TimmTower.of(config, 32)
    assert tried == [32, 64, 32]
