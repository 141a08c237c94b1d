"""The two folds of the training photos, which all experiments use."""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDS = 2


def fold_of(file_name: str) -> int:
    """Return the fold of a photo. CamVid's file names start with the name of the video and an underscore."""
    group = Path(file_name).stem.partition("_")[0]
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % FOLDS
