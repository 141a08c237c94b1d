"""A tiny panoptic set, made where a test wants it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mugs import predict, write_mugs
from panoptic_pets import write_panoptic

from osm.datasets.table import Dataset

# `import fake_namer`, whichever import mode pytest runs in.
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def pets(tmp_path: Path) -> Dataset:
    return write_panoptic(tmp_path / "pets")


@pytest.fixture
def pets_yaml(pets: Dataset, tmp_path: Path) -> Path:
    """The set as a user's YAML."""
    path = tmp_path / "my.yaml"
    path.write_text(
        "datasets:\n  pets:\n    form: coco_panoptic\n    title: Pets\n    image_dir: pets/images\n"
        "    mask_dir: pets/masks\n    json_file: pets/panoptic.json\n"
    )
    return path


@pytest.fixture
def mugs(pets: Dataset) -> Dataset:
    """The panoptic set with the classes of the scripted answers in `mugs.py`."""
    return write_mugs(pets)


@pytest.fixture
def folder(mugs: Dataset, tmp_path: Path) -> Path:
    """A folder with the scripted predictions of `mugs`."""
    return predict(mugs, tmp_path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, to which the paths in `configs/benchmark.yaml` are relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
