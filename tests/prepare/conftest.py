"""Small datasets to convert."""

from __future__ import annotations

from pathlib import Path

import pytest
from convert_sets import Set


@pytest.fixture
def panoptic(tmp_path: Path) -> Set:
    return Set(tmp_path, "coco_panoptic")


@pytest.fixture
def instances(tmp_path: Path) -> Set:
    return Set(tmp_path, "coco_instances")
